//! pleach-tools: from a model to a draft that drafts for it.

mod commands;
mod shared;

use std::os::unix::process::CommandExt;
use std::process::Command;

use clap::{Parser, Subcommand};

use commands::{
    bench, build, evaluate, export, generate, importance, merge, pack, prune, report, score,
    search, top, train,
};

/// Training allocates and frees large tensors all the time; the system's allocator would hand each of
/// them back to the kernel.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Makes a draft out of the model it drafts for: measures which decoder blocks matter least, cuts them
/// out, lets the uncut model write training data, and trains the cut copy on it.
///
/// `build` does all of it. The other commands are its steps; each goes on where it stood when it is
/// started again, and writes beside its output what it did. `top` watches a running server.
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    command: Step,
}

#[derive(Subcommand)]
enum Step {
    Build(build::Args),
    Importance(importance::Args),
    Prune(prune::Args),
    Generate(generate::Args),
    Train(train::Args),
    Merge(merge::Args),
    Pack(pack::Args),
    Export(export::Args),
    Evaluate(evaluate::Args),
    Search(search::Args),
    Score(score::Args),
    Bench(bench::Args),
    Top(top::Args),
    Report(report::Args),
}

/// What candle and the allocator read from the environment alone. Training runs a batch per thread, so
/// candle must not spread its own small operations over all of them; and pages that go back to the
/// kernel between two batches are paged in again at once.
const SETTINGS: [(&str, &str); 2] = [("CANDLE_NUM_THREADS", "1"), ("MIMALLOC_PURGE_DELAY", "-1")];

/// Starts this program again with the settings, unless the user has chosen others.
fn restart_with_settings() -> std::io::Result<()> {
    let missing = || SETTINGS.iter().filter(|(name, _)| std::env::var_os(name).is_none());
    if missing().next().is_none() {
        return Ok(());
    }
    let program = std::env::current_exe()?;
    let arguments = std::env::args_os().skip(1);
    Err(Command::new(program).args(arguments).envs(missing().copied()).exec())
}

fn main() -> anyhow::Result<()> {
    if let Err(error) = restart_with_settings() {
        eprintln!("training will be slower than it could be: {error}");
    }
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_writer(std::io::stderr)
        .init();
    match Args::parse().command {
        Step::Build(args) => build::run(&args),
        Step::Importance(args) => importance::run(&args).map(drop),
        Step::Prune(args) => prune::run(&args),
        Step::Generate(args) => generate::run(&args),
        Step::Train(args) => train::run(&args),
        Step::Merge(args) => merge::run(&args),
        Step::Pack(args) => pack::run(&args),
        Step::Export(args) => export::run(&args),
        Step::Evaluate(args) => evaluate::run(&args).map(drop),
        Step::Search(args) => search::run(&args),
        Step::Score(args) => score::run(&args).map(drop),
        Step::Bench(args) => bench::run(&args),
        Step::Report(args) => report::run(&args),
        Step::Top(args) => top::run(&args),
    }
}
