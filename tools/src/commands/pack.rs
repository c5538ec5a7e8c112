//! `pack`: a trained model as one small file that serves as a draft.

use std::path::PathBuf;

use anyhow::{Context, Result};
use pleach::checkpoint::write::{Meta, gguf_file};
use pleach::checkpoint::{ATTACHMENT, Checkpoint, RawTensor};
use pleach::model::tensor_names;
use pleach_kernels::DType;
use serde::Serialize;

use crate::shared::manifest::{Manifest, beside};

/// Packs a trained model into a .gguf draft: its blocks in 4 bits, and the token ids of its head.
///
/// Embedding and head are left out: they are the target's own, and the server takes them from it.
#[derive(Debug, Clone, clap::Args, Serialize)]
pub(crate) struct Args {
    /// The trained model: DIR/model of `pleach-tools train`.
    #[arg(long, value_name = "DIR")]
    pub(crate) model: PathBuf,
    /// File to write.
    #[arg(long, env = "PLEACH_OUT", value_name = "GGUF", default_value = "draft.gguf")]
    pub(crate) out: PathBuf,
    /// Format of the matrices; those whose rows do not fill its blocks stay in f16.
    #[arg(long, value_enum, default_value = "q4_0")]
    pub(crate) dtype: Format,
    /// Name of the draft in its file.
    #[arg(long, default_value = "pleach draft")]
    pub(crate) name: String,
}

/// Formats of a draft's matrices.
#[derive(Debug, Clone, Copy, clap::ValueEnum, Serialize)]
pub(crate) enum Format {
    #[value(name = "q4_0")]
    Q4_0,
    #[value(name = "q4_1")]
    Q4_1,
    #[value(name = "q8_0")]
    Q8_0,
    F16,
}

impl From<Format> for DType {
    fn from(format: Format) -> Self {
        match format {
            Format::Q4_0 => Self::Q4_0,
            Format::Q4_1 => Self::Q4_1,
            Format::Q8_0 => Self::Q8_0,
            Format::F16 => Self::F16,
        }
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let mut manifest = Manifest::new("pack", args)?;
    let mut checkpoint = Checkpoint::open(&args.model)?;
    manifest.model(&checkpoint)?;
    let tensors = packed_blocks(&mut checkpoint, args.dtype.into())?;
    let mut more = vec![("general.type", Meta::Text("draft".into()))];
    let vocab = checkpoint.draft_vocab.clone();
    more.extend(vocab.as_deref().map(|vocab| ("pleach.draft_vocab", Meta::Numbers(vocab))));
    let lists = checkpoint.attachment.iter().flat_map(|at| [&at.blocks, &at.states]);
    let lists: Vec<Vec<u32>> =
        lists.map(|list| list.iter().map(|&number| number as u32).collect()).collect();
    more.extend(ATTACHMENT.into_iter().zip(&lists).map(|(key, list)| (key, Meta::Numbers(list))));
    gguf_file(&args.out, &args.name, &checkpoint.config, &more, &tensors)?;
    let bytes = std::fs::metadata(&args.out).map_or(0, |meta| meta.len());
    manifest.write(&beside(&args.out, ".manifest.json"), serde_json::json!({"bytes": bytes}))?;
    println!("{}: {:.2} MB", args.out.display(), bytes as f64 / 1e6);
    Ok(())
}

/// The blocks and the last norm of a model, by name: matrices in `dtype`, or in f16 where their rows do not fill its
/// blocks, and vectors in f32. What has the format already stays as it is.
pub(crate) fn packed_blocks(
    checkpoint: &mut Checkpoint,
    dtype: DType,
) -> Result<Vec<(String, RawTensor)>> {
    let mut tensors = Vec::new();
    let mut kept_wide = 0;
    for name in tensor_names(&checkpoint.config, |name| checkpoint.has(name)) {
        let tensor = checkpoint.tensor(&name)?;
        let dtype = match tensor.shape[..] {
            [_, inputs] if inputs.is_multiple_of(dtype.block_size()) => dtype,
            [_, _] => DType::F16,
            _ => DType::F32,
        };
        kept_wide += usize::from(tensor.shape.len() == 2 && dtype == DType::F16);
        let tensor = if tensor.dtype == dtype {
            tensor
        } else {
            let data =
                dtype.quantize(&tensor.to_f32()).with_context(|| format!("{name}: {dtype:?}"))?;
            RawTensor { dtype, shape: tensor.shape, data }
        };
        tensors.push((name, tensor));
    }
    if kept_wide > 0 && dtype != DType::F16 {
        eprintln!("{kept_wide} matrices stay in f16: their rows do not fill blocks of {dtype:?}");
    }
    Ok(tensors)
}
