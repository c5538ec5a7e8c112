//! Who proposes draft tokens, what they propose, and what speculation remembers of a sequence.

use std::sync::Arc;

use super::draft_cache::DraftCache;
use super::{Acceptance, Match, NgramIndex, Prediction};
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
}

impl Proposer {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::DraftModel, Self::Ngram, Self::Prediction];

    /// Its name in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        ["draft_model", "ngram", "prediction"][self as usize]
    }
}

/// Who may draft for a sequence, beside the client's own prediction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proposers {
    /// The draft model.
    pub draft_model: bool,
    /// The sequence's own text.
    pub ngram: bool,
}

impl Default for Proposers {
    /// All of them.
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
    /// Probability of the draft model's most likely token at temperature 1; 1 for a copied token.
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
    fn chance(&self, came: u32, prob: Option<f32>) -> Option<f64> {
        match (self.coupled, prob) {
            (Some(id), _) => Some(f64::from(u8::from(id == came))),
            (None, Some(prob)) => Some(f64::from((self.draft_probs.prob(came) / prob).min(1.0))),
            (None, None) => None,
        }
    }
}

/// Weight of a new round in what is usual.
const NEW: f64 = 0.1;

/// What an attached drafter reads of a sequence.
#[derive(Debug, Default)]
pub(super) struct TargetStates {
    /// Known tokens of the sequence; the states are those of the last but one of them, behind which nothing was
    /// computed yet.
    pub(super) tokens: usize,
    /// `[states, hidden_size]`
    pub(super) values: Vec<f32>,
}

/// What speculation remembers of a sequence.
#[derive(Debug)]
pub struct Speculation {
    /// Whether the draft model may draft.
    pub(super) draft_model: bool,
    pub(super) index: Option<NgramIndex>,
    /// The n-gram match at the sequence's end.
    pub(super) found: Option<Match>,
    pub(super) prediction: Option<Prediction>,
    pub(super) acceptance: Acceptance,
    pub(super) draft: DraftCache,
    pub(super) states: TargetStates,
    prompt_len: usize,
    /// Tokens of a round and its time over that without speculation, of late.
    usual: (f64, f64),
}

impl Speculation {
    /// A new sequence with a prompt of `prompt_len` tokens, for which `proposers` draft, and a prediction where
    /// there is one.
    #[must_use]
    pub fn new(
        prompt_len: usize,
        proposers: Proposers,
        prediction: Arc<[u32]>,
        known: &Acceptance,
    ) -> Self {
        Self {
            draft_model: proposers.draft_model,
            index: proposers.ngram.then(NgramIndex::default),
            found: None,
            prediction: (!prediction.is_empty()).then(|| Prediction::new(prediction)),
            acceptance: known.of_new_sequence(),
            draft: DraftCache::default(),
            states: TargetStates::default(),
            prompt_len,
            usual: (1.0, 1.0),
        }
    }

    /// Tokens per second with speculation over those without, at least 1.
    #[must_use]
    pub fn gain(&self) -> f64 {
        (self.usual.0 / self.usual.1).max(1.0)
    }

    /// Forgets what the draft model's cache held of the sequence, and the target's states.
    pub fn forget_cache(&mut self) {
        self.draft.truncate(0);
        self.states.tokens = 0;
    }

    /// Takes in what `read` says of the target's states behind which the last of `tokens` known tokens came.
    pub fn set_states(&mut self, tokens: usize, read: impl FnOnce(&mut Vec<f32>)) {
        self.states.tokens = tokens;
        read(&mut self.states.values);
    }

    /// Another draft model takes over: nothing is known of it, and its cache holds nothing.
    pub fn new_draft_model(&mut self) {
        self.draft = DraftCache::default();
        self.acceptance.forget_draft_model();
    }

    /// Learns from a round: `tokens` are all known ones, of which the last `new` came of `proposal`, as the target has
    /// `decided`. `engine` learns the same.
    pub fn observe(
        &mut self,
        tokens: &[u32],
        new: usize,
        proposal: &Proposal,
        decided: Decided,
        engine: &mut Acceptance,
    ) {
        let Decided { accepted, bonus_prob, cost } = decided;
        let known = tokens.len() - new;
        self.draft.truncate(known + accepted);
        self.usual.0 += NEW * (new as f64 - self.usual.0);
        self.usual.1 += NEW * (cost - self.usual.1);
        let own = &mut self.acceptance;
        for (place, token) in proposal.tokens.iter().enumerate().take(accepted + 1) {
            if token.proposer == Proposer::DraftModel {
                let chance = f64::from(u8::from(place < accepted));
                own.observe_drafted(token.confidence, chance);
                engine.observe_drafted(token.confidence, chance);
            }
        }
        // A token that was left out is judged by the one that came instead.
        let place = known + proposal.tokens.len();
        if let Some((left_out, &came)) = proposal.left_out.as_ref().zip(tokens.get(place))
            && accepted == proposal.tokens.len()
            && let Some(chance) = left_out.chance(came, bonus_prob)
        {
            own.observe_drafted(left_out.confidence, chance);
            engine.observe_drafted(left_out.confidence, chance);
        }
        self.observe_copies(tokens, known, engine);
    }

    /// Judges what would have been copied before each new token, whether it was proposed or not.
    fn observe_copies(&mut self, tokens: &[u32], known: usize, engine: &mut Acceptance) {
        for place in known..tokens.len() {
            let token = tokens[place];
            let upto = &tokens[..=place];
            let mut judge = |proposer, at: Match, expected: u32| {
                self.acceptance.observe_copied(proposer, at.length, expected == token);
                engine.observe_copied(proposer, at.length, expected == token);
                expected == token
            };
            if let Some(index) = &mut self.index {
                let right = self.found.filter(|&at| judge(Proposer::Ngram, at, tokens[at.next]));
                index.extend(upto);
                self.found = match right {
                    Some(at) => Some(Match { next: at.next + 1, length: at.length + 1 }),
                    None => index.find(upto),
                };
            }
            if let Some(prediction) = &mut self.prediction {
                if let Some(at) = prediction.position() {
                    judge(Proposer::Prediction, at, prediction.text()[at.next]);
                }
                prediction.advance(&upto[self.prompt_len..]);
            }
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
