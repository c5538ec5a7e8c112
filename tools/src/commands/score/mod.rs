//! `score`: what a model knows, on the tasks of lm-evaluation-harness.

mod answers;
mod likelihood;
mod reader;
mod remote;
mod scored;
pub(crate) mod summary;
mod tasks;

use std::collections::{HashSet, VecDeque};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use pleach::checkpoint::Checkpoint;
use pleach::checkpoint::write::json_file;
use pleach::cli::{ComputeDevice, DeviceArgs};
use pleach::model::Precision;
use serde::Serialize;

use crate::shared::chat::Chat;
use crate::shared::endpoint::{self, Endpoint};
use crate::shared::journal::Journal;
use crate::shared::lines;
use crate::shared::manifest::{Manifest, beside};
use crate::shared::model_args::ModelArgs;
use crate::shared::place::{Place, on_cpu_alone};
use crate::shared::progress::Progress;
use likelihood::{Score, Text};
use pleach::prompts::spread;
use reader::Reader;
use scored::{Scored, Settings};
pub(crate) use summary::{Done, Scores};
use summary::{print, summary};
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
///
/// With --json OUT.json, OUT.records.jsonl keeps what every record was graded with.
#[derive(Debug, Clone, clap::Args, Serialize)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) device: DeviceArgs,
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
    /// How the weights are held: as their file stores them, which is how they are served; rounded to Q8_0, the
    /// same arithmetic for files of all formats; or decoded to f32, which is slower and compares with other programs.
    /// The last two are the CPU's alone.
    #[arg(long, env = "PLEACH_PRECISION", value_enum, default_value = "as-stored")]
    pub(crate) precision: Held,
    /// Where the result goes.
    #[arg(long, env = "PLEACH_JSON", value_name = "OUT")]
    pub(crate) json: Option<PathBuf>,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) endpoint: endpoint::Args,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
pub(crate) enum Held {
    AsStored,
    #[value(name = "q8_0")]
    Q8_0,
    F32,
}

impl From<Held> for Precision {
    fn from(held: Held) -> Self {
        match held {
            Held::AsStored => Self::AsStored,
            Held::Q8_0 => Self::Q8_0,
            Held::F32 => Self::F32,
        }
    }
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
    let endpoint = Endpoint::open(&args.endpoint)?;
    let mut place = match &endpoint {
        None => Some(place(args, &checkpoint)?),
        Some(_) => None,
    };
    let partial = args.json.as_ref().map(|out| beside(out, ".partial.jsonl"));
    if let Some(path) = args.json.as_ref().filter(|path| path.exists())
        && manifest.is_measured(&beside(path, ".manifest.json"), place.as_ref())
    {
        partial.iter().for_each(|partial| drop(std::fs::remove_file(partial)));
        eprintln!("{} is done already", path.display());
        let scores = serde_json::from_slice(&std::fs::read(path)?)?;
        print(&scores);
        return Ok(scores);
    }
    let mut model = match &mut place {
        Some(place) => {
            let settings = Settings {
                precision: args.precision.into(),
                max_length: args.max_length,
                gpu_memory_utilization: args.device.gpu_memory_utilization,
            };
            Some(Scored::load(&args.model, &mut checkpoint, place, &settings)?)
        }
        None => None,
    };
    let device = place.as_ref().and_then(Place::name).map(str::to_owned);
    manifest.computed_on(device.as_deref());
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
    // A server takes a text with the token behind its last one, and generates one more.
    let positions = checkpoint.config.max_position_embeddings;
    let most = if endpoint.is_some() { positions.saturating_sub(2).max(1) } else { positions };
    let reader = Reader::new(&chat, &checkpoint, args.max_length.min(most), args.max_tokens);
    if let Some(endpoint) = &endpoint {
        remote::grade(endpoint, &reader, questions, &mut graded)?;
    } else if let Some(mut model) = model.take() {
        let (written, scored): (Vec<_>, Vec<_>) =
            questions.into_iter().partition(|(.., q)| matches!(q, Question::Number { .. }));
        likelihoods(&mut model, &reader, scored, &mut graded)?;
        if !written.is_empty() {
            answers::write(model, &reader, written, &mut graded)?;
        }
    }
    progress.finish();

    done.sort_by(|a, b| (&a.task, a.question).cmp(&(&b.task, b.question)));
    let scores = Scores { device, ..summary(&done) };
    print(&scores);
    if let Some(path) = &args.json {
        json_file(path, &scores)?;
        lines::write(&records_file(path), &done)?;
        manifest.write(&beside(path, ".manifest.json"), serde_json::json!({}))?;
    }
    journal.into_iter().for_each(Journal::remove);
    Ok(scores)
}

/// The metric of a task that counts in averages.
pub(crate) fn headline(task: &str) -> Option<&'static str> {
    Task::named(task)?.headline
}

/// Where the graded records of a result lie.
pub(crate) fn records_file(json: &Path) -> PathBuf {
    beside(json, ".records.jsonl")
}

/// Where the model computes; devices hold weights as they are stored.
fn place(args: &Args, checkpoint: &Checkpoint) -> Result<Place> {
    let mut choice = args.device.choice;
    if args.precision != Held::AsStored {
        on_cpu_alone(choice.device, "in another --precision than as-stored")?;
        choice.device = ComputeDevice::Cpu;
    }
    Place::open(choice, checkpoint)
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

/// Grades questions by the likelihood of given texts.
fn likelihoods(
    model: &mut Scored,
    reader: &Reader<'_>,
    questions: Vec<(Task, usize, Question)>,
    graded: &mut impl FnMut(Task, usize, Metrics) -> Result<()>,
) -> Result<()> {
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
            _ => likelihood::score(model, &groups)?,
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
