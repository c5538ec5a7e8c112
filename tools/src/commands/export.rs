//! `export`: a standalone draft as a whole model, for other programs.

use std::cell::RefCell;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use pleach::checkpoint::source::{DEFAULT_MODEL, Source, default_cache_dir, resolve};
use pleach::checkpoint::write::{LazyTensor, Meta, gguf_file, model_folder};
use pleach::checkpoint::{Checkpoint, CheckpointError, RawTensor};
use pleach::model::{ModelConfig, check_draft, tensor_names};
use pleach_kernels::DType;
use serde::Serialize;

use crate::commands::pack::packed_blocks;
use crate::shared::manifest::{Manifest, beside};

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// Writes a standalone draft as a whole model that other programs run: a Hugging Face folder, for instance as
/// `assistant_model` of transformers, or, where --out ends in .gguf, a file for `llama-server -md`.
///
/// Embedding, head, tokenizer and settings are the target's. Where the draft's head is trimmed, the head that is written
/// has a row of zeros for each token that was never trained, so that its logit is 0 and the trained ones win.
#[derive(Debug, Clone, clap::Args, Serialize)]
pub(crate) struct Args {
    /// The draft: DIR/model of `train`, a folder of `prune` or `merge`, or a file of `pack`.
    #[arg(long, env = "PLEACH_DRAFT", value_name = "PATH")]
    pub(crate) draft: PathBuf,
    /// The model that it drafts for. A GGUF file is needed to write one, for its tokenizer.
    #[arg(long, env = "PLEACH_MODEL", value_name = "SOURCE", default_value = DEFAULT_MODEL)]
    pub(crate) model: Source,
    /// Folder to write, or file where it ends in .gguf.
    #[arg(long, env = "PLEACH_OUT", value_name = "PATH")]
    pub(crate) out: PathBuf,
    /// Format of the blocks' matrices. Default: bf16 in a folder, which holds floats alone, and q4_0 in a file.
    #[arg(long, value_enum, env = "PLEACH_DTYPE")]
    pub(crate) dtype: Option<Format>,
    /// Where fetched models are kept.
    #[arg(long, env = "PLEACH_CACHE_DIR")]
    pub(crate) cache_dir: Option<PathBuf>,
}

/// Formats of an exported model's matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
pub(crate) enum Format {
    F32,
    F16,
    Bf16,
    #[value(name = "q8_0")]
    Q8_0,
    #[value(name = "q4_1")]
    Q4_1,
    #[value(name = "q4_0")]
    Q4_0,
}

impl From<Format> for DType {
    fn from(format: Format) -> Self {
        match format {
            Format::F32 => Self::F32,
            Format::F16 => Self::F16,
            Format::Bf16 => Self::BF16,
            Format::Q8_0 => Self::Q8_0,
            Format::Q4_1 => Self::Q4_1,
            Format::Q4_0 => Self::Q4_0,
        }
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let mut manifest = Manifest::new("export", args)?;
    let cache = args.cache_dir.clone().unwrap_or_else(default_cache_dir);
    let mut target = Checkpoint::open(&resolve(&args.model, &cache)?)?;
    let mut draft = Checkpoint::open(&args.draft)?;
    manifest.model(&target)?;
    manifest.model(&draft)?;
    ensure!(
        draft.attachment.is_none(),
        "{}: an attached drafter reads what its target computes, which no other program shows it; export a standalone \
         one (`build --draft-kind standalone`)",
        args.draft.display()
    );
    let vocab = check_draft(&draft, &target.config)?;
    let mut config = draft.config.clone();
    config.tie_word_embeddings = target.config.tie_word_embeddings && vocab.is_none();
    config.bos_token_id = target.config.bos_token_id;
    config.eos_token_ids.clone_from(&target.config.eos_token_ids);
    let gguf = args.out.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gguf"));
    let file = if gguf {
        write_file(args, &mut draft, &mut target, &config, vocab.as_deref())?;
        args.out.clone()
    } else {
        write_folder(args, &mut draft, &mut target, &config, vocab.as_deref())?
    };
    let bytes = std::fs::metadata(&file).map_or(0, |meta| meta.len());
    let note =
        if gguf { beside(&args.out, ".manifest.json") } else { args.out.join("export.json") };
    manifest.write(&note, serde_json::json!({"bytes": bytes}))?;
    println!("{}: {:.2} MB", args.out.display(), bytes as f64 / 1e6);
    Ok(())
}

/// Writes a GGUF file whose embedding and head have the target's own formats.
fn write_file(
    args: &Args,
    draft: &mut Checkpoint,
    target: &mut Checkpoint,
    config: &ModelConfig,
    vocab: Option<&[u32]>,
) -> Result<()> {
    let tokenizer = target.tokenizer_metadata()?.with_context(|| {
        format!(
            "{}: is a folder, and a GGUF file describes its tokenizer in its own way; say --model FILE.gguf for a \
             file of the same model, or write a folder and convert that with llama.cpp's convert_hf_to_gguf.py",
            args.model
        )
    })?;
    let mut tensors = vec![(EMBEDDING.to_owned(), target.tensor(EMBEDDING)?)];
    tensors.extend(packed_blocks(draft, args.dtype.unwrap_or(Format::Q4_0).into())?);
    if !config.tie_word_embeddings {
        tensors.push((HEAD.to_owned(), head(target, vocab)?));
    }
    let more: Vec<(&str, Meta)> =
        tokenizer.iter().map(|(key, value)| (key.as_str(), Meta::Copied(value))).collect();
    gguf_file(&args.out, &format!("{} draft", target.name), config, &more, &tensors)?;
    Ok(())
}

/// Writes a Hugging Face folder, and says which file has its weights.
fn write_folder(
    args: &Args,
    draft: &mut Checkpoint,
    target: &mut Checkpoint,
    config: &ModelConfig,
    vocab: Option<&[u32]>,
) -> Result<PathBuf> {
    let dtype = DType::from(args.dtype.unwrap_or(Format::Bf16));
    ensure!(
        !dtype.is_quantized(),
        "--dtype: a folder holds f32, f16 or bf16; quantised matrices go into a file (--out NAME.gguf)"
    );
    let like = Checkpoint::open(target.path())?;
    let mut shapes = vec![(EMBEDDING.to_owned(), target.info(EMBEDDING)?.shape)];
    for name in tensor_names(config, |name| draft.has(name)) {
        let shape = draft.info(&name)?.shape;
        shapes.push((name, shape));
    }
    if !config.tie_word_embeddings {
        shapes.push((HEAD.to_owned(), shapes[0].1.clone()));
    }
    let models = RefCell::new((draft, target));
    let values = |name: &str| -> Result<Vec<f32>, CheckpointError> {
        let (draft, target) = &mut *models.borrow_mut();
        let tensor = match name {
            EMBEDDING => target.tensor(name),
            HEAD => head(target, vocab),
            name => draft.tensor(name),
        };
        Ok(tensor?.to_f32())
    };
    let tensors = shapes
        .iter()
        .map(|(name, shape)| LazyTensor {
            name: name.clone(),
            dtype,
            shape: shape.clone(),
            values: Box::new(|| values(name)),
        })
        .collect();
    Ok(model_folder(&args.out, config, dtype, &like, tensors)?)
}

/// The target's head, with rows of zeros for what is not in `vocab`: token ids, rising.
fn head(target: &mut Checkpoint, vocab: Option<&[u32]>) -> Result<RawTensor, CheckpointError> {
    let mut tensor =
        target.tensor(if target.config.tie_word_embeddings { EMBEDDING } else { HEAD })?;
    if let Some(vocab) = vocab {
        let row_bytes = tensor.data.len() / tensor.shape[0];
        for (row, id) in tensor.data.chunks_exact_mut(row_bytes).zip(0..) {
            if vocab.binary_search(&id).is_err() {
                row.fill(0); // 0 in every format
            }
        }
    }
    Ok(tensor)
}
