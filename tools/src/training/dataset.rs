//! Answers of the unpruned model with its own distribution at every token, packed for training.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::distill_loss::Targets;
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

const MAGIC: &[u8; 8] = b"PLTOPK01";

/// The target's most likely tokens at every token of the answers, in the answers' order.
///
/// On disk: the magic `PLTOPK01`, K as u32, then for each token K ids (u32) and K natural
/// log-probabilities (f32), most likely first; all little-endian.
#[derive(Debug, Default)]
pub struct TopK {
    k: usize,
    ids: Vec<u32>,
    logprobs: Vec<f32>,
}

impl TopK {
    /// Reads a whole file.
    ///
    /// # Errors
    /// [`TrainError::File`] where it is none of this kind or cut short.
    pub fn read(path: &Path) -> Result<Self, TrainError> {
        let error = |reason: String| TrainError::file(path, reason);
        let mut bytes = Vec::new();
        File::open(path)
            .and_then(|mut file| file.read_to_end(&mut bytes))
            .map_err(|e| error(e.to_string()))?;
        let k = bytes
            .strip_prefix(MAGIC)
            .and_then(|rest| rest.first_chunk::<4>())
            .map(|k| u32::from_le_bytes(*k) as usize)
            .filter(|k| (1..=1024).contains(k))
            .ok_or_else(|| error("is no file of top-k log-probabilities".into()))?;
        let records = &bytes[MAGIC.len() + 4..];
        if !records.len().is_multiple_of(k * 8) {
            return Err(error(format!("{} bytes are no whole records", records.len())));
        }
        let mut all = Self { k, ids: Vec::new(), logprobs: Vec::new() };
        for record in records.chunks_exact(k * 8) {
            let (ids, logprobs) = record.split_at(k * 4);
            all.ids.extend(ids.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)));
            all.logprobs.extend(logprobs.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)));
        }
        Ok(all)
    }

    /// Number of tokens.
    fn len(&self) -> usize {
        self.ids.len() / self.k.max(1)
    }

    /// Ids and probabilities at one token.
    fn at(&self, record: usize) -> impl Iterator<Item = (u32, f32)> {
        let range = record * self.k..(record + 1) * self.k;
        let ids = self.ids[range.clone()].iter().copied();
        ids.zip(self.logprobs[range].iter().map(|l| l.exp()))
    }
}

/// Appends to a [`TopK`] file.
#[derive(Debug)]
pub struct TopKWriter {
    k: usize,
    file: BufWriter<File>,
}

impl TopKWriter {
    /// Opens a file for records of `k` tokens and drops all after the first `records`.
    ///
    /// # Errors
    /// [`TrainError::File`] where the file has fewer records or another K.
    pub fn open(path: &Path, k: usize, records: usize) -> Result<Self, TrainError> {
        let io = |e: std::io::Error| TrainError::file(path, e);
        let mut options = OpenOptions::new();
        let mut file =
            options.read(true).write(true).create(true).truncate(false).open(path).map_err(io)?;
        let mut header = MAGIC.to_vec();
        header.extend((k as u32).to_le_bytes());
        let mut found = Vec::new();
        Read::by_ref(&mut file).take(header.len() as u64).read_to_end(&mut found).map_err(io)?;
        if records > 0 && found != header {
            return Err(TrainError::file(
                path,
                format!("has no records of {k} tokens to go on from"),
            ));
        }
        let length = (header.len() + records * k * 8) as u64;
        if file.metadata().map_err(io)?.len() < length && records > 0 {
            return Err(TrainError::file(path, "has fewer records than there are answers"));
        }
        file.rewind().and_then(|()| file.write_all(&header)).map_err(io)?;
        file.set_len(length).and_then(|()| file.seek(SeekFrom::End(0))).map_err(io)?;
        Ok(Self { k, file: BufWriter::new(file) })
    }

    /// Appends the distribution at one token; short ones are filled up with probability 0.
    ///
    /// # Errors
    /// What the file system says.
    pub fn push(&mut self, top: &[(u32, f32)]) -> std::io::Result<()> {
        let at = |i: usize| top.get(i).copied().unwrap_or((0, f32::NEG_INFINITY));
        for i in 0..self.k {
            self.file.write_all(&at(i).0.to_le_bytes())?;
        }
        for i in 0..self.k {
            self.file.write_all(&at(i).1.to_le_bytes())?;
        }
        Ok(())
    }

    /// Hands everything to the system.
    ///
    /// # Errors
    /// What the file system says.
    pub fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

/// Answers in memory.
#[derive(Debug, Default)]
pub struct Dataset {
    sequences: Vec<Sequence>,
    top_k: Option<TopK>,
}

/// An answer behind its prompt.
#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) tokens: Vec<u32>,
    /// Tokens before the answer.
    pub(super) prompt: usize,
    /// Place of the answer's first token among all answers' tokens.
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
        let mut data = Self { sequences: Vec::new(), top_k: top_k.map(TopK::read).transpose()? };
        let mut record = 0;
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
                data.sequences.push(Sequence { tokens, prompt, record });
            }
            record += answered;
        }
        match (&data.top_k, top_k) {
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
    #[must_use]
    pub fn frequent_tokens(&self, count: usize, vocab_size: usize, always: &[u32]) -> Vec<u32> {
        let mut mass = vec![0f64; vocab_size];
        for sequence in &self.sequences {
            for (i, &token) in sequence.tokens[sequence.prompt..].iter().enumerate() {
                mass[token as usize] += 1.0;
                for (id, p) in self.top_k.iter().flat_map(|top| top.at(sequence.record + i)) {
                    mass[id as usize] += f64::from(p);
                }
            }
        }
        for id in always {
            mass[*id as usize] = f64::INFINITY;
        }
        let mut ids: Vec<u32> = (0..vocab_size as u32).collect();
        ids.sort_by(|a, b| mass[*b as usize].total_cmp(&mass[*a as usize]).then(a.cmp(b)));
        ids.truncate(count);
        ids.sort_unstable();
        ids
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
    #[must_use]
    pub fn batch(&self, indices: &[usize], head_row: &[Option<u32>]) -> TrainingBatch {
        let mut batch = TrainingBatch::default();
        let targets: &mut Targets = &mut batch.targets;
        for sequence in indices.iter().map(|index| &self.sequences[*index]) {
            let start = batch.tokens.len();
            let inputs = sequence.tokens.len() - 1;
            batch.tokens.extend_from_slice(&sequence.tokens[..inputs]);
            batch.sequences.push(start..start + inputs);
            for place in sequence.prompt..sequence.tokens.len() {
                self.push_target(sequence, place, start + place - 1, head_row, targets);
            }
        }
        batch
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
    ) {
        let before = targets.entries.len();
        let mut add = |id: u32, p: f32| {
            if let Some(row) = head_row[id as usize].filter(|_| p > 0.0) {
                targets.entries.push((row, p));
            }
        };
        match &self.top_k {
            Some(top) => {
                top.at(sequence.record + place - sequence.prompt).for_each(|(id, p)| add(id, p));
            }
            None => add(sequence.tokens[place], 1.0),
        }
        if targets.entries.len() > before {
            targets.rows.push(row as u32);
            targets.ends.push(targets.entries.len());
        }
    }

    /// The tokens of every answer with its prompt, in order.
    pub fn sequences(&self) -> impl Iterator<Item = &[u32]> {
        self.sequences.iter().map(|sequence| &sequence.tokens[..])
    }

    pub(super) fn sequence(&self, index: usize) -> &Sequence {
        &self.sequences[index]
    }
}
