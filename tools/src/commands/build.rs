//! `build`: from a model to a draft in one command.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use pleach::checkpoint::source::Source;
use pleach::checkpoint::write::{self, LazyTensor};
use pleach::checkpoint::{Checkpoint, RawTensor};
use pleach::model::{ModelConfig, tensor_names};
use pleach_kernels::DType;
use serde::Serialize;

use crate::commands::evaluate;
use crate::commands::generate;
use crate::commands::importance;
use crate::commands::pack;
use crate::commands::paper;
use crate::commands::prune;
use crate::commands::prune::DraftKind;
use crate::commands::report;
use crate::commands::traffic;
use crate::commands::train;
use crate::shared::chat::Chat;
use crate::shared::endpoint;
use crate::shared::manifest::Manifest;
use crate::shared::measure_args::MeasureArgs;
use crate::shared::model_args::ModelArgs;
use crate::shared::model_folder::save_folder;
use crate::shared::texts::PROMPTS;
use pleach::prompts::{VALIDATION_PROMPTS, read_prompts};

/// Builds a draft from a model: measures the blocks, cuts, lets the model write its own training data,
/// trains, packs and evaluates.
///
/// OUT/draft.gguf is what the server takes as --draft. Every step leaves its result in OUT, and a build
/// that is started again with the same options goes on where it stood. With --answers and --steps in place
/// of time, it also ends with the same files, however often it was interrupted.
///
/// --recipe paper makes no draft, but repeats the experiment of self-data distillation (Thangarasa et al.,
/// arXiv 2410.09982): a sixth of the blocks is cut, and what is left is fine-tuned (LoRA) on reference
/// answers, and on the model's own answers that check out against them; all are scored on public tasks,
/// and OUT/paper.md has the table.
#[derive(Debug, Clone, clap::Args, Serialize)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
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
    /// A standalone draft is a model of its own that reads the text; an attached one is a few of the model's blocks
    /// that read what the model has computed: a prompt costs it nothing, but it runs on the CPU alone.
    #[arg(long, value_enum, default_value = "standalone")]
    pub(crate) draft_kind: prune::DraftKind,
    /// Blocks of the model that stay. Default: in a standalone draft, as many as fit a quarter of its FLOPs; in
    /// an attached one, four; with --recipe paper, five of six.
    #[arg(long)]
    pub(crate) keep_blocks: Option<usize>,
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
    pub(crate) paper: paper::Args,
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

/// Share of the budget for writing answers.
const ANSWERS: f64 = 0.37;
/// Share of the budget for training; measuring, packing and evaluating take the rest. Fixed, so that a
/// build that is started again asks every step for what it asked before.
const TRAINING: f64 = 0.55;
/// FLOPs of the draft that are aimed at, as a share of the target's.
const FLOP_SHARE: f64 = 0.25;

pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(args.minutes >= 1.0, "--minutes must be at least 1");
    remove_leftovers(&args.out, 3)?;
    if args.recipe == Recipe::Paper {
        return paper::run(args);
    }
    let started = Instant::now();
    let out = &args.out;
    std::fs::create_dir_all(out).with_context(|| out.display().to_string())?;
    let mut manifest = Manifest::new("build", args)?;
    let checkpoint = args.model.open()?;
    manifest.model(&checkpoint)?;
    args.prompts.iter().try_for_each(|path| manifest.file(path))?;
    check_end(args, &checkpoint)?;
    let config = &checkpoint.config;
    let mut earlier = args.from.as_deref().map(Checkpoint::open).transpose()?;
    earlier.iter().try_for_each(|draft| manifest.model(draft))?;
    let begun = begin(args, &manifest)?;
    let (start, keep) = match (&args.from, &mut earlier) {
        (Some(from), Some(start)) => {
            let same = |of: &ModelConfig| (of.hidden_size, of.vocab_size, of.num_attention_heads);
            ensure!(
                same(&start.config) == same(config),
                "--from {}: was not cut out of {}",
                from.display(),
                args.model.model
            );
            println!("1/6, 2/6 going on from {}", from.display());
            let blocks = start.config.num_hidden_layers;
            let folder = if from.is_dir() { from.clone() } else { unpack(args, start)? };
            (folder, blocks)
        }
        _ if args.draft_kind == DraftKind::Attached => attach(args, config)?,
        _ => {
            let budget = FLOP_SHARE * config.flops_per_token(512, config.vocab_size) as f64;
            let blocks = budget - config.head_flops(args.draft_vocab) as f64;
            let keep = (blocks / config.block_flops(512) as f64).max(1.0) as usize;
            cut(args, config, keep)?
        }
    };
    let minutes = args.answers.is_none().then_some(args.minutes * ANSWERS);
    let answers = out.join("answers.jsonl");
    let (max_prompt_tokens, top_logprobs, batch) = (768, 16, 32);
    if let Some(recorded) = &args.from_traffic {
        println!("3/6 the model reads recorded answers{}", for_minutes(minutes));
        traffic::run(&traffic::Args {
            model: args.model.clone(),
            traffic: recorded.clone(),
            out: answers.clone(),
            limit: args.answers,
            max_tokens: args.max_tokens,
            max_prompt_tokens,
            top_logprobs,
            batch,
            minutes,
        })?;
    } else {
        println!("3/6 the model writes answers{}", for_minutes(minutes));
        generate::run(&generate::Args {
            model: args.model.clone(),
            prompts: args.prompts.clone(),
            out: answers.clone(),
            limit: args.answers,
            max_tokens: args.max_tokens,
            max_prompt_tokens,
            temperature: vec![0.0, 0.0, 0.8],
            top_logprobs,
            batch,
            minutes,
            seed: args.seed,
            endpoint: endpoint::Args::default(),
        })?;
    }
    let minutes = args.steps.is_none().then_some(args.minutes * TRAINING);
    println!("4/6 training{}", for_minutes(minutes));
    train::run(&train::Args {
        minutes,
        steps: args.steps,
        draft_vocab: args.draft_vocab,
        checkpoint_seconds: args.checkpoint_seconds,
        seed: args.seed,
        threads: args.model.threads,
        ..train::Args::for_draft(&args.model, start, answers, out.join("train"))
    })?;
    println!("5/6 packing");
    let draft = out.join("draft.gguf");
    pack::run(&pack::Args {
        model: out.join("train/model"),
        out: draft.clone(),
        dtype: pack::Format::Q4_0,
        name: format!("{} draft", checkpoint.name),
    })?;
    println!("6/6 evaluating");
    let evaluation = evaluate::run(&evaluate::Args {
        measure: MeasureArgs::of(
            &args.model,
            Source::Path(draft.clone()),
            args.eval_prompts.clone(),
        ),
        num_speculative_tokens: 4,
        seed: args.seed,
        batch: 8,
        samples: 8,
        json: Some(out.join("evaluation.json")),
    })?;
    manifest.write(
        &out.join("build.json"),
        serde_json::json!({"keep_blocks": keep, "evaluation": evaluation}),
    )?;
    let _ = std::fs::remove_file(&begun);
    report::write(out)?;
    println!(
        "done in {:.1} minutes: pleach --model {} --draft {}",
        started.elapsed().as_secs_f64() / 60.0,
        args.model.model,
        draft.display()
    );
    Ok(())
}

/// Notes in OUT what is built there; refuses to go on with what another build has left.
pub(crate) fn begin(args: &Args, manifest: &Manifest) -> Result<PathBuf> {
    let [begun, finished] = ["begun.json", "build.json"].map(|name| args.out.join(name));
    let first = if begun.exists() { &begun } else { &finished };
    manifest.begin(&begun, &finished, first)?;
    Ok(begun)
}

/// Finds before the first step what would end the last ones: a configuration that cannot be written, weights
/// that are not there, prompts that cannot be read.
pub(crate) fn check_end(args: &Args, checkpoint: &Checkpoint) -> Result<()> {
    checkpoint.check_tensors()?;
    Chat::new(checkpoint)?;
    write::hf_config(&checkpoint.config, DType::F32, checkpoint)?;
    read_prompts(args.prompts.as_deref(), PROMPTS)?;
    read_prompts(args.eval_prompts.as_deref(), VALIDATION_PROMPTS)?;
    Ok(())
}

/// Makes a folder of a packed draft that can be trained: its blocks, with the embedding and the head of the
/// model it was cut out of.
fn unpack(args: &Args, draft: &mut Checkpoint) -> Result<PathBuf> {
    let mut model = args.model.open()?;
    let mut tensors: Vec<(RawTensor, String)> = Vec::new();
    for name in tensor_names(&draft.config, |name| draft.has(name)) {
        tensors.push((draft.tensor(&name)?, name));
    }
    for name in ["model.embed_tokens.weight", "lm_head.weight"] {
        if model.has(name) {
            tensors.push((model.tensor(name)?, name.to_owned()));
        }
    }
    let lazy = tensors.iter().map(|(tensor, name)| LazyTensor {
        name: name.clone(),
        dtype: DType::F32,
        shape: tensor.shape.clone(),
        values: Box::new(|| Ok(tensor.to_f32())),
    });
    model.config = ModelConfig {
        tie_word_embeddings: model.config.tie_word_embeddings,
        bos_token_id: model.config.bos_token_id,
        eos_token_ids: model.config.eos_token_ids.clone(),
        ..draft.config.clone()
    };
    model.attachment = draft.attachment.clone();
    let folder = args.out.join("unpacked");
    save_folder(&folder, &model, &lazy.collect::<Vec<_>>(), None)?;
    Ok(folder)
}

/// Removes files that a killed build had begun to write.
fn remove_leftovers(folder: &Path, depth: usize) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(()) };
    for entry in entries {
        let path = entry.with_context(|| folder.display().to_string())?.path();
        let begun = |name: &OsStr| name.to_string_lossy().starts_with(write::BEGUN);
        if path.is_dir() && depth > 0 {
            remove_leftovers(&path, depth - 1)?;
        } else if path.file_name().is_some_and(begun) {
            std::fs::remove_file(&path).with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}

/// How a step's time is announced, where it has a budget.
pub(crate) fn for_minutes(minutes: Option<f64>) -> String {
    minutes.map_or_else(String::new, |minutes| format!(" for {minutes:.1} minutes"))
}

/// Blocks that an attached drafter keeps.
const ATTACHED_BLOCKS: usize = 4;

/// Keeps --keep-blocks and starts their projections. Returns the folder and the number of blocks.
fn attach(args: &Args, config: &ModelConfig) -> Result<(PathBuf, usize)> {
    let total = config.num_hidden_layers;
    let keep = args.keep_blocks.unwrap_or(ATTACHED_BLOCKS);
    ensure!((1..total).contains(&keep), "--keep-blocks must be 1 to {}", total - 1);
    println!("1/6, 2/6 attaching {keep} of {total} blocks");
    let pruned = args.out.join("pruned");
    prune::run(&prune::Args::attached(args.model.clone(), pruned.clone(), keep, total))?;
    Ok((pruned, keep))
}

/// Measures the blocks and cuts all but --keep-blocks, or `keep`. Returns the folder of what is left and
/// its number of blocks.
pub(crate) fn cut(args: &Args, config: &ModelConfig, keep: usize) -> Result<(PathBuf, usize)> {
    let total = config.num_hidden_layers;
    let keep = args.keep_blocks.unwrap_or(keep);
    ensure!((1..total).contains(&keep), "--keep-blocks must be 1 to {}", total - 1);
    println!("1/6 measuring blocks");
    let measured = args.out.join("importance.json");
    importance::run(&importance::Args::of(args.model.clone(), measured.clone()))?;
    println!("2/6 cutting {} of {total} blocks", total - keep);
    let pruned = args.out.join("pruned");
    prune::run(&prune::Args::of(args.model.clone(), pruned.clone(), total - keep, measured))?;
    Ok((pruned, keep))
}
