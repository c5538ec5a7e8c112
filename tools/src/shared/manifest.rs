//! The note beside an output, and what it decides: whether a command is done, or may go on.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use pleach::checkpoint::{Checkpoint, sha256, write};
use serde::Serialize;
use serde_json::{Value, json};

use super::place::Place;

/// The note beside an output of what made it: command, version, inputs with their SHA-256, options.
pub(crate) struct Manifest {
    started: Instant,
    command: &'static str,
    pub(super) options: Value,
    pub(crate) inputs: Vec<Value>,
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

    /// Notes which CUDA device computes what is measured, none for the processor: numbers of one are not those of another.
    pub(crate) fn computed_on(&mut self, device: Option<&str>) {
        let options = self.options.as_object_mut().expect("invariant: options have names");
        match device {
            Some(name) => drop(options.insert("computed_on".into(), name.into())),
            None => drop(options.remove("computed_on")),
        }
    }

    /// Whether the output at `path` is finished and was made from the same inputs and options.
    pub(crate) fn is_done(&self, path: &Path) -> bool {
        let note = std::fs::read(path).ok().and_then(|b| serde_json::from_slice::<Value>(&b).ok());
        note.is_some_and(|note| self.describes(&note))
    }

    /// Whether what is measured at `path` is finished, as [`is_done`](Self::is_done), and was computed where `place` is; or on
    /// the processor, where the choice is left: what the device had no memory for was computed there. `None` for another
    /// server.
    pub(crate) fn is_measured(&mut self, path: &Path, place: Option<&Place>) -> bool {
        if place.is_some_and(Place::may_leave) {
            self.computed_on(None);
            if self.is_done(path) {
                return true;
            }
        }
        self.computed_on(place.and_then(Place::name));
        self.is_done(path)
    }

    /// Whether a note tells of the same inputs and options.
    pub(super) fn describes(&self, note: &Value) -> bool {
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
const BESIDE_THE_POINT: [&str; 20] = [
    "answers",
    "batch",
    "cache_dir",
    "checkpoint_seconds",
    "data",
    "device",
    "endpoint",
    "eval_prompts",
    "from",
    "gpu_memory_utilization",
    "limit",
    "minutes",
    "model",
    "out",
    "prompts",
    "score_limit",
    "steps",
    "target",
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

/// `path` with another ending.
pub(crate) fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}
