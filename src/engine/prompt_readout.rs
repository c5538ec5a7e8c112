//! What is read off prompts: log-probabilities of their tokens, or their mean hidden state.

use super::{Event, PromptToken, Readout};
use crate::sampling::{log_sum_exp, top_logprobs};

/// What is read off one prompt, as far as it has been computed. Being computed anew after preemption
/// changes nothing: each position is read once.
pub(super) enum PromptReadout {
    None,
    Logprobs { alternatives: usize, tokens: Vec<PromptToken> },
    Embedding { sum: Vec<f32>, read: usize },
}

impl PromptReadout {
    pub(super) fn new(wanted: Readout, prompt: &[u32]) -> Self {
        match wanted {
            Readout::None => Self::None,
            Readout::Logprobs(alternatives) => {
                let id = prompt[0];
                let (logprob, rank, top_logprobs) = (None, None, Vec::new());
                let first = PromptToken { id, logprob, rank, top_logprobs };
                Self::Logprobs { alternatives, tokens: vec![first] }
            }
            Readout::Embedding => Self::Embedding { sum: Vec::new(), read: 0 },
        }
    }

    /// Whether anything is read.
    pub(super) fn is_wanted(&self) -> bool {
        !matches!(self, Self::None)
    }

    /// Whether the logits of prompt rows are still wanted.
    pub(super) fn wants_logits(&self) -> bool {
        matches!(self, Self::Logprobs { .. })
    }

    /// Whether hidden states are wanted, and nothing is generated.
    pub(super) fn wants_hidden(&self) -> bool {
        matches!(self, Self::Embedding { .. })
    }

    /// Takes in the logits of the rows from position `start` on, each of which tells the chances of the
    /// next token of the prompt. Shape `[rows, vocab_size]`.
    pub(super) fn read_logits(
        &mut self,
        prompt: &[u32],
        start: usize,
        logits: &[f32],
        width: usize,
    ) {
        let Self::Logprobs { alternatives, tokens } = self else { return };
        for (place, logits) in (start + 1..prompt.len()).zip(logits.chunks_exact(width)) {
            if place < tokens.len() {
                continue;
            }
            let (id, normaliser) = (prompt[place], log_sum_exp(logits));
            let own = logits[id as usize];
            let logprob = Some(own - normaliser);
            let rank = Some(logits.iter().filter(|logit| **logit >= own).count());
            let top_logprobs = top_logprobs(logits, normaliser, *alternatives);
            tokens.push(PromptToken { id, logprob, rank, top_logprobs });
        }
    }

    /// Takes in the hidden state at a position.
    pub(super) fn read_hidden(&mut self, position: usize, hidden: &[f32]) {
        let Self::Embedding { sum, read } = self else { return };
        if position == *read {
            sum.resize(hidden.len(), 0.0);
            sum.iter_mut().zip(hidden).for_each(|(sum, value)| *sum += value);
            *read += 1;
        }
    }

    /// What was read, once the whole prompt is computed; later calls give nothing.
    pub(super) fn take(&mut self) -> Option<Event> {
        match std::mem::replace(self, Self::None) {
            Self::None => None,
            Self::Logprobs { tokens, .. } => Some(Event::Prompt(tokens)),
            Self::Embedding { mut sum, read } => {
                sum.iter_mut().for_each(|value| *value /= read as f32);
                Some(Event::Embedding(sum))
            }
        }
    }
}
