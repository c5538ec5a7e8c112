//! What a command has done so far, so that it can go on.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use pleach::checkpoint::write;
use serde::Serialize;
use serde_json::{Value, json};

use super::manifest::Manifest;

/// What a command has done so far, a line of JSON each, so that it can go on where it was ended. The first
/// line says what was asked; a journal of anything else is begun anew.
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
}

impl Journal {
    /// Opens the journal at `path` and returns the entries that are there already. A line that was cut
    /// off in the writing is forgotten.
    pub(crate) fn open<T: serde::de::DeserializeOwned>(
        path: PathBuf,
        manifest: &Manifest,
    ) -> Result<(Self, Vec<T>)> {
        let text = std::fs::read(&path).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let mut lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        let head = lines.next().and_then(|line| serde_json::from_str::<Value>(line).ok());
        let known = head.is_some_and(|head| manifest.describes(&head));
        let kept: Vec<&str> =
            lines.take_while(|line| known && serde_json::from_str::<T>(line).is_ok()).collect();
        let entries =
            kept.iter().map(|line| serde_json::from_str(line)).collect::<Result<_, _>>()?;
        let head = json!({"inputs": manifest.inputs, "options": manifest.options});
        write::atomically(&path, |writer| {
            writeln!(writer, "{head}")?;
            kept.iter().try_for_each(|line| writer.write_all(line.as_bytes()))
        })?;
        let file = File::options().append(true).open(&path);
        let file = file.with_context(|| path.display().to_string())?;
        Ok((Self { path, file }, entries))
    }

    /// Adds an entry.
    pub(crate) fn push(&mut self, entry: &impl Serialize) -> Result<()> {
        let line = serde_json::to_string(entry)? + "\n";
        self.file.write_all(line.as_bytes()).with_context(|| self.path.display().to_string())
    }

    /// The work is done: nothing is left to go on with.
    pub(crate) fn remove(self) {
        let _ = std::fs::remove_file(self.path);
    }
}
