//! Answers of the unpruned model with its own distribution at every token, packed for training.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::distill_loss::Targets;
use super::top_k::TopK;
use super::{TrainError, TrainingBatch};

/// One line of a file of answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Example {
    /// The prompt's name.
    pub id: String,
    /// The prompt's kind.
    #[serde(default)]
    pub category: String,
    /// What the user said, turn by turn.
    pub turns: Vec<String>,
    /// What the model answered to the last turn.
    pub response: String,
    /// The conversation up to the answer, in tokens.
    pub prompt_tokens: Vec<u32>,
    /// The answer in tokens, its end-of-sequence token included.
    pub response_tokens: Vec<u32>,
    /// `stop` or `length`.
    pub finish_reason: String,
    /// Temperature the answer was drawn at.
    pub temperature: f32,
    /// Whose text it is, where the prompt had a reference answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
}

/// Outcome of conditional selection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// The model's own words, which checked out against the reference.
    Model,
    /// The reference itself.
    Reference,
}

/// Answers in memory; the target's distributions are read as they are needed.
#[derive(Debug)]
pub struct Dataset {
    sequences: Vec<Sequence>,
    /// Of each file; `None` where none was named.
    top_k: Vec<Option<TopK>>,
}

/// An answer behind its prompt.
#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) tokens: Vec<u32>,
    /// Tokens before the answer.
    pub(super) prompt: usize,
    /// Which of the files it is from, and the place of its first token among the tokens of all answers there.
    file: usize,
    record: usize,
}

impl Dataset {
    /// Reads answers and, where `top_k` names it, the target's distribution. Sequences are cut after
    /// `max_len` tokens.
    ///
    /// # Errors
    /// [`TrainError::File`] naming the line or record that is wrong.
    pub fn read(
        answers: &Path,
        top_k: Option<&Path>,
        max_len: usize,
        vocab_size: usize,
    ) -> Result<Self, TrainError> {
        let io = |e: std::io::Error| TrainError::file(answers, e);
        let open = |path| TopK::open(path, vocab_size);
        let mut data = Self { sequences: Vec::new(), top_k: vec![top_k.map(open).transpose()?] };
        let (file, mut record) = (0, 0);
        for (number, line) in BufReader::new(File::open(answers).map_err(io)?).lines().enumerate() {
            let error = |reason: String| {
                TrainError::file(answers, format!("line {}: {reason}", number + 1))
            };
            let example: Example =
                serde_json::from_str(&line.map_err(io)?).map_err(|e| error(e.to_string()))?;
            let prompt = example.prompt_tokens.len();
            let mut tokens = example.prompt_tokens;
            let answered = example.response_tokens.len();
            tokens.extend(example.response_tokens);
            if let Some(id) = tokens.iter().find(|id| **id as usize >= vocab_size) {
                return Err(error(format!("token {id} is outside the model's vocabulary")));
            }
            tokens.truncate(max_len);
            if prompt > 0 && tokens.len() > prompt {
                data.sequences.push(Sequence { tokens, prompt, file, record });
            }
            record += answered;
        }
        match (&data.top_k[0], top_k) {
            (Some(top), Some(path)) if top.len() != record => Err(TrainError::file(
                path,
                format!("has {} records for {record} tokens of answers", top.len()),
            )),
            _ if data.sequences.is_empty() => {
                Err(TrainError::file(answers, "has no answer short enough to learn from"))
            }
            _ => Ok(data),
        }
    }

    /// Puts the answers of other files behind these.
    pub fn append(&mut self, other: Self) {
        let files = self.top_k.len();
        let moved = |it: Sequence| Sequence { file: files + it.file, ..it };
        self.sequences.extend(other.sequences.into_iter().map(moved));
        self.top_k.extend(other.top_k);
    }

    /// Number of answers.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sequences.len()
    }

    /// Whether there are no answers.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }

    /// Tokens of all answers.
    #[must_use]
    pub fn num_tokens(&self) -> usize {
        self.sequences.iter().map(|s| s.tokens.len() - s.prompt).sum()
    }

    /// The `count` tokens that carry most of the target's probability, rising, `always` among them.
    ///
    /// # Errors
    /// What the file system says of the target's distributions.
    pub fn frequent_tokens(
        &self,
        count: usize,
        vocab_size: usize,
        always: &[u32],
    ) -> std::io::Result<Vec<u32>> {
        let mut mass = vec![0f64; vocab_size];
        for sequence in &self.sequences {
            for (i, &token) in sequence.tokens[sequence.prompt..].iter().enumerate() {
                mass[token as usize] += 1.0;
                if let Some(top) = &self.top_k[sequence.file] {
                    for (id, p) in top.at(sequence.record + i)? {
                        mass[id as usize] += f64::from(p);
                    }
                }
            }
        }
        for id in always {
            // Some models name ends that their vocabulary does not have.
            if let Some(mass) = mass.get_mut(*id as usize) {
                *mass = f64::INFINITY;
            }
        }
        let mut ids: Vec<u32> = (0..vocab_size as u32).collect();
        ids.sort_by(|a, b| mass[*b as usize].total_cmp(&mass[*a as usize]).then(a.cmp(b)));
        ids.truncate(count);
        ids.sort_unstable();
        Ok(ids)
    }

    /// Groups answers, in the given order, into batches of at most `rows` rows.
    #[must_use]
    pub fn group(&self, order: &[usize], rows: usize) -> Vec<Vec<usize>> {
        let mut packs = vec![Vec::new()];
        let mut used = 0;
        for &index in order {
            let len = self.sequences[index].tokens.len() - 1;
            if used + len > rows && used > 0 {
                packs.push(Vec::new());
                used = 0;
            }
            used += len;
            packs.last_mut().expect("starts with one").push(index);
        }
        packs
    }

    /// One batch of answers. `head_row` gives the head's row of each token, where it has one.
    ///
    /// # Errors
    /// What the file system says of the target's distributions.
    pub fn batch(
        &self,
        indices: &[usize],
        head_row: &[Option<u32>],
    ) -> std::io::Result<TrainingBatch> {
        let mut batch = TrainingBatch::default();
        let targets: &mut Targets = &mut batch.targets;
        for sequence in indices.iter().map(|index| &self.sequences[*index]) {
            let start = batch.tokens.len();
            let inputs = sequence.tokens.len() - 1;
            batch.tokens.extend_from_slice(&sequence.tokens[..inputs]);
            batch.sequences.push(start..start + inputs);
            for place in sequence.prompt..sequence.tokens.len() {
                self.push_target(sequence, place, start + place - 1, head_row, targets)?;
            }
        }
        Ok(batch)
    }

    /// Makes the target's distribution of an answer's token at `place` what `row` has to learn, where the head has
    /// any of it.
    pub(super) fn push_target(
        &self,
        sequence: &Sequence,
        place: usize,
        row: usize,
        head_row: &[Option<u32>],
        targets: &mut Targets,
    ) -> std::io::Result<()> {
        let before = targets.entries.len();
        let mut add = |id: u32, p: f32| {
            if let Some(row) = head_row.get(id as usize).copied().flatten().filter(|_| p > 0.0) {
                targets.entries.push((row, p));
            }
        };
        match &self.top_k[sequence.file] {
            Some(top) => {
                for (id, p) in top.at(sequence.record + place - sequence.prompt)? {
                    add(id, p);
                }
            }
            None => add(sequence.tokens[place], 1.0),
        }
        if targets.entries.len() > before {
            targets.rows.push(row as u32);
            targets.ends.push(targets.entries.len());
        }
        Ok(())
    }

    /// The tokens of every answer with its prompt, in order.
    pub fn sequences(&self) -> impl Iterator<Item = &[u32]> {
        self.sequences.iter().map(|sequence| &sequence.tokens[..])
    }

    pub(super) fn sequence(&self, index: usize) -> &Sequence {
        &self.sequences[index]
    }
}
