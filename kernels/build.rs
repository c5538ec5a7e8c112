//! With the feature `cuda`: compiles `cuda/*.cu` for all GPUs and links them with CUDA's runtime, which finds
//! the driver when the program runs. Without it: nothing.
//!
//! nvcc is `$NVCC`, `$CUDA_HOME/bin/nvcc`, or the one on the path. `NVCC=kernels/cuda/emulator/nvcc` builds for the CPU; a
//! path that is not absolute begins at the workspace.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};

/// Machine code for these, and PTX for those to come.
const TARGETS: [(&str, &str); 3] = [("80", "sm_80"), ("90a", "sm_90a"), ("100", "sm_100")];

fn main() {
    for name in ["NVCC", "CUDA_HOME", "NVCC_CCBIN"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    println!("cargo:rerun-if-changed=cuda");
    let nvcc = nvcc();
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("set by cargo"));
    let known = Command::new(&nvcc).arg("--list-gpu-code").output();
    let known = known.unwrap_or_else(|error| {
        panic!("{}: {error}; the feature `cuda` needs nvcc: set NVCC or CUDA_HOME", nvcc.display())
    });
    let errors = String::from_utf8_lossy(&known.stderr);
    assert!(known.status.success(), "{} --list-gpu-code: {errors}", nvcc.display());
    let known = String::from_utf8_lossy(&known.stdout).into_owned();

    let mut objects = Vec::new();
    let mut running: Vec<(PathBuf, Child)> = Vec::new();
    for entry in Path::new("cuda").read_dir().expect("cuda/ is there") {
        let source = entry.expect("readable").path();
        if source.extension().is_none_or(|extension| extension != "cu") {
            continue;
        }
        let object = out.join(source.with_extension("o").file_name().expect("a file"));
        let mut command = Command::new(&nvcc);
        command.args(["-std=c++17", "-O3", "-Icuda", "-Xcompiler", "-fPIC", "-c"]);
        for (compute, code) in TARGETS {
            if known.split_whitespace().any(|known| known == code) {
                command.arg(format!("-gencode=arch=compute_{compute},code={code}"));
            }
        }
        command.arg("-gencode=arch=compute_80,code=compute_80").arg(&source).arg("-o").arg(&object);
        running.push((source, command.spawn().expect("nvcc runs")));
        objects.push(object);
    }
    for (source, mut child) in running {
        let status = child.wait().expect("nvcc ends");
        assert!(status.success(), "{} does not compile", source.display());
    }
    let archive = Command::new(&nvcc)
        .arg("--lib")
        .args(&objects)
        .arg("-o")
        .arg(out.join("libpleach_kernels.a"))
        .status();
    assert!(archive.is_ok_and(|status| status.success()), "the kernels cannot be archived");

    println!("cargo:rustc-link-search=native={}", out.display());
    println!("cargo:rustc-link-lib=static=pleach_kernels");
    let home = nvcc.parent().and_then(Path::parent).unwrap_or(Path::new("/"));
    let folders = ["lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib"];
    let runtime = folders
        .map(|folder| home.join(folder))
        .into_iter()
        .find(|folder| folder.join("libcudart_static.a").is_file());
    if let Some(folder) = runtime {
        println!("cargo:rustc-link-search=native={}", folder.display());
        println!("cargo:rustc-link-lib=static=cudart_static");
        for library in ["dl", "rt", "pthread"] {
            println!("cargo:rustc-link-lib={library}");
        }
    }
    println!("cargo:rustc-link-lib=stdc++");
    println!("cargo:rustc-link-lib=m");
}

fn nvcc() -> PathBuf {
    if let Some(nvcc) = std::env::var_os("NVCC") {
        // A bare name is looked for on the path.
        let nvcc = PathBuf::from(nvcc);
        return if nvcc.components().count() > 1 { Path::new("..").join(nvcc) } else { nvcc };
    }
    if let Some(home) = std::env::var_os("CUDA_HOME") {
        return Path::new(&home).join("bin/nvcc");
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found =
        std::env::split_paths(&path).map(|folder| folder.join("nvcc")).find(|nvcc| nvcc.is_file());
    // Links lead to the toolkit, whose libraries lie beside it.
    found.map_or("nvcc".into(), |nvcc| nvcc.canonicalize().unwrap_or(nvcc))
}
