//! `generate`: the model answers prompts.

mod clock;
mod remote;
mod writer;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, ensure};
use pleach::engine::{
    Engine, EngineConfig, FinishReason, MAX_TOP_LOGPROBS, OfflineBatch, Request, TokenOut,
};
use pleach::kv_cache::blocks_for;
use pleach::model::Decoder;
use pleach::sampling::SamplingParams;
use pleach_train::{Example, Origin};
use serde::Serialize;

use crate::commands::select;
use crate::shared::chat::Chat;
use crate::shared::endpoint::{self, Endpoint};
use crate::shared::manifest::{Manifest, beside};
use crate::shared::model_args::{Loaded, ModelArgs};
use crate::shared::progress::Progress;
use crate::shared::texts::PROMPTS;
pub(crate) use clock::Clock;
use pleach::prompts::{Prompt, read_prompts, spread};
pub(crate) use writer::{Answered, Writer};

/// Lets the model answer prompts, many at a time, and writes the answers: the training data of
/// self-data distillation.
///
/// Prompts are lines of JSON with "turns", a list of user messages, and perhaps "id" and "category".
/// Every turn is answered. A prompt with a "reference" answer is answered with the reference in view,
/// and the answer is kept where it checks out against it: the number after #### (GSM8K), the choice
/// letter, or for free text the length; else the reference takes its place. With --top-logprobs the
/// model's most likely tokens at every place of the answers go to a second file, OUT.topk, and references
/// are left aside, since they would change that distribution. Answers lie in the prompts' order. Started
/// again, it goes on with the prompts that have no answer yet.
///
/// With --endpoint another server answers, for instance a cluster that serves a large model; --model then
/// names where its tokenizer is. Such answers are trained on with --loss ce.
#[derive(Debug, Clone, clap::Args, Serialize)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Prompts (JSONL). Default: about 4,800 built-in ones.
    #[arg(long, env = "PLEACH_PROMPTS", value_name = "JSONL")]
    pub(crate) prompts: Option<PathBuf>,
    /// Where the answers go (JSONL).
    #[arg(long, env = "PLEACH_OUT", value_name = "JSONL")]
    pub(crate) out: PathBuf,
    /// Answer at most so many prompts, spread evenly over the file.
    #[arg(long)]
    pub(crate) limit: Option<usize>,
    /// Tokens of an answer, at most.
    #[arg(long, default_value_t = 256)]
    pub(crate) max_tokens: usize,
    /// Leave out prompts with more tokens than this.
    #[arg(long, default_value_t = 768)]
    pub(crate) max_prompt_tokens: usize,
    /// Sampling temperatures, taken in turn from prompt to prompt; 0 takes the likeliest token.
    #[arg(long, value_delimiter = ',', default_value = "0")]
    pub(crate) temperature: Vec<f32>,
    /// Keep the target's distribution over its K likeliest tokens; 0 keeps none.
    #[arg(long, default_value_t = 0, value_name = "K")]
    pub(crate) top_logprobs: usize,
    /// Answers written at the same time.
    #[arg(long, default_value_t = 32)]
    pub(crate) batch: usize,
    /// End after so many minutes, those before an interruption included; unfinished answers are kept as
    /// they are.
    #[arg(long)]
    pub(crate) minutes: Option<f64>,
    /// Seed of sampling.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) endpoint: endpoint::Args,
}

/// An answer in the making.
struct Running {
    /// Place of the prompt in its file.
    index: usize,
    prompt: Prompt,
    /// Answers to the turns before, as text and as they are written.
    answers: Vec<String>,
    finished: Vec<Answered>,
    temperature: f32,
    prompt_tokens: Vec<u32>,
    tokens: Vec<u32>,
    top: Vec<Vec<(u32, f32)>>,
    /// Whose text it is, where the prompt has a reference.
    origin: Option<Origin>,
}

impl Running {
    fn new(index: usize, prompt: Prompt, args: &Args) -> Self {
        Self {
            index,
            prompt,
            answers: Vec::new(),
            finished: Vec::new(),
            temperature: args.temperature[index % args.temperature.len()],
            prompt_tokens: Vec::new(),
            tokens: Vec::new(),
            top: Vec::new(),
            origin: None,
        }
    }

    /// Takes in what the model has generated.
    fn said(&mut self, tokens: Vec<TokenOut>) {
        for token in tokens {
            self.tokens.push(token.id);
            self.top.push(token.top_logprobs);
        }
    }

    /// Begins the next answer. Returns the turns that the model is to see, the reference in view where
    /// there is one, and their tokens.
    fn begin(&mut self, chat: &Chat) -> Result<(Vec<String>, Vec<u32>)> {
        let turns = &self.prompt.turns[..=self.answers.len()];
        self.prompt_tokens = chat.encode(turns, &self.answers)?;
        match &self.prompt.reference {
            None => Ok((turns.to_vec(), self.prompt_tokens.clone())),
            Some(reference) => {
                let turns = vec![select::with_reference(&turns[0], reference)];
                let tokens = chat.encode(&turns, &[])?;
                Ok((turns, tokens))
            }
        }
    }

    fn is_done(&self) -> bool {
        self.answers.len() == self.prompt.turns.len()
    }

    /// Keeps an answer that checks out against the reference, or puts the reference in its place.
    /// Returns the text and why it ends.
    fn select(
        &mut self,
        chat: &Chat,
        text: String,
        reason: &'static str,
    ) -> Result<(String, &'static str)> {
        let Some(reference) = &self.prompt.reference else { return Ok((text, reason)) };
        if select::checks_out(&text, reference, reason == "stop") {
            self.origin = Some(Origin::Model);
            return Ok((text, reason));
        }
        self.origin = Some(Origin::Reference);
        self.tokens = chat.encode_answer(reference)?;
        Ok((reference.clone(), "stop"))
    }

    /// The answer to a turn is complete.
    fn finish(&mut self, text: String, reason: &str) {
        let example = Example {
            id: self.prompt.id.clone(),
            category: self.prompt.category.clone(),
            turns: self.prompt.turns[..=self.answers.len()].to_vec(),
            response: text.clone(),
            prompt_tokens: std::mem::take(&mut self.prompt_tokens),
            response_tokens: std::mem::take(&mut self.tokens),
            finish_reason: reason.to_owned(),
            temperature: self.temperature,
            origin: self.origin,
        };
        self.finished.push(Answered { example, top: std::mem::take(&mut self.top) });
        self.answers.push(text);
    }
}

/// Answers that end sooner than this when the time is up are not worth keeping.
const SHORTEST_CUT: usize = 16;

/// What has been written, and what is left of the time.
struct Work<'a> {
    args: &'a Args,
    writer: Writer,
    clock: Clock,
    progress: Progress,
    started: Instant,
    tokens: usize,
    /// Prompts that were too long.
    skipped: usize,
}

impl Work<'_> {
    fn is_late(&self) -> bool {
        self.args.minutes.is_some_and(|minutes| self.clock.seconds() > minutes * 60.0)
    }

    fn show(&mut self) -> Result<()> {
        let (written, tokens) = (self.writer.written, self.tokens);
        let done = self.args.minutes.map_or(written as u64, |_| self.clock.seconds() as u64);
        let speed = tokens as f64 / self.started.elapsed().as_secs_f64();
        self.progress.set(done, format!("{written} answers, {tokens} tokens, {speed:.0}/s"));
        self.clock.save_now_and_then()
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(args.top_logprobs <= MAX_TOP_LOGPROBS, "--top-logprobs is at most {MAX_TOP_LOGPROBS}");
    ensure!(
        args.top_logprobs == 0 || args.endpoint.endpoint.is_none(),
        "--top-logprobs needs the model here: --endpoint tells of tokens by their text alone"
    );
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
    let total = args.minutes.map_or(prompts.len() as u64, |minutes| (minutes * 60.0) as u64);
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
        Some(endpoint) => remote::answer(&mut work, &endpoint, &Chat::new(&checkpoint)?, waiting)?,
        None => {
            drop(checkpoint);
            answer(&mut work, args.model.load(None)?, waiting)?;
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

/// An engine for `batch` texts of up to `longest` tokens at a time, without speculation.
pub(crate) fn batch_engine(target: Decoder, batch: usize, longest: usize) -> Result<Engine> {
    let max_model_len = longest.min(target.config().max_position_embeddings);
    let config = EngineConfig {
        max_num_seqs: batch,
        max_model_len: Some(max_model_len),
        num_blocks: Some(batch * blocks_for(max_model_len)),
        num_speculative_tokens: 0,
        ..EngineConfig::default()
    };
    Ok(Engine::new(target, None, config)?)
}

/// Lets the model that is loaded answer.
fn answer(
    work: &mut Work<'_>,
    loaded: Loaded,
    mut waiting: VecDeque<(usize, Prompt)>,
) -> Result<()> {
    let args = work.args;
    let longest = args.max_prompt_tokens + args.max_tokens + 1;
    let mut engine = batch_engine(loaded.target, args.batch, longest)?;
    let mut running = OfflineBatch::default();
    let mut again: Vec<Running> = Vec::new();
    loop {
        let late = work.is_late();
        while !late && running.len() < args.batch {
            let next = again.pop().or_else(|| {
                let (index, prompt) = waiting.pop_front()?;
                Some(Running::new(index, prompt, args))
            });
            let Some(mut next) = next else { break };
            let (_, seen) = next.begin(&loaded.chat)?;
            if seen.len() > args.max_prompt_tokens {
                work.skipped += 1;
                work.writer.finish(next.index, next.finished)?;
                continue;
            }
            let request = Request {
                params: SamplingParams {
                    temperature: next.temperature,
                    seed: Some(args.seed.wrapping_add(next.index as u64)),
                    ..SamplingParams::default()
                },
                top_logprobs: (args.top_logprobs > 0).then_some(args.top_logprobs),
                ..Request::greedy(seen, args.max_tokens)
            };
            running.submit(&mut engine, request, next).map_err(|(error, _)| error)?;
        }
        if late || running.is_empty() {
            break;
        }
        for (mut answer, said) in running.step(&mut engine) {
            let reason = match said.reason {
                FinishReason::Eos
                | FinishReason::StopToken(_)
                | FinishReason::StopString
                | FinishReason::Grammar => "stop",
                FinishReason::Length => "length",
                FinishReason::Error(reason) | FinishReason::GrammarError(reason) => {
                    eprintln!("prompt {}: {reason}", answer.prompt.id);
                    work.writer.finish(answer.index, answer.finished)?;
                    continue;
                }
            };
            answer.said(said.tokens);
            let text = loaded.chat.decode(&answer.tokens)?;
            let (text, reason) = answer.select(&loaded.chat, text, reason)?;
            answer.finish(text, reason);
            if answer.is_done() {
                work.writer.finish(answer.index, answer.finished)?;
            } else {
                again.push(answer);
            }
        }
        work.tokens = engine.stats().rounds.generated_tokens as usize;
        work.show()?;
    }
    // An answer that was cut off cannot be checked.
    let worth =
        |answer: &Running| answer.tokens.len() >= SHORTEST_CUT && answer.prompt.reference.is_none();
    let unfinished = running.into_unfinished().map(|(mut answer, tokens)| {
        answer.said(tokens);
        answer
    });
    for mut answer in unfinished.chain(again) {
        if worth(&answer) {
            let text = loaded.chat.decode(&answer.tokens)?;
            answer.finish(text, "length");
        }
        work.writer.finish(answer.index, answer.finished)?;
    }
    Ok(())
}
