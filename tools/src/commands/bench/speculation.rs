//! Answers to prompts without speculation, with n-grams, with the draft model, and with both.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Instant;

use anyhow::Result;
use pleach::engine::{Answer, Engine, Request};
use pleach::prompts::Prompt;
use pleach::sampling::SamplingParams;
use pleach::speculation::{ByProposer, Proposer, Proposers};
use serde::Serialize;

use super::args::Args;
use crate::shared::chat::Chat;
use crate::shared::progress::Progress;

/// Spec-Bench counts the categories of MT-bench as one task.
const MT_BENCH: [&str; 8] =
    ["writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"];

/// Prompts that are answered at once.
const STREAMS: usize = 8;

/// Who drafts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Way {
    None,
    Ngram,
    Draft,
    Both,
}

impl Way {
    /// Those that an engine can go.
    fn of(engine: &Engine) -> Vec<Self> {
        let all = [Self::None, Self::Ngram, Self::Draft, Self::Both];
        let drafts = engine.has_draft_model();
        all.into_iter().filter(|way| drafts || matches!(way, Self::None | Self::Ngram)).collect()
    }

    fn name(self) -> &'static str {
        ["none", "ngram", "draft", "both"][self as usize]
    }

    fn request(self, prompt: &[u32], seed: u64, args: &Args) -> Request {
        let mut request = Request {
            num_speculative_tokens: (self == Self::None).then_some(0),
            proposers: Proposers {
                draft_model: matches!(self, Self::Draft | Self::Both),
                ngram: matches!(self, Self::Ngram | Self::Both),
            },
            ..Request::greedy(prompt.to_vec(), args.measure.max_tokens)
        };
        if args.measure.temperature > 0.0 {
            request.params = SamplingParams {
                temperature: args.measure.temperature,
                seed: (!args.unseeded).then_some(seed),
                ..SamplingParams::default()
            };
        }
        request
    }
}

/// Tokens per second of each way, by task, and over those without speculation.
#[derive(Debug, Serialize)]
pub(crate) struct SpeculationReport {
    num_speculative_tokens: usize,
    temperature: f32,
    /// Whether all answers were the same token for token, alone and eight at a time; `None` where they are drawn anew.
    pub(crate) identical: Option<bool>,
    #[serde(flatten)]
    ways: BTreeMap<Way, Outcome>,
}

/// How one way went.
#[derive(Debug, Serialize)]
struct Outcome {
    /// Over the tasks, of `ratio`.
    geometric_mean: f64,
    worst: f64,
    tasks: BTreeMap<String, Rate>,
    /// Eight at a time, prompts included; `None` where there are fewer prompts.
    streams: Option<Rate>,
}

/// Answers of one task in one way.
#[derive(Debug, Serialize)]
struct Rate {
    answers: usize,
    tokens: usize,
    /// After the first token of each answer; over all for streams.
    tokens_per_s: f64,
    /// Over those without speculation.
    ratio: f64,
    tokens_per_pass: f64,
    /// Accepted draft tokens and all, by proposer.
    accepted: BTreeMap<&'static str, [u64; 2]>,
    /// Share of the time that the draft model took.
    drafting: f64,
}

/// Sums over answers.
#[derive(Debug, Default, Clone)]
struct Times {
    answers: usize,
    tokens: usize,
    seconds: f64,
    passes: u64,
    accepted: ByProposer<[u64; 2]>,
    drafting: f64,
}

impl Times {
    /// Counts an answer; of its tokens, `tokens` took `seconds`.
    fn add(&mut self, answer: &Answer, tokens: usize, seconds: f64) {
        self.answers += 1;
        self.tokens += tokens;
        self.seconds += seconds;
        self.passes += answer.stats.target_passes.saturating_sub(1);
        for (sums, counts) in self.accepted.iter_mut().zip(answer.stats.rounds.proposers) {
            sums[0] += counts.accepted_tokens;
            sums[1] += counts.draft_tokens;
        }
    }

    fn rate(&self, without: &Self) -> Rate {
        let rate = |times: &Self| times.tokens as f64 / times.seconds.max(1e-9);
        Rate {
            answers: self.answers,
            tokens: self.tokens,
            tokens_per_s: rate(self),
            ratio: rate(self) / rate(without),
            tokens_per_pass: self.tokens as f64 / self.passes.max(1) as f64,
            accepted: Proposer::ALL.iter().map(|p| p.name()).zip(self.accepted).collect(),
            drafting: self.drafting / self.seconds.max(1e-9),
        }
    }
}

/// Answers requests, and the seconds that the draft model took of it.
fn answer(engine: &mut Engine, requests: Vec<Request>) -> Result<(Vec<Answer>, f64)> {
    let before = engine.stats().draft.seconds();
    let answers = engine.answer(requests)?;
    Ok((answers, engine.stats().draft.seconds() - before))
}

/// Every turn of every prompt in each way in turns, then eight prompts at a time.
pub(crate) fn measure(
    engine: &mut Engine,
    chat: &Chat,
    prompts: &[Prompt],
    args: &Args,
) -> Result<SpeculationReport> {
    let ways = Way::of(engine);
    let mut tasks: BTreeMap<String, BTreeMap<Way, Times>> = BTreeMap::new();
    let (mut identical, mut firsts) = (true, Vec::new());
    let mut progress = Progress::new("speculating", prompts.len() as u64);
    for (number, prompt) in prompts.iter().enumerate() {
        let mt_bench = MT_BENCH.contains(&prompt.category.as_str());
        let task = if mt_bench { "mt_bench" } else { &prompt.category };
        let times = tasks.entry(task.to_owned()).or_default();
        let mut said: Vec<String> = Vec::new();
        for turn in 0..prompt.turns.len() {
            let tokens = chat.encode(&prompt.turns[..=turn], &said)?;
            if tokens.len() + args.measure.max_tokens >= engine.limits().max_model_len {
                eprintln!("prompt {}, turn {}: left out as too long", prompt.id, turn + 1);
                break;
            }
            let mut first: Option<Vec<u32>> = None;
            // Which comes first changes, in case it matters.
            for way in (0..ways.len()).map(|at| ways[(at + number) % ways.len()]) {
                let request = way.request(&tokens, number as u64, args);
                let (mut answers, drafting) = answer(engine, vec![request])?;
                let answer = answers.remove(0);
                let stats = &answer.stats;
                let seconds = stats.total_seconds - stats.first_token_seconds;
                let times = times.entry(way).or_default();
                times.add(&answer, answer.tokens.len().saturating_sub(1), seconds);
                times.drafting += drafting;
                let ids = answer.ids();
                identical &= first.get_or_insert_with(|| ids.clone()) == &ids;
            }
            let first = first.unwrap_or_default();
            said.push(chat.decode(&first)?);
            if turn == 0 {
                firsts.push((number, tokens, first));
            }
        }
        progress.set(number as u64 + 1, String::new());
    }
    progress.finish();
    let mut streams: BTreeMap<Way, Times> = BTreeMap::new();
    for (number, group) in firsts.chunks_exact(STREAMS).enumerate() {
        for way in (0..ways.len()).map(|at| ways[(at + number) % ways.len()]) {
            let request = |(number, tokens, _): &(usize, Vec<u32>, Vec<u32>)| {
                way.request(tokens, *number as u64, args)
            };
            let started = Instant::now();
            let (answers, drafting) = answer(engine, group.iter().map(request).collect())?;
            let share = started.elapsed().as_secs_f64() / answers.len() as f64;
            let times = streams.entry(way).or_default();
            times.drafting += drafting;
            for (answer, (_, _, expected)) in answers.iter().zip(group) {
                identical &= answer.ids() == *expected;
                times.add(answer, answer.tokens.len(), share);
            }
        }
    }
    let compared = args.measure.temperature == 0.0 || !args.unseeded;
    let outcome = |way: Way| {
        let tasks: BTreeMap<String, Rate> = tasks
            .iter()
            .filter_map(|(task, times)| {
                Some((task.clone(), times.get(&way)?.rate(times.get(&Way::None)?)))
            })
            .collect();
        let logs: f64 = tasks.values().map(|task| task.ratio.ln()).sum();
        let streams = streams.get(&way).zip(streams.get(&Way::None));
        Outcome {
            geometric_mean: (logs / tasks.len().max(1) as f64).exp(),
            worst: tasks.values().map(|task| task.ratio).fold(f64::INFINITY, f64::min),
            tasks,
            streams: streams.map(|(times, without)| times.rate(without)),
        }
    };
    Ok(SpeculationReport {
        num_speculative_tokens: args.num_speculative_tokens,
        temperature: args.measure.temperature,
        identical: compared.then_some(identical),
        ways: ways.iter().map(|&way| (way, outcome(way))).collect(),
    })
}

impl SpeculationReport {
    /// Tokens per second of a way over those without speculation, over the tasks; 1 where it was not gone.
    pub(crate) fn geometric_mean(&self, way: Way) -> f64 {
        self.ways.get(&way).map_or(1.0, |outcome| outcome.geometric_mean)
    }
}

impl fmt::Display for SpeculationReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\ntask             way   answers  tokens  tokens/s  ratio  a pass   draft model        n-gram  drafting"
        )?;
        let mut line = |task: &str, way: Way, rate: &Rate| {
            let share = |proposer: Proposer| {
                let [accepted, drafted] = rate.accepted[proposer.name()];
                format!("{accepted}/{drafted}")
            };
            writeln!(
                f,
                "{task:<16} {:<5} {:>7} {:>7} {:>9.1} {:>6.3} {:>7.2} {:>13} {:>13} {:>7.1} %",
                way.name(),
                rate.answers,
                rate.tokens,
                rate.tokens_per_s,
                rate.ratio,
                rate.tokens_per_pass,
                share(Proposer::DraftModel),
                share(Proposer::Ngram),
                100.0 * rate.drafting,
            )
        };
        let tasks = self.ways.get(&Way::None).map(|none| none.tasks.keys());
        for task in tasks.into_iter().flatten() {
            for (&way, outcome) in &self.ways {
                line(task, way, &outcome.tasks[task])?;
            }
        }
        for (&way, outcome) in &self.ways {
            if let Some(streams) = &outcome.streams {
                line("8 streams", way, streams)?;
            }
        }
        for (way, outcome) in self.ways.iter().filter(|(way, _)| **way != Way::None) {
            let Outcome { geometric_mean, worst, .. } = outcome;
            writeln!(f, "{:<5} geometric mean {geometric_mean:.3}, worst {worst:.3}", way.name())?;
        }
        let said = match self.identical {
            Some(true) => "identical",
            Some(false) => "DIFFER",
            None => "drawn without seeds, not compared",
        };
        writeln!(f, "temperature {}: answers {said}", self.temperature)
    }
}
