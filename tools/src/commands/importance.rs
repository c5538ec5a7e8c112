//! `importance`: how much each block, and each run of blocks, changes what passes through it.

use std::num::NonZero;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use pleach::checkpoint::write;
use pleach::cli::DeviceChoice;
use pleach::model::ModelConfig;
use pleach::prompts::{read_prompts, spread};
use plotters::prelude::*;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::shared::chart;
use crate::shared::chat::Chat;
use crate::shared::manifest::{Manifest, beside};
use crate::shared::model_args::ModelArgs;
use crate::shared::place::Place;
use crate::shared::progress::Progress;
use crate::shared::states::text_reader;
use crate::shared::texts::CALIBRATION;

/// Measures how much each decoder block, and each run of blocks, changes its input.
///
/// Angular distance (Gromov et al., arXiv 2403.17887) between the input and the output of every run of
/// n blocks, and block influence (ShortGPT, arXiv 2403.03853), averaged over the tokens of a text.
/// Runs with a small distance can be cut. Prints a table, and writes JSON and a heat map beside it.
///
/// Gromov et al. measure at the last token of each text alone, which stands beside the average of all: with --prompts that
/// is the token after which the model answers.
#[derive(Debug, Clone, clap::Args, Serialize)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) device: DeviceChoice,
    /// Where the result goes; the heat map lies beside it, ending in .svg.
    #[arg(long, env = "PLEACH_OUT", default_value = "importance.json")]
    pub(crate) out: PathBuf,
    /// Plain text to measure on. Default: a part of two novels.
    #[arg(long, env = "PLEACH_TEXT", conflicts_with = "prompts")]
    pub(crate) text: Option<PathBuf>,
    /// Prompts to measure on in place of a text, as the chat template puts them: JSON lines with `turns`, of which the
    /// first counts, spread evenly.
    #[arg(long, env = "PLEACH_PROMPTS", value_name = "JSONL")]
    pub(crate) prompts: Option<PathBuf>,
    /// Tokens to measure on, in pieces of 512, or in prompts, of which the last 512 tokens count.
    #[arg(long, env = "PLEACH_TOKENS", default_value_t = DEFAULT_TOKENS)]
    pub(crate) tokens: NonZero<usize>,
}

impl Args {
    /// On the built-in text.
    pub(crate) fn of(model: &ModelArgs, device: DeviceChoice, out: PathBuf) -> Self {
        Self {
            model: model.clone(),
            device,
            out,
            text: None,
            prompts: None,
            tokens: DEFAULT_TOKENS,
        }
    }
}

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Importance {
    /// SHA-256 of the model's weights.
    pub(crate) model: String,
    pub(crate) num_blocks: usize,
    pub(crate) tokens: usize,
    /// One minus the mean cosine of each block's input and output.
    pub(crate) block_influence: Vec<f64>,
    /// `[n - 1][start]`: mean angle, as a share of 180 degrees, between input and output of the n blocks
    /// from `start` on.
    pub(crate) angular_distance: Vec<Vec<f64>>,
    /// The same at the last token of each piece or prompt alone; empty in files of earlier versions.
    #[serde(default)]
    pub(crate) angular_distance_last: Vec<Vec<f64>>,
}

impl Importance {
    /// First of the `n` blocks in a row that change their input least.
    pub(crate) fn best_run(&self, n: usize) -> Option<(usize, f64)> {
        best_run(&self.angular_distance, n)
    }
}

/// The least of the distances of `n` blocks in a row, and where they begin.
fn best_run(distances: &[Vec<f64>], n: usize) -> Option<(usize, f64)> {
    let runs = distances.get(n.checked_sub(1)?)?;
    runs.iter().copied().enumerate().min_by(|a, b| a.1.total_cmp(&b.1))
}

const PIECE: usize = 512;
const DEFAULT_TOKENS: NonZero<usize> = NonZero::new(8192).expect("is not 0");

/// Sums over tokens, all that has to survive an interruption.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Sums {
    pieces: usize,
    tokens: usize,
    /// `[from][to - from - 1]`
    pairs: Vec<Vec<PairSums>>,
}

/// What is summed of the states before and behind a run of blocks.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct PairSums {
    angle: f64,
    cosine: f64,
    /// Of the last tokens of the pieces.
    last_angle: f64,
}

pub(crate) fn run(args: &Args) -> Result<Importance> {
    let mut manifest = Manifest::new("importance", args)?;
    let mut checkpoint = args.model.open()?;
    manifest.model(&checkpoint)?;
    for file in args.text.iter().chain(&args.prompts) {
        manifest.file(file)?;
    }
    let mut place = Place::open(args.device, &checkpoint)?;
    let note = beside(&args.out, ".manifest.json");
    let partial = beside(&args.out, ".partial");
    if args.out.exists() && manifest.is_measured(&note, Some(&place)) {
        let importance = serde_json::from_slice(&std::fs::read(&args.out)?)?;
        let _ = std::fs::remove_file(&partial);
        eprintln!("{} is done already", args.out.display());
        return Ok(importance);
    }
    let pieces = pieces(args, &Chat::new(&checkpoint)?)?;
    let longest = pieces.iter().map(Vec::len).max().unwrap_or(1);
    let mut reader = text_reader(&args.model, &mut checkpoint, &mut place, longest)?;
    manifest.computed_on(place.name());

    let ModelConfig { num_hidden_layers: blocks, hidden_size: width, .. } = checkpoint.config;
    let none = || (0..blocks).map(|i| vec![PairSums::default(); blocks - i]).collect();
    // More tokens of a text go on from where fewer ended; of prompts they are others.
    let which = args.prompts.is_some().then_some(args.tokens);
    let identity = serde_json::to_string(&(&manifest.inputs, which, place.name()))?;
    let saved = std::fs::read(&partial)
        .ok()
        .and_then(|b| serde_json::from_slice::<(String, Sums)>(&b).ok())
        .filter(|(of, saved)| *of == identity && saved.pairs.len() == blocks);
    let mut sums =
        saved.map_or_else(|| Sums { pairs: none(), ..Sums::default() }, |(_, sums)| sums);
    let mut progress = Progress::new("measuring blocks", pieces.len() as u64);
    for piece in pieces.iter().skip(sums.pieces) {
        measure(&reader.read(piece)?, width, &mut sums);
        write::json_file(&partial, &(&identity, &sums))?;
        progress.set(sums.pieces as u64, String::new());
    }
    progress.finish();

    let (tokens, ends) = (sums.tokens as f64, sums.pieces as f64);
    let runs = |mean: &dyn Fn(&PairSums) -> f64| -> Vec<Vec<f64>> {
        (1..=blocks)
            .map(|n| (0..=blocks - n).map(|from| mean(&sums.pairs[from][n - 1])).collect())
            .collect()
    };
    let importance = Importance {
        model: checkpoint.fingerprint()?,
        num_blocks: blocks,
        tokens: sums.tokens,
        block_influence: sums.pairs.iter().map(|from| 1.0 - from[0].cosine / tokens).collect(),
        angular_distance: runs(&|sums| sums.angle / tokens),
        angular_distance_last: runs(&|sums| sums.last_angle / ends),
    };
    write::json_file(&args.out, &importance)?;
    heat_map(&args.out.with_extension("svg"), &importance)?;
    manifest.write(&note, serde_json::json!({"tokens": sums.tokens}))?;
    let _ = std::fs::remove_file(&partial);
    print(&importance);
    Ok(importance)
}

/// What is measured, piece by piece, of two tokens at least.
fn pieces(args: &Args, chat: &Chat) -> Result<Vec<Vec<u32>>> {
    if let Some(path) = &args.prompts {
        let mut pieces = Vec::new();
        for prompt in read_prompts(Some(path), "")? {
            let mut piece = chat.encode(&prompt.turns[..1], &[])?;
            piece.drain(..piece.len().saturating_sub(PIECE));
            pieces.extend((piece.len() > 1).then_some(piece));
        }
        ensure!(!pieces.is_empty(), "{}: no prompt of two tokens", path.display());
        let tokens: usize = pieces.iter().map(Vec::len).sum();
        let wanted = (pieces.len() * args.tokens.get()).div_ceil(tokens);
        return Ok(spread(pieces, Some(wanted)));
    }
    let text = match &args.text {
        Some(path) => std::fs::read_to_string(path).with_context(|| path.display().to_string())?,
        None => CALIBRATION.to_owned(),
    };
    let tokens = chat.encode_text(&text, false)?;
    let pieces = tokens.chunks_exact(PIECE).take(args.tokens.get().div_ceil(PIECE));
    ensure!(tokens.len() >= PIECE, "the text has {} tokens; {PIECE} are needed", tokens.len());
    Ok(pieces.map(<[u32]>::to_vec).collect())
}

/// Adds the states of one piece of text, `[blocks + 1]` of `[tokens, width]`. The first position is left out: it is where
/// models park attention, and its hidden state is like no other.
fn measure(states: &[Vec<f32>], width: usize, sums: &mut Sums) {
    let pairs: Vec<(usize, usize)> =
        (0..states.len()).flat_map(|a| (a + 1..states.len()).map(move |b| (a, b))).collect();
    let norms: Vec<Vec<f64>> = states
        .par_iter()
        .map(|state| state.chunks_exact(width).map(|row| dot(row, row).sqrt()).collect())
        .collect();
    let added: Vec<PairSums> = pairs
        .par_iter()
        .map(|&(a, b)| {
            let rows = states[a].chunks_exact(width).zip(states[b].chunks_exact(width)).enumerate();
            let mut sums = PairSums::default();
            for (row, (x, y)) in rows.skip(1) {
                let cosine = dot(x, y) / (norms[a][row] * norms[b][row]).max(1e-30);
                let cosine = cosine.clamp(-1.0, 1.0);
                sums.cosine += cosine;
                sums.last_angle = cosine.acos() / std::f64::consts::PI;
                sums.angle += sums.last_angle;
            }
            sums
        })
        .collect();
    for ((a, b), added) in pairs.into_iter().zip(added) {
        let sums = &mut sums.pairs[a][b - a - 1];
        sums.angle += added.angle;
        sums.cosine += added.cosine;
        sums.last_angle += added.last_angle;
    }
    sums.tokens += states[0].len() / width - 1;
    sums.pieces += 1;
}

/// In 16 partial sums, so that it is quick.
fn dot(x: &[f32], y: &[f32]) -> f64 {
    let mut parts = [0f32; 16];
    for (x, y) in x.chunks(16).zip(y.chunks(16)) {
        for ((part, x), y) in parts.iter_mut().zip(x).zip(y) {
            *part += x * y;
        }
    }
    parts.iter().map(|part| f64::from(*part)).sum()
}

fn print(importance: &Importance) {
    println!("block  influence");
    for (block, influence) in importance.block_influence.iter().enumerate() {
        println!("{block:>5}  {influence:.4}");
    }
    println!(
        "\ncut n blocks  best start  angular distance  at the last token: best start  distance"
    );
    for n in 1..importance.num_blocks {
        let last = best_run(&importance.angular_distance_last, n);
        if let (Some((start, distance)), Some((last, least))) = (importance.best_run(n), last) {
            println!("{n:>12}  {start:>10}  {distance:>16.4}  {last:>29}  {least:>8.4}");
        }
    }
}

/// Angular distance of every run of blocks: small is dark, and the best start of every length is
/// framed.
fn heat_map(path: &Path, importance: &Importance) -> Result<()> {
    let n = importance.num_blocks;
    let longest = n - 1;
    let all = importance.angular_distance.iter().take(longest).flatten().copied();
    let (low, high) = all.fold((f64::INFINITY, 0f64), |(low, high), v| (low.min(v), high.max(v)));
    chart::save(path, (900, 760), |canvas| {
        let mut chart = ChartBuilder::on(canvas)
            .caption("Angular distance between input and output of n blocks", ("sans-serif", 22))
            .margin(15)
            .x_label_area_size(45)
            .y_label_area_size(55)
            .build_cartesian_2d(0..n, 1..longest + 1)?;
        chart
            .configure_mesh()
            .disable_mesh()
            .x_desc("first block of the run (0 is the first decoder block)")
            .y_desc("blocks in the run, n")
            .label_style(("sans-serif", 15))
            .draw()?;
        for run in 1..=longest {
            for (start, distance) in importance.angular_distance[run - 1].iter().enumerate() {
                let share = (distance - low) / (high - low).max(1e-12);
                let colour = ViridisRGB.get_color(share);
                let cell = [(start, run), (start + 1, run + 1)];
                chart.draw_series([Rectangle::new(cell, colour.filled())])?;
            }
            if let Some((start, _)) = importance.best_run(run) {
                let cell = [(start, run), (start + 1, run + 1)];
                chart.draw_series([Rectangle::new(cell, RED.stroke_width(2))])?;
            }
        }
        let legend = format!("dark {low:.3}, light {high:.3}; red: the best start for each n");
        let style = ("sans-serif", 16).into_font().color(&BLACK);
        canvas.draw_text(&legend, &style, (480, 60))?;
        Ok(())
    })
}
