//! What speculation remembers of one sequence.

use std::sync::Arc;

use super::draft_cache::DraftCache;
use super::{
    Acceptance, Decided, Match, NgramIndex, PredictedOutput, Proposal, Proposer, Proposers,
};

/// Weight of the newest round in the moving averages.
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
pub struct SpeculationState {
    /// Whether the draft model may draft.
    pub(super) draft_model: bool,
    pub(super) index: Option<NgramIndex>,
    /// The n-gram match at the sequence's end.
    pub(super) found: Option<Match>,
    pub(super) prediction: Option<PredictedOutput>,
    pub(super) acceptance: Acceptance,
    pub(super) draft: DraftCache,
    pub(super) states: TargetStates,
    prompt_len: usize,
    /// Tokens of a round and its time over that without speculation, of late.
    usual: (f64, f64),
}

impl SpeculationState {
    /// A new sequence with a prompt of `prompt_len` tokens, for which `proposers` draft, and a prediction where
    /// there is one.
    pub(super) fn new(
        prompt_len: usize,
        proposers: Proposers,
        prediction: Arc<[u32]>,
        known: &Acceptance,
    ) -> Self {
        Self {
            draft_model: proposers.draft_model,
            index: proposers.ngram.then(NgramIndex::default),
            found: None,
            prediction: (!prediction.is_empty()).then(|| PredictedOutput::new(prediction)),
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

    /// Forgets what the draft model's cache held of the sequence behind the first `len` tokens.
    pub fn truncate_cache(&mut self, len: usize) {
        self.draft.truncate(len);
    }

    /// Takes in the target's states behind which the last of `tokens` known tokens came.
    pub fn set_states(&mut self, tokens: usize, values: &[f32]) {
        self.states.tokens = tokens;
        self.states.values.clear();
        self.states.values.extend_from_slice(values);
    }

    /// Another draft model takes over: nothing is known of it, its cache holds nothing, and it may read other states.
    pub fn new_draft_model(&mut self) {
        self.draft = DraftCache::default();
        self.states.tokens = 0;
        self.acceptance.forget_draft_model();
    }

    /// Learns from a round: `tokens` are all known ones, of which the last `new` came of `proposal`, as the target has
    /// `decided`. `engine` learns the same.
    pub(super) fn observe(
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
            let hit = place < accepted;
            match token.proposer {
                Proposer::DraftModel => {
                    let chance = f64::from(u8::from(hit));
                    own.observe_drafted(token.confidence, chance);
                    engine.observe_drafted(token.confidence, chance);
                }
                // The only one that may come stands for sure.
                Proposer::Grammar if token.confidence == 1.0 => {}
                Proposer::Grammar => {
                    own.observe_forced(hit);
                    engine.observe_forced(hit);
                }
                // Judged below, tried or not.
                Proposer::Ngram | Proposer::Prediction => {}
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
