//! The file of keys.

use std::path::Path;

use serde::Deserialize;

use crate::cli::toml_file::{self, FileError};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    key: Vec<Entry>,
}

/// A key as it is configured.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) key: String,
    pub(super) max_concurrent_requests: Option<usize>,
    pub(super) tokens_per_minute: Option<u32>,
    /// Whether requests may say when they run, before or behind those of others.
    #[serde(default)]
    pub(super) priority: bool,
}

/// Reads the `[[key]]` tables of a TOML file.
pub(super) fn read(path: &Path) -> Result<Vec<Entry>, FileError> {
    let file: File = toml_file::read(path)?;
    if file.key.iter().any(|entry| entry.name.trim().is_empty()) {
        return Err(FileError::invalid(path, "`name` must not be empty or blank".into()));
    }
    Ok(file.key)
}
