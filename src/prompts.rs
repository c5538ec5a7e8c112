//! Prompt files: conversations to measure a draft on or to learn from, a line of JSON each.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Prompts for measuring a finished draft, kept apart from those that drafts are trained on.
pub const VALIDATION_PROMPTS: &str = include_str!("../tools/data/valid.jsonl");

/// One line of a prompt file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Prompt {
    /// Its name; its number in the file where it has none.
    #[serde(default)]
    pub id: String,
    /// The kind of task.
    #[serde(default)]
    pub category: String,
    /// User messages, in order; at least one.
    pub turns: Vec<String>,
    /// A known good answer to the one message; other kinds of references are left aside.
    #[serde(default, deserialize_with = "text", skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
}

/// A string, where the value is one.
fn text<'de, D: serde::Deserializer<'de>>(value: D) -> Result<Option<String>, D::Error> {
    Ok(Value::deserialize(value)?.as_str().map(str::to_owned))
}

/// What is wrong with a prompt file, and where.
#[derive(Debug, thiserror::Error)]
#[error("{place}: {reason}")]
pub struct PromptsError {
    place: String,
    reason: String,
}

/// Reads a prompt file, or the text that takes its place. Prompts without a name are numbered; no two may have the same
/// name, by which their answers are told apart.
///
/// # Errors
/// [`PromptsError`] naming the file and the line.
pub fn read_prompts(path: Option<&Path>, instead: &str) -> Result<Vec<Prompt>, PromptsError> {
    let name = path.map_or("the built-in prompts".into(), |path| path.display().to_string());
    let wrong = |place: &str, reason: &dyn ToString| PromptsError {
        place: place.into(),
        reason: reason.to_string(),
    };
    let lines: Box<dyn Iterator<Item = std::io::Result<String>>> = match path {
        Some(path) => {
            Box::new(BufReader::new(File::open(path).map_err(|e| wrong(&name, &e))?).lines())
        }
        None => Box::new(instead.lines().map(|line| Ok(line.to_owned()))),
    };
    let (mut prompts, mut known) = (Vec::new(), HashMap::new());
    for (number, line) in lines.enumerate() {
        let place = format!("{name}, line {}", number + 1);
        let line = line.map_err(|e| wrong(&place, &e))?;
        if line.trim().is_empty() {
            continue;
        }
        let mut prompt: Prompt = serde_json::from_str(&line).map_err(|e| wrong(&place, &e))?;
        if prompt.turns.is_empty() {
            return Err(wrong(&place, &"`turns` is empty"));
        }
        if prompt.turns.len() > 1 {
            prompt.reference = None;
        }
        if prompt.id.is_empty() {
            prompt.id = (number + 1).to_string();
        }
        if let Some(other) = known.insert(prompt.id.clone(), number + 1) {
            return Err(wrong(&place, &format!("`id`: line {other} is `{}` too", prompt.id)));
        }
        prompts.push(prompt);
    }
    if prompts.is_empty() {
        return Err(wrong(&name, &"no prompts"));
    }
    Ok(prompts)
}

/// At most `limit` of the prompts, spread evenly, so that every category keeps its share.
#[must_use]
pub fn spread<T>(mut all: Vec<T>, limit: Option<usize>) -> Vec<T> {
    let total = all.len();
    let wanted = limit.unwrap_or(total).min(total);
    let mut index = 0;
    all.retain(|_| {
        index += 1;
        index * wanted / total > (index - 1) * wanted / total
    });
    all
}
