//! Raw logits and the tokens so far → the distribution a token is drawn from.

use std::collections::HashMap;
use std::sync::Arc;

use super::truncation::{BLOCK, largest, least_kept, truncate};
use super::weights::Weights;
use super::{Distribution, SamplingParams};
use pleach_kernels::{SUMMED, argmax, weigh};

/// Logits no token can be drawn from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LogitsError {
    /// A logit is not a number or is positive infinity.
    #[error("the model's output for token {id} is not a finite number")]
    NotFinite {
        /// The first such token.
        id: u32,
    },
    /// Every token has probability 0.
    #[error("no token has any probability left")]
    NothingLeft,
}

/// The tokens of one sequence as penalties and restrictions see them. Draft tokens are pushed before the rows after
/// them are processed, and popped afterwards.
#[derive(Debug, Default)]
pub struct History {
    /// Per token: occurrences in the prompt and in the generated text.
    counts: HashMap<u32, (u32, u32)>,
    /// Prompt and generated text.
    tokens: Vec<u32>,
    /// Tokens of the prompt.
    prompt: usize,
}

impl History {
    /// A history of the prompt alone.
    #[must_use]
    pub fn new(prompt: &[u32]) -> Self {
        let (tokens, counts) = (prompt.to_vec(), HashMap::new());
        let mut history = Self { counts, tokens, prompt: prompt.len() };
        for &id in prompt {
            history.counts.entry(id).or_default().0 += 1;
        }
        history
    }

    /// Its tokens, each with its occurrences in the prompt and in the generated text.
    pub fn counts(&self) -> impl Iterator<Item = (u32, [u32; 2])> {
        self.counts.iter().map(|(&id, &(prompt, generated))| (id, [prompt, generated]))
    }

    /// Adds a generated token.
    pub fn push(&mut self, id: u32) {
        self.counts.entry(id).or_default().1 += 1;
        self.tokens.push(id);
    }

    /// Takes back one of the last generated tokens; all behind it must be taken back too.
    pub fn pop(&mut self, id: u32) {
        self.tokens.pop();
        if let Some(count) = self.counts.get_mut(&id) {
            count.1 -= 1;
            if *count == (0, 0) {
                self.counts.remove(&id);
            }
        }
    }
}

/// The most likely token of raw logits, the lowest id among equals. Shape `[vocab_size]`.
///
/// # Errors
/// [`LogitsError`] if a logit is not a number, or none is above negative infinity.
pub fn greedy_token(logits: &[f32]) -> Result<u32, LogitsError> {
    match argmax(logits) {
        Ok(Some((id, logit))) if logit > f32::NEG_INFINITY => Ok(id as u32),
        Ok(_) => Err(LogitsError::NothingLeft),
        Err(id) => Err(LogitsError::NotFinite { id: id as u32 }),
    }
}

/// Turns logits into distributions; holds the buffers that takes.
#[derive(Debug, Default)]
pub struct Processor {
    adjusted: Vec<f32>,
    weights: Vec<f32>,
    sums: Vec<f64>,
    candidates: Vec<(u32, f32)>,
}

/// Weights below this share of the largest are rounding noise of f32 logits, and left out: all of a
/// large vocabulary together would weigh less than one unit in the last place.
const NOISE: f32 = 1.0 / (1u64 << 44) as f32;

impl Processor {
    /// A processor with empty buffers.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The distribution of the next token. `logits` has shape `[rows]`; row `i` is token `ids[i]`
    /// (ids in rising order), or token `i` without `ids`. `exclude` is [`SamplingParams::excludes_top`] at its position.
    ///
    /// # Errors
    /// [`LogitsError`] if the logits are not numbers or leave no token.
    pub fn distribution(
        &mut self,
        logits: &[f32],
        ids: Option<&Arc<[u32]>>,
        params: &SamplingParams,
        history: &History,
        exclude: bool,
    ) -> Result<Distribution, LogitsError> {
        let token = |row: u32| ids.map_or(row, |ids| ids[row as usize]);
        let rows = ids.map(|ids| &ids[..]);
        self.with_adjusted(logits, rows, params, history, |processor, logits| {
            let best = greedy_token(logits)?;
            if params.temperature == 0.0 {
                return Ok(Distribution::one_hot(token(best)));
            }
            let max = logits[best as usize];
            if !exclude && !params.truncates() {
                let (mut weights, mut sums) = (Vec::new(), Vec::new());
                weigh_all(logits, max, params, &mut weights, &mut sums);
                let whole = Weights::new(weights, sums, ids.cloned());
                return whole.map(Distribution::Whole).ok_or(LogitsError::NothingLeft);
            }
            let mut kept = processor.truncated(logits, max, params, exclude);
            if ids.is_some() {
                kept.iter_mut().for_each(|(row, _)| *row = token(*row));
            }
            Distribution::from_weights(kept).ok_or(LogitsError::NothingLeft)
        })
    }

    /// What `f` says of the logits with penalties, bias and restrictions.
    fn with_adjusted<T>(
        &mut self,
        logits: &[f32],
        ids: Option<&[u32]>,
        params: &SamplingParams,
        history: &History,
        f: impl FnOnce(&mut Self, &[f32]) -> T,
    ) -> T {
        let adjusts = params.penalises()
            || params.dry().is_some()
            || !params.logit_bias.is_empty()
            || params.restrictions.any();
        if !adjusts {
            return f(self, logits);
        }
        let mut adjusted = std::mem::take(&mut self.adjusted);
        adjusted.clear();
        adjusted.extend_from_slice(logits);
        adjust(&mut adjusted, ids, params, history);
        let result = f(self, &adjusted);
        self.adjusted = adjusted;
        result
    }

    /// Weights exp((logit − max) / temperature) of the rows that truncations keep, in order of row.
    fn truncated(
        &mut self,
        logits: &[f32],
        max: f32,
        params: &SamplingParams,
        exclude: bool,
    ) -> Vec<(u32, f32)> {
        let Self { weights, sums, candidates, .. } = self;
        weigh_all(logits, max, params, weights, sums);
        let all = sums.iter().sum();
        let least = least_kept(weights, all, params).max(NOISE);
        candidates.clear();
        for (block, weights) in weights.chunks(BLOCK).enumerate() {
            // Most blocks have no candidate.
            if largest(weights) < least {
                continue;
            }
            let rows = (block * BLOCK..).zip(weights).filter(|(_, weight)| **weight >= least);
            candidates.extend(rows.map(|(row, &weight)| (row as u32, weight)));
        }
        truncate(candidates, logits, max, all, params, exclude);
        candidates.sort_unstable_by_key(|&(row, _)| row);
        candidates.clone()
    }
}

/// Weights exp((logit − max) / temperature) without noise, and their sums.
fn weigh_all(
    logits: &[f32],
    max: f32,
    params: &SamplingParams,
    weights: &mut Vec<f32>,
    sums: &mut Vec<f64>,
) {
    // A temperature near 0 must not make infinity times 0.
    let scale = (1.0 / params.temperature).min(f32::MAX);
    weights.resize(logits.len(), 0.0);
    sums.resize(logits.len().div_ceil(SUMMED), 0.0);
    weigh(logits, max, scale, NOISE, weights, sums);
}

/// Penalties, bias and restrictions, in place.
fn adjust(logits: &mut [f32], ids: Option<&[u32]>, params: &SamplingParams, history: &History) {
    let rows = logits.len();
    let row_of = |id: u32| match ids {
        Some(ids) => ids.binary_search(&id).ok(),
        None => Some(id as usize).filter(|&row| row < rows),
    };
    let mut changes = Vec::new();
    if params.penalises() {
        for (&id, &(_, generated)) in &history.counts {
            let Some(row) = row_of(id) else { continue };
            let logit = logits[row];
            let repetition = params.repetition_penalty;
            let mut new = if logit > 0.0 { logit / repetition } else { logit * repetition };
            if generated > 0 {
                new -= params.presence_penalty + params.frequency_penalty * generated as f32;
            }
            changes.push((row, new));
        }
    }
    let biases: Vec<(usize, f32)> =
        params.logit_bias.iter().filter_map(|&(id, bias)| Some((row_of(id)?, bias))).collect();
    for (row, new) in changes {
        logits[row] = new;
    }
    for (id, penalty) in params.dry().map(|dry| dry.penalties(&history.tokens)).unwrap_or_default()
    {
        if let Some(row) = row_of(id) {
            logits[row] -= penalty;
        }
    }
    for (row, bias) in biases {
        logits[row] += bias;
    }
    params.restrictions.apply(logits, row_of, &history.tokens[history.prompt..]);
}

#[cfg(test)]
mod tests;
