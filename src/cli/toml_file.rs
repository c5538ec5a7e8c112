//! Files of settings or keys, in TOML.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

/// Why a TOML file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system could not read it.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        error: std::io::Error,
    },
    /// The contents are not what is expected.
    #[error("{}: {reason}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

impl FileError {
    pub(crate) fn invalid(path: &Path, reason: String) -> Self {
        Self::Invalid { path: path.into(), reason }
    }
}

/// Reads a TOML file. What is wrong with it is told without quoting it: it may hold keys.
///
/// # Errors
/// [`FileError`] naming the file and the line.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<T, FileError> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| FileError::Io { path: path.into(), error })?;
    toml::from_str(&text).map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start));
        let line = before.map_or(1, |before| before.matches('\n').count() + 1);
        FileError::invalid(path, format!("line {line}: {}", error.message()))
    })
}
