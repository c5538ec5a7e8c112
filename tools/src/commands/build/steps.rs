//! The steps that both recipes have.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use pleach::checkpoint::{Checkpoint, write};
use pleach::model::ModelConfig;
use pleach::prompts::{VALIDATION_PROMPTS, read_prompts};
use pleach_kernels::DType;

use super::args::Args;
use crate::commands::importance;
use crate::commands::prune;
use crate::shared::chat::Chat;
use crate::shared::manifest::Manifest;
use crate::shared::texts::PROMPTS;

/// The model, and the manifest that names it and the prompts, once OUT is there and the build can end.
pub(super) fn open(args: &Args) -> Result<(Manifest, Checkpoint)> {
    std::fs::create_dir_all(&args.out).with_context(|| args.out.display().to_string())?;
    let mut manifest = Manifest::new("build", args)?;
    let checkpoint = args.model.open()?;
    manifest.model(&checkpoint)?;
    args.prompts.iter().try_for_each(|path| manifest.file(path))?;
    check_end(args, &checkpoint)?;
    Ok((manifest, checkpoint))
}

/// Notes in OUT what is built there; refuses to go on with what another build has left.
pub(super) fn begin(args: &Args, manifest: &Manifest) -> Result<PathBuf> {
    let [begun, finished] = ["begun.json", "build.json"].map(|name| args.out.join(name));
    let first = if begun.exists() { &begun } else { &finished };
    manifest.begin(&begun, &finished, first)?;
    Ok(begun)
}

/// Finds before the first step what would end the last ones: a configuration that cannot be written, weights
/// that are not there, prompts that cannot be read.
fn check_end(args: &Args, checkpoint: &Checkpoint) -> Result<()> {
    checkpoint.check_tensors()?;
    Chat::new(checkpoint)?;
    write::hf_config(&checkpoint.config, DType::F32, checkpoint)?;
    read_prompts(args.prompts.as_deref(), PROMPTS)?;
    read_prompts(args.eval_prompts.as_deref(), VALIDATION_PROMPTS)?;
    Ok(())
}

/// How a step's time is announced, where it has a budget.
pub(super) fn for_minutes(minutes: Option<f64>) -> String {
    minutes.map_or_else(String::new, |minutes| format!(" for {minutes:.1} minutes"))
}

/// Measures the blocks and cuts all but --keep-blocks, or `keep`. Returns the folder of what is left and
/// its number of blocks.
pub(super) fn cut(args: &Args, config: &ModelConfig, keep: usize) -> Result<(PathBuf, usize)> {
    let total = config.num_hidden_layers;
    let keep = args.keep_blocks.unwrap_or(keep);
    ensure!((1..total).contains(&keep), "--keep-blocks must be 1 to {}", total - 1);
    println!("1/6 measuring blocks");
    let measured = args.out.join("importance.json");
    importance::run(&importance::Args::of(&args.model, args.device.choice, measured.clone()))?;
    println!("2/6 cutting {} of {total} blocks", total - keep);
    let pruned = args.out.join("pruned");
    prune::run(&prune::Args {
        intermediate_size: args.intermediate_size,
        ..prune::Args::of(&args.model, args.device.choice, pruned.clone(), total - keep, measured)
    })?;
    Ok((pruned, keep))
}
