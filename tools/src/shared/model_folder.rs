//! Models as Hugging Face folders, with `pleach.json` beside their weights.

use std::path::Path;

use anyhow::{Context, Result};
use pleach::checkpoint::write::{self, LazyTensor};
use pleach::checkpoint::{Checkpoint, NOTE, sha256};
use pleach::model::Attachment;
use pleach_kernels::DType;
use serde_json::json;

/// Writes a model as a Hugging Face folder with everything but the weights taken from `like`;
/// `pleach.json` names the tokens of a trimmed head.
pub(crate) fn save_folder(
    folder: &Path,
    like: &Checkpoint,
    tensors: Vec<LazyTensor>,
    draft_vocab: Option<&[u32]>,
) -> Result<()> {
    write::model_folder(folder, &like.config, DType::F32, like, tensors)?;
    if draft_vocab.is_some() || like.attachment.is_some() {
        write_note(folder, draft_vocab, like.attachment.as_ref())?;
    }
    Ok(())
}

/// Writes `pleach.json` beside a folder's weights: the tokens of a trimmed head, and where an attached drafter
/// hangs on its target.
pub(crate) fn write_note(
    folder: &Path,
    draft_vocab: Option<&[u32]>,
    attachment: Option<&Attachment>,
) -> Result<()> {
    let file = folder.join("model.safetensors");
    let sha256 = sha256(&[&file]).with_context(|| file.display().to_string())?;
    let mut note = json!({"sha256": sha256});
    if let Some(vocab) = draft_vocab {
        note["draft_vocab"] = vocab.into();
    }
    if let Some(Attachment { blocks, states }) = attachment {
        note["attached"] = json!({"blocks": blocks, "states": states});
    }
    Ok(write::json_file(&folder.join(NOTE), &note)?)
}
