//! Models of the Hugging Face hub, kept in a cache laid out as the hub's own client lays it out: `refs/REVISION` names a
//! commit, and `snapshots/COMMIT` has its files.

use std::path::{Path, PathBuf};

use hf_hub::api::sync::{ApiBuilder, ApiError};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};

use super::error::SourceError;
use super::selection::{Choice, INDEX, indexed, is_inside};
use crate::checkpoint::fields;
use crate::checkpoint::write::json_file;

/// What the hub said of a commit's files when it was asked: `{"files": […]}`, beside `snapshots`.
const LISTINGS: &str = "listings";

/// One commit of a repository.
struct Snapshot {
    /// Where its files lie in the cache.
    folder: PathBuf,
    /// The names of all its files, cached or not.
    names: Vec<String>,
}

/// The file or folder of a model. The hub is not asked where the cache has all its files; else through its own client,
/// which honours `HF_ENDPOINT` and `HF_TOKEN`, unless `HF_HUB_OFFLINE` forbids it.
pub(super) fn fetch(
    source: &str,
    repo: &str,
    revision: &str,
    choice: &Choice,
    cache_dir: &Path,
) -> Result<PathBuf, SourceError> {
    let folder = cache_dir.join("hub");
    let cache = Cache::new(folder.clone()).repo(revised(repo, revision));
    let offline = is_set("HF_HUB_OFFLINE");
    let refused = |reason| SourceError::Selection { repo: format!("{repo}@{revision}"), reason };
    let cached = cached(&cache, revision, offline).map(|snapshot| {
        snapshot.collect(choice, |file| Ok(snapshot.folder.join(file).exists()), refused)
    });
    match cached {
        Some(Ok(Some(path))) => return Ok(path),
        cached if offline => {
            return Err(SourceError::Offline {
                source_name: source.into(),
                cache: folder,
                reason: cached.and_then(Result::err).map(|error| error.to_string()),
            });
        }
        _ => {}
    }
    let error = |e: ApiError| SourceError::Hub { repo: repo.into(), reason: e.to_string() };
    let mut builder = ApiBuilder::from_env().with_cache_dir(folder).with_retries(3);
    if let Ok(token) = std::env::var("HF_TOKEN") {
        builder = builder.with_token(Some(token));
    }
    let api = builder.build().map_err(error)?;
    let info = api.repo(revised(repo, revision)).info().map_err(error)?;
    if !is_inside(&info.sha) || info.sha.contains('/') {
        return Err(refused(format!("the hub calls its commit `{}`", info.sha)));
    }
    let names = info.siblings.into_iter().map(|file| file.rfilename);
    let names = names.filter(|name| is_inside(name)).collect();
    let snapshot = Snapshot { folder: cache.pointer_path(&info.sha), names };
    // All files are of the commit that was listed, whatever is committed meanwhile.
    let api = api.repo(revised(repo, &info.sha));
    let get = |file: &str| {
        if !snapshot.folder.join(file).exists() {
            api.download(file).map_err(error)?;
        }
        Ok(true)
    };
    let path = snapshot.collect(choice, get, refused)?;
    snapshot.note(&cache, &info.sha)?;
    path.ok_or_else(|| refused("the hub has not all of its files".into()))
}

fn revised(repo: &str, revision: &str) -> Repo {
    Repo::with_revision(repo.into(), RepoType::Model, revision.into())
}

/// Whether a variable of the environment says yes, as the hub's own client reads it.
fn is_set(variable: &str) -> bool {
    let value = std::env::var(variable).unwrap_or_default();
    ["1", "on", "yes", "true"].iter().any(|yes| value.eq_ignore_ascii_case(yes))
}

/// The commit that a revision was when the hub was last asked, where its files have been listed. With `unlisted`, files
/// that something else has put there count as all that it has.
fn cached(cache: &CacheRepo, revision: &str, unlisted: bool) -> Option<Snapshot> {
    let root = root(cache);
    let named = std::fs::read_to_string(root.join("refs").join(revision)).ok();
    let commit = named.as_deref().map_or(revision, str::trim);
    if !is_inside(commit) {
        return None;
    }
    let folder = cache.pointer_path(commit);
    let listing = fields::object(&listing(&root, commit)).ok().flatten();
    let listed = listing.and_then(|listing| {
        let names = listing.get("files")?.as_array()?.iter();
        names.map(|name| name.as_str().map(str::to_owned)).collect()
    });
    let names = listed.or_else(|| unlisted.then(|| files_in(&folder)))?;
    Some(Snapshot { folder, names })
}

/// What is cached of a repository.
fn root(cache: &CacheRepo) -> PathBuf {
    let mut snapshots = cache.pointer_path("");
    snapshots.pop();
    snapshots
}

fn listing(root: &Path, commit: &str) -> PathBuf {
    root.join(LISTINGS).join(format!("{commit}.json"))
}

/// The files of a folder and of folders in it.
fn files_in(folder: &Path) -> Vec<String> {
    let (mut names, mut folders) = (Vec::new(), vec![String::new()]);
    while let Some(within) = folders.pop() {
        let entries = std::fs::read_dir(folder.join(&within)).into_iter().flatten().flatten();
        for entry in entries {
            let Ok(name) = entry.file_name().into_string() else { continue };
            match entry.path().is_dir() {
                true => folders.push(format!("{within}{name}/")),
                false => names.push(format!("{within}{name}")),
            }
        }
    }
    names
}

impl Snapshot {
    /// The path of a model, all of whose files `get` has got; `None` where it has not got one.
    fn collect(
        &self,
        choice: &Choice,
        get: impl Fn(&str) -> Result<bool, SourceError>,
        refused: impl Fn(String) -> SourceError,
    ) -> Result<Option<PathBuf>, SourceError> {
        let selection = choice.of(&self.names).map_err(&refused)?;
        let all = |files: &[String]| {
            files.iter().try_fold(true, |all, file| Ok::<_, SourceError>(all && get(file)?))
        };
        if !all(&selection.files)? {
            return Ok(None);
        }
        if selection.indexed {
            let shards = indexed(&self.folder.join(INDEX), &self.names).map_err(&refused)?;
            if !all(&shards)? {
                return Ok(None);
            }
        }
        Ok(Some(match selection.opened {
            Some(file) => self.folder.join(file),
            None => self.folder.clone(),
        }))
    }

    /// Keeps what the hub said of a revision.
    fn note(&self, cache: &CacheRepo, commit: &str) -> Result<(), SourceError> {
        let root = root(cache);
        let path = listing(&root, commit);
        let io = |error| SourceError::Io { path: path.clone(), error };
        std::fs::create_dir_all(root.join(LISTINGS)).map_err(io)?;
        json_file(&path, &serde_json::json!({"files": self.names}))
            .map_err(|error| io(std::io::Error::other(error)))?;
        cache.create_ref(commit).map_err(io)
    }
}
