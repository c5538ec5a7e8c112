//! How a draft is trained.

use std::path::PathBuf;

use pleach::checkpoint::source::{DEFAULT_MODEL, Source};
use pleach::cli::DeviceChoice;
use serde::Serialize;

use super::loss::Loss;
use crate::shared::model_args::ModelArgs;

/// Trains a pruned model on the answers of the unpruned one (self-data distillation).
///
/// With --loss kl (the default where the answers have a .topk file) it learns the unpruned model's
/// distribution at every token of the answers, forward KL over its likeliest tokens; with --loss ce the
/// answers' tokens alone. reverse-kl and tv (total variation, the chance that a drawn token is rejected)
/// learn from the distribution too, and mixtures are weighted sums: --loss kl=0.5,tv=0.5. adaptive is a mixture of
/// kl and tv that turns to tv at every token by as much as the draft is accepted there. All block weights are
/// trained, or with --lora-rank a low-rank addition to each matrix. Embedding and head stay as they are; the
/// head is trimmed to the tokens that occur.
///
/// An attached drafter (`prune --draft-kind attached`) also reads what its --target computed at every position of the
/// answers, and its chains are unrolled over --chain-steps.
///
/// The target is read on --device; in a build with `--features cuda` training computes there too.
///
/// Writes DIR/model, a Hugging Face folder, DIR/losses.csv and DIR/loss.svg, and with --lora-rank
/// DIR/adapter, the additions alone in PEFT's format. A run that is started again
/// goes on at its last checkpoint.
#[derive(Debug, Clone, clap::Args, Serialize)]
pub(crate) struct Args {
    /// The pruned model: a folder written by `pleach-tools prune`.
    #[arg(long, value_name = "DIR")]
    pub(crate) model: PathBuf,
    /// Answers, written by `pleach-tools generate`; --data may be given several times.
    #[arg(long, value_name = "JSONL", required = true)]
    pub(crate) data: Vec<PathBuf>,
    /// Folder to write.
    #[arg(long, env = "PLEACH_OUT", value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// What to learn: kl, reverse-kl, tv, a mixture like kl=0.5,tv=0.5, adaptive, or ce.
    #[arg(long, value_name = "LOSS")]
    pub(crate) loss: Option<Loss>,
    /// Train low-rank additions of this rank instead of all weights (LoRA).
    #[arg(long, value_name = "R")]
    pub(crate) lora_rank: Option<usize>,
    /// Strength of the low-rank additions.
    #[arg(long, default_value_t = 32.0)]
    pub(crate) lora_alpha: f32,
    /// Train for so many minutes.
    #[arg(long, conflicts_with_all = ["steps", "epochs"])]
    pub(crate) minutes: Option<f64>,
    /// Train for so many steps.
    #[arg(long, conflicts_with = "epochs")]
    pub(crate) steps: Option<u32>,
    /// Train for so many passes over the answers; part of one counts.
    #[arg(long)]
    pub(crate) epochs: Option<f64>,
    /// Rows of the draft's head: the tokens that carry most of the target's probability.
    #[arg(long, default_value_t = 8192, value_name = "TOKENS")]
    pub(crate) draft_vocab: usize,
    /// Highest step size of AdamW. Default: 2e-3, 5e-4 with --lora-rank.
    #[arg(long)]
    pub(crate) learning_rate: Option<f32>,
    /// Share of the run in which the step size rises; it falls as a cosine afterwards.
    #[arg(long, default_value_t = 0.03)]
    pub(crate) warmup: f64,
    /// Decay of the matrices.
    #[arg(long, default_value_t = 0.01)]
    pub(crate) weight_decay: f32,
    /// Norm that gradients are clipped to.
    #[arg(long, default_value_t = 1.0)]
    pub(crate) max_norm: f32,
    /// Tokens in one batch.
    #[arg(long, default_value_t = 1536)]
    pub(crate) batch_tokens: usize,
    /// Batches in one step.
    #[arg(long, default_value_t = 2)]
    pub(crate) accumulation: usize,
    /// Train through the rounding of this format, in which the draft will be packed
    /// (straight-through gradients).
    #[arg(long, value_enum, default_value = "q4_0")]
    pub(crate) round_to: Rounding,
    /// Share of the answers kept apart for the validation loss.
    #[arg(long, default_value_t = 0.02)]
    pub(crate) validation: f64,
    /// Seconds between checkpoints.
    #[arg(long, env = "PLEACH_CHECKPOINT_SECONDS", default_value_t = 120.0)]
    pub(crate) checkpoint_seconds: f64,
    /// Order of the answers, and the start of low-rank additions.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Threads that compute. Default: all that the processor runs at a time, or one a core where that is measured to
    /// be faster.
    #[arg(long, env = "PLEACH_THREADS")]
    pub(crate) threads: Option<usize>,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) device: DeviceChoice,
    /// The model that an attached drafter reads.
    #[arg(long, value_name = "SOURCE", default_value = DEFAULT_MODEL)]
    pub(crate) target: Source,
    /// Where fetched models are kept.
    #[arg(long, env = "PLEACH_CACHE_DIR")]
    pub(crate) cache_dir: Option<PathBuf>,
    /// Steps that the chains of an attached drafter are unrolled over.
    #[arg(long, default_value_t = 3)]
    pub(crate) chain_steps: usize,
}

impl Args {
    /// How a draft is trained, and where; how long, and with what seed, is still to be said.
    pub(crate) fn for_draft(
        target: &ModelArgs,
        device: DeviceChoice,
        model: PathBuf,
        data: PathBuf,
        out: PathBuf,
    ) -> Self {
        Self {
            target: target.model.clone(),
            cache_dir: target.cache_dir.clone(),
            device,
            chain_steps: 3,
            model,
            data: vec![data],
            out,
            loss: Some(Loss::KL),
            lora_rank: None,
            lora_alpha: 32.0,
            minutes: None,
            steps: None,
            epochs: None,
            draft_vocab: 8192,
            learning_rate: None,
            warmup: 0.03,
            weight_decay: 0.01,
            max_norm: 1.0,
            batch_tokens: 1536,
            accumulation: 2,
            round_to: Rounding::Q4_0,
            validation: 0.02,
            checkpoint_seconds: 120.0,
            seed: 0,
            threads: None,
        }
    }
}

/// Formats that training can round to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
pub(crate) enum Rounding {
    None,
    #[value(name = "q4_0")]
    Q4_0,
    #[value(name = "q8_0")]
    Q8_0,
}
