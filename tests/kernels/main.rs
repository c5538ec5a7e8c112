//! The CUDA kernels on the CPU: `tests/kernels/` compiled with the emulator in `kernels/cuda/emulator/` under
//! the address and undefined-behaviour sanitizers, run in every thread order on fresh random inputs.
//!
//! Needs a C++ compiler (`$CXX`, or g++). Where there is none, the tests that need it are reported as ignored: libtest
//! cannot say that of a test that has begun, hence this harness.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

mod decoder;
mod mutations;
mod rounds;
#[path = "../support/mod.rs"]
mod support;

use libtest_mimic::{Arguments, Completion, Trial};
use mutations::{MUTATIONS, Mutation};

const FLAGS: [&str; 9] = [
    "-std=c++17",
    "-O1",
    "-g1",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unknown-pragmas",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The C++ compiler.
fn compiler() -> String {
    std::env::var("CXX").unwrap_or_else(|_| "g++".into())
}

fn main() {
    let compiled: [(&str, fn()); 7] = [
        (
            "kernels_agree_with_their_references_and_bugs_are_caught",
            kernels_agree_with_their_references_and_bugs_are_caught,
        ),
        (
            "decoder::the_decoder_agrees_with_the_cpu_and_with_itself",
            decoder::the_decoder_agrees_with_the_cpu_and_with_itself,
        ),
        ("decoder::recorded_passes_are_the_same", decoder::recorded_passes_are_the_same),
        ("decoder::what_cannot_be_done_is_said", decoder::what_cannot_be_done_is_said),
        (
            "rounds::speculation_on_cuda_changes_nothing",
            rounds::speculation_on_cuda_changes_nothing,
        ),
        (
            "rounds::the_device_decides_as_the_host_does",
            rounds::the_device_decides_as_the_host_does,
        ),
        ("rounds::rounds_that_do_not_fit_are_refused", rounds::rounds_that_do_not_fit_are_refused),
    ];
    let compiles = Command::new(compiler()).arg("--version").output();
    let compiles = compiles.is_ok_and(|output| output.status.success());
    let compiled = compiled.map(|(name, test)| {
        Trial::ignorable_test(name, move || {
            if !compiles {
                let lacks = format!("needs a C++ compiler, and `{}` cannot be run", compiler());
                return Ok(Completion::ignored_with(lacks));
            }
            test();
            Ok(Completion::Completed)
        })
    });
    let mut trials: Vec<Trial> = compiled.into();
    trials.push(Trial::test("decoder::the_server_says_that_it_has_no_cuda", || {
        decoder::the_server_says_that_it_has_no_cuda();
        Ok(())
    }));
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

/// Compiles `source` with `more` flags; its headers come from `kernels`.
fn compile(compiler: &str, more: &[&str], kernels: &Path, source: &Path, object: &Path) {
    let output = Command::new(compiler)
        .args(FLAGS)
        .args(more)
        .arg(format!("-I{}", kernels.display()))
        .arg(format!("-I{}", root().join("tests/kernels").display()))
        .args(["-x", "c++", "-c"])
        .arg(source)
        .arg("-o")
        .arg(object)
        .output()
        .expect("the compiler runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{} does not compile:\n{errors}", source.display());
}

/// Links objects into `program`.
fn link(compiler: &str, objects: &[PathBuf], program: &Path) {
    let linked = Command::new(compiler).args(FLAGS).args(objects).arg("-o").arg(program).status();
    assert!(linked.expect("the compiler runs").success(), "the kernel tests do not link");
}

fn sources(folder: &str, extension: &str) -> Vec<PathBuf> {
    let entries = root().join(folder).read_dir().expect("the folder is there");
    let mut sources: Vec<_> = entries
        .map(|entry| entry.expect("readable").path())
        .filter(|path| path.extension() == Some(OsStr::new(extension)))
        .collect();
    sources.sort();
    sources
}

/// Objects of all sources, in a folder of their own; (source, object).
fn build(compiler: &str, folder: &Path) -> Vec<(PathBuf, PathBuf)> {
    let mut all = sources("kernels/cuda", "cu");
    all.extend(sources("tests/kernels", "cpp"));
    let objects: Vec<_> = all
        .into_iter()
        .map(|source| {
            let name = source.strip_prefix(root()).expect("ours").to_string_lossy();
            let object = folder.join(name.replace('/', "_") + ".o");
            (source, object)
        })
        .collect();
    std::thread::scope(|scope| {
        for (source, object) in &objects {
            scope.spawn(move || {
                compile(compiler, &[], &root().join("kernels/cuda"), source, object)
            });
        }
    });
    objects
}

/// Runs the tests; the output, and whether all passed.
fn run(program: &Path, arguments: &[&str]) -> (String, bool) {
    let output = Command::new(program).args(arguments).output().expect("the kernel tests run");
    let text = [output.stdout, output.stderr].concat();
    (String::from_utf8_lossy(&text).into_owned(), output.status.success())
}

/// Compiles one kernel file with a bug and says whether its tests notice, in some thread order.
fn is_caught(
    compiler: &str,
    folder: &Path,
    built: &[(PathBuf, PathBuf)],
    number: usize,
    bug: &Mutation,
) -> bool {
    let folder = &folder.join(format!("bug-{number}"));
    let kernels = folder.join("kernels");
    std::fs::create_dir_all(kernels.join("emulator")).expect("a folder");
    for source in sources("kernels/cuda", "cuh").into_iter().chain(sources("kernels/cuda", "h")) {
        std::fs::copy(&source, kernels.join(source.file_name().expect("a file"))).expect("copied");
    }
    for source in sources("kernels/cuda/emulator", "h") {
        let to = kernels.join("emulator").join(source.file_name().expect("a file"));
        std::fs::copy(&source, to).expect("copied");
    }
    // A bug in a header is seen by the kernel file that the mutation names.
    let mutated = root().join("kernels/cuda").join(bug.file);
    let text = std::fs::read_to_string(&mutated).expect("readable");
    let found = text.matches(bug.from).count();
    assert_eq!(found, 1, "{}: `{}` must stand once in {}", bug.what, bug.from, bug.file);
    let source = kernels.join(bug.compile);
    std::fs::copy(root().join("kernels/cuda").join(bug.compile), &source).expect("copied");
    std::fs::write(kernels.join(bug.file), text.replace(bug.from, bug.to)).expect("written");
    let object = folder.join("mutated.o");
    // A bug may leave a parameter unused.
    compile(compiler, &["-Wno-error"], &kernels, &source, &object);

    let original = root().join("kernels/cuda").join(bug.compile);
    let objects: Vec<_> = built
        .iter()
        .map(|(source, built)| if *source == original { object.clone() } else { built.clone() })
        .collect();
    let program = folder.join("mutated");
    link(compiler, &objects, &program);
    ["forward", "reverse", "shuffled"]
        .iter()
        .any(|order| !run(&program, &["--order", order, bug.tests]).1)
}

fn kernels_agree_with_their_references_and_bugs_are_caught() {
    let compiler = compiler();
    let folder = tempfile::tempdir().expect("a folder");
    let built = build(&compiler, folder.path());
    let program = folder.path().join("kernels");
    let objects: Vec<_> = built.iter().map(|(_, object)| object.clone()).collect();
    link(&compiler, &objects, &program);
    for order in ["forward", "reverse", "shuffled"] {
        let (output, passed) = run(&program, &["--order", order]);
        assert!(passed, "{order}:\n{output}");
        println!("{output}");
    }
    // All of them with PLEACH_ALL_MUTATIONS set (minutes), else those that compile fast.
    let all = std::env::var_os("PLEACH_ALL_MUTATIONS").is_some();
    let bugs: Vec<_> = MUTATIONS.iter().filter(|bug| all || bug.quick).collect();
    let (next, missed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let number = next.fetch_add(1, Ordering::Relaxed)
                    && let Some(bug) = bugs.get(number)
                {
                    let caught = is_caught(&compiler, folder.path(), &built, number, bug);
                    let verdict = if caught { "caught" } else { "MISSED" };
                    println!("{verdict}: {} ({})", bug.what, bug.file);
                    if !caught {
                        missed.lock().unwrap().push(bug.what);
                    }
                }
            });
        }
    });
    let missed = missed.into_inner().unwrap();
    println!("{} bugs, {} missed", bugs.len(), missed.len());
    assert!(missed.is_empty(), "bugs that no test notices: {missed:?}");
}
