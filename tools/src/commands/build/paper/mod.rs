//! `build --recipe paper`: self-data distillation against supervised fine-tuning, step by step as in
//! Thangarasa et al., arXiv 2410.09982.

mod table;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use pleach::checkpoint::source::Source;
use pleach::checkpoint::write::{atomically, json_file};
use pleach_train::Example;
use serde::Serialize;

use super::args::Args;
use super::steps::{begin, cut, for_minutes, open};
use crate::commands::generate::{self, select};
use crate::commands::merge;
use crate::commands::report;
use crate::commands::score::{self, Held, Scores};
use crate::commands::train;
use crate::shared::chat::Chat;
use crate::shared::endpoint;
use crate::shared::model_args::ModelArgs;
use pleach::prompts::{Prompt, read_prompts};
use table::{Table, Variant};

/// Share of the budget for writing answers.
const ANSWERS: f64 = 0.3;
/// Share of the budget for training.
const TRAINING: f64 = 0.65;
/// Trainings of a seed, counted in the steps of the first: on references, on own answers, and two of half
/// the steps on parts of the own answers.
const TRAININGS: f64 = 3.0;
/// Answers that a part needs to be trained on.
const FEWEST: usize = 8;

pub(crate) fn run(args: &Args) -> Result<()> {
    let data =
        args.paper.data.clone().context("--recipe paper needs --data: see `score --help`")?;
    ensure!(args.prompts.is_some(), "--recipe paper needs --prompts with reference answers");
    ensure!(args.from.is_none(), "--from goes with --recipe draft");
    ensure!(args.paper.seeds > 0, "--seeds must be at least 1");
    let started = Instant::now();
    let out = &args.out;
    let (manifest, checkpoint) = open(args)?;
    let begun = begin(args, &manifest)?;
    let config = &checkpoint.config;
    let total = config.num_hidden_layers;
    let (pruned, keep) = cut(args, config, total - total / 6)?;

    let minutes = args.answers.is_none().then_some(args.minutes * ANSWERS);
    println!("3/6 the model answers with the references in view{}", for_minutes(minutes));
    let prompts = with_references(args)?;
    let own = out.join("self-data.jsonl");
    generate::run(&generate::Args {
        model: args.model.clone(),
        prompts: Some(out.join("prompts.jsonl")),
        out: own.clone(),
        limit: None,
        max_tokens: args.max_tokens,
        max_prompt_tokens: 768,
        temperature: vec![0.0],
        top_logprobs: 0,
        batch: 32,
        minutes,
        seed: args.seed,
        endpoint: endpoint::Args::default(),
    })?;
    let parts = split(out, &own, &prompts, &Chat::new(&checkpoint)?)?;

    println!("4/6 fine-tuning, 5/6 scoring");
    let scored = |name: &str, model: Source| -> Result<Scores> {
        println!("scoring: {name}");
        let folder = out.join("scores");
        std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        score::run(&score::Args {
            model: ModelArgs { model, ..args.model.clone() },
            data: data.clone(),
            tasks: args.paper.tasks.clone(),
            limit: Some(args.paper.score_limit),
            num_fewshot: 0,
            max_length: 2048,
            max_tokens: 256,
            // One arithmetic for all: the original may be quantised, what is trained is not.
            precision: Held::F32,
            json: Some(folder.join(format!("{name}.json"))),
            endpoint: endpoint::Args::default(),
        })
    };
    let flops = |blocks: usize| {
        blocks as u64 * config.block_flops(512) + config.head_flops(config.vocab_size)
    };
    let mut variants = BTreeMap::<usize, Variant>::new();
    let mut add = |place: usize, name: &str, blocks: usize, scores: Scores| {
        let empty = || Variant::new(name, flops(blocks));
        variants.entry(place).or_insert_with(empty).seeds.push(scores);
    };
    add(0, "original", total, scored("original", args.model.model.clone())?);
    add(1, "pruned", keep, scored("pruned", Source::Path(pruned.clone()))?);
    let mut steps = args.steps;
    for seed in args.seed..args.seed + args.paper.seeds {
        let folder = out.join(format!("seed-{seed}"));
        let tune = |name: &str, data: &Path, budget: Budget| -> Result<PathBuf> {
            println!("fine-tuning: seed {seed}, {name}{budget}");
            fine_tune(args, &pruned, data, &folder.join(name), budget, seed)
        };
        let share = args.minutes * TRAINING / TRAININGS / args.paper.seeds as f64;
        let budget = steps.map_or(Budget::Minutes(share), Budget::Steps);
        let sft = tune("sft", &parts.references, budget)?;
        // All others train for as many steps as the first.
        let whole = steps.map_or_else(|| steps_of(&folder.join("sft")), Ok)?;
        steps = Some(whole);
        let own_model = tune("self-data", &own, Budget::Steps(whole))?;
        add(2, "pruned + SFT", keep, scored(&format!("seed-{seed}-sft"), Source::Path(sft))?);
        let name = format!("seed-{seed}-self-data");
        add(3, "pruned + self-data", keep, scored(&name, Source::Path(own_model))?);
        let Some([checkable, open]) = &parts.halves else { continue };
        let half = Budget::Steps(whole.div_ceil(2));
        let models = vec![
            tune("self-data-checkable", checkable, half)?,
            tune("self-data-open", open, half)?,
        ];
        let merged = folder.join("slerp");
        let slerp = merge::Args { model: models, adapter: None, weights: vec![], out: merged };
        merge::run(&slerp)?;
        let name = format!("seed-{seed}-slerp");
        add(4, "pruned + self-data + SLERP", keep, scored(&name, Source::Path(slerp.out))?);
    }

    println!("6/6 the table");
    let table = Table::new(variants.into_values().collect());
    let text = table.markdown();
    println!("{text}");
    json_file(&out.join("paper.json"), &table)?;
    atomically(&out.join("paper.md"), |writer| std::io::Write::write_all(writer, text.as_bytes()))?;
    manifest.write(
        &out.join("build.json"),
        serde_json::json!({"keep_blocks": keep, "steps": steps, "table": table}),
    )?;
    let _ = std::fs::remove_file(&begun);
    report::write(out)?;
    println!("done in {:.1} minutes", started.elapsed().as_secs_f64() / 60.0);
    Ok(())
}

/// Writes OUT/prompts.jsonl: the prompts that have a reference answer, at most --answers of them.
fn with_references(args: &Args) -> Result<Vec<Prompt>> {
    let mut prompts = read_prompts(args.prompts.as_deref(), "")?;
    prompts.retain(|prompt| prompt.reference.is_some());
    ensure!(!prompts.is_empty(), "--prompts: no prompt has a text as its `reference`");
    let prompts = pleach::prompts::spread(prompts, args.answers);
    lines(&args.out.join("prompts.jsonl"), &prompts)?;
    Ok(prompts)
}

fn lines<T: Serialize>(path: &Path, all: impl IntoIterator<Item = T>) -> Result<()> {
    let mut text = Vec::new();
    for one in all {
        serde_json::to_writer(&mut text, &one)?;
        text.push(b'\n');
    }
    Ok(atomically(path, |writer| std::io::Write::write_all(writer, &text))?)
}

/// Training data made out of the own answers.
struct Parts {
    /// The references to the same prompts.
    references: PathBuf,
    /// Own answers with a result that can be checked, and open ones, where there are enough of both.
    halves: Option<[PathBuf; 2]>,
}

fn split(out: &Path, own: &Path, prompts: &[Prompt], chat: &Chat) -> Result<Parts> {
    let by_id: HashMap<&str, &str> = prompts
        .iter()
        .filter_map(|prompt| Some((prompt.id.as_str(), prompt.reference.as_deref()?)))
        .collect();
    let text = std::fs::read_to_string(own).with_context(|| own.display().to_string())?;
    let (mut references, mut checkable, mut open) = (Vec::new(), Vec::new(), Vec::new());
    for line in text.lines() {
        let answer: Example = serde_json::from_str(line)?;
        let reference = by_id.get(answer.id.as_str()).context("an answer without its prompt")?;
        references.push(Example {
            response: (*reference).to_owned(),
            response_tokens: chat.encode_answer(reference)?,
            finish_reason: "stop".into(),
            ..answer.clone()
        });
        let part = if select::has_result(reference) { &mut checkable } else { &mut open };
        part.push(answer);
    }
    let file = |name: &str, examples: &[Example]| -> Result<PathBuf> {
        let path = out.join(name);
        lines(&path, examples)?;
        Ok(path)
    };
    let enough = checkable.len().min(open.len()) >= FEWEST;
    if !enough {
        println!("too few answers of a kind: nothing is merged");
    }
    let halves = enough.then(|| -> Result<_> {
        Ok([file("checkable.jsonl", &checkable)?, file("open.jsonl", &open)?])
    });
    Ok(Parts { references: file("references.jsonl", &references)?, halves: halves.transpose()? })
}

#[derive(Clone, Copy)]
enum Budget {
    Minutes(f64),
    Steps(u32),
}

impl std::fmt::Display for Budget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Minutes(minutes) => write!(f, " for {minutes:.1} minutes"),
            Self::Steps(steps) => write!(f, " for {steps} steps"),
        }
    }
}

/// Fine-tunes all of a pruned model's matrices by LoRA, with the whole head; returns the folder of the
/// model with the adapter folded in.
fn fine_tune(
    args: &Args,
    pruned: &Path,
    data: &Path,
    out: &Path,
    budget: Budget,
    seed: u64,
) -> Result<PathBuf> {
    let (minutes, steps) = match budget {
        Budget::Minutes(minutes) => (Some(minutes), None),
        Budget::Steps(steps) => (None, Some(steps)),
    };
    train::run(&train::Args {
        target: args.model.model.clone(),
        cache_dir: args.model.cache_dir.clone(),
        chain_steps: 1,
        model: pruned.into(),
        data: data.into(),
        out: out.into(),
        loss: Some(train::Loss::Ce),
        lora_rank: Some(16),
        lora_alpha: 32.0,
        minutes,
        steps,
        draft_vocab: usize::MAX,
        learning_rate: Some(5e-4),
        warmup: 0.05,
        weight_decay: 0.0,
        max_norm: 1.0,
        batch_tokens: 1024,
        accumulation: 2,
        round_to: train::Rounding::None,
        validation: 0.02,
        checkpoint_seconds: args.checkpoint_seconds,
        seed,
        threads: args.model.threads,
    })?;
    Ok(out.join("model"))
}

/// Steps that a finished training took.
fn steps_of(folder: &Path) -> Result<u32> {
    let path = folder.join("train.json");
    let note: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&path).with_context(|| path.display().to_string())?)?;
    let steps = note["results"]["last"]["step"].as_u64();
    steps.and_then(|steps| steps.try_into().ok()).with_context(|| path.display().to_string())
}
