//! `search`: how many blocks a draft should keep.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, ensure};
use pleach::checkpoint::source::Source;
use pleach::checkpoint::write::json_file;
use pleach::engine::{Engine, EngineConfig, MeasuredCosts, expected_speedup};
use plotters::prelude::*;
use serde::{Deserialize, Serialize};

use crate::commands::evaluate;
use crate::commands::importance;
use crate::commands::pack;
use crate::commands::prune;
use crate::commands::train;
use crate::shared::chart;
use crate::shared::journal::Journal;
use crate::shared::manifest::{Manifest, beside};
use crate::shared::measure_args::MeasureArgs;
use crate::shared::model_args::ModelArgs;

/// Finds how many blocks a draft should keep, by the speed-up each number promises.
///
/// For every number of blocks the model is cut, trained on the same answers for the same time, packed,
/// and tried: alpha is measured on prompts, and the costs of a draft step and of verifying n tokens on this
/// machine. A round of K draft tokens yields (1 - alpha^(K+1)) / (1 - alpha) tokens and costs K draft steps
/// and the verification of K + 1 tokens; the best K counts (Leviathan et al., arXiv 2211.17192).
///
/// OUT/search.json and OUT/search.svg have the result, and OUT/N/draft.gguf every draft. Started again, it
/// goes on where it stood. Run it on an otherwise idle machine.
#[derive(Debug, Clone, clap::Args, Serialize)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Answers to train on, written by `pleach-tools generate --top-logprobs 16`.
    #[arg(long, value_name = "JSONL")]
    pub(crate) data: PathBuf,
    /// Folder for the drafts and the result; `report` shows it where it is BUILD/search.
    #[arg(long, env = "PLEACH_OUT", value_name = "DIR", default_value = "draft/search")]
    pub(crate) out: PathBuf,
    /// Numbers of blocks to try: from the first to the second.
    #[arg(long, value_name = "N-N", default_value = "2-12")]
    pub(crate) keep_blocks: Span,
    /// Train each draft for so many minutes.
    #[arg(long, env = "PLEACH_MINUTES", default_value_t = 5.0)]
    pub(crate) minutes: f64,
    /// Train each draft for so many steps, in place of time.
    #[arg(long, env = "PLEACH_STEPS")]
    pub(crate) steps: Option<u32>,
    /// Rows of the drafts' heads.
    #[arg(long, default_value_t = 8192)]
    pub(crate) draft_vocab: usize,
    /// Prompts to measure alpha on (JSONL). Default: 72 built-in ones.
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

/// Two numbers and all between.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Span(usize, usize);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let number = |text: &str| text.trim().parse().ok().filter(|number| *number > 0);
        match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => Ok(Self(first, last)),
            _ => Err(format!("`{text}` is no span of numbers above 0, as in 2-12")),
        }
    }
}

/// A draft that was tried.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Tried {
    pub(crate) keep_blocks: usize,
    pub(crate) alpha: f64,
    /// At four draft tokens a round.
    mean_acceptance_length: f64,
    /// Seconds of a draft step over those of a target step.
    pub(crate) draft_step_cost: f64,
    /// Seconds of verifying 1, 2, ... tokens over those of a target step.
    verify_cost: Vec<f64>,
    /// The draft tokens a round that promise most.
    num_speculative_tokens: usize,
    pub(crate) predicted_speedup: f64,
}

/// Draft tokens a round that are reckoned with, at most.
const MOST_DRAFTED: usize = 8;
/// Context behind which steps are timed, and how often.
const CONTEXT: usize = 256;
const REPEATS: usize = 15;

pub(crate) fn run(args: &Args) -> Result<()> {
    let mut manifest = Manifest::new("search", args)?;
    let checkpoint = args.model.open()?;
    manifest.model(&checkpoint)?;
    manifest.file(&args.data)?;
    args.prompts.iter().try_for_each(|path| manifest.file(path))?;
    let total = checkpoint.config.num_hidden_layers;
    let Span(first, last) = args.keep_blocks;
    ensure!(last < total, "--keep-blocks: the model has {total} blocks, one must be cut");
    drop(checkpoint);
    let result = args.out.join("search.json");
    let note = beside(&result, ".manifest.json");
    if manifest.is_done(&note) && result.exists() {
        eprintln!("{} is done already", result.display());
        print(&serde_json::from_slice::<Vec<Tried>>(&std::fs::read(&result)?)?);
        return Ok(());
    }
    std::fs::create_dir_all(&args.out).with_context(|| args.out.display().to_string())?;
    let measured = args.out.join("importance.json");
    importance::run(&importance::Args::of(args.model.clone(), measured.clone()))?;
    let (mut journal, mut tried) =
        Journal::open::<Tried>(beside(&result, ".partial.jsonl"), &manifest)?;
    for keep in first + tried.len()..=last {
        println!("keeping {keep} of {total} blocks, {} of {}", keep - first + 1, last - first + 1);
        let one = try_draft(args, &measured, keep, total)?;
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

/// Cuts all but `keep` blocks, trains what is left, and measures it.
fn try_draft(args: &Args, measured: &Path, keep: usize, total: usize) -> Result<Tried> {
    let folder = args.out.join(keep.to_string());
    let (pruned, draft) = (folder.join("pruned"), folder.join("draft.gguf"));
    let cut = total - keep;
    prune::run(&prune::Args::of(args.model.clone(), pruned.clone(), cut, measured.into()))?;
    train::run(&train::Args {
        minutes: args.steps.is_none().then_some(args.minutes),
        steps: args.steps,
        draft_vocab: args.draft_vocab,
        seed: args.seed,
        threads: args.model.threads,
        ..train::Args::for_draft(&args.model, pruned, args.data.clone(), folder.join("train"))
    })?;
    pack::run(&pack::Args {
        model: folder.join("train/model"),
        out: draft.clone(),
        dtype: pack::Format::Q4_0,
        name: format!("draft of {keep} blocks"),
    })?;
    let draft = Source::Path(draft);
    let evaluation = evaluate::run(&evaluate::Args {
        measure: MeasureArgs {
            limit: args.limit,
            max_tokens: args.max_tokens,
            ..MeasureArgs::of(&args.model, draft.clone(), args.prompts.clone())
        },
        num_speculative_tokens: 4,
        seed: args.seed,
        batch: 8,
        samples: 0,
        json: Some(folder.join("evaluation.json")),
    })?;
    let costs = measure(args, &draft)?;
    let missing = "invariant: measured above";
    let draft_step_cost = costs.draft_step_cost().expect(missing);
    let verify_cost: Vec<f64> =
        costs.target.iter().map(|(rows, _)| costs.verify_cost(*rows).expect(missing)).collect();
    let alpha = evaluation.all.alpha;
    let (num_speculative_tokens, predicted_speedup) = predict(alpha, draft_step_cost, &verify_cost);
    Ok(Tried {
        keep_blocks: keep,
        alpha,
        mean_acceptance_length: evaluation.all.mean_acceptance_length,
        draft_step_cost,
        verify_cost,
        num_speculative_tokens,
        predicted_speedup,
    })
}

fn measure(args: &Args, draft: &Source) -> Result<MeasuredCosts> {
    let loaded = args.model.load(Some(draft))?;
    let positions = loaded.target.config().max_position_embeddings;
    let config = EngineConfig {
        max_num_seqs: 1,
        max_model_len: Some(positions.min(2 * CONTEXT)),
        ..EngineConfig::default()
    };
    let mut engine = Engine::new(loaded.target, loaded.decoder, config)?;
    let rows: Vec<usize> = (1..=MOST_DRAFTED + 1).collect();
    let context = CONTEXT.min(engine.limits().max_model_len / 2);
    Ok(engine.measure_costs(context, &rows, REPEATS)?)
}

/// The draft tokens a round that promise the highest speed-up, and the speed-up. `verify_cost[n]` is the
/// cost of verifying n + 1 tokens; it and `draft_step_cost` are in target steps.
fn predict(alpha: f64, draft_step_cost: f64, verify_cost: &[f64]) -> (usize, f64) {
    let promised = verify_cost.iter().enumerate().skip(1).map(|(drafted, &verify)| {
        (drafted, expected_speedup(alpha, drafted, draft_step_cost, verify))
    });
    promised.fold((0, 1.0), |best, one| if one.1 > best.1 { one } else { best })
}

fn print(tried: &[Tried]) {
    println!("blocks   alpha  acceptance length  draft step  best K  predicted speed-up");
    let best = tried.iter().map(|one| one.predicted_speedup).fold(0.0, f64::max);
    for one in tried {
        println!(
            "{:>6}  {:>6.3}  {:>17.3}  {:>10.3}  {:>6}  {:>18.3}{}",
            one.keep_blocks,
            one.alpha,
            one.mean_acceptance_length,
            one.draft_step_cost,
            one.num_speculative_tokens,
            one.predicted_speedup,
            if one.predicted_speedup == best { " *" } else { "" },
        );
    }
}

/// Predicted speed-up, and the acceptance and the cost it comes from, by blocks kept.
fn draw(path: &Path, tried: &[Tried]) -> Result<()> {
    let (Some(first), Some(last)) = (tried.first(), tried.last()) else { return Ok(()) };
    let blocks = first.keep_blocks as f64 - 0.5..last.keep_blocks as f64 + 0.5;
    let highest = tried.iter().map(|one| one.predicted_speedup).fold(1.0, f64::max);
    let dearest = tried.iter().map(|one| one.draft_step_cost).fold(1.0, f64::max);
    chart::save(path, (900, 520), |canvas| {
        let mut chart = ChartBuilder::on(canvas)
            .caption("Predicted speed-up by blocks kept", ("sans-serif", 22))
            .margin(15)
            .x_label_area_size(45)
            .y_label_area_size(55)
            .right_y_label_area_size(55)
            .build_cartesian_2d(blocks.clone(), 0.0..highest * 1.1)?
            .set_secondary_coord(blocks, 0.0..dearest);
        chart
            .configure_mesh()
            .x_desc("decoder blocks kept")
            .y_desc("predicted speed-up")
            .x_labels(tried.len() + 1)
            .x_label_formatter(&|x| format!("{x:.0}"))
            .label_style(("sans-serif", 15))
            .draw()?;
        let axis = "alpha; draft step in target steps";
        chart.configure_secondary_axes().y_desc(axis).label_style(("sans-serif", 15)).draw()?;
        let points = |value: fn(&Tried) -> f64| {
            tried.iter().map(move |one| (one.keep_blocks as f64, value(one)))
        };
        let speedup = points(|one| one.predicted_speedup);
        chart
            .draw_series(LineSeries::new(speedup, RED.stroke_width(2)).point_size(4))?
            .label("predicted speed-up")
            .legend(chart::stroke(RED));
        chart
            .draw_secondary_series(LineSeries::new(points(|one| one.alpha), BLUE).point_size(3))?
            .label("alpha (right)")
            .legend(chart::stroke(BLUE));
        let cost = points(|one| one.draft_step_cost);
        chart
            .draw_secondary_series(LineSeries::new(cost, BLACK).point_size(3))?
            .label("draft step (right)")
            .legend(chart::stroke(BLACK));
        chart::key(&mut chart)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_draft_length_is_found() {
        // Free drafts and verification: the more the better.
        let (drafted, speedup) = predict(0.5, 0.0, &[1.0, 1.0, 1.0]);
        assert_eq!((drafted, speedup), (2, 1.75));
        // (1 + 0.5) / (0.1 + 1.1) against (1 + 0.5 + 0.25) / (0.2 + 1.3).
        let (drafted, speedup) = predict(0.5, 0.1, &[1.0, 1.1, 1.3]);
        assert!(drafted == 1 && (speedup - 1.25).abs() < 1e-12);
        // A draft that never pays is not used.
        assert_eq!(predict(0.1, 0.5, &[1.0, 1.1, 1.2]), (0, 1.0));
    }

    #[test]
    fn spans_are_two_numbers() {
        assert_eq!("2-12".parse(), Ok(Span(2, 12)));
        assert_eq!("3".parse(), Ok(Span(3, 3)));
        for wrong in ["", "0-2", "4-2", "a-b", "-3"] {
            assert!(wrong.parse::<Span>().is_err(), "{wrong}");
        }
    }
}
