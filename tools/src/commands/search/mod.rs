//! `search`: what a draft should be made of.

mod picture;
mod shape;
mod tried;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use pleach::checkpoint::source::Source;
use pleach::checkpoint::write::json_file;
use pleach::cli::DeviceArgs;
use pleach::engine::EngineConfig;
use pleach::kv_cache::blocks_for;
use pleach::model::ModelConfig;
use pleach::prompts::{Prompt, VALIDATION_PROMPTS, read_prompts, spread};
use serde::Serialize;

use crate::commands::bench::{self, Way};
use crate::commands::evaluate;
use crate::commands::importance;
use crate::commands::pack;
use crate::commands::prune::{self, DraftKind};
use crate::commands::train;
use crate::shared::attach;
use crate::shared::journal::Journal;
use crate::shared::manifest::{Manifest, beside};
use crate::shared::measure_args::MeasureArgs;
use crate::shared::model_args::ModelArgs;
use crate::shared::models::Running;
use crate::shared::place::Place;
use picture::draw;
use shape::{Shape, Span};
use tried::Tried;

/// Finds what a draft should be made of, by the tokens per second that each gives.
///
/// For every shape, a number of blocks, of states read and of rows of the head, the model is cut, trained on the same
/// answers for the same time and packed. Then prompts are answered in turns without speculation, with n-grams, with the
/// draft, and with both: the draft that adds most to n-grams is the best.
///
/// On a CUDA device (--device), the model is measured and answers there; drafts are trained there in a build with
/// `--features cuda`.
///
/// OUT/search.json and OUT/search.svg have the result, and a folder in OUT every draft. Started again, it goes on where it
/// stood. Run it on an otherwise idle machine.
#[derive(Debug, Clone, clap::Args, Serialize)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) device: DeviceArgs,
    /// Answers to train on, written by `pleach-tools generate --top-logprobs 16`.
    #[arg(long, value_name = "JSONL")]
    pub(crate) data: PathBuf,
    /// Folder for the drafts and the result; `report` shows it where it is BUILD/search.
    #[arg(long, env = "PLEACH_OUT", value_name = "DIR", default_value = "draft/search")]
    pub(crate) out: PathBuf,
    /// Kind of the drafts: attached ones, or models of their own.
    #[arg(long, value_enum, default_value = "attached")]
    pub(crate) draft_kind: DraftKind,
    /// Numbers of blocks to keep: from the first to the second. Default: 1-6, of standalone drafts 2-12.
    #[arg(long, value_name = "N-N")]
    pub(crate) keep_blocks: Option<Span>,
    /// Numbers of neurons that the feed-forward parts of these blocks keep, multiples of 32, for instance 640,1536. Default:
    /// of attached drafts two fifths, of standalone ones all.
    #[arg(long, value_name = "N,N", value_delimiter = ',')]
    pub(crate) intermediate_size: Vec<usize>,
    /// Numbers of the target's states that an attached draft reads, for instance 1,3.
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_value = "3")]
    pub(crate) states: Vec<usize>,
    /// Train each draft for so many minutes.
    #[arg(long, env = "PLEACH_MINUTES", default_value_t = 5.0)]
    pub(crate) minutes: f64,
    /// Train each draft for so many steps, in place of time.
    #[arg(long, env = "PLEACH_STEPS")]
    pub(crate) steps: Option<u32>,
    /// Rows of the drafts' heads, for instance 4096,8192.
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_value = "8192")]
    pub(crate) draft_vocab: Vec<usize>,
    /// Prompts to measure on (JSONL). Default: 72 built-in ones.
    #[arg(long, env = "PLEACH_PROMPTS", value_name = "JSONL")]
    pub(crate) prompts: Option<PathBuf>,
    /// Use at most so many prompts, spread evenly over the file.
    #[arg(long, env = "PLEACH_LIMIT")]
    pub(crate) limit: Option<usize>,
    /// Tokens of an answer to a prompt, at most.
    #[arg(long, env = "PLEACH_MAX_TOKENS", default_value_t = 128)]
    pub(crate) max_tokens: usize,
    /// Seed of everything.
    #[arg(long, env = "PLEACH_SEED", default_value_t = 0)]
    pub(crate) seed: u64,
}

/// Draft tokens a round, at most.
const MOST_DRAFTED: usize = 8;
/// Prompts that are answered at once.
const STREAMS: usize = 8;
/// Positions of a sequence, at most.
const POSITIONS: usize = 2048;

pub(crate) fn run(args: &Args) -> Result<()> {
    let mut manifest = Manifest::new("search", args)?;
    let checkpoint = args.model.open()?;
    manifest.model(&checkpoint)?;
    manifest.file(&args.data)?;
    args.prompts.iter().try_for_each(|path| manifest.file(path))?;
    let total = checkpoint.config.num_hidden_layers;
    let (shapes, vocab_size) = (shapes(args, &checkpoint.config), checkpoint.config.vocab_size);
    for shape in &shapes {
        ensure!(
            shape.keep_blocks < total,
            "--keep-blocks: the model has {total} blocks, one must be cut"
        );
        let states = shape.states.unwrap_or(1);
        ensure!((1..=total).contains(&states), "--states: the model has {total} states to read");
        prune::check_neurons(shape.intermediate_size, &checkpoint.config)?;
        ensure!(
            (1..=vocab_size).contains(&shape.draft_vocab),
            "--draft-vocab: the model has {vocab_size} tokens"
        );
    }
    let place = Place::open(args.device.choice, &checkpoint)?;
    manifest.computed_on(place.name());
    drop((place, checkpoint));
    let result = args.out.join("search.json");
    let note = beside(&result, ".manifest.json");
    if manifest.is_done(&note) && result.exists() {
        eprintln!("{} is done already", result.display());
        print(&serde_json::from_slice::<Vec<Tried>>(&std::fs::read(&result)?)?);
        return Ok(());
    }
    std::fs::create_dir_all(&args.out).with_context(|| args.out.display().to_string())?;
    let measured = args.out.join("importance.json");
    if args.draft_kind == DraftKind::Standalone {
        importance::run(&importance::Args::of(&args.model, args.device.choice, measured.clone()))?;
    }
    let prompts = spread(read_prompts(args.prompts.as_deref(), VALIDATION_PROMPTS)?, args.limit);
    let (mut journal, mut tried) =
        Journal::open::<Tried>(beside(&result, ".partial.jsonl"), &manifest)?;
    for (at, shape) in shapes.iter().enumerate().skip(tried.len()) {
        println!("{shape}: {} of {}", at + 1, shapes.len());
        let one = try_draft(args, *shape, &measured, total, &prompts)?;
        journal.push(&one)?;
        tried.push(one);
    }
    draw(&result.with_extension("svg"), &tried)?;
    json_file(&result, &tried)?;
    manifest.write(&note, serde_json::json!({}))?;
    journal.remove();
    print(&tried);
    Ok(())
}

/// The drafts to try.
fn shapes(args: &Args, config: &ModelConfig) -> Vec<Shape> {
    let (blocks, neurons) = match args.draft_kind {
        DraftKind::Attached => (Span(1, 6), attach::neurons(config)),
        DraftKind::Standalone => (Span(2, 12), config.intermediate_size),
    };
    let blocks = args.keep_blocks.unwrap_or(blocks);
    let all = [neurons];
    let neurons =
        if args.intermediate_size.is_empty() { &all[..] } else { &args.intermediate_size[..] };
    Shape::all(args.draft_kind, blocks, neurons, &args.states, &args.draft_vocab)
}

/// Cuts and trains a draft, and measures it.
fn try_draft(
    args: &Args,
    shape: Shape,
    measured: &Path,
    total: usize,
    prompts: &[Prompt],
) -> Result<Tried> {
    let folder = args.out.join(shape.folder());
    let (pruned, draft) = (folder.join("pruned"), folder.join("draft.gguf"));
    prune::run(&shape.pruned(
        &args.model,
        args.device.choice,
        pruned.clone(),
        total,
        measured.into(),
    ))?;
    train::run(&train::Args {
        minutes: args.steps.is_none().then_some(args.minutes),
        steps: args.steps,
        draft_vocab: shape.draft_vocab,
        seed: args.seed,
        threads: args.model.threads,
        ..train::Args::for_draft(
            &args.model,
            args.device.choice,
            pruned,
            args.data.clone(),
            folder.join("train"),
        )
    })?;
    pack::run(&pack::Args {
        model: folder.join("train/model"),
        out: draft.clone(),
        dtype: pack::Format::Q4_0,
        name: format!("draft of {shape}"),
    })?;
    let measure = MeasureArgs {
        limit: args.limit,
        max_tokens: args.max_tokens,
        ..MeasureArgs::of(&args.model, args.device, Source::Path(draft), args.prompts.clone())
    };
    let evaluation = evaluate::run(&evaluate::Args {
        measure: measure.clone(),
        num_speculative_tokens: 4,
        seed: args.seed,
        batch: STREAMS,
        samples: 0,
        json: Some(folder.join("evaluation.json")),
    })?;
    let loaded = measure.load()?;
    let positions = loaded.config().max_position_embeddings.min(POSITIONS);
    let config = EngineConfig {
        max_num_seqs: STREAMS,
        max_model_len: Some(positions),
        num_blocks: Some(STREAMS * blocks_for(positions)),
        num_speculative_tokens: MOST_DRAFTED,
        gpu_memory_utilization: args.device.gpu_memory_utilization,
        prefix_caching: false, // every way does the same work
        ..EngineConfig::default()
    };
    let Running { mut engine, chat, .. } = loaded.start(config)?;
    let asked = bench::Args {
        measure,
        repeats: 1,
        streams: vec![],
        num_speculative_tokens: MOST_DRAFTED,
        unseeded: false,
        json: None,
    };
    let report = bench::speculation(&mut engine, &chat, prompts, &asked)?;
    ensure!(
        report.identical == Some(true),
        "{shape}: the answers differ with and without speculation"
    );
    Ok(Tried {
        shape,
        alpha: evaluation.all.alpha,
        mean_acceptance_length: evaluation.all.mean_acceptance_length,
        draft_step_cost: evaluation.draft_step_cost,
        ngram: report.geometric_mean(Way::Ngram),
        draft: report.geometric_mean(Way::Draft),
        both: report.geometric_mean(Way::Both),
    })
}

fn print(tried: &[Tried]) {
    println!("alpha  acceptance length  draft step  n-grams  draft   both  over n-grams");
    let best = tried.iter().map(Tried::gain).fold(0.0, f64::max);
    for one in tried {
        println!(
            "{:>5.3}  {:>17.3}  {:>10.3}  {:>7.3}  {:>5.3}  {:>5.3}  {:>12.3}  {}{}",
            one.alpha,
            one.mean_acceptance_length,
            one.draft_step_cost,
            one.ngram,
            one.draft,
            one.both,
            one.gain(),
            one.shape,
            if one.gain() == best { " *" } else { "" },
        );
    }
}
