//! Rounds that a model decides itself, where its logits are.

use crate::sampling::{Distribution, Draws, History, LogitsError, SamplingParams};

/// One sequence's round.
#[derive(Debug)]
pub struct VerifyTask<'a> {
    /// Which of the pass's logits decide the first token; those after it, one for each draft token, the next.
    pub first_logit: usize,
    /// Draft tokens, and the distributions they were drawn from.
    pub draft: Vec<(u32, &'a Distribution)>,
    /// How tokens are drawn.
    pub params: &'a SamplingParams,
    /// The sequence's random numbers.
    pub draws: Draws,
    /// Position of the first token.
    pub position: usize,
    /// The tokens before it, as penalties see them.
    pub history: &'a History,
    /// Bits of the tokens that a grammar allows, a mask for each row; none without a grammar.
    pub masks: Vec<&'a [u32]>,
}

/// What became of a task.
pub type RoundResult = Result<Verified, LogitsError>;

/// The outcome of a round.
#[derive(Debug, Clone, PartialEq)]
pub struct Verified {
    /// Draft tokens that stand.
    pub accepted: usize,
    /// The recovered or bonus token after them.
    pub last: u32,
    /// Log-probabilities of all these tokens by the raw logits.
    pub logprobs: Vec<f32>,
}
