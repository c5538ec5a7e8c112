//! pleach-tools: from a model to a draft that drafts for it.

mod bench;
mod build;
mod common;
mod evaluate;
mod generate;
mod importance;
mod pack;
mod plot;
mod prune;
mod train;

use clap::{Parser, Subcommand};

/// Training allocates and frees large tensors all the time; the system's allocator would hand each of
/// them back to the kernel.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Makes a draft out of the model it drafts for: measures which decoder blocks matter least, cuts them
/// out, lets the uncut model write training data, and trains the cut copy on it.
///
/// `build` does all of it. The other commands are its steps; each goes on where it stood when it is
/// started again, and writes beside its output what it did.
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Build(build::Args),
    Importance(importance::Args),
    Prune(prune::Args),
    Generate(generate::Args),
    Train(train::Args),
    Pack(pack::Args),
    Evaluate(evaluate::Args),
    Bench(bench::Args),
}

fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_writer(std::io::stderr)
        .init();
    match Args::parse().command {
        Command::Build(args) => build::run(&args),
        Command::Importance(args) => importance::run(&args).map(drop),
        Command::Prune(args) => prune::run(&args),
        Command::Generate(args) => generate::run(&args),
        Command::Train(args) => train::run(&args),
        Command::Pack(args) => pack::run(&args),
        Command::Evaluate(args) => evaluate::run(&args).map(drop),
        Command::Bench(args) => bench::run(&args),
    }
}
