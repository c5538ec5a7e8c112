//! Files with a value of JSON in each line.

use std::path::Path;

use anyhow::{Context, Result};
use pleach::checkpoint::write::atomically;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Writes a value in each line, whole or not at all.
pub(crate) fn write<T: Serialize>(path: &Path, all: impl IntoIterator<Item = T>) -> Result<()> {
    let mut text = Vec::new();
    for one in all {
        serde_json::to_writer(&mut text, &one)?;
        text.push(b'\n');
    }
    Ok(atomically(path, |writer| std::io::Write::write_all(writer, &text))?)
}

/// Reads the value of each line.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let one = |(number, line)| {
        let place = || format!("{}, line {}", path.display(), number + 1);
        serde_json::from_str(line).with_context(place)
    };
    text.lines().enumerate().map(one).collect()
}
