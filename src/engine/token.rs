//! Tokens as they come out of the engine.

use crate::speculation::Proposer;

/// Where a generated token came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenSource {
    /// Drawn from the target's distribution; the sequence does not speculate.
    Target,
    /// A draft token the target accepted, and who proposed it.
    Accepted(Proposer),
    /// Drawn from norm(max(0, target_probs − draft_probs)) after a draft token was rejected.
    Recovered,
    /// Drawn from the target's distribution after every draft token of the round was accepted;
    /// in a round without draft tokens that is the only token.
    Bonus,
}

impl TokenSource {
    /// Its name in answers.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Target => "target",
            Self::Accepted(_) => "accepted",
            Self::Recovered => "recovered",
            Self::Bonus => "bonus",
        }
    }

    /// Who proposed it, where it is a draft token.
    #[must_use]
    pub const fn proposer(self) -> Option<Proposer> {
        match self {
            Self::Accepted(proposer) => Some(proposer),
            _ => None,
        }
    }
}

/// One generated token.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenOut {
    /// Token id.
    pub id: u32,
    /// Where it came from.
    pub source: TokenSource,
    /// Log-softmax of the target's raw logits (temperature 1, no penalties), if asked for.
    pub logprob: Option<f32>,
    /// The most likely tokens with their log-softmax, most likely first, as many as asked for.
    pub top_logprobs: Vec<(u32, f32)>,
}

/// One token of a prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptToken {
    /// Token id.
    pub id: u32,
    /// Log-softmax of the target's raw logits; `None` for the first token, which follows nothing.
    pub logprob: Option<f32>,
    /// How many tokens are at least as likely at its place, itself included; `None` for the first token.
    pub rank: Option<usize>,
    /// The most likely tokens at its place with their log-softmax, most likely first.
    pub top_logprobs: Vec<(u32, f32)>,
}
