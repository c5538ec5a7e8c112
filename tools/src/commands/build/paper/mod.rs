//! `build --recipe paper`: self-data distillation against supervised fine-tuning, step by step as in
//! Thangarasa et al., arXiv 2410.09982.

mod bootstrap;
mod drafting;
mod table;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use pleach::checkpoint::source::Source;
use pleach::checkpoint::write::{atomically, json_file};
use pleach::cli::{ComputeDevice, DeviceArgs, DeviceChoice};
use pleach_train::{Example, Origin};

use super::args::Args;
use super::steps::{begin, cut, for_minutes, open};
use crate::commands::evaluate;
use crate::commands::generate::{self, select};
use crate::commands::merge;
use crate::commands::report;
use crate::commands::score::{self, Held};
use crate::commands::train;
use crate::shared::chat::Chat;
use crate::shared::endpoint;
use crate::shared::lines;
use crate::shared::measure_args::MeasureArgs;
use crate::shared::model_args::ModelArgs;
use pleach::prompts::{Prompt, read_prompts};
use table::{Measured, Table, Training, Variant, default_tasks};

/// Share of the budget for writing answers.
const ANSWERS: f64 = 0.3;
/// Share of the budget for training.
const TRAINING: f64 = 0.65;
/// Trainings of a seed, counted in the time of the first: on own answers, on the references to the same prompts, and two
/// on parts of the own answers.
const TRAININGS: f64 = 3.0;
/// Answers that a part needs to be trained on.
const FEWEST: usize = 8;

pub(crate) fn run(args: &Args) -> Result<()> {
    let data =
        args.paper.data.clone().context("--recipe paper needs --data: see `score --help`")?;
    ensure!(args.prompts.is_some(), "--recipe paper needs --prompts with reference answers");
    ensure!(args.from.is_none(), "--from goes with --recipe draft");
    ensure!(args.intermediate_size.is_none(), "--intermediate-size goes with --recipe draft");
    ensure!(args.paper.seeds > 0, "--seeds must be at least 1");
    let started = Instant::now();
    let out = &args.out;
    let (manifest, checkpoint) = open(args)?;
    let begun = begin(args, &manifest)?;
    let config = &checkpoint.config;
    let total = config.num_hidden_layers;
    let (pruned, keep) = cut(args, config, total - as_the_paper(total))?;

    let minutes = args.answers.is_none().then_some(args.minutes * ANSWERS);
    println!("3/6 the model answers with the references in view{}", for_minutes(minutes));
    let prompts = with_references(args)?;
    let own = out.join("self-data.jsonl");
    generate::run(&generate::Args {
        model: args.model.clone(),
        device: args.device,
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
    let measured =
        |name: &str, model: PathBuf| measure(args, &data, name, Source::Path(model), true);
    let original = measure(args, &data, "original", args.model.model.clone(), false)?;
    let cut_only = measured("pruned", pruned.clone())?;
    let [mut sft, mut distilled, mut merged] = [const { Vec::new() }; 3];
    let mut trainings = Vec::new();
    let share = args.minutes * TRAINING / TRAININGS / args.paper.seeds as f64;
    let mut budget = match (args.paper.epochs, args.steps) {
        (Some(epochs), _) => Budget::Epochs(epochs),
        (None, Some(steps)) => Budget::Steps(steps),
        (None, None) => Budget::Minutes(share),
    };
    for seed in args.seed..args.seed + args.paper.seeds {
        let folder = out.join(format!("seed-{seed}"));
        let mut tune = |name: &str, data: &Path, budget: Budget| -> Result<(PathBuf, f64)> {
            println!("fine-tuning: seed {seed}, {name}{budget}");
            let model = fine_tune(args, &pruned, data, &folder.join(name), budget, seed)?;
            let training = training(&folder.join(name), data, name, seed)?;
            let epochs = training.epochs;
            trainings.push(training);
            Ok((model, epochs))
        };
        let (own_model, epochs) = tune("self-data", &own, budget)?;
        // All others see every answer as often as the first.
        budget = Budget::Epochs(epochs);
        let (sft_model, _) = tune("sft", &parts.references, budget)?;
        let halves = match &parts.halves {
            None => None,
            Some([checkable, open]) => {
                let (checkable, _) = tune("self-data-checkable", checkable, budget)?;
                Some(vec![checkable, tune("self-data-open", open, budget)?.0])
            }
        };
        let name = |kind: &str| format!("seed-{seed}-{kind}");
        sft.push(measured(&name("sft"), sft_model)?);
        distilled.push(measured(&name("self-data"), own_model)?);
        if let Some(model) = halves {
            let out = folder.join("slerp");
            let slerp = merge::Args { model, adapter: None, weights: vec![], out };
            merge::run(&slerp)?;
            merged.push(measured(&name("slerp"), slerp.out)?);
        }
    }

    println!("6/6 the table");
    let variant = |name: &'static str, blocks: usize, seeds: Vec<Measured>| Variant {
        name,
        flops_per_token: blocks as u64 * config.block_flops(512)
            + config.head_flops(config.vocab_size),
        seeds,
    };
    let mut variants = vec![
        variant("original", total, vec![original]),
        variant("pruned", keep, vec![cut_only]),
        variant("pruned + SFT", keep, sft),
        variant("pruned + self-data", keep, distilled),
        variant("pruned + self-data + SLERP", keep, merged),
    ];
    variants.retain(|variant| !variant.seeds.is_empty());
    let table = Table::new(&variants, trainings);
    let text = table.markdown();
    println!("{text}");
    json_file(&out.join("paper.json"), &table)?;
    atomically(&out.join("paper.md"), |writer| std::io::Write::write_all(writer, text.as_bytes()))?;
    manifest.write(
        &out.join("build.json"),
        serde_json::json!({"keep_blocks": keep, "near_copies": parts.near_copies, "table": table}),
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
    lines::write(&args.out.join("prompts.jsonl"), &prompts)?;
    Ok(prompts)
}

/// Training data made out of the own answers.
struct Parts {
    /// The references to the same prompts.
    references: PathBuf,
    /// Own answers with a result that can be checked, and open ones, where there are enough of both.
    halves: Option<[PathBuf; 2]>,
    /// Of the own answers that were kept, how many are hardly the model's own words, by category of the prompts.
    near_copies: BTreeMap<String, usize>,
}

fn split(out: &Path, own: &Path, prompts: &[Prompt], chat: &Chat) -> Result<Parts> {
    let by_id: HashMap<&str, &str> = prompts
        .iter()
        .filter_map(|prompt| Some((prompt.id.as_str(), prompt.reference.as_deref()?)))
        .collect();
    let (mut references, mut checkable, mut open) = (Vec::new(), Vec::new(), Vec::new());
    let mut near_copies = BTreeMap::<String, usize>::new();
    for answer in lines::read::<Example>(own)? {
        let reference = by_id.get(answer.id.as_str()).context("an answer without its prompt")?;
        let own = answer.origin == Some(Origin::Model);
        if own && select::nearly_copies(&answer.response, reference) {
            *near_copies.entry(answer.category.clone()).or_default() += 1;
        }
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
        lines::write(&path, examples)?;
        Ok(path)
    };
    let enough = checkable.len().min(open.len()) >= FEWEST;
    if !enough {
        println!("too few answers of a kind: nothing is merged");
    }
    let halves = enough.then(|| -> Result<_> {
        Ok([file("checkable.jsonl", &checkable)?, file("open.jsonl", &open)?])
    });
    for (category, copies) in &near_copies {
        println!("{category}: {copies} of the answers kept are nearly copies of their reference");
    }
    let references = file("references.jsonl", &references)?;
    Ok(Parts { references, halves: halves.transpose()?, near_copies })
}

/// Blocks that the paper would cut of `total`: 6 of its 32.
fn as_the_paper(total: usize) -> usize {
    (6 * total + 16) / 32
}

/// Scores a model, and measures how well it drafts for the unpruned one.
fn measure(args: &Args, data: &Path, name: &str, model: Source, drafts: bool) -> Result<Measured> {
    let folder = args.out.join("scores");
    std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    println!("scoring: {name}");
    let tasks = if args.paper.tasks.is_empty() {
        let there = |task: &&str| data.join(format!("{task}.jsonl")).exists();
        default_tasks().filter(there).map(str::to_owned).collect()
    } else {
        args.paper.tasks.clone()
    };
    let json = folder.join(format!("{name}.json"));
    let scores = score::run(&score::Args {
        model: ModelArgs { model: model.clone(), ..args.model.clone() },
        // In one arithmetic, which devices do not have.
        device: DeviceArgs { choice: DeviceChoice { device: ComputeDevice::Cpu }, ..args.device },
        data: data.into(),
        tasks,
        limit: Some(args.paper.score_limit),
        num_fewshot: 0,
        max_length: 2048,
        max_tokens: 256,
        // One arithmetic for all: the original may be quantised, what is trained is not.
        precision: Held::Q8_0,
        json: Some(json.clone()),
        endpoint: endpoint::Args::default(),
    })?;
    let acceptance = drafts.then(|| -> Result<_> {
        println!("drafting: {name}");
        let json = folder.join(format!("{name}.evaluation.json"));
        let report = evaluate::run(&evaluate::Args {
            measure: MeasureArgs {
                max_tokens: args.max_tokens.min(128),
                ..MeasureArgs::of(&args.model, args.device, model, args.eval_prompts.clone())
            },
            num_speculative_tokens: 4,
            seed: args.seed,
            batch: 8,
            samples: 0,
            json: Some(json),
        })?;
        Ok(report.prompts)
    });
    let records = lines::read(&score::records_file(&json))?;
    Ok(Measured { scores, records, acceptance: acceptance.transpose()? })
}

#[derive(Clone, Copy)]
enum Budget {
    Minutes(f64),
    Steps(u32),
    Epochs(f64),
}

impl std::fmt::Display for Budget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Minutes(minutes) => write!(f, " for {minutes:.1} minutes"),
            Self::Steps(steps) => write!(f, " for {steps} steps"),
            Self::Epochs(epochs) => write!(f, " for {epochs:.2} epochs"),
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
    let (minutes, steps, epochs) = match budget {
        Budget::Minutes(minutes) => (Some(minutes), None, None),
        Budget::Steps(steps) => (None, Some(steps), None),
        Budget::Epochs(epochs) => (None, None, Some(epochs)),
    };
    train::run(&train::Args {
        target: args.model.model.clone(),
        cache_dir: args.model.cache_dir.clone(),
        device: args.device.choice,
        chain_steps: 1,
        model: pruned.into(),
        data: vec![data.into()],
        out: out.into(),
        loss: Some(train::Loss::Ce),
        lora_rank: Some(16),
        lora_alpha: 32.0,
        minutes,
        steps,
        epochs,
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

/// What a finished training did.
fn training(folder: &Path, data: &Path, name: &str, seed: u64) -> Result<Training> {
    let path = folder.join("train.json");
    let note: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&path).with_context(|| path.display().to_string())?)?;
    let results = &note["results"];
    let (epochs, steps) = (results["epochs"].as_f64(), results["last"]["step"].as_u64());
    let (Some(epochs), Some(steps)) = (epochs, steps) else {
        bail!("{}: says nothing of epochs and steps", path.display());
    };
    Ok(Training {
        seed,
        name: name.into(),
        answers: lines::read::<serde::de::IgnoredAny>(data)?.len(),
        answer_tokens: results["answer_tokens"].as_u64().unwrap_or_default(),
        epochs,
        steps,
        seconds: results["last"]["seconds"].as_f64().unwrap_or_default(),
    })
}
