//! What can be wrong with a model file.

use std::io;
use std::path::{Path, PathBuf};

/// What can be wrong with a model file.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The system could not read it.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        error: io::Error,
    },
    /// The contents break the format's rules.
    #[error("{}: {reason}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A field is missing, has the wrong type, or names something this program does not do.
    #[error("{}: {field}: {reason}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// The field or metadata key.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A tensor the model needs is not there.
    #[error("{}: no tensor {name}", path.display())]
    MissingTensor {
        /// The file or folder.
        path: PathBuf,
        /// Its Hugging Face name.
        name: String,
    },
}

impl CheckpointError {
    pub(crate) fn corrupt(path: &Path, reason: impl Into<String>) -> Self {
        Self::Corrupt { path: path.into(), reason: reason.into() }
    }

    pub(crate) fn field(path: &Path, field: &str, reason: impl Into<String>) -> Self {
        Self::Field { path: path.into(), field: field.into(), reason: reason.into() }
    }
}
