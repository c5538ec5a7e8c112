//! Who proposes draft tokens, what they propose, and what becomes of it.

use crate::sampling::Distribution;

/// Where a draft token comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proposer {
    /// The draft model.
    DraftModel,
    /// What followed the same tokens earlier in the sequence.
    Ngram,
    /// The client's prediction of the output.
    Prediction,
    /// The grammar, where it leaves one way on.
    Grammar,
}

impl Proposer {
    /// All proposers, in the order of their numbers.
    pub const ALL: [Self; 4] = [Self::DraftModel, Self::Ngram, Self::Prediction, Self::Grammar];

    /// Its name in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        ["draft_model", "ngram", "prediction", "grammar"][self as usize]
    }
}

/// Something of each proposer, in the order of [`Proposer::ALL`].
pub type ByProposer<T> = [T; Proposer::ALL.len()];

/// Who may draft for a sequence, beside the client's own prediction and its grammar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proposers {
    /// The draft model.
    pub draft_model: bool,
    /// The sequence's own text.
    pub ngram: bool,
}

impl Default for Proposers {
    /// The draft model and the own text.
    fn default() -> Self {
        Self { draft_model: true, ngram: true }
    }
}

/// A proposed token and the distribution it was drawn from.
#[derive(Debug, Clone, PartialEq)]
pub struct DraftToken {
    /// Token id.
    pub id: u32,
    /// The draft model's distribution at its position, after the request's own processing; all on
    /// the token itself where it was not drawn but copied.
    pub draft_probs: Distribution,
    /// Who proposed it.
    pub proposer: Proposer,
    /// Probability of the draft model's most likely token at temperature 1; 1 for a copied token; the chance that a
    /// grammar's token was given.
    pub confidence: f32,
}

impl DraftToken {
    /// A token proposed with certainty.
    #[must_use]
    pub fn copied(id: u32, proposer: Proposer) -> Self {
        Self { id, draft_probs: Distribution::one_hot(id), proposer, confidence: 1.0 }
    }
}

/// Draft tokens of one sequence.
#[derive(Debug, Default)]
pub struct Proposal {
    /// Draft tokens in order; may be fewer than wanted.
    pub tokens: Vec<DraftToken>,
    /// Forward passes of the draft model that the sequence took part in.
    pub passes: u64,
    /// A token that was left out as too unlikely.
    pub(super) left_out: Option<LeftOut>,
}

/// What became of a proposal.
#[derive(Debug, Clone, Copy)]
pub struct Decided {
    /// Draft tokens that stand.
    pub accepted: usize,
    /// The target's probability of a bonus token, where it is known.
    pub bonus_prob: Option<f32>,
    /// How many times as long as without speculation the round took.
    pub cost: f64,
}

/// A draft token that was not worth verifying.
#[derive(Debug)]
pub(super) struct LeftOut {
    /// The draft model's distribution.
    pub(super) draft_probs: Distribution,
    /// The token, where draws are coupled: then the target's own draw tells whether it would have stood.
    pub(super) coupled: Option<u32>,
    /// Probability of the draft model's most likely token at temperature 1.
    pub(super) confidence: f32,
}

impl LeftOut {
    /// The chance that it would have been accepted, as the token tells that came instead, which the target gave
    /// probability `prob`: over the target's draws, `min(1, draft_prob / prob)` averages to the probability that both
    /// distributions have in common, which is the chance of acceptance.
    pub(super) fn chance(&self, came: u32, prob: Option<f32>) -> Option<f64> {
        match (self.coupled, prob) {
            (Some(id), _) => Some(f64::from(u8::from(id == came))),
            (None, Some(prob)) => Some(f64::from((self.draft_probs.prob(came) / prob).min(1.0))),
            (None, None) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::Draws;

    /// What a left-out token is held to be worth averages to how often it would have stood.
    #[test]
    fn left_out_tokens_are_judged_by_what_came() {
        let weights = |w: [f32; 4]| {
            Distribution::from_weights((0..4).zip(w).collect()).expect("there are weights")
        };
        let draft_probs = weights([0.6, 0.3, 0.1, 0.0]);
        let target = weights([0.2, 0.3, 0.1, 0.4]);
        let common: f64 =
            (0..4).map(|id| f64::from(draft_probs.prob(id).min(target.prob(id)))).sum();
        let left_out = LeftOut { draft_probs, coupled: None, confidence: 0.6 };
        let draws = 20_000;
        let sum: f64 = (0..draws)
            .map(|seed| {
                let came = Draws::new(seed).sample(&target, 7);
                left_out.chance(came, Some(target.prob(came))).expect("the probability is known")
            })
            .sum();
        assert!((sum / draws as f64 - common).abs() < 0.01, "{} for {common}", sum / draws as f64);
        assert_eq!(left_out.chance(0, None), None, "nothing is known");
        let coupled = LeftOut { coupled: Some(2), ..left_out };
        assert_eq!([1, 2].map(|came| coupled.chance(came, Some(0.5))), [Some(0.0), Some(1.0)]);
    }
}
