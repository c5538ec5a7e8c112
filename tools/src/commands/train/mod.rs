//! `train`: the pruned model learns from the unpruned one's answers.

mod args;
mod history;
mod loss;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use pleach::checkpoint::Checkpoint;
use pleach::checkpoint::write::LazyTensor;
use pleach::cli::ComputeDevice;
use pleach_kernels::training::Divergence;
use pleach_kernels::{DType, best_threads};
use pleach_train::{
    Adapt, AttachedLesson, AttachedNetwork, Backend, Budget, Dataset, Distillation, Lesson,
    Network, Options, Parameters, Trainer, block_weights,
};

use crate::shared::attach;
use crate::shared::manifest::{Manifest, beside};
use crate::shared::model_args::ModelArgs;
use crate::shared::model_folder::save_folder;
use crate::shared::progress::Progress;
pub(crate) use args::{Args, Rounding};
use history::History;
pub(crate) use loss::Loss;

/// What an attached drafter reads while it trains; gone afterwards.
const TARGET_STATES: &str = "target.states";

/// The note of a run that has not ended.
const BEGUN: &str = "begun.json";
/// Times the validation loss is computed.
const VALIDATIONS: f64 = 12.0;

pub(crate) fn run(args: &Args) -> Result<()> {
    let checkpoints = Duration::try_from_secs_f64(args.checkpoint_seconds)
        .context("--checkpoint-seconds: a number of seconds is needed")?;
    let mut manifest = Manifest::new("train", args)?;
    let mut checkpoint = Checkpoint::open(&args.model)?;
    checkpoint.check_tensors()?;
    manifest.model(&checkpoint)?;
    args.data.iter().try_for_each(|path| manifest.file(path))?;
    let target = ModelArgs {
        model: args.target.clone(),
        threads: args.threads,
        cache_dir: args.cache_dir.clone(),
    };
    if checkpoint.attachment.is_some() {
        manifest.model(&target.open()?)?;
    }
    let tops: Vec<PathBuf> = args.data.iter().map(|path| beside(path, ".topk")).collect();
    let listed = tops.iter().any(|path| path.exists());
    let loss = args.loss.unwrap_or(if listed { Loss::KL } else { Loss::Ce });
    // The answers' tokens are a distribution too: all on one token.
    let (tops, divergence) = match loss {
        Loss::Distribution(divergence) => (Some(tops), divergence),
        Loss::Ce => (None, Divergence::FORWARD_KL),
    };
    for top in tops.iter().flatten() {
        ensure!(
            top.exists(),
            "--loss {loss} needs {}, made by `generate --top-logprobs`",
            top.display()
        );
        manifest.file(top)?;
    }
    let note = args.out.join("train.json");
    let state = args.out.join("state.safetensors");
    if manifest.is_done(&note) {
        for leftover in [&state, &args.out.join(TARGET_STATES)] {
            let _ = std::fs::remove_file(leftover);
        }
        eprintln!("{} is done already", args.out.display());
        return Ok(());
    }
    std::fs::create_dir_all(&args.out).with_context(|| args.out.display().to_string())?;
    manifest.begin(&args.out.join(BEGUN), &note, &state)?;
    let config = checkpoint.config.clone();
    let max_len = args.batch_tokens.min(config.max_position_embeddings);
    let read = |file: usize| {
        let top = tops.as_ref().map(|tops| tops[file].as_path());
        Dataset::read(&args.data[file], top, max_len, config.vocab_size)
    };
    let mut data = read(0)?;
    for file in 1..args.data.len() {
        data.append(read(file)?);
    }
    let vocab = data.frequent_tokens(args.draft_vocab, config.vocab_size, &config.eos_token_ids)?;

    let adapt = match args.lora_rank {
        Some(0) => bail!("--lora-rank must be at least 1"),
        Some(rank) => Adapt::Lora { rank, alpha: args.lora_alpha },
        None => Adapt::Full,
    };
    let weights = block_weights(&mut checkpoint)?;
    let backend = Backend::open(args.device.device)?;
    if !backend.is_processor() {
        eprintln!("training on a CUDA device; `--device cpu` chooses the processor");
    } else if let ComputeDevice::Cuda(_) = args.device.device {
        eprintln!(
            "training on the processor: a build with `--features cuda` trains on CUDA devices"
        );
    }
    let mut parameters = Parameters::new(weights, adapt, args.seed, backend.clone())?;
    parameters.round_to(match args.round_to {
        Rounding::None => None,
        Rounding::Q4_0 => Some(DType::Q4_0),
        Rounding::Q8_0 => Some(DType::Q8_0),
    });
    let frozen = Frozen::of(&mut checkpoint, &vocab)?;
    let threads = args.threads.unwrap_or_else(best_threads).max(1);
    let options = Options {
        budget: match (args.minutes, args.steps, args.epochs) {
            (Some(minutes), ..) => Budget::Seconds(minutes * 60.0),
            (_, Some(steps), _) => Budget::Steps(steps),
            (.., Some(epochs)) => Budget::Epochs(epochs),
            _ => bail!("say how long to train: --minutes, --steps or --epochs"),
        },
        learning_rate: args.learning_rate.unwrap_or(match adapt {
            Adapt::Full => 2e-3,
            Adapt::Lora { .. } => 5e-4,
        }),
        warmup: args.warmup,
        weight_decay: args.weight_decay,
        max_norm: args.max_norm,
        rows: args.batch_tokens,
        accumulation: args.accumulation.max(1),
        threads,
        validation: args.validation,
        seed: args.seed,
    };
    let Some(attachment) = checkpoint.attachment.clone() else {
        let Frozen { embedding, head, head_row } = frozen;
        let network = Network::new(config, embedding, head, &backend)?;
        let lesson = Distillation { network, data, head_row, divergence };
        let trainer = Trainer::new(lesson, parameters, options)?;
        return learn(args, manifest, checkpoint, trainer, &vocab, checkpoints);
    };
    let path = args.out.join(TARGET_STATES);
    let states = attach::target_states(
        &path,
        &target,
        args.device,
        &data,
        &args.data,
        &config,
        &attachment,
    )?;
    let Frozen { embedding, head, head_row } = frozen;
    let network = AttachedNetwork { config, attachment, embedding, head, head_row, backend };
    let lesson = AttachedLesson::new(network, data, states, args.chain_steps.max(1), divergence)?;
    let trainer = Trainer::new(lesson, parameters, options)?;
    learn(args, manifest, checkpoint, trainer, &vocab, checkpoints)?;
    Ok(std::fs::remove_file(&path)?)
}

/// Trains, and writes what came of it.
fn learn<L: Lesson>(
    args: &Args,
    manifest: Manifest,
    mut checkpoint: Checkpoint,
    mut trainer: Trainer<L>,
    vocab: &[u32],
    checkpoints: Duration,
) -> Result<()> {
    let note = args.out.join("train.json");
    let state = args.out.join("state.safetensors");
    let (trained, num_tokens) =
        (trainer.parameters().num_trained(), trainer.lesson().data().num_tokens());
    let mut history = History::open(&args.out)?;
    if state.exists() {
        trainer.resume(&state)?;
        eprintln!("going on at step {}", trainer.num_steps());
    }
    history.keep(trainer.num_steps());
    let (kept, used) = trainer.split();
    eprintln!(
        "{used} answers to train on, {kept} for validation, {num_tokens} tokens; {trained} numbers are trained"
    );
    fit(&mut trainer, &mut history, &state, checkpoints)?;

    let folder = args.out.join("model");
    save_model(&folder, &mut checkpoint, trainer.parameters(), vocab)?;
    if let Some(adapter) = trainer.parameters().adapter() {
        adapter.write(&args.out.join("adapter"), &args.model.display().to_string())?;
    }
    let last = history.points.last().map(serde_json::to_value).transpose()?;
    manifest.write(
        &note,
        serde_json::json!({
            "last": last,
            "epochs": trainer.epochs(),
            "draft_vocab": vocab.len(),
            "answer_tokens": num_tokens,
        }),
    )?;
    let _ = std::fs::remove_file(&state);
    let _ = std::fs::remove_file(args.out.join(BEGUN));
    println!("{}", folder.display());
    Ok(())
}

/// What is not trained of a model: its embedding, its head trimmed to some tokens, and the head's row of every
/// token.
struct Frozen {
    embedding: Vec<f32>,
    head: Vec<f32>,
    head_row: Vec<Option<u32>>,
}

impl Frozen {
    fn of(checkpoint: &mut Checkpoint, vocab: &[u32]) -> Result<Self> {
        let config = checkpoint.config.clone();
        let embedding = checkpoint.tensor("model.embed_tokens.weight")?.to_f32();
        let own = if checkpoint.has("lm_head.weight") && !config.tie_word_embeddings {
            Some(checkpoint.tensor("lm_head.weight")?.to_f32())
        } else {
            None
        };
        let full = own.as_ref().unwrap_or(&embedding);
        let width = config.hidden_size;
        let head =
            vocab.iter().flat_map(|id| &full[*id as usize * width..][..width]).copied().collect();
        let mut head_row = vec![None; config.vocab_size];
        for (row, id) in vocab.iter().enumerate() {
            head_row[*id as usize] = Some(row as u32);
        }
        Ok(Self { embedding, head, head_row })
    }
}

fn fit<L: Lesson>(
    trainer: &mut Trainer<L>,
    history: &mut History,
    state: &Path,
    checkpoints: Duration,
) -> Result<()> {
    let mut progress = Progress::new("training", 10_000);
    let mut saved = Instant::now();
    while trainer.progress() < 1.0 {
        // By what is noted, so that an interruption changes nothing.
        let due = trainer.progress() >= history.validations() as f64 / VALIDATIONS;
        let validation = if due { trainer.validate()? } else { None };
        let point = trainer.step()?;
        history.push(point, validation);
        let (_, seen) = history.last_validation();
        progress.set(
            (trainer.progress() * 10_000.0) as u64,
            format!(
                "step {}, loss {:.3}, agreement {:.1} %, validation {seen}, {:.0} tokens/s",
                point.step,
                point.loss,
                point.agreement * 100.0,
                point.tokens as f64 / point.seconds,
            ),
        );
        if saved.elapsed() >= checkpoints {
            // The history first: what it has beyond the checkpoint is forgotten.
            history.save()?;
            trainer.save(state)?;
            saved = Instant::now();
        }
    }
    if let (Some(row), validation) = (history.points.last_mut(), trainer.validate()?) {
        (row.validation_loss, row.validation_agreement) = validation.unzip();
    }
    history.save()?;
    progress.finish();
    let (row, seen) = history.last_validation();
    if let Some(row) = row {
        println!("step {}: validation {seen}", row.point.step);
    }
    Ok(())
}

/// Writes the trained model as a Hugging Face folder.
fn save_model(
    folder: &Path,
    checkpoint: &mut Checkpoint,
    parameters: &Parameters,
    vocab: &[u32],
) -> Result<()> {
    let mut weights = parameters.weights()?;
    for name in ["model.embed_tokens.weight", "lm_head.weight"] {
        if checkpoint.has(name) {
            let tensor = checkpoint.tensor(name)?;
            weights.push((name.into(), tensor.shape.clone(), tensor.to_f32()));
        }
    }
    let tensors = weights
        .iter()
        .map(|(name, shape, values)| LazyTensor {
            name: name.clone(),
            dtype: DType::F32,
            shape: shape.clone(),
            values: Box::new(move || Ok(values.clone())),
        })
        .collect();
    save_folder(folder, checkpoint, tensors, Some(vocab))
}
