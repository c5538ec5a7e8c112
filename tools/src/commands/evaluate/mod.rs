//! `evaluate`: how well a draft drafts.

mod accepted;
mod sample;

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use pleach::checkpoint::write::json_file;
use pleach::engine::{
    EngineConfig, FinishReason, OfflineBatch, Request, RoundCounts, SequenceStats,
};
use pleach::sampling::SamplingParams;
use serde::{Deserialize, Serialize};

use crate::shared::journal::Journal;
use crate::shared::manifest::{Manifest, beside};
use crate::shared::measure_args::MeasureArgs;
use crate::shared::models::Running;
use crate::shared::place::Place;
use crate::shared::progress::Progress;
pub(crate) use accepted::Accepted;
use accepted::ratio;
use pleach::prompts::{Prompt, VALIDATION_PROMPTS, read_prompts, spread};
use sample::Sample;

/// Measures the acceptance of a draft for its target on prompts.
///
/// alpha is the chance that a draft token is accepted given that all before it were; the draft acceptance
/// rate is accepted over drafted; the mean acceptance length is the tokens that one pass of the target
/// yields, 1 + accepted / drafts. Every turn of every prompt is answered, always with
/// --num-speculative-tokens draft tokens a round; without --prompts, there are 72 built-in ones.
///
/// With --json, finished conversations are noted in OUT.partial.jsonl, and an evaluation that is started
/// again with the same options goes on after them, or shows what it found where it came to its end.
#[derive(Debug, Clone, clap::Args, Serialize)]
pub(crate) struct Args {
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) measure: MeasureArgs,
    /// Draft tokens per round.
    #[arg(long, env = "PLEACH_NUM_SPECULATIVE_TOKENS", default_value_t = 4, value_name = "K")]
    pub(crate) num_speculative_tokens: usize,
    /// Seed of sampling.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Answers written at the same time.
    #[arg(long, default_value_t = 8)]
    pub(crate) batch: usize,
    /// Keep the first answer to a prompt of each of so many categories, with where its tokens came from.
    #[arg(long, env = "PLEACH_SAMPLES", default_value_t = 0, value_name = "N")]
    pub(crate) samples: usize,
    /// Where the result goes.
    #[arg(long, value_name = "OUT")]
    pub(crate) json: Option<PathBuf>,
}

/// How the name of the note ends that says what made a result.
const NOTE: &str = ".manifest.json";

/// Sums over answers.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Counts {
    answers: u64,
    target_passes: u64,
    rounds: RoundCounts,
}

/// What is reported of a group of answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct EvaluationReport {
    pub(crate) mean_acceptance_length: f64,
    pub(crate) alpha: f64,
    pub(crate) draft_acceptance_rate: f64,
    /// Share of the rounds in which the draft token at each place was accepted.
    pub(crate) accepted_per_position: Vec<f64>,
    pub(crate) answers: u64,
    pub(crate) generated_tokens: u64,
    pub(crate) drafts: u64,
    pub(crate) draft_tokens: u64,
    pub(crate) accepted_tokens: u64,
    pub(crate) recovered_tokens: u64,
    pub(crate) bonus_tokens: u64,
    pub(crate) target_passes: u64,
}

/// The whole result.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Evaluation {
    #[serde(flatten)]
    pub(crate) all: EvaluationReport,
    pub(crate) num_speculative_tokens: usize,
    pub(crate) temperature: f32,
    /// The CUDA device that computed; absent for the processor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) device: Option<String>,
    /// Seconds of a draft step over those of a target step, measured here.
    pub(crate) draft_step_cost: f64,
    /// FLOPs of a draft token over those of a target token, at 512 tokens of context.
    pub(crate) draft_flop_share: f64,
    pub(crate) categories: BTreeMap<String, EvaluationReport>,
    /// All answers of each prompt, by its name.
    pub(crate) prompts: BTreeMap<String, Accepted>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) samples: Vec<Sample>,
}

impl From<&SequenceStats> for Counts {
    fn from(stats: &SequenceStats) -> Self {
        Self { answers: 1, target_passes: stats.target_passes, rounds: stats.rounds.clone() }
    }
}

impl Counts {
    fn add(&mut self, other: &Self) {
        self.answers += other.answers;
        self.target_passes += other.target_passes;
        self.rounds.add(&other.rounds);
    }

    fn report(&self) -> EvaluationReport {
        let rounds = &self.rounds;
        let own = Accepted::from(rounds);
        let accepted = rounds.accepted_per_position.iter().copied().chain(std::iter::repeat(0));
        let places = accepted.zip(&rounds.drafted_per_position);
        EvaluationReport {
            mean_acceptance_length: own.mean_acceptance_length(),
            alpha: own.alpha(),
            draft_acceptance_rate: ratio(rounds.accepted_tokens, rounds.draft_tokens),
            accepted_per_position: places.map(|(a, d)| ratio(a, *d)).collect(),
            answers: self.answers,
            generated_tokens: rounds.generated_tokens,
            drafts: rounds.drafts,
            draft_tokens: rounds.draft_tokens,
            accepted_tokens: rounds.accepted_tokens,
            recovered_tokens: rounds.recovered_tokens,
            bonus_tokens: rounds.bonus_tokens,
            target_passes: self.target_passes,
        }
    }
}

/// A conversation in the making.
struct Conversation {
    prompt: Prompt,
    answers: Vec<String>,
    counts: Counts,
    /// Whether the first answer is kept, and the answer.
    sampled: bool,
    sample: Option<Sample>,
}

/// A finished conversation, as the journal keeps it.
#[derive(Serialize, Deserialize)]
struct Done {
    id: String,
    category: String,
    counts: Counts,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sample: Option<Sample>,
}

pub(crate) fn run(args: &Args) -> Result<Evaluation> {
    ensure!(args.num_speculative_tokens > 0, "--num-speculative-tokens must be at least 1");
    let mut manifest = Manifest::new("evaluate", args)?;
    let prompts = spread(
        read_prompts(args.measure.prompts.as_deref(), VALIDATION_PROMPTS)?,
        args.measure.limit,
    );
    let loaded = args.measure.load()?;
    let draft_flop_share = loaded
        .draft_flop_share(512)
        .context("no draft: name one with --draft, or build one with `pleach-tools build`")?;
    manifest.model(&loaded.checkpoint)?;
    loaded.draft.iter().try_for_each(|draft| manifest.model(draft))?;
    if let Some(path) = &args.measure.prompts {
        manifest.file(path)?;
    }
    if let Some(evaluation) = finished(args, &mut manifest, loaded.place()) {
        print(&evaluation);
        return Ok(evaluation);
    }
    let engine_config = EngineConfig {
        max_num_seqs: args.batch,
        num_speculative_tokens: args.num_speculative_tokens,
        ngram: false,
        adaptive: false,
        seed: Some(args.seed),
        max_model_len: Some(loaded.config().max_position_embeddings.min(8192)),
        gpu_memory_utilization: args.measure.device.gpu_memory_utilization,
        prefix_caching: false, // every repeat does the same work
        ..EngineConfig::default()
    };
    let Running { mut engine, chat, device } = loaded.start(engine_config)?;
    manifest.computed_on(device.as_deref());
    let costs = engine.measure_costs(256.min(engine.limits().max_model_len - 2), &[1], 15)?;

    let (mut journal, done) = match &args.json {
        Some(out) => {
            let (journal, done) = Journal::open(beside(out, ".partial.jsonl"), &manifest)?;
            (Some(journal), done)
        }
        None => (None, Vec::<Done>::new()),
    };
    let total = prompts.len() as u64;
    let mut samples: Vec<Sample> = done.iter().filter_map(|done| done.sample.clone()).collect();
    let known: HashSet<&str> = done.iter().map(|done| done.id.as_str()).collect();
    let mut seen = HashSet::new();
    let mut waiting: VecDeque<Conversation> = prompts
        .into_iter()
        .map(|prompt| {
            let sampled = seen.len() < args.samples && seen.insert(prompt.category.clone());
            (prompt, sampled)
        })
        .filter(|(prompt, _)| !known.contains(prompt.id.as_str()))
        .map(|(prompt, sampled)| Conversation {
            prompt,
            answers: Vec::new(),
            counts: Counts::default(),
            sampled,
            sample: None,
        })
        .collect();
    let mut running = OfflineBatch::default();
    let (mut all, mut counts) = (Counts::default(), BTreeMap::<String, Counts>::new());
    let mut by_prompt = BTreeMap::<String, Accepted>::new();
    let mut count = |id: &str, category: &str, own: &Counts| {
        all.add(own);
        counts.entry(category.to_owned()).or_default().add(own);
        let prompt = by_prompt.entry(id.to_owned()).or_default();
        *prompt = *prompt + Accepted::from(&own.rounds);
        Accepted::from(&all.rounds).mean_acceptance_length()
    };
    let mut length = 1.0;
    for done in &done {
        length = count(&done.id, &done.category, &done.counts);
    }
    let mut progress = Progress::new("evaluating", total);
    let mut finished = done.len() as u64;
    while !waiting.is_empty() || !running.is_empty() {
        while running.len() < args.batch {
            let Some(next) = waiting.pop_front() else { break };
            let turns = &next.prompt.turns[..=next.answers.len()];
            let tokens = chat.encode(turns, &next.answers)?;
            let request = Request {
                params: SamplingParams {
                    temperature: args.measure.temperature,
                    ..SamplingParams::default()
                },
                ..Request::greedy(tokens, args.measure.max_tokens)
            };
            if let Err((error, next)) = running.submit(&mut engine, request, next) {
                eprintln!("prompt {} left out: {error}", next.prompt.id);
                finished += 1;
            }
        }
        for (mut conversation, answer) in running.step(&mut engine) {
            if let FinishReason::Error(reason) = &answer.reason {
                anyhow::bail!("prompt {}: {reason}", conversation.prompt.id);
            }
            conversation.counts.add(&Counts::from(&answer.stats));
            if conversation.sampled && conversation.answers.is_empty() {
                let sample = Sample::new(&chat, &conversation.prompt, &answer.tokens)?;
                conversation.sample = Some(sample);
            }
            conversation.answers.push(chat.decode(&answer.ids())?);
            if conversation.answers.len() < conversation.prompt.turns.len() {
                waiting.push_front(conversation);
                continue;
            }
            let Conversation { prompt: Prompt { id, category, .. }, counts: own, sample, .. } =
                conversation;
            samples.extend(sample.clone());
            length = count(&id, &category, &own);
            if let Some(journal) = &mut journal {
                journal.push(&Done { id, category, counts: own, sample })?;
            }
            finished += 1;
        }
        progress.set(finished, format!("mean acceptance length {length:.3}"));
    }
    progress.finish();

    samples.sort_by(|a, b| a.category.cmp(&b.category));
    let evaluation = Evaluation {
        all: all.report(),
        num_speculative_tokens: args.num_speculative_tokens,
        temperature: args.measure.temperature,
        device,
        draft_step_cost: costs.draft_step_cost().unwrap_or_default(),
        draft_flop_share,
        categories: counts.iter().map(|(name, counts)| (name.clone(), counts.report())).collect(),
        prompts: by_prompt,
        samples,
    };
    print(&evaluation);
    if let Some(path) = &args.json {
        json_file(path, &evaluation)?;
        manifest.write(&beside(path, NOTE), serde_json::json!({}))?;
    }
    journal.into_iter().for_each(Journal::remove);
    Ok(evaluation)
}

/// What an evaluation of the same inputs and options has found already.
fn finished(args: &Args, manifest: &mut Manifest, place: &Place) -> Option<Evaluation> {
    let path = args.json.as_ref();
    let path = path.filter(|path| manifest.is_measured(&beside(path, NOTE), Some(place)))?;
    let evaluation = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    eprintln!("{} is done already", path.display());
    Some(evaluation)
}

fn print(evaluation: &Evaluation) {
    println!("category         answers  tokens   alpha   rate  mean acceptance length");
    let line = |name: &str, r: &EvaluationReport| {
        println!(
            "{name:<16} {:>7} {:>7}  {:.3}  {:.3}  {:.3}",
            r.answers,
            r.generated_tokens,
            r.alpha,
            r.draft_acceptance_rate,
            r.mean_acceptance_length
        );
    };
    for (name, report) in &evaluation.categories {
        line(name, report);
    }
    line("all", &evaluation.all);
    println!(
        "accepted per position {:.3?}; a draft step costs {:.3} target steps and {:.3} of the FLOPs",
        evaluation.all.accepted_per_position,
        evaluation.draft_step_cost,
        evaluation.draft_flop_share,
    );
}
