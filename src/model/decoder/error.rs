//! Why a checkpoint does not make a decoder.

use std::sync::Arc;

use crate::checkpoint::architecture::{AttachmentError, ModelConfig};
use crate::checkpoint::{Checkpoint, CheckpointError};
use pleach_kernels::OpsError;
use pleach_kernels::cuda::CudaError;

/// Why a checkpoint does not make a decoder.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The file cannot be read or lacks something.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A tensor's shape is not what the configuration asks for.
    #[error("tensor {name} has shape {found:?}, the configuration asks for {expected:?}")]
    Shape {
        /// Hugging Face name.
        name: String,
        /// Shape in the file.
        found: Vec<usize>,
        /// Shape by the configuration.
        expected: Vec<usize>,
    },
    /// A tensor cannot be packed.
    #[error("tensor {name}: {error}")]
    Pack {
        /// Hugging Face name.
        name: String,
        /// What does not fit.
        error: OpsError,
    },
    /// An attached draft does not fit its target.
    #[error(transparent)]
    Attachment(#[from] AttachmentError),
    /// The draft does not fit its target.
    #[error(
        "the draft does not fit the target: {what} is {draft}, the target's is {target}; build a draft from this target with `pleach-tools build`"
    )]
    Draft {
        /// What differs.
        what: &'static str,
        /// The draft's value.
        draft: usize,
        /// The target's value.
        target: usize,
    },
    /// A token id of the draft's head is not in the target's vocabulary, or the head has other rows.
    #[error("the draft's vocabulary does not fit: {0}")]
    DraftVocab(String),
    /// A CUDA device cannot hold or compute the model.
    #[error(transparent)]
    Cuda(#[from] CudaError),
    /// The model has something that only the CPU computes.
    #[error("{what}: {reason}; use `--device cpu`")]
    Unsupported {
        /// Tensor or field.
        what: String,
        /// What is not there.
        reason: String,
    },
}

/// Checks a tensor's shape.
pub(in crate::model) fn check_shape(
    name: &str,
    found: &[usize],
    expected: &[usize],
) -> Result<(), ModelError> {
    if found == expected {
        return Ok(());
    }
    let (found, expected) = (found.into(), expected.into());
    Err(ModelError::Shape { name: name.into(), found, expected })
}

/// Checks that a draft fits its target, and gives the token ids of its head, where that is trimmed.
///
/// # Errors
/// [`ModelError`] naming what does not fit.
pub fn check_draft(
    draft: &Checkpoint,
    target: &ModelConfig,
) -> Result<Option<Arc<[u32]>>, ModelError> {
    let config = &draft.config;
    for (what, draft, target) in [
        ("hidden_size", config.hidden_size, target.hidden_size),
        ("vocab_size", config.vocab_size, target.vocab_size),
    ] {
        if draft != target {
            return Err(ModelError::Draft { what, draft, target });
        }
    }
    if let Some(vocab) = &draft.draft_vocab {
        let rising = vocab.windows(2).all(|pair| pair[0] < pair[1]);
        if !rising || vocab.last().is_none_or(|last| *last as usize >= config.vocab_size) {
            let reason = "token ids must rise and lie in the vocabulary";
            return Err(ModelError::DraftVocab(reason.into()));
        }
    }
    Ok(draft.draft_vocab.as_deref().map(Into::into))
}
