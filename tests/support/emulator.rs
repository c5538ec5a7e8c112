//! The emulator of `kernels/cuda/emulator` as a driver: programs that find it run as on a GPU.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The C++ compiler, `$CXX` or g++.
pub fn compiler() -> String {
    std::env::var("CXX").unwrap_or_else(|_| "g++".into())
}

/// Whether there is one.
pub fn compiles() -> bool {
    let output = Command::new(compiler()).arg("--version").output();
    output.is_ok_and(|output| output.status.success())
}

/// What a test lacks without it.
pub fn lacks() -> String {
    format!("needs a C++ compiler, and `{}` cannot be run", compiler())
}

/// The repository.
pub fn root() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let holds = |folder: &&Path| folder.join("kernels/cuda/emulator/build.sh").exists();
    package.ancestors().find(holds).expect("the emulator is there").to_owned()
}

/// Builds the driver in a folder of its own, with `flags` besides its own; the loader finds it there where
/// `LD_LIBRARY_PATH` names the folder.
pub fn build(folder: &Path, flags: &[&str]) {
    let script = root().join("kernels/cuda/emulator/build.sh");
    let output = Command::new(script).arg(folder).args(flags).output().expect("the script runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "the emulator does not compile:\n{errors}");
}
