//! The CUDA kernels and what drives them, on the CPU: the emulator of `kernels/cuda/emulator` is put in the place of
//! NVIDIA's driver, so that the code that is shipped runs as it is. The tests of the kernels themselves are C++, run
//! in every thread order, and once under the address and undefined-behaviour sanitizers, on fresh random inputs.
//!
//! Needs a C++ compiler (`$CXX`, or g++). Where there is none, the tests that need it are reported as ignored: libtest
//! cannot say that of a test that has begun, hence this harness. `PLEACH_KERNEL_TESTS=LIBRARY` runs the C++ tests in a
//! library over the driver there is: on a GPU.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

mod adapters;
mod attached;
mod conflicts;
mod decoder;
mod families;
mod memory;
mod mutations;
mod reader;
mod rounds;
mod server;
#[path = "../support/mod.rs"]
mod support;

use libtest_mimic::{Arguments, Completion, Trial};
use mutations::{MUTATIONS, Mutation};
use support::emulator::{self, compiler};

const FLAGS: [&str; 7] = ["-std=c++17", "-O1", "-g1", "-fPIC", "-Wall", "-Wextra", "-Werror"];
/// Of kernels; their tests hold them to their memory.
const SANITIZERS: [&str; 2] = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"];

/// The library of C++ tests that a process is to run, instead of its own.
const LIBRARY: &str = "PLEACH_KERNEL_TESTS";

/// So many of the models, drawn anew in every run; all with PLEACH_ALL_MODELS set.
fn drawn<T>(mut models: Vec<T>, most: usize) -> Vec<T> {
    if std::env::var_os("PLEACH_ALL_MODELS").is_none() {
        fastrand::shuffle(&mut models);
        models.truncate(most);
    }
    models
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn main() {
    if let Some(library) = std::env::var_os(LIBRARY) {
        let words: Vec<String> = std::env::args().skip(1).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let status = pleach_kernels::cuda::foreign::call(Path::new(&library), &words);
        std::process::exit(status.unwrap_or_else(|error| panic!("{error}")));
    }
    if let Some(folder) = std::env::var_os(memory::RUN) {
        memory::run(Path::new(&folder));
        return;
    }
    let arguments = Arguments::from_args();
    let compiles = emulator::compiles();
    if compiles && !arguments.list {
        run_over_the_emulator();
    }
    let compiled: [(&str, fn()); 30] = [
        (
            "kernels_agree_with_their_references_and_bugs_are_caught",
            kernels_agree_with_their_references_and_bugs_are_caught,
        ),
        (
            "conflicts::bank_conflicts_are_as_in_the_table",
            conflicts::bank_conflicts_are_as_in_the_table,
        ),
        (
            "decoder::the_decoder_agrees_with_the_cpu_and_with_itself",
            decoder::the_decoder_agrees_with_the_cpu_and_with_itself,
        ),
        ("families::every_family_agrees_with_the_cpu", families::every_family_agrees_with_the_cpu),
        (
            "families::caches_of_codes_agree_with_the_cpu",
            families::caches_of_codes_agree_with_the_cpu,
        ),
        ("decoder::recorded_passes_are_the_same", decoder::recorded_passes_are_the_same),
        (
            "decoder::passes_of_about_as_many_rows_are_one",
            decoder::passes_of_about_as_many_rows_are_one,
        ),
        ("decoder::what_cannot_be_done_is_said", decoder::what_cannot_be_done_is_said),
        ("decoder::what_is_sent_may_change_at_once", decoder::what_is_sent_may_change_at_once),
        ("adapters::adapters_agree_with_the_cpu", adapters::adapters_agree_with_the_cpu),
        (
            "adapters::recorded_passes_go_through_their_adapters",
            adapters::recorded_passes_go_through_their_adapters,
        ),
        (
            "adapters::speculation_with_adapters_changes_nothing",
            adapters::speculation_with_adapters_changes_nothing,
        ),
        (
            "adapters::given_up_adapters_are_freed_between_passes",
            adapters::given_up_adapters_are_freed_between_passes,
        ),
        ("adapters::what_does_not_fit_is_refused", adapters::what_does_not_fit_is_refused),
        ("reader::texts_are_read_as_on_the_cpu", reader::texts_are_read_as_on_the_cpu),
        ("attached::steps_agree_with_the_cpu", attached::steps_agree_with_the_cpu),
        ("attached::recorded_steps_are_the_same", attached::recorded_steps_are_the_same),
        (
            "attached::an_attached_drafter_on_cuda_leaves_no_trace",
            attached::an_attached_drafter_on_cuda_leaves_no_trace,
        ),
        (
            "attached::attached_drafters_on_cuda_are_compared",
            attached::attached_drafters_on_cuda_are_compared,
        ),
        (
            "attached::drafters_that_do_not_fit_are_refused",
            attached::drafters_that_do_not_fit_are_refused,
        ),
        (
            "rounds::speculation_on_cuda_changes_nothing",
            rounds::speculation_on_cuda_changes_nothing,
        ),
        (
            "rounds::the_device_decides_as_the_host_does",
            rounds::the_device_decides_as_the_host_does,
        ),
        ("rounds::rounds_that_do_not_fit_are_refused", rounds::rounds_that_do_not_fit_are_refused),
        (
            "memory::passes_take_no_memory_while_an_engine_serves",
            memory::passes_take_no_memory_while_an_engine_serves,
        ),
        ("memory::memory_is_planned", memory::memory_is_planned),
        (
            "memory::what_finds_no_memory_is_refused_or_borne",
            memory::what_finds_no_memory_is_refused_or_borne,
        ),
        (
            "memory::an_adapter_that_finds_no_memory_is_refused",
            memory::an_adapter_that_finds_no_memory_is_refused,
        ),
        (
            "server::adapters_are_served_from_the_device",
            server::adapters_are_served_from_the_device,
        ),
        ("server::the_server_answers_from_the_device", server::the_server_answers_from_the_device),
        ("server::drafts_are_changed_on_the_device", server::drafts_are_changed_on_the_device),
    ];
    let compiled = compiled.map(|(name, test)| {
        Trial::ignorable_test(name, move || {
            if !compiles {
                return Ok(Completion::ignored_with(emulator::lacks()));
            }
            test();
            Ok(Completion::Completed)
        })
    });
    let mut trials: Vec<Trial> = compiled.into();
    trials.push(Trial::test("server::the_server_says_which_devices_there_are", || {
        server::the_server_says_which_devices_there_are();
        Ok(())
    }));
    libtest_mimic::run(&arguments, trials).exit();
}

/// Where the emulator without sanitizers lies.
fn plain_driver() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("emulator")
}

/// The loader looks where a program's environment said when it began: so this program begins again.
fn run_over_the_emulator() {
    let folder = plain_driver();
    let path = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    if std::env::split_paths(&path).next() == Some(folder.clone()) {
        return;
    }
    emulator::build(&folder, &[]);
    let paths = std::iter::once(folder).chain(std::env::split_paths(&path));
    let failed = Command::new(std::env::current_exe().unwrap())
        .args(std::env::args_os().skip(1))
        .env("LD_LIBRARY_PATH", std::env::join_paths(paths).unwrap())
        .exec();
    panic!("the tests cannot begin again: {failed}");
}

/// Compiles `source` with `more` flags; its headers come from `kernels`.
fn compile(more: &[&str], kernels: &Path, source: &Path, object: &Path) {
    let output = Command::new(compiler())
        .args(FLAGS)
        .args(more)
        .arg("-Wno-unknown-pragmas")
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

/// Links objects into a shared library.
fn link(flags: &[&str], objects: &[PathBuf], library: &Path) {
    let mut command = Command::new(compiler());
    let linked = command.args(flags).arg("-shared").args(objects).arg("-o").arg(library).status();
    assert!(linked.expect("the compiler runs").success(), "{} does not link", library.display());
}

fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = folder.read_dir().expect("the folder is there");
    let mut files: Vec<_> = entries
        .map(|entry| entry.expect("readable").path())
        .filter(|path| path.extension() == Some(OsStr::new(extension)))
        .collect();
    files.sort();
    files
}

/// The C++ tests as a library in `folder`.
fn build_library(folder: &Path) -> PathBuf {
    let library = folder.join("libkernel-tests.so");
    let sources = files(&root().join("tests/kernels"), "cpp");
    let objects: Vec<_> = (sources.iter())
        .map(|source| folder.join(source.with_extension("o").file_name().expect("a file")))
        .collect();
    for (source, object) in sources.iter().zip(&objects) {
        compile(&[], &root().join("kernels/cuda"), source, object);
    }
    link(&[], &objects, &library);
    library
}

/// The same, and beside it, in `driver`, the emulator with the sanitizers.
fn build(folder: &Path) -> PathBuf {
    std::thread::scope(|scope| {
        let driver = folder.join("driver");
        scope.spawn(move || emulator::build(&driver, &[&FLAGS[..], &SANITIZERS].concat()));
        build_library(folder)
    })
}

/// Runs the C++ tests over the driver in a folder; the output, and whether all passed.
fn run(library: &Path, driver: &Path, order: &str, tests: &[&str]) -> (String, bool) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(tests).env(LIBRARY, library).env("LD_LIBRARY_PATH", driver);
    command.env("EMULATOR_ORDER", order);
    if driver != plain_driver() {
        // The driver is built with the address sanitizer, this program is not: so it must be there from the start.
        let sanitizer = Command::new(compiler()).arg("-print-file-name=libasan.so").output();
        let sanitizer = String::from_utf8(sanitizer.expect("the compiler runs").stdout).unwrap();
        // What this program leaks at its end is none of these tests' business.
        command.env("LD_PRELOAD", sanitizer.trim()).env("ASAN_OPTIONS", "detect_leaks=0");
    }
    let output = command.output().expect("the kernel tests run");
    let text = [output.stdout, output.stderr].concat();
    (String::from_utf8_lossy(&text).into_owned(), output.status.success())
}

/// Compiles one kernel file with a bug and says whether its tests notice, in some thread order.
fn is_caught(library: &Path, folder: &Path, number: usize, bug: &Mutation) -> bool {
    let original = root().join("kernels/cuda");
    let driver = folder.join("driver");
    let folder = &folder.join(format!("bug-{number}"));
    let kernels = folder.join("kernels");
    std::fs::create_dir_all(kernels.join("emulator")).expect("a folder");
    for part in ["", "emulator"] {
        for header in
            files(&original.join(part), "cuh").iter().chain(&files(&original.join(part), "h"))
        {
            let to = kernels.join(part).join(header.file_name().expect("a file"));
            std::fs::copy(header, to).expect("copied");
        }
    }
    // A bug in a header is seen by the kernel file that the mutation names.
    let text = std::fs::read_to_string(original.join(bug.file)).expect("readable");
    let found = text.matches(bug.from).count();
    assert_eq!(found, 1, "{}: `{}` must stand once in {}", bug.what, bug.from, bug.file);
    let source = kernels.join(bug.compile);
    std::fs::copy(original.join(bug.compile), &source).expect("copied");
    std::fs::write(kernels.join(bug.file), text.replace(bug.from, bug.to)).expect("written");
    let object = folder.join("mutated.o");
    // A bug may leave a parameter unused.
    let flags = [&SANITIZERS[..], &["-Wno-error"]].concat();
    compile(&flags, &kernels, &source, &object);

    let replaced = driver.join(format!("{}.o", bug.compile));
    let mut objects = files(&driver, "o");
    objects.retain(|object| *object != replaced);
    objects.push(object);
    link(&SANITIZERS, &objects, &folder.join("libcuda.so"));
    ["forward", "reverse", "shuffled"]
        .iter()
        .any(|order| !run(library, folder, order, &[bug.tests]).1)
}

fn kernels_agree_with_their_references_and_bugs_are_caught() {
    let folder = tempfile::tempdir().expect("a folder");
    let library = build(folder.path());
    let (sanitized, plain) = (&folder.path().join("driver"), &plain_driver());
    std::thread::scope(|scope| {
        for (order, driver) in [("forward", sanitized), ("reverse", plain), ("shuffled", plain)] {
            let library = &library;
            scope.spawn(move || {
                let (output, passed) = run(library, driver, order, &[]);
                assert!(passed, "{order}:\n{output}");
                println!("{order}: {output}");
            });
        }
    });
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
                    let caught = is_caught(&library, folder.path(), number, bug);
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
