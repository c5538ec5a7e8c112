//! What became of a draft's tokens.

use std::iter::Sum;
use std::ops::Add;

use pleach::engine::RoundCounts;
use serde::{Deserialize, Serialize};

/// What became of a draft's tokens, in the counts that acceptance is made of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Accepted {
    /// Rounds with at least one draft token.
    pub(crate) drafts: u64,
    pub(crate) accepted_tokens: u64,
    /// Tokens drawn after a rejection.
    pub(crate) recovered_tokens: u64,
}

impl Accepted {
    /// Tokens that one pass of the target yields.
    pub(crate) fn mean_acceptance_length(&self) -> f64 {
        1.0 + ratio(self.accepted_tokens, self.drafts)
    }

    /// The chance that a draft token is accepted given that all before it were.
    pub(crate) fn alpha(&self) -> f64 {
        ratio(self.accepted_tokens, self.accepted_tokens + self.recovered_tokens)
    }
}

impl From<&RoundCounts> for Accepted {
    fn from(rounds: &RoundCounts) -> Self {
        let &RoundCounts { drafts, accepted_tokens, recovered_tokens, .. } = rounds;
        Self { drafts, accepted_tokens, recovered_tokens }
    }
}

impl Add for Accepted {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            drafts: self.drafts + other.drafts,
            accepted_tokens: self.accepted_tokens + other.accepted_tokens,
            recovered_tokens: self.recovered_tokens + other.recovered_tokens,
        }
    }
}

impl Sum for Accepted {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), Self::add)
    }
}

/// 0 where there is nothing to divide by.
pub(super) fn ratio(a: u64, b: u64) -> f64 {
    if b == 0 { 0.0 } else { a as f64 / b as f64 }
}
