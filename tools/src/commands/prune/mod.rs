//! `prune`: a model without some of its decoder blocks, or some neurons of those that stay.

mod neurons;
mod write;

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use pleach::checkpoint::Checkpoint;
use pleach::cli::DeviceChoice;
use pleach::model::{Attachment, ModelConfig, PROJECTIONS};
use pleach_kernels::DType;
use serde::Serialize;

use crate::commands::importance::Importance;
use crate::shared::attach::{self, Projections};
use crate::shared::calibration;
use crate::shared::manifest::Manifest;
use crate::shared::model_args::ModelArgs;
use crate::shared::model_folder::write_note;
use crate::shared::place::Place;
use neurons::Neurons;
use write::Left;

/// Cuts decoder blocks out of a model and writes what is left as a Hugging Face folder.
///
/// Name the blocks yourself (--list), or let --importance choose the run of blocks that changes its
/// input least: as many as --blocks says, or as few as bring the FLOPs per token down to --flop-share.
///
/// With --intermediate-size the feed-forward parts of the blocks that stay keep so many neurons: those that add most to
/// what their block computes over some text (the sum of squares of the activation, times the neuron's column of the down
/// projection).
///
/// With --draft-kind attached projections take the place of what is cut, which read what the target has computed. Without
/// --list the last two blocks stay, and those between them and the first at even distances: --blocks 26 keeps 10, 20, 28
/// and 29 of thirty. The text is read on --device.
///
/// --from makes an attached drafter that is trained already narrower: blocks and projections are its own.
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
    /// Neurons of each feed-forward part that are left, a multiple of 32. Default: all.
    #[arg(long, value_name = "NEURONS")]
    pub(crate) intermediate_size: Option<usize>,
    /// Go on from an attached drafter of the model, a folder: DIR/model of `pleach-tools train`.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["list", "blocks", "flop_share", "importance"])]
    pub(crate) from: Option<PathBuf>,
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
            intermediate_size: None,
            from: None,
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

    /// To leave so many neurons of a trained attached drafter, a folder.
    pub(crate) fn narrowed(
        model: &ModelArgs,
        device: DeviceChoice,
        out: PathBuf,
        from: PathBuf,
        neurons: usize,
    ) -> Self {
        Self {
            blocks: None,
            from: Some(from),
            intermediate_size: Some(neurons),
            ..Self::attached(model, device, out, 0, 0)
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
    if let Some(path) = args.from.as_deref().filter(|path| !path.is_dir()) {
        bail!("--from {}: is no folder; `build --from` takes a packed draft", path.display());
    }
    let mut from = args.from.as_deref().map(Checkpoint::open).transpose()?;
    from.iter().try_for_each(|draft| manifest.model(draft))?;
    if let Some(path) = &args.importance {
        manifest.file(path)?;
    }
    let note = args.out.join("prune.json");
    if manifest.is_done(&note) {
        eprintln!("{} is done already", args.out.display());
        return Ok(());
    }
    let (kept, attachment) = left(args, &checkpoint, from.as_ref())?;
    from.as_ref().unwrap_or(&checkpoint).check_tensors()?;
    // Where weights come from, and which blocks they are there.
    let shape = from.as_ref().unwrap_or(&checkpoint).config.clone();
    let own: Vec<usize> = if from.is_some() { (0..kept.len()).collect() } else { kept.clone() };
    args.intermediate_size.iter().try_for_each(|count| check_neurons(*count, &shape))?;
    let count = args.intermediate_size.filter(|count| *count < shape.intermediate_size);
    let mut watched = match count {
        Some(_) => Some(Neurons::new(from.as_mut().unwrap_or(&mut checkpoint), &kept, &own)?),
        None => None,
    };
    let untrained = attachment.as_ref().filter(|_| from.is_none());
    let mut regressions =
        untrained.map(|attachment| Projections::new(&checkpoint.config, attachment));
    if watched.is_some() || regressions.is_some() {
        let place = Place::open(args.device, &checkpoint)?;
        calibration::read(&args.model, &mut checkpoint, place, |states| {
            regressions.iter_mut().try_for_each(|it| it.observe(states))?;
            watched.iter_mut().try_for_each(|it| it.observe(states))
        })?;
    }
    let projections = match (regressions, &mut from) {
        (Some(regressions), _) => regressions.solve()?,
        (None, Some(draft)) => PROJECTIONS
            .iter()
            .map(|name| pleach_train::weight(draft, name))
            .collect::<Result<_, _>>()?,
        (None, None) => Vec::new(),
    };
    let neurons = watched.zip(count).map(|(watched, count)| watched.strongest(count));
    let source = from.as_mut().unwrap_or(&mut checkpoint);
    let stored = source.info("model.layers.0.self_attn.q_proj.weight")?.dtype;
    let format = if stored.is_quantized() { DType::F32 } else { stored };
    let format = args.dtype.map_or(format, DType::from);
    let left = Left { blocks: own, neurons };
    let pruned = write::folder(&args.out, source, &left, format, projections)?;
    if attachment.is_some() {
        let vocab = from.as_ref().and_then(|draft| draft.draft_vocab.as_deref());
        write_note(&args.out, vocab, attachment.as_ref())?;
    }
    let share = flops(&pruned) / flops(&checkpoint.config);
    let results = serde_json::json!({
        "kept_blocks": kept, "intermediate_size": pruned.intermediate_size, "flop_share": share,
    });
    manifest.write(&note, results)?;
    let neurons = pruned.intermediate_size;
    println!(
        "kept blocks {kept:?} of {neurons} neurons: {:.1} % of the FLOPs per token",
        share * 100.0
    );
    Ok(())
}

/// The model's blocks that stay, rising, and how an attached drafter of them hangs on it.
fn left(
    args: &Args,
    checkpoint: &Checkpoint,
    from: Option<&Checkpoint>,
) -> Result<(Vec<usize>, Option<Attachment>)> {
    if let Some(draft) = from {
        let attachment = draft.attachment.clone();
        let attachment = attachment
            .context("--from: is no attached drafter; a standalone one is pruned as --model")?;
        attachment.check(&checkpoint.config, &draft.config)?;
        return Ok((attachment.blocks.clone(), Some(attachment)));
    }
    let kept = kept_blocks(args, checkpoint)?;
    ensure!(args.states > 0, "--states must be at least 1");
    let attached = args.draft_kind == DraftKind::Attached;
    let attachment = attached.then(|| attach::attachment(&checkpoint.config, &kept, args.states));
    Ok((kept, attachment))
}

/// Refuses numbers of neurons that a model does not have, or whose matrices 4-bit formats do not hold.
pub(crate) fn check_neurons(count: usize, config: &ModelConfig) -> Result<()> {
    let all = config.intermediate_size;
    let fits = count == all || (1..all).contains(&count) && count.is_multiple_of(32);
    ensure!(fits, "--intermediate-size {count}: a multiple of 32 up to {all} is needed");
    Ok(())
}

/// FLOPs per token of a model with the whole head, at 512 tokens of context.
fn flops(config: &ModelConfig) -> f64 {
    config.flops_per_token(512, config.vocab_size) as f64
}

/// The blocks that stay, rising.
fn kept_blocks(args: &Args, checkpoint: &Checkpoint) -> Result<Vec<usize>> {
    let cut = choose(args, checkpoint)?;
    let blocks = 0..checkpoint.config.num_hidden_layers;
    let kept: Vec<usize> = blocks.filter(|block| !cut.contains(block)).collect();
    ensure!(!kept.is_empty(), "no block would be left");
    Ok(kept)
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
            let of = |blocks: usize| {
                let blocks: Vec<usize> = (0..blocks).collect();
                let mut left = config.with_blocks(&blocks);
                left.intermediate_size = args.intermediate_size.unwrap_or(left.intermediate_size);
                flops(&left) / flops(config)
            };
            (0..total).find(|cut| of(total - cut) <= share).with_context(|| {
                let least = of(1);
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
