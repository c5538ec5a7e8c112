//! `bench`: how fast a model runs here.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use pleach::checkpoint::source::Source;
use pleach::checkpoint::write::json_file;
use pleach::engine::{Engine, EngineConfig, Event, Request, RequestId, SequenceStats};
use serde::Serialize;

use crate::shared::chat::Chat;
use crate::shared::model_args::ModelArgs;
use crate::shared::progress::Progress;
use pleach::prompts::{Prompt, read_prompts, spread};

/// Times decoding, prefill, verification, drafting and eight streams at once; with --prompts, also
/// speculation on those prompts.
///
/// Each figure is the median of several. Run it on an otherwise idle machine. With --prompts every prompt
/// is answered without and with speculation in turns, at temperature 0, and the answers are compared.
#[derive(Debug, Clone, clap::Args, Serialize)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// The draft. Default: for the default model, the draft in `drafts/`.
    #[arg(long, env = "PLEACH_DRAFT", value_name = "SOURCE")]
    pub(crate) draft: Option<Source>,
    /// Repeats of every measurement.
    #[arg(long, default_value_t = 15)]
    pub(crate) repeats: usize,
    /// Measure speculation on these prompts (JSONL with "id", "category" and "turns").
    #[arg(long, env = "PLEACH_PROMPTS", value_name = "JSONL")]
    pub(crate) prompts: Option<PathBuf>,
    /// Use at most so many prompts, spread evenly over the file.
    #[arg(long)]
    pub(crate) limit: Option<usize>,
    /// Tokens of an answer to a prompt, at most.
    #[arg(long, default_value_t = 128)]
    pub(crate) max_tokens: usize,
    /// Draft tokens per round, at most.
    #[arg(long, env = "PLEACH_NUM_SPECULATIVE_TOKENS", default_value_t = 8, value_name = "K")]
    pub(crate) num_speculative_tokens: usize,
    /// Where the result goes.
    #[arg(long, value_name = "OUT")]
    pub(crate) json: Option<PathBuf>,
}

const ROWS: [usize; 6] = [1, 2, 4, 8, 16, 32];
const CONTEXT: usize = 64;
const LONG_CONTEXT: usize = 1024;
const PROMPT: usize = 512;
const DECODED: usize = 128;
const STREAMS: usize = 8;

/// Spec-Bench counts the categories of MT-bench as one task.
const MT_BENCH: [&str; 8] =
    ["writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"];

/// What one model does on this machine.
#[derive(Debug, Serialize)]
struct Report {
    threads: usize,
    decode_tokens_per_s: f64,
    /// After 1,024 tokens of context, where the model has so many.
    decode_1024_tokens_per_s: Option<f64>,
    prefill_tokens_per_s: f64,
    /// Rows → seconds of a target pass over those of one row.
    verify_cost: BTreeMap<usize, f64>,
    draft_step_cost: Option<f64>,
    /// Eight answers of 128 tokens at once without speculation: tokens per second, prompts included.
    streams_tokens_per_s: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    speculation: Option<Speculation>,
}

/// Answers without and with speculation.
#[derive(Debug, Serialize)]
struct Speculation {
    num_speculative_tokens: usize,
    /// Whether all answers were the same token for token, alone and eight at a time.
    identical: bool,
    /// Over the tasks, of the ratio of tokens per second.
    geometric_mean: f64,
    worst: f64,
    tasks: BTreeMap<String, Comparison>,
    /// Eight at a time.
    streams: Comparison,
}

/// Tokens per second without and with speculation.
#[derive(Debug, Serialize)]
struct Comparison {
    answers: usize,
    tokens: usize,
    /// After the first token of each answer; over all for streams.
    without: f64,
    with: f64,
    ratio: f64,
    tokens_per_pass: f64,
    /// Accepted draft tokens and all, by the draft model, n-grams and predictions.
    accepted: [[u64; 2]; 3],
}

/// Sums over answers with (1) and without (0) speculation.
#[derive(Debug, Default)]
struct Times {
    answers: usize,
    tokens: [usize; 2],
    seconds: [f64; 2],
    passes: u64,
    accepted: [[u64; 2]; 3],
}

impl Times {
    /// Counts an answer; of its tokens, `tokens` took `seconds`.
    fn add(&mut self, speculates: bool, tokens: usize, seconds: f64, stats: &SequenceStats) {
        self.tokens[usize::from(speculates)] += tokens;
        self.seconds[usize::from(speculates)] += seconds;
        if speculates {
            self.answers += 1;
            self.passes += stats.target_passes.saturating_sub(1);
            for (sums, counts) in self.accepted.iter_mut().zip(stats.proposers) {
                sums[0] += counts.accepted_tokens;
                sums[1] += counts.draft_tokens;
            }
        }
    }

    fn comparison(&self) -> Comparison {
        let [without, with] = [0, 1].map(|i| self.tokens[i] as f64 / self.seconds[i].max(1e-9));
        Comparison {
            answers: self.answers,
            tokens: self.tokens[1],
            without,
            with,
            ratio: with / without,
            tokens_per_pass: self.tokens[1] as f64 / self.passes.max(1) as f64,
            accepted: self.accepted,
        }
    }
}

/// An answer and what it took.
struct Answer {
    tokens: Vec<u32>,
    stats: SequenceStats,
}

/// Runs requests together to their ends.
fn run_all(engine: &mut Engine, requests: Vec<Request>) -> Result<Vec<Answer>> {
    let mut answers: HashMap<RequestId, (Vec<u32>, SequenceStats)> = HashMap::new();
    let ids = requests.into_iter().map(|request| engine.submit(request));
    let ids: Vec<RequestId> = ids.collect::<Result<_, _>>()?;
    while engine.has_work() {
        for (id, event) in engine.step() {
            let answer = answers.entry(id).or_default();
            match event {
                Event::Tokens(tokens) => answer.0.extend(tokens.iter().map(|token| token.id)),
                Event::Prompt(_) | Event::Embedding(_) => {}
                Event::Finished { stats, .. } => answer.1 = stats,
            }
        }
    }
    let take = |id| answers.remove(&id).unwrap_or_default();
    Ok(ids.into_iter().map(take).map(|(tokens, stats)| Answer { tokens, stats }).collect())
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let prompts = match &args.prompts {
        Some(path) => Some(spread(read_prompts(Some(path), "")?, args.limit)),
        None => None,
    };
    let loaded = args.model.load(args.draft.as_ref())?;
    let positions = loaded.target.config().max_position_embeddings;
    let config = EngineConfig {
        max_model_len: Some(positions.min(2048)),
        max_num_seqs: STREAMS,
        num_speculative_tokens: args.num_speculative_tokens,
        prefix_caching: false, // every repeat does the same work
        ..EngineConfig::default()
    };
    let vocab = loaded.target.config().vocab_size as u32;
    let mut engine = Engine::new(loaded.target, loaded.decoder, config)?;
    let costs = engine.measure_costs(CONTEXT, &ROWS, args.repeats);
    let synthetic = |length: usize, tokens: usize| Request {
        ignore_eos: true,
        num_speculative_tokens: Some(0),
        ..Request::greedy((0..length as u32).map(|i| i * 31 % vocab).collect(), tokens)
    };

    // Whole requests, as they are served: sampling and scheduling included.
    let repeats = args.repeats.clamp(1, 5);
    let mut time = |streams: usize, length: usize, tokens: usize| -> Result<f64> {
        let mut seconds = Vec::new();
        for _ in 0..repeats {
            let requests = vec![synthetic(length, tokens); streams];
            let started = Instant::now();
            run_all(&mut engine, requests)?;
            seconds.push(started.elapsed().as_secs_f64());
        }
        seconds.sort_by(f64::total_cmp);
        Ok(seconds[seconds.len() / 2])
    };
    let decode = time(1, CONTEXT, DECODED + 1)? - time(1, CONTEXT, 1)?;
    let long = if positions > LONG_CONTEXT + DECODED {
        Some(time(1, LONG_CONTEXT, DECODED + 1)? - time(1, LONG_CONTEXT, 1)?)
    } else {
        None
    };
    let mut report = Report {
        threads: args.model.num_threads(),
        decode_tokens_per_s: DECODED as f64 / decode,
        decode_1024_tokens_per_s: long.map(|seconds| DECODED as f64 / seconds),
        prefill_tokens_per_s: PROMPT as f64 / time(1, PROMPT, 1)?,
        verify_cost: ROWS.iter().filter_map(|&n| Some((n, costs.verify_cost(n)?))).collect(),
        draft_step_cost: costs.draft_step_cost(),
        streams_tokens_per_s: (STREAMS * DECODED) as f64 / time(STREAMS, CONTEXT, DECODED)?,
        speculation: None,
    };
    print(&report);
    if let Some(prompts) = prompts {
        let speculation = speculation(&mut engine, &loaded.chat, &prompts, args)?;
        print_speculation(&speculation);
        report.speculation = Some(speculation);
    }
    if let Some(path) = &args.json {
        json_file(path, &report)?;
    }
    Ok(())
}

/// Every turn of every prompt without and with speculation in turns, then eight prompts at a time.
fn speculation(
    engine: &mut Engine,
    chat: &Chat,
    prompts: &[Prompt],
    args: &Args,
) -> Result<Speculation> {
    let mut tasks: BTreeMap<String, Times> = BTreeMap::new();
    let (mut identical, mut firsts) = (true, Vec::new());
    let mut progress = Progress::new("speculating", prompts.len() as u64);
    let request = |tokens: &[u32], speculates: bool| Request {
        num_speculative_tokens: (!speculates).then_some(0),
        ..Request::greedy(tokens.to_vec(), args.max_tokens)
    };
    for (number, prompt) in prompts.iter().enumerate() {
        let mt_bench = MT_BENCH.contains(&prompt.category.as_str());
        let task = if mt_bench { "mt_bench" } else { &prompt.category };
        let times = tasks.entry(task.to_owned()).or_default();
        let mut answers: Vec<String> = Vec::new();
        for turn in 0..prompt.turns.len() {
            let tokens = chat.encode(&prompt.turns[..=turn], &answers)?;
            if tokens.len() + args.max_tokens >= engine.limits().max_model_len {
                eprintln!("prompt {}, turn {}: left out as too long", prompt.id, turn + 1);
                break;
            }
            // Which comes first alternates, in case it matters.
            let order = [number % 2 == 1, number.is_multiple_of(2)];
            let mut both = Vec::new();
            for speculates in order {
                let answer = run_all(engine, vec![request(&tokens, speculates)])?.remove(0);
                let stats = &answer.stats;
                let seconds = stats.total_seconds - stats.first_token_seconds;
                times.add(speculates, answer.tokens.len() - 1, seconds, stats);
                both.push(answer.tokens);
            }
            identical &= both[0] == both[1];
            answers.push(chat.decode(&both[0])?);
            if turn == 0 {
                firsts.push((tokens, both.remove(0)));
            }
        }
        progress.set(number as u64 + 1, String::new());
    }
    progress.finish();
    let mut streams = Times::default();
    for (number, group) in firsts.chunks_exact(STREAMS).enumerate() {
        for speculates in [number % 2 == 1, number.is_multiple_of(2)] {
            let requests = group.iter().map(|(tokens, _)| request(tokens, speculates)).collect();
            let started = Instant::now();
            let answers = run_all(engine, requests)?;
            let share = started.elapsed().as_secs_f64() / answers.len() as f64;
            for (answer, (_, expected)) in answers.iter().zip(group) {
                identical &= answer.tokens == *expected;
                streams.add(speculates, answer.tokens.len(), share, &answer.stats);
            }
        }
    }
    let tasks: BTreeMap<String, Comparison> =
        tasks.iter().map(|(name, times)| (name.clone(), times.comparison())).collect();
    let logs: f64 = tasks.values().map(|task| task.ratio.ln()).sum();
    Ok(Speculation {
        num_speculative_tokens: args.num_speculative_tokens,
        identical,
        geometric_mean: (logs / tasks.len() as f64).exp(),
        worst: tasks.values().map(|task| task.ratio).fold(f64::INFINITY, f64::min),
        tasks,
        streams: streams.comparison(),
    })
}

fn print(report: &Report) {
    println!("decode    {:>8.1} tokens/s after {CONTEXT} tokens", report.decode_tokens_per_s);
    if let Some(rate) = report.decode_1024_tokens_per_s {
        println!("          {rate:>8.1} tokens/s after {LONG_CONTEXT} tokens");
    }
    println!("prefill   {:>8.1} tokens/s ({PROMPT} tokens)", report.prefill_tokens_per_s);
    for (rows, cost) in &report.verify_cost {
        println!("verify    {rows:>8} rows cost {cost:.2} times one");
    }
    if let Some(cost) = report.draft_step_cost {
        println!("draft     {cost:>8.3} target steps per draft step");
    }
    println!("{STREAMS} streams {:>8.1} tokens/s without speculation", report.streams_tokens_per_s);
}

fn print_speculation(speculation: &Speculation) {
    println!(
        "\ntask             answers  tokens  without    with  ratio  a pass   draft model        n-gram"
    );
    let share = |[accepted, drafted]: [u64; 2]| format!("{accepted}/{drafted}");
    let line = |name: &str, c: &Comparison| {
        println!(
            "{name:<16} {:>7} {:>7} {:>8.1} {:>7.1} {:>6.3} {:>7.2} {:>13} {:>13}",
            c.answers,
            c.tokens,
            c.without,
            c.with,
            c.ratio,
            c.tokens_per_pass,
            share(c.accepted[0]),
            share(c.accepted[1]),
        );
    };
    speculation.tasks.iter().for_each(|(name, task)| line(name, task));
    if speculation.streams.answers > 0 {
        line("8 streams", &speculation.streams);
    }
    println!(
        "geometric mean {:.3}, worst {:.3}; answers {}",
        speculation.geometric_mean,
        speculation.worst,
        if speculation.identical { "identical" } else { "DIFFER" },
    );
}
