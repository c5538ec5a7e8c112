//! What `build` is asked for.

use std::path::PathBuf;

use pleach::cli::DeviceArgs;
use serde::Serialize;

use crate::commands::prune::DraftKind;
use crate::shared::model_args::ModelArgs;

/// Builds a draft from a model: measures the blocks, cuts, lets the model write its own training data,
/// trains, packs and evaluates.
///
/// OUT/draft.gguf is what the server takes as --draft. Every step leaves its result in OUT, and a build
/// that is started again with the same options goes on where it stood. With --answers and --steps in place
/// of time, it also ends with the same files, however often it was interrupted.
///
/// On a CUDA device (--device), the model is measured, writes its answers or reads recorded ones, and the draft is evaluated;
/// training is there too in a build with `--features cuda`, else the processor's.
///
/// --recipe paper makes no draft, but repeats the experiment of self-data distillation (Thangarasa et al.,
/// arXiv 2410.09982): 6 of 32 blocks are cut, and what is left is fine-tuned (LoRA) on reference
/// answers, and on the model's own answers that check out against them; all are scored on public tasks, on the
/// processor, and OUT/paper.md has the table.
#[derive(Debug, Clone, clap::Args, Serialize)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) device: DeviceArgs,
    /// Folder for the draft and all that leads to it.
    #[arg(long, env = "PLEACH_OUT", value_name = "DIR", default_value = "draft")]
    pub(crate) out: PathBuf,
    /// What to build.
    #[arg(long, env = "PLEACH_RECIPE", value_enum, default_value = "draft")]
    pub(crate) recipe: Recipe,
    /// Time for everything; with --recipe paper, for all but the scoring.
    #[arg(long, env = "PLEACH_MINUTES", default_value_t = 45.0)]
    pub(crate) minutes: f64,
    /// Answer so many prompts, spread evenly over the file, in place of a share of the time.
    #[arg(long, env = "PLEACH_ANSWERS", value_name = "PROMPTS")]
    pub(crate) answers: Option<usize>,
    /// Tokens of an answer to train on, at most.
    #[arg(long, env = "PLEACH_MAX_TOKENS", default_value_t = 256)]
    pub(crate) max_tokens: usize,
    /// Train for so many steps, in place of a share of the time.
    #[arg(long, env = "PLEACH_STEPS")]
    pub(crate) steps: Option<u32>,
    /// Seconds between checkpoints of the training.
    #[arg(long, env = "PLEACH_CHECKPOINT_SECONDS", default_value_t = 120.0)]
    pub(crate) checkpoint_seconds: f64,
    /// Go on from the draft of an earlier build, OUT/train/model, or from a packed draft, OUT/draft.gguf,
    /// instead of cutting the model.
    #[arg(long, value_name = "DRAFT", conflicts_with = "keep_blocks")]
    pub(crate) from: Option<PathBuf>,
    /// An attached draft is a few of the model's blocks that read what the model has computed: a prompt costs it
    /// nothing. A standalone one is a model of its own that reads the text, and runs in other engines too.
    #[arg(long, env = "PLEACH_DRAFT_KIND", value_enum, default_value = "attached")]
    pub(crate) draft_kind: DraftKind,
    /// Blocks of the model that stay. Default: in an attached draft, four; in a standalone one, as many as fit a
    /// quarter of its FLOPs; with --recipe paper, 26 of 32.
    #[arg(long)]
    pub(crate) keep_blocks: Option<usize>,
    /// Neurons of the feed-forward parts that stay in these blocks, a multiple of 32. Default: in an attached draft, two
    /// fifths; else all, and with --from those of the draft.
    #[arg(long, value_name = "NEURONS")]
    pub(crate) intermediate_size: Option<usize>,
    /// Rows of the draft's head.
    #[arg(long, default_value_t = 8192)]
    pub(crate) draft_vocab: usize,
    /// Prompts for the training data (JSONL). Default: about 4,800 built-in ones.
    #[arg(long, env = "PLEACH_PROMPTS", value_name = "JSONL")]
    pub(crate) prompts: Option<PathBuf>,
    /// Train on what a server kept with --record-traffic DIR, instead of on answers to prompts.
    #[arg(long, env = "PLEACH_FROM_TRAFFIC", value_name = "DIR", conflicts_with = "prompts")]
    pub(crate) from_traffic: Option<PathBuf>,
    /// Prompts the finished draft is evaluated on (JSONL). Default: 72 built-in ones.
    #[arg(long, value_name = "JSONL")]
    pub(crate) eval_prompts: Option<PathBuf>,
    /// Seed of everything.
    #[arg(long, env = "PLEACH_SEED", default_value_t = 0)]
    pub(crate) seed: u64,
    #[command(flatten)]
    pub(crate) paper: PaperArgs,
}

/// What a build is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Recipe {
    /// A draft for the server.
    Draft,
    /// The paper's experiment.
    Paper,
}

/// What only --recipe paper asks for.
#[derive(Debug, Clone, clap::Args, Serialize)]
pub(crate) struct PaperArgs {
    /// With --recipe paper: folder of the tasks' records, as `score` takes it.
    #[arg(long, env = "PLEACH_DATA", value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// With --recipe paper: tasks to score on. Default: those of the paper, and those in which a small model has
    /// something to lose, as far as they have a file.
    #[arg(long, env = "PLEACH_TASKS", value_delimiter = ',', value_name = "TASK,TASK")]
    pub(crate) tasks: Vec<String>,
    /// With --recipe paper: records of each task.
    #[arg(long, default_value_t = 100, value_name = "RECORDS")]
    pub(crate) score_limit: usize,
    /// With --recipe paper: passes over the answers in each training, in place of a share of the time.
    #[arg(long, conflicts_with = "steps")]
    pub(crate) epochs: Option<f64>,
    /// With --recipe paper: repeat the training with so many seeds.
    #[arg(long, default_value_t = 3)]
    pub(crate) seeds: u64,
}
