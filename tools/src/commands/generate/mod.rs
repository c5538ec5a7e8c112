//! `generate`: the model answers prompts.

mod args;
mod clock;
mod conversation;
mod local;
mod remote;
pub(crate) mod select;
mod spoken;
mod work;
mod writer;

use std::collections::VecDeque;
use std::time::Instant;

use anyhow::{Result, ensure};
use pleach::cli::KvCacheDtype;
use pleach::engine::MAX_TOP_LOGPROBS;
use pleach::prompts::{Prompt, read_prompts, spread};

use crate::shared::chat::Chat;
use crate::shared::endpoint::Endpoint;
use crate::shared::manifest::{Manifest, beside};
use crate::shared::models::Loaded;
use crate::shared::place::Place;
use crate::shared::progress::Progress;
use crate::shared::texts::PROMPTS;
pub(crate) use args::Args;
pub(crate) use clock::Clock;
pub(crate) use local::batch_engine;
use spoken::Spoken;
use work::Work;
pub(crate) use writer::{Answered, Writer};

pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(args.top_logprobs <= MAX_TOP_LOGPROBS, "--top-logprobs is at most {MAX_TOP_LOGPROBS}");
    ensure!(!args.temperature.is_empty(), "--temperature is empty");
    let mut manifest = Manifest::new("generate", args)?;
    let mut prompts = spread(read_prompts(args.prompts.as_deref(), PROMPTS)?, args.limit);
    if args.top_logprobs > 0 {
        // The distribution of an answer that is written with the reference in view is another one.
        prompts.iter_mut().for_each(|prompt| prompt.reference = None);
    }
    let checkpoint = args.model.open()?;
    manifest.model(&checkpoint)?;
    if let Some(path) = &args.prompts {
        manifest.file(path)?;
    }
    let note = beside(&args.out, ".manifest.json");
    let begun = beside(&args.out, ".begun.json");
    let clock = Clock::open(beside(&args.out, ".seconds"))?;
    if manifest.is_done(&note) && args.out.exists() {
        clock.forget();
        eprintln!("{} is done already", args.out.display());
        return Ok(());
    }
    manifest.begin(&begun, &note, &args.out)?;
    let writer = Writer::open(&args.out, args.top_logprobs, &prompts)?;
    let answers: usize = prompts.iter().map(|prompt| prompt.turns.len()).sum();
    let total = args.minutes.map_or(answers as u64, |minutes| (minutes * 60.0) as u64);
    let waiting: VecDeque<(usize, Prompt)> =
        prompts.into_iter().enumerate().filter(|(index, _)| writer.waits_for(*index)).collect();
    let mut work = Work {
        args,
        writer,
        clock,
        progress: Progress::new("answering", total),
        started: Instant::now(),
        tokens: 0,
        skipped: 0,
    };
    match Endpoint::open(&args.endpoint)? {
        Some(endpoint) => {
            let chat = Chat::new(&checkpoint)?;
            let spoken = (args.top_logprobs > 0).then(|| Spoken::new(&checkpoint, &chat));
            remote::answer(&mut work, &endpoint, &chat, spoken.transpose()?.as_ref(), waiting)?;
        }
        None => {
            let place = Place::open(args.device.choice, &checkpoint)?;
            let loaded = Loaded::load(&args.model, checkpoint, None, KvCacheDtype::Auto, place)?;
            local::answer(&mut work, loaded, waiting)?;
        }
    }
    let Work { mut writer, progress, started, tokens, skipped, clock, .. } = work;
    writer.close()?;
    progress.finish();
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{} answers, {tokens} tokens in {seconds:.0} s ({:.0}/s); {skipped} prompts too long",
        writer.written,
        tokens as f64 / seconds
    );
    for (category, [kept, all]) in &writer.selected {
        let percent = 100.0 * *kept as f64 / *all as f64;
        println!("{category}: {kept} of {all} answers checked out ({percent:.1} %)");
    }
    manifest.write(
        &note,
        serde_json::json!({
            "answers": writer.written,
            "tokens": writer.tokens,
            "skipped": skipped,
            "selected": writer.selected,
        }),
    )?;
    let _ = std::fs::remove_file(&begun);
    clock.forget();
    Ok(())
}
