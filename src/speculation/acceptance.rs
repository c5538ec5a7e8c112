//! How likely draft tokens are to be accepted, learnt from those that were tried.

use super::Proposer;

/// A chance learnt from outcomes, the latest of which count most.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Chance {
    hits: f64,
    weight: f64,
}

impl Chance {
    const fn new(chance: f64, weight: f64) -> Self {
        Self { hits: chance * weight, weight }
    }

    pub(super) fn get(self) -> f64 {
        self.hits / self.weight
    }

    /// Counts an outcome, 0, 1 or the chance of it; the weight of all together never exceeds `memory`.
    fn observe(&mut self, hit: f64, memory: f64) {
        self.hits += hit;
        self.weight += 1.0;
        let kept = (memory / self.weight).min(1.0);
        self.hits *= kept;
        self.weight *= kept;
    }

    fn lightened(self, weight: f64) -> Self {
        Self::new(self.get(), self.weight.min(weight))
    }
}

/// First lengths of the classes of matches.
const LENGTHS: [usize; 7] = [1, 2, 3, 4, 6, 9, 16];
/// Classes of the draft model's confidence.
const CONFIDENCES: usize = 10;

/// Outcomes that an engine remembers per class, and a sequence.
const ENGINE_MEMORY: f64 = 500.0;
const SEQUENCE_MEMORY: f64 = 30.0;
/// Outcomes that what is known of other sequences counts as.
const PRIOR: f64 = 5.0;

/// Chances that a draft token is accepted given that all before it were: for copied tokens by the
/// length of the match, for the draft model's by its confidence, for a grammar's one. An engine learns them over all its
/// sequences; each sequence starts from there and learns its own.
#[derive(Debug, Clone, PartialEq)]
pub struct Acceptance {
    memory: f64,
    ngram: [Chance; LENGTHS.len()],
    prediction: [Chance; LENGTHS.len()],
    confidence: [Chance; CONFIDENCES],
    draft_model: Chance,
    forced: Chance,
}

impl Default for Acceptance {
    /// What is assumed before anything was tried; from greedy answers to questions and documents.
    fn default() -> Self {
        let by_length = |chances: [f64; LENGTHS.len()]| chances.map(|c| Chance::new(c, PRIOR));
        let middle = |class: usize| (class as f64 + 0.5) / CONFIDENCES as f64;
        Self {
            memory: ENGINE_MEMORY,
            ngram: by_length([0.15, 0.3, 0.45, 0.55, 0.65, 0.75, 0.9]),
            prediction: by_length([0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9]),
            confidence: std::array::from_fn(|class| Chance::new(middle(class), PRIOR)),
            draft_model: Chance::new(0.5, PRIOR),
            forced: Chance::new(0.9, PRIOR),
        }
    }
}

fn length_class(length: usize) -> usize {
    LENGTHS.partition_point(|&first| first <= length).saturating_sub(1)
}

fn confidence_class(confidence: f32) -> usize {
    ((confidence * CONFIDENCES as f32) as usize).min(CONFIDENCES - 1)
}

impl Acceptance {
    /// What a new sequence starts from.
    #[must_use]
    pub fn of_new_sequence(&self) -> Self {
        let mut own = self.clone();
        own.memory = SEQUENCE_MEMORY;
        let chances = own.ngram.iter_mut().chain(&mut own.prediction).chain(&mut own.confidence);
        let single = [&mut own.draft_model, &mut own.forced];
        chances.chain(single).for_each(|chance| *chance = chance.lightened(PRIOR));
        own
    }

    /// Chance of a token copied after a match of `length` tokens.
    #[must_use]
    pub fn copied(&self, proposer: Proposer, length: usize) -> f64 {
        self.by_length(proposer)[length_class(length)].get()
    }

    /// Chance of a draft token of which the draft model is as sure as this.
    #[must_use]
    pub fn confident(&self, confidence: f32) -> f64 {
        self.confidence[confidence_class(confidence)].get()
    }

    /// Chance of a draft token of the draft model that is not computed yet: α.
    #[must_use]
    pub fn draft_model(&self) -> f64 {
        self.draft_model.get()
    }

    /// Chance of the token that spells most of what a grammar leaves: the model may spell it otherwise.
    #[must_use]
    pub fn forced(&self) -> f64 {
        self.forced.get()
    }

    /// Learns whether such a token was right.
    pub fn observe_forced(&mut self, hit: bool) {
        self.forced.observe(f64::from(u8::from(hit)), self.memory);
    }

    /// Learns whether a token copied after a match of `length` tokens was, or would have been, right.
    pub fn observe_copied(&mut self, proposer: Proposer, length: usize, hit: bool) {
        let memory = self.memory;
        let chances = match proposer {
            Proposer::Prediction => &mut self.prediction,
            _ => &mut self.ngram,
        };
        chances[length_class(length)].observe(f64::from(u8::from(hit)), memory);
    }

    /// Learns whether a token of the draft model was right, or how likely it would have been.
    pub fn observe_drafted(&mut self, confidence: f32, hit: f64) {
        self.confidence[confidence_class(confidence)].observe(hit, self.memory);
        self.draft_model.observe(hit, self.memory);
    }

    /// Forgets what was learnt of the draft model: another one takes its place.
    pub fn forget_draft_model(&mut self) {
        let unknown = Self::default();
        (self.confidence, self.draft_model) = (unknown.confidence, unknown.draft_model);
    }

    fn by_length(&self, proposer: Proposer) -> &[Chance; LENGTHS.len()] {
        match proposer {
            Proposer::Prediction => &self.prediction,
            _ => &self.ngram,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_cover_everything() {
        assert_eq!([0, 1, 3, 4, 5, 15, 16, 99].map(length_class), [0, 0, 2, 3, 3, 5, 6, 6]);
        assert_eq!([0.0, 0.05, 0.95, 1.0].map(confidence_class), [0, 0, 9, 9]);
    }

    /// However often what a grammar forces was right.
    #[test]
    fn misses_of_forced_tokens_count() {
        let mut engine = Acceptance::default();
        (0..100_000).for_each(|_| engine.observe_forced(true));
        let before = engine.forced();
        engine.observe_forced(false);
        assert!(engine.forced() < before - 0.001, "{before} {}", engine.forced());
    }

    #[test]
    fn sequences_start_from_the_engine_and_learn_faster() {
        let mut engine = Acceptance::default();
        (0..300).for_each(|_| engine.observe_copied(Proposer::Ngram, 2, true));
        (0..300).for_each(|_| engine.observe_drafted(0.35, 0.0));
        assert!(engine.copied(Proposer::Ngram, 2) > 0.98);
        assert!(engine.confident(0.35) < 0.02 && engine.draft_model() < 0.02);
        assert_eq!(engine.copied(Proposer::Prediction, 2), 0.5, "each learns for itself");
        let mut sequence = engine.of_new_sequence();
        assert!(sequence.copied(Proposer::Ngram, 2) > 0.98);
        (0..10).for_each(|_| {
            engine.observe_copied(Proposer::Ngram, 2, false);
            sequence.observe_copied(Proposer::Ngram, 2, false);
        });
        assert!(engine.copied(Proposer::Ngram, 2) > 0.9);
        assert!(sequence.copied(Proposer::Ngram, 2) < 0.4);
        // What is long ago is forgotten.
        (0..100).for_each(|_| sequence.observe_copied(Proposer::Ngram, 2, true));
        assert!(sequence.copied(Proposer::Ngram, 2) > 0.95);
    }
}
