//! `build`: from a model to a draft in one command.

mod args;
mod draft;
mod paper;
mod recorded;
mod steps;

use std::ffi::OsStr;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use pleach::checkpoint::write;

pub(crate) use args::Args;
use args::Recipe;

pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(args.minutes >= 1.0, "--minutes must be at least 1");
    remove_leftovers(&args.out, 3)?;
    match args.recipe {
        Recipe::Draft => draft::run(args),
        Recipe::Paper => paper::run(args),
    }
}

/// Removes files that a killed build had begun to write.
fn remove_leftovers(folder: &Path, depth: usize) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(()) };
    for entry in entries {
        let path = entry.with_context(|| folder.display().to_string())?.path();
        let begun = |name: &OsStr| name.to_string_lossy().starts_with(write::BEGUN);
        if path.is_dir() && depth > 0 {
            remove_leftovers(&path, depth - 1)?;
        } else if path.file_name().is_some_and(begun) {
            std::fs::remove_file(&path).with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}
