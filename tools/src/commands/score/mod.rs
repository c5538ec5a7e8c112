//! `score`: what a model knows, on the tasks of lm-evaluation-harness.

mod answers;
mod likelihood;
mod remote;
mod tasks;

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use pleach::checkpoint::Checkpoint;
use pleach::checkpoint::write::json_file;
use pleach::model::{Decoder, Precision, Workspace};
use serde::{Deserialize, Serialize};

use crate::shared::chat::Chat;
use crate::shared::endpoint::{self, Endpoint};
use crate::shared::journal::Journal;
use crate::shared::manifest::{Manifest, beside};
use crate::shared::model_args::ModelArgs;
use crate::shared::progress::Progress;
use likelihood::{Score, Text};
use pleach::prompts::spread;
use tasks::{Metrics, Question, TASKS, Task};

/// Scores a model on public tasks as lm-evaluation-harness does: the same wording, the same metrics.
///
/// Records lie in DIR/TASK.jsonl, a line of JSON each:
/// arc_challenge, arc_easy, boolq, hellaswag, mmlu (with "subject"), openbookqa, piqa:
/// {"query", "choices", "gold"}; truthfulqa_mc2: {"query", "choices", "labels"}; winogrande: {"contexts",
/// "continuation", "choices", "gold"}; lambada: {"context", "continuation"}; gsm8k: {"turns", "reference"};
/// perplexity: {"text"}. Worked examples, where --num-fewshot asks for them, lie in
/// DIR/TASK_fewshot.jsonl. Started again with the same --json, it goes on where it stood.
///
/// With --endpoint the model of another server is scored, over its /completions with "echo" and
/// "logprobs"; --model then names where its tokenizer is.
#[derive(Debug, Clone, clap::Args, Serialize)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Folder of the tasks' records.
    #[arg(long, env = "PLEACH_DATA", value_name = "DIR")]
    pub(crate) data: PathBuf,
    /// Tasks, each a name or NAME=FILE. Default: all that have a file in the folder.
    #[arg(long, env = "PLEACH_TASKS", value_delimiter = ',', value_name = "TASK,TASK")]
    pub(crate) tasks: Vec<String>,
    /// Records of each task, at most, spread evenly over its file.
    #[arg(long, env = "PLEACH_LIMIT")]
    pub(crate) limit: Option<usize>,
    /// Worked examples before each question, where the task has a file of them.
    #[arg(long, env = "PLEACH_NUM_FEWSHOT", default_value_t = 0, value_name = "K")]
    pub(crate) num_fewshot: usize,
    /// Tokens the model sees at once, at most; longer questions lose their start.
    #[arg(long, env = "PLEACH_MAX_LENGTH", default_value_t = 2048, value_name = "TOKENS")]
    pub(crate) max_length: usize,
    /// Tokens of a generated answer, at most.
    #[arg(long, env = "PLEACH_MAX_TOKENS", default_value_t = 256)]
    pub(crate) max_tokens: usize,
    /// How the weights are held: as their file stores them, which is how they are served, or decoded to
    /// f32, which is slower and compares with other programs.
    #[arg(long, env = "PLEACH_PRECISION", value_enum, default_value = "as-stored")]
    pub(crate) precision: Held,
    /// Where the result goes.
    #[arg(long, env = "PLEACH_JSON", value_name = "OUT")]
    pub(crate) json: Option<PathBuf>,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) endpoint: endpoint::Args,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum, Serialize)]
pub(crate) enum Held {
    AsStored,
    F32,
}

/// A mean over questions.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Mean {
    pub(crate) value: f64,
    /// Standard error of the mean; 0 for perplexities, which have none here.
    pub(crate) standard_error: f64,
}

/// The result of one task, by metric.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct TaskScores {
    pub(crate) records: usize,
    /// The metric that counts in the average.
    pub(crate) headline: Option<String>,
    #[serde(flatten)]
    pub(crate) metrics: BTreeMap<String, Mean>,
}

/// The whole result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Scores {
    /// Mean of the tasks' headline metrics, as in leaderboards.
    pub(crate) average: Mean,
    pub(crate) tasks: BTreeMap<String, TaskScores>,
}

/// A graded question, as the journal keeps it.
#[derive(Serialize, Deserialize)]
struct Done {
    task: String,
    question: usize,
    metrics: Metrics,
}

/// Rows of one pass, unless one question has more.
const BATCH_ROWS: usize = 1024;

pub(crate) fn run(args: &Args) -> Result<Scores> {
    ensure!(args.max_length > 0, "--max-length must be at least 1");
    ensure!(args.max_tokens > 0, "--max-tokens must be at least 1");
    let mut manifest = Manifest::new("score", args)?;
    let mut checkpoint = args.model.open()?;
    manifest.model(&checkpoint)?;
    let mut questions = Vec::new();
    for (task, path) in chosen(args)? {
        manifest.file(&path)?;
        let examples = args.data.join(format!("{}_fewshot.jsonl", task.name));
        let examples = Some(examples).filter(|path| args.num_fewshot > 0 && path.exists());
        examples.iter().try_for_each(|path| manifest.file(path))?;
        let all = task.read(&path, examples.as_deref(), args.num_fewshot)?;
        let all: Vec<(usize, Question)> = spread(all.into_iter().enumerate().collect(), args.limit);
        questions.extend(all.into_iter().map(|(number, question)| (task, number, question)));
    }
    let partial = args.json.as_ref().map(|out| beside(out, ".partial.jsonl"));
    if let Some(path) = args.json.as_ref().filter(|path| path.exists())
        && manifest.is_done(&beside(path, ".manifest.json"))
    {
        partial.iter().for_each(|partial| drop(std::fs::remove_file(partial)));
        eprintln!("{} is done already", path.display());
        let scores = serde_json::from_slice(&std::fs::read(path)?)?;
        print(&scores);
        return Ok(scores);
    }
    let journal = partial.map(|path| Journal::open(path, &manifest)).transpose()?;
    let (mut journal, done): (_, Option<Vec<Done>>) = journal.unzip();
    let mut done = done.unwrap_or_default();
    let known: HashSet<(String, usize)> =
        done.iter().map(|done| (done.task.clone(), done.question)).collect();
    let mut progress = Progress::new("scoring", questions.len() as u64);
    questions.retain(|(task, number, _)| !known.contains(&(task.name.to_owned(), *number)));
    let mut graded = |task: Task, question: usize, metrics: Metrics| -> Result<()> {
        let one = Done { task: task.name.to_owned(), question, metrics };
        journal.iter_mut().try_for_each(|journal| journal.push(&one))?;
        done.push(one);
        progress.set(done.len() as u64, task.name.to_owned());
        Ok(())
    };
    let chat = Chat::new(&checkpoint)?;
    let reader = Reader::new(&chat, &checkpoint, args);
    match Endpoint::open(&args.endpoint)? {
        Some(endpoint) => remote::grade(&endpoint, &reader, questions, &mut graded)?,
        None => {
            let (written, scored): (Vec<_>, Vec<_>) =
                questions.into_iter().partition(|(.., q)| matches!(q, Question::Number { .. }));
            let decoder = load(args, &mut checkpoint)?;
            likelihoods(&decoder, &reader, scored, &mut graded)?;
            if !written.is_empty() {
                answers::write(decoder, &reader, written, &mut graded)?;
            }
        }
    }
    progress.finish();

    done.sort_by(|a, b| (&a.task, a.question).cmp(&(&b.task, b.question)));
    let scores = summary(&done);
    print(&scores);
    if let Some(path) = &args.json {
        json_file(path, &scores)?;
        manifest.write(&beside(path, ".manifest.json"), serde_json::json!({}))?;
    }
    journal.into_iter().for_each(Journal::remove);
    Ok(scores)
}

fn load(args: &Args, checkpoint: &mut Checkpoint) -> Result<Decoder> {
    let precision = match args.precision {
        Held::AsStored => Precision::AsStored,
        Held::F32 => Precision::F32,
    };
    Ok(Decoder::load_with(checkpoint, &args.model.pool(), precision)?)
}

/// The tasks that were asked for and the files of their records.
fn chosen(args: &Args) -> Result<Vec<(Task, PathBuf)>> {
    let file = |task: Task| (task, args.data.join(format!("{}.jsonl", task.name)));
    if args.tasks.is_empty() {
        let all: Vec<_> = TASKS.into_iter().map(file).filter(|(_, path)| path.exists()).collect();
        ensure!(!all.is_empty(), "--data {}: has no TASK.jsonl", args.data.display());
        return Ok(all);
    }
    let one = |text: &String| {
        let (name, path) =
            text.split_once('=').map_or((text.as_str(), None), |(name, path)| (name, Some(path)));
        let task = Task::named(name).with_context(|| {
            format!("--tasks: `{name}` is none of {}", TASKS.map(|task| task.name).join(", "))
        })?;
        Ok(path.map_or_else(|| file(task), |path| (task, path.into())))
    };
    args.tasks.iter().map(one).collect()
}

/// Questions as tokens.
struct Reader<'a> {
    chat: &'a Chat,
    /// What stands before a text.
    first: u32,
    /// Tokens the model sees at once, and those of an answer.
    max_length: usize,
    max_tokens: usize,
}

impl<'a> Reader<'a> {
    fn new(chat: &'a Chat, checkpoint: &Checkpoint, args: &Args) -> Self {
        let config = &checkpoint.config;
        Self {
            chat,
            first: config.bos_token_id.or(config.eos_token_ids.first().copied()).unwrap_or(0),
            max_length: args.max_length.min(config.max_position_embeddings),
            max_tokens: args.max_tokens,
        }
    }

    /// The texts whose likelihoods grade a question.
    fn texts(&self, question: &Question) -> Result<Vec<Text>> {
        let pair =
            |context: &str, rest: &str| Text::pair(self.chat, context, rest, self.max_length);
        match question {
            Question::Choices { pairs, .. } => {
                pairs.iter().map(|(context, rest)| pair(context, rest)).collect()
            }
            Question::LastWord { context, continuation } => Ok(vec![pair(context, continuation)?]),
            Question::Text(text) => Text::pieces(self.chat, text, self.first, self.max_length),
            Question::Number { .. } => unreachable!("invariant: answered, not scored"),
        }
    }

    /// A prompt, less as much of its start as an answer needs.
    fn prompt(&self, prompt: &str) -> Result<Vec<u32>> {
        let mut tokens = self.chat.encode_text(prompt, true)?;
        let most = self.max_length.saturating_sub(self.max_tokens);
        tokens.drain(..tokens.len().saturating_sub(most));
        Ok(tokens)
    }
}

/// Grades questions by the likelihood of given texts.
fn likelihoods(
    decoder: &Decoder,
    reader: &Reader<'_>,
    questions: Vec<(Task, usize, Question)>,
    graded: &mut impl FnMut(Task, usize, Metrics) -> Result<()>,
) -> Result<()> {
    let mut workspace = Workspace::new();
    let mut waiting = questions.into_iter();
    // Groups of texts that no pass has taken, and the questions they belong to, in one order.
    let mut parts: VecDeque<Vec<Text>> = VecDeque::new();
    let mut asked: VecDeque<Asked> = VecDeque::new();
    loop {
        let (mut groups, mut rows) = (Vec::new(), 0);
        while rows < BATCH_ROWS {
            if let Some(group) = parts.pop_front() {
                rows += likelihood::num_rows(&group);
                groups.push(group);
                continue;
            }
            let Some((task, number, question)) = waiting.next() else { break };
            let texts = reader
                .texts(&question)
                .with_context(|| format!("{}, record {}", task.name, number + 1))?;
            // Pieces of a long text share nothing, and all at once would not fit into memory.
            parts = match question {
                Question::Text(_) => texts.into_iter().map(|text| vec![text]).collect(),
                _ => VecDeque::from([texts]),
            };
            asked.push_back(Asked { task, number, question, missing: parts.len(), scores: vec![] });
        }
        let scores = match groups[..] {
            [] => Vec::new(),
            _ => likelihood::score(decoder, &mut workspace, &groups),
        };
        let mut scores = scores.into_iter();
        while let Some(first) = asked.front_mut() {
            while first.missing > 0
                && let Some(part) = scores.next()
            {
                first.scores.extend(part);
                first.missing -= 1;
            }
            if first.missing > 0 {
                break;
            }
            let grades = first.question.grade(&first.scores);
            graded(first.task, first.number, grades)?;
            asked.pop_front();
        }
        if groups.is_empty() {
            return Ok(());
        }
    }
}

/// A question some of whose texts are scored.
struct Asked {
    task: Task,
    number: usize,
    question: Question,
    /// Groups of texts that are not.
    missing: usize,
    scores: Vec<Score>,
}

/// Means with the standard error of the sample mean.
fn summary(done: &[Done]) -> Scores {
    let mut tasks = BTreeMap::new();
    for task in TASKS {
        let own: Vec<&Metrics> =
            done.iter().filter(|done| done.task == task.name).map(|done| &done.metrics).collect();
        if own.is_empty() {
            continue;
        }
        let all = |name: &str| own.iter().filter_map(|m| m.get(name)).copied().collect::<Vec<_>>();
        let mut metrics = BTreeMap::new();
        for name in ["acc", "acc_norm", "exact_match"] {
            let values = all(name);
            if !values.is_empty() && (name != "acc_norm" || task.normed()) {
                metrics.insert(name.to_owned(), mean(&values));
            }
        }
        let sum = |name: &str| all(name).iter().sum::<f64>();
        for (name, unit) in [("word_perplexity", "words"), ("byte_perplexity", "bytes")] {
            if sum(unit) > 0.0 {
                let value = (-sum("log_likelihood") / sum(unit)).exp();
                metrics.insert(name.to_owned(), Mean { value, standard_error: 0.0 });
            }
        }
        let headline = task.headline.map(str::to_owned);
        let scores = TaskScores { records: own.len(), headline, metrics };
        tasks.insert(task.name.to_owned(), scores);
    }
    let headlines: Vec<Mean> =
        tasks.values().filter_map(|task| Some(task.metrics[task.headline.as_ref()?])).collect();
    let count = headlines.len().max(1) as f64;
    let average = Mean {
        value: headlines.iter().map(|mean| mean.value).sum::<f64>() / count,
        standard_error: headlines.iter().map(|m| m.standard_error.powi(2)).sum::<f64>().sqrt()
            / count,
    };
    Scores { average, tasks }
}

fn mean(values: &[f64]) -> Mean {
    let count = values.len() as f64;
    let value = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|v| (v - value).powi(2)).sum();
    let standard_error =
        if values.len() > 1 { (squares / (count - 1.0) / count).sqrt() } else { 0.0 };
    Mean { value, standard_error }
}

fn print(scores: &Scores) {
    println!("task            records  metric            value  standard error");
    for (name, task) in &scores.tasks {
        for (metric, mean) in &task.metrics {
            let mark = if task.headline.as_ref() == Some(metric) { '*' } else { ' ' };
            println!(
                "{name:<15} {:>7}  {metric:<15}{mark} {:>7.4}  {:.4}",
                task.records, mean.value, mean.standard_error
            );
        }
    }
    let Mean { value, standard_error } = scores.average;
    println!("average of *                             {value:>7.4}  {standard_error:.4}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_have_the_error_of_a_sample() {
        let of = mean(&[1.0, 0.0, 0.0, 1.0]);
        assert!((of.value - 0.5).abs() < 1e-12);
        assert!((of.standard_error - (1.0f64 / 3.0 / 4.0).sqrt()).abs() < 1e-12);
        assert_eq!(mean(&[1.0]).standard_error, 0.0);
    }

    #[test]
    fn the_average_takes_headlines_alone() {
        let done = |task: &str, metrics: &[(&str, f64)]| Done {
            task: task.into(),
            question: 0,
            metrics: metrics.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect(),
        };
        let scores = summary(&[
            done("arc_easy", &[("acc", 0.0), ("acc_norm", 1.0)]),
            done("lambada", &[("acc", 0.5), ("log_likelihood", -2.0), ("words", 1.0)]),
            done("mmlu", &[("acc", 0.0), ("acc_norm", 1.0)]),
            done("perplexity", &[("log_likelihood", -4.0), ("words", 2.0), ("bytes", 8.0)]),
        ]);
        assert!((scores.average.value - 0.5).abs() < 1e-12);
        let perplexity = |task: &str, metric: &str| scores.tasks[task].metrics[metric].value;
        assert!((perplexity("lambada", "word_perplexity") - 2f64.exp()).abs() < 1e-9);
        assert!((perplexity("perplexity", "byte_perplexity") - 0.5f64.exp()).abs() < 1e-9);
        assert!(!scores.tasks["mmlu"].metrics.contains_key("acc_norm"));
    }
}
