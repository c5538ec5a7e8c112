//! Answers that a server recorded, as training data: the model reads them again and says what it expected at
//! each place: passes over a known text, of many rows at a time.

use std::collections::{HashMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use pleach::checkpoint::write;
use pleach::cli::{DeviceArgs, KvCacheDtype};
use pleach::engine::{Event, FinishReason, Readout, Request, RequestId};
use pleach::observe::traffic::{Recorded, files_of};
use pleach_train::Example;
use serde::Serialize;

use crate::commands::generate::{Answered, Clock, Writer, batch_engine};
use crate::shared::manifest::{Manifest, beside};
use crate::shared::model_args::ModelArgs;
use crate::shared::models::Loaded;
use crate::shared::place::Place;
use crate::shared::progress::Progress;
use pleach::prompts::{Prompt, spread};

#[derive(Debug, Clone, Serialize)]
pub(crate) struct Args {
    pub(crate) model: ModelArgs,
    #[serde(flatten)]
    pub(crate) device: DeviceArgs,
    /// What the server's --record-traffic named.
    pub(crate) traffic: PathBuf,
    /// Where the examples go.
    pub(crate) out: PathBuf,
    /// Examples at most, spread evenly over the recorded time.
    pub(crate) limit: Option<usize>,
    /// Tokens of an answer, at most; what follows is cut off.
    pub(crate) max_tokens: usize,
    /// Leave out prompts with more tokens than this.
    pub(crate) max_prompt_tokens: usize,
    /// Tokens of the model's distribution that are kept at every place.
    pub(crate) top_logprobs: usize,
    /// Answers read at the same time.
    pub(crate) batch: usize,
    pub(crate) minutes: Option<f64>,
}

/// Writes the examples, beside which their distributions lie. Goes on where it stood, with the answers that
/// were recorded when it began.
pub(crate) fn run(args: &Args) -> Result<()> {
    let kept = beside(&args.out, ".traffic");
    if !kept.exists() {
        keep(&args.traffic, &kept)?;
    }
    let mut manifest = Manifest::new("traffic", args)?;
    let checkpoint = args.model.open()?;
    manifest.model(&checkpoint)?;
    manifest.file(&kept)?;
    let note = beside(&args.out, ".manifest.json");
    if manifest.is_done(&note) && args.out.exists() {
        eprintln!("{} is done already", args.out.display());
        return Ok(());
    }
    let begun = beside(&args.out, ".begun.json");
    manifest.begin(&begun, &note, &args.out)?;
    let place = Place::open(args.device.choice, &checkpoint)?;
    let loaded = Loaded::load(&args.model, checkpoint, None, KvCacheDtype::Auto, place)?;
    let mut examples = Vec::new();
    for (number, line) in lines(&kept)?.enumerate() {
        let recorded: Recorded = serde_json::from_str(&line?)?;
        let fits = (1..=args.max_prompt_tokens).contains(&recorded.prompt_tokens.len());
        if fits && !recorded.response_tokens.is_empty() {
            // Another model's tokens would be read as other words.
            ensure!(
                loaded.chat.text_of(&recorded.prompt_tokens)? == recorded.prompt,
                "{}: answer {number} was recorded with another tokenizer than that of {}",
                args.traffic.display(),
                args.model.model
            );
            examples.push(example(number, recorded, args.max_tokens));
        }
    }
    let examples = spread(examples, args.limit);
    ensure!(!examples.is_empty(), "{}: no answer is short enough", args.traffic.display());

    let prompt = |example: &Example| Prompt {
        id: example.id.clone(),
        category: String::new(),
        turns: example.turns.clone(),
        reference: None,
    };
    let prompts: Vec<Prompt> = examples.iter().map(prompt).collect();
    let mut writer = Writer::open(&args.out, args.top_logprobs, &prompts)?;
    let total = examples.len();
    let waiting = examples.into_iter().enumerate().filter(|(at, _)| writer.waits_for(*at));
    let mut waiting: VecDeque<(usize, Example)> = waiting.collect();

    let longest = args.max_prompt_tokens + args.max_tokens + 1;
    let share = args.device.gpu_memory_utilization;
    let mut engine = batch_engine(loaded, [args.batch, longest], share)?.engine;
    let max_model_len = engine.limits().max_model_len;
    let mut clock = Clock::open(beside(&args.out, ".seconds"))?;
    let mut progress = match args.minutes {
        Some(minutes) => Progress::new("reading", (minutes * 60.0) as u64),
        None => Progress::new("reading", total as u64),
    };
    let started = Instant::now();
    let mut running: HashMap<RequestId, (usize, Example)> = HashMap::new();
    loop {
        let late = args.minutes.is_some_and(|m| clock.seconds() > m * 60.0);
        while !late && running.len() < args.batch {
            let Some((at, mut example)) = waiting.pop_front() else { break };
            // One more is generated behind the text.
            let room = max_model_len.saturating_sub(1 + example.prompt_tokens.len());
            if room == 0 {
                eprintln!("answer {}: its prompt fills the model's context", example.id);
                writer.finish(at, Vec::new())?;
                continue;
            }
            example.response_tokens.truncate(room);
            let text = [&example.prompt_tokens[..], &example.response_tokens].concat();
            let request = Request {
                readout: Readout::Logprobs(args.top_logprobs),
                ..Request::greedy(text, 1)
            };
            running.insert(engine.submit(request)?, (at, example));
        }
        if running.is_empty() || late {
            break;
        }
        for (id, event) in engine.step() {
            match event {
                Event::Prompt(tokens) => {
                    let (at, example) = running.remove(&id).expect("invariant: submitted above");
                    let answer = tokens.into_iter().skip(example.prompt_tokens.len());
                    let top = answer.map(|token| token.top_logprobs).collect();
                    writer.finish(at, vec![Answered { example, top }])?;
                }
                Event::Finished { reason: FinishReason::Error(reason), .. } => {
                    let Some((at, example)) = running.remove(&id) else { continue };
                    eprintln!("answer {}: {reason}", example.id);
                    writer.finish(at, Vec::new())?;
                }
                Event::Tokens(_) | Event::Embedding(_) | Event::Finished { .. } => {}
            }
        }
        let done = args.minutes.map_or(writer.written as u64, |_| clock.seconds() as u64);
        let speed = writer.tokens as f64 / started.elapsed().as_secs_f64();
        let (answers, tokens) = (writer.written, writer.tokens);
        progress.set(done, format!("{answers} answers, {tokens} tokens, {speed:.0}/s"));
        clock.save_now_and_then()?;
    }
    writer.close()?;
    progress.finish();
    println!("{} of {total} recorded answers, {} tokens", writer.written, writer.tokens);
    let results = serde_json::json!({"answers": writer.written, "tokens": writer.tokens});
    manifest.write(&note, results)?;
    let _ = std::fs::remove_file(&begun);
    clock.forget();
    Ok(())
}

/// Copies what is recorded so far into one file: the server goes on recording.
fn keep(traffic: &Path, to: &Path) -> Result<()> {
    let context = || traffic.display().to_string();
    let files = files_of(traffic).with_context(context)?;
    ensure!(
        !files.is_empty(),
        "{}: nothing is recorded there; `pleach --record-traffic` does",
        traffic.display()
    );
    let read = |file: &PathBuf| std::fs::read(file).with_context(|| file.display().to_string());
    let texts: Vec<Vec<u8>> = files.iter().map(read).collect::<Result<_>>()?;
    Ok(write::atomically(to, |file| texts.iter().try_for_each(|text| file.write_all(text)))?)
}

fn lines(path: &Path) -> Result<impl Iterator<Item = std::io::Result<String>>> {
    let file = std::fs::File::open(path).with_context(|| path.display().to_string())?;
    Ok(BufReader::new(file).lines())
}

fn example(number: usize, recorded: Recorded, max_tokens: usize) -> Example {
    let Recorded { prompt, response, prompt_tokens, mut response_tokens, .. } = recorded;
    response_tokens.truncate(max_tokens);
    Example {
        id: format!("recorded-{number}"),
        category: "traffic".into(),
        turns: vec![prompt],
        response,
        prompt_tokens,
        response_tokens,
        finish_reason: recorded.finish_reason,
        temperature: recorded.temperature,
        origin: None,
    }
}
