//! `prune`: a model without some of its decoder blocks.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use pleach::checkpoint::Checkpoint;
use pleach::checkpoint::write::{LazyTensor, folder_files, safetensors_file};
use pleach::cli::DeviceChoice;
use pleach::model::{ModelConfig, layer_tensor_names};
use pleach_kernels::DType;
use pleach_train::Weight;
use serde::Serialize;

use crate::commands::importance::Importance;
use crate::shared::attach;
use crate::shared::manifest::Manifest;
use crate::shared::model_args::ModelArgs;
use crate::shared::model_folder::write_note;
use crate::shared::place::Place;

/// Cuts decoder blocks out of a model and writes what is left as a Hugging Face folder.
///
/// Name the blocks yourself (--list), or let --importance choose the run of blocks that changes its
/// input least: as many as --blocks says, or as few as bring the FLOPs per token down to --flop-share.
///
/// With --draft-kind attached projections take the place of what is cut, which read what the target has computed. Without
/// --list the last two blocks stay, and those between them and the first at even distances: --blocks 26 keeps 10, 20, 28
/// and 29 of thirty. What the projections start from is computed on --device.
#[derive(Debug, Clone, clap::Args, Serialize)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) device: DeviceChoice,
    /// Folder to write.
    #[arg(long, env = "PLEACH_OUT", value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Blocks to cut, for instance 2-23,26.
    #[arg(long, conflicts_with_all = ["blocks", "flop_share"])]
    pub(crate) list: Option<String>,
    /// Number of blocks to cut.
    #[arg(long, conflicts_with = "flop_share")]
    pub(crate) blocks: Option<usize>,
    /// FLOPs per token that are left, as a share of the model's (512 tokens of context).
    #[arg(long)]
    pub(crate) flop_share: Option<f64>,
    /// What is left: a standalone model, or an attached drafter.
    #[arg(long, value_enum, default_value = "standalone")]
    pub(crate) draft_kind: DraftKind,
    /// Number of the target's states that an attached drafter reads, at even depths down to the last.
    #[arg(long, value_name = "N", default_value_t = attach::STATES)]
    pub(crate) states: usize,
    /// Result of `pleach-tools importance`, to choose by.
    #[arg(long, value_name = "JSON")]
    pub(crate) importance: Option<PathBuf>,
    /// Float format of the written weights. Default: the model's own, f32 where it is quantised.
    #[arg(long, value_enum)]
    pub(crate) dtype: Option<FloatFormat>,
}

impl Args {
    /// To cut the `blocks` blocks that matter least.
    pub(crate) fn of(
        model: &ModelArgs,
        device: DeviceChoice,
        out: PathBuf,
        blocks: usize,
        importance: PathBuf,
    ) -> Self {
        let (blocks, importance) = (Some(blocks), Some(importance));
        let draft_kind = DraftKind::Standalone;
        Self {
            model: model.clone(),
            device,
            out,
            list: None,
            blocks,
            flop_share: None,
            draft_kind,
            states: attach::STATES,
            importance,
            dtype: None,
        }
    }

    /// To attach `keep` of `total` blocks.
    pub(crate) fn attached(
        model: &ModelArgs,
        device: DeviceChoice,
        out: PathBuf,
        keep: usize,
        total: usize,
    ) -> Self {
        Self {
            draft_kind: DraftKind::Attached,
            importance: None,
            ..Self::of(model, device, out, total - keep, PathBuf::new())
        }
    }
}

/// Kinds of drafts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum DraftKind {
    /// A model of its own, with fewer blocks.
    Standalone,
    /// A few blocks, which read what the target has computed.
    Attached,
}

/// Float formats of Hugging Face folders.
#[derive(Debug, Clone, Copy, clap::ValueEnum, Serialize)]
pub(crate) enum FloatFormat {
    F32,
    F16,
    Bf16,
}

impl From<FloatFormat> for DType {
    fn from(format: FloatFormat) -> Self {
        match format {
            FloatFormat::F32 => Self::F32,
            FloatFormat::F16 => Self::F16,
            FloatFormat::Bf16 => Self::BF16,
        }
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let mut manifest = Manifest::new("prune", args)?;
    let mut checkpoint = args.model.open()?;
    manifest.model(&checkpoint)?;
    if let Some(path) = &args.importance {
        manifest.file(path)?;
    }
    let note = args.out.join("prune.json");
    if manifest.is_done(&note) {
        eprintln!("{} is done already", args.out.display());
        return Ok(());
    }
    let cut = choose(args, &checkpoint)?;
    let kept: Vec<usize> =
        (0..checkpoint.config.num_hidden_layers).filter(|block| !cut.contains(block)).collect();
    ensure!(!kept.is_empty(), "no block would be left");
    ensure!(args.states > 0, "--states must be at least 1");
    let stored = checkpoint.info("model.layers.0.self_attn.q_proj.weight")?.dtype;
    let own = if stored.is_quantized() { DType::F32 } else { stored };
    let dtype = args.dtype.map_or(own, DType::from);
    match args.draft_kind {
        DraftKind::Standalone => {
            write_blocks(&args.out, &mut checkpoint, &kept, dtype, Vec::new())?
        }
        DraftKind::Attached => {
            let attachment = attach::attachment(&checkpoint.config, &kept, args.states);
            let place = Place::open(args.device, &checkpoint)?;
            let projections =
                attach::projections(&args.model, &mut checkpoint, place, &attachment)?;
            write_blocks(&args.out, &mut checkpoint, &kept, dtype, projections)?;
            write_note(&args.out, None, Some(&attachment))?;
        }
    }
    let share = flop_share(&checkpoint.config, kept.len());
    manifest.write(&note, serde_json::json!({"kept_blocks": kept, "flop_share": share}))?;
    println!("kept blocks {kept:?}: {:.1} % of the FLOPs per token", share * 100.0);
    Ok(())
}

/// FLOPs per token with `kept` blocks over those of the whole model, at 512 tokens of context.
fn flop_share(config: &ModelConfig, kept: usize) -> f64 {
    let head = config.head_flops(config.vocab_size);
    let with = |blocks: usize| (blocks as u64 * config.block_flops(512) + head) as f64;
    with(kept) / with(config.num_hidden_layers)
}

fn choose(args: &Args, checkpoint: &Checkpoint) -> Result<BTreeSet<usize>> {
    let config = &checkpoint.config;
    let total = config.num_hidden_layers;
    if let Some(list) = &args.list {
        return parse_list(list, total);
    }
    let count = match (args.blocks, args.flop_share) {
        (Some(blocks), _) => blocks,
        (None, Some(share)) => {
            ensure!(share > 0.0 && share <= 1.0, "--flop-share must be above 0 and at most 1");
            (0..total).find(|cut| flop_share(config, total - cut) <= share).with_context(|| {
                let least = flop_share(config, 1);
                format!(
                    "--flop-share {share} cannot be reached: one block and the head take {least:.3}"
                )
            })?
        }
        (None, None) => bail!("say what to cut: --list, --blocks or --flop-share"),
    };
    ensure!(count < total, "--blocks {count} would leave nothing of {total} blocks");
    if args.draft_kind == DraftKind::Attached {
        let kept = attach::kept_blocks(total, total - count);
        return Ok((0..total).filter(|block| !kept.contains(block)).collect());
    }
    if count == 0 {
        return Ok(BTreeSet::new());
    }
    let path = args.importance.as_ref().context(
        "--blocks and --flop-share need --importance, made by `pleach-tools importance`",
    )?;
    let importance: Importance =
        serde_json::from_slice(&std::fs::read(path).with_context(|| path.display().to_string())?)
            .with_context(|| path.display().to_string())?;
    ensure!(
        importance.model == checkpoint.fingerprint()?,
        "{}: was measured on another model",
        path.display()
    );
    let best = importance.best_run(count).filter(|(start, _)| start + count <= total);
    let (start, _) =
        best.with_context(|| format!("{}: no run of {count} blocks", path.display()))?;
    Ok((start..start + count).collect())
}

fn parse_list(list: &str, total: usize) -> Result<BTreeSet<usize>> {
    let mut blocks = BTreeSet::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| -> Result<usize> {
            let number = text.trim().parse().with_context(|| format!("--list: `{part}`"))?;
            ensure!(number < total, "--list: block {number} of {total} (the first is 0)");
            Ok(number)
        };
        let (first, last) = (number(first)?, number(last)?);
        ensure!(first <= last, "--list: `{part}` runs backwards");
        blocks.extend(first..=last);
    }
    Ok(blocks)
}

/// Writes the model with the given blocks alone, and `more` weights.
fn write_blocks(
    folder: &Path,
    checkpoint: &mut Checkpoint,
    kept: &[usize],
    dtype: DType,
    more: Vec<Weight>,
) -> Result<()> {
    checkpoint.check_tensors()?;
    let config = checkpoint.config.with_blocks(kept);
    folder_files(folder, &config, dtype, checkpoint)?;
    let mut names = vec![("model.embed_tokens.weight".to_owned(), None)];
    for (new, old) in kept.iter().enumerate() {
        for name in layer_tensor_names(&config, *old, |name| checkpoint.has(name)) {
            let written = name.replacen(&format!(".{old}."), &format!(".{new}."), 1);
            names.push((name, Some(written)));
        }
    }
    names.push(("model.norm.weight".to_owned(), None));
    if !config.tie_word_embeddings {
        names.push(("lm_head.weight".to_owned(), None));
    }
    let mut shapes = Vec::new();
    for (name, _) in &names {
        shapes.push(checkpoint.info(name)?.shape);
    }
    let checkpoint = std::cell::RefCell::new(checkpoint);
    let mut tensors: Vec<LazyTensor> = names
        .into_iter()
        .zip(shapes)
        .map(|((name, written), shape)| {
            let checkpoint = &checkpoint;
            LazyTensor {
                name: written.unwrap_or_else(|| name.clone()),
                dtype,
                shape,
                values: Box::new(move || Ok(checkpoint.borrow_mut().tensor(&name)?.to_f32())),
            }
        })
        .collect();
    tensors.extend(more.iter().map(|(name, shape, values)| LazyTensor {
        name: name.clone(),
        dtype,
        shape: shape.clone(),
        values: Box::new(|| Ok(values.clone())),
    }));
    safetensors_file(&folder.join("model.safetensors"), &tensors, &[])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_name_blocks_and_ranges() {
        let list = |text| parse_list(text, 30).map(|set| set.into_iter().collect::<Vec<_>>());
        assert_eq!(list("2-4,7").unwrap(), [2, 3, 4, 7]);
        for wrong in ["", "30", "4-2", "x", "1-"] {
            assert!(list(wrong).unwrap_err().to_string().contains("--list"), "{wrong}");
        }
    }
}
