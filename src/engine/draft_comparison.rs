//! A new draft beside the one that serves: both read what live sequences said, and the faster one goes on.
//!
//! Every sequence that ends is a sample. Each draft reads as much of it as drafting reads, a standalone one in a pass of
//! its own and an attached one behind a pass of the target, and what it holds likeliest at every place is held against the
//! token that came: at temperature 0 that is the acceptance of its draft tokens. Then a step of each is timed. Both meet
//! the same texts at the same moments, whatever was drafted, and sequences wait for a few short passes when one of them
//! ends.

use std::sync::Arc;

use super::comparison::{Comparison, DraftScore, Outcome, expected_speedup};
use super::draft_sample::{Sample, Timing};
use super::sequence::Sequence;
use super::tally::Tally;
use crate::kv_cache::{BlockPool, BlockTable};
use crate::model::{Drafter, Forward, ModelConfig};
use crate::speculation::{DraftController, DraftModel, StepCost};

/// A draft that may take the place of the one that serves.
pub enum Candidate {
    /// A draft model with its own cache, of as many blocks as the target's.
    Standalone(Box<dyn Forward>),
    /// A drafter that was loaded for the target.
    Attached(Drafter),
}

/// What an attached candidate comes back from: it was attached.
const ATTACHED: &str = "invariant: what was attached is given back";

impl Candidate {
    /// Its shape.
    pub(super) fn config(&self) -> &ModelConfig {
        match self {
            Self::Standalone(draft) => draft.config(),
            Self::Attached(drafter) => drafter.config(),
        }
    }

    /// Token ids of its head's rows, where the head is trimmed.
    pub(super) fn draft_vocab(&self) -> Option<&Arc<[u32]>> {
        match self {
            Self::Standalone(draft) => draft.draft_vocab(),
            Self::Attached(drafter) => drafter.draft_vocab(),
        }
    }

    /// How many tokens of a sample it holds likeliest, if it does not fail. An attached one takes the place of the
    /// drafter of `target` for a moment.
    fn read(
        self,
        sample: &Sample,
        target: &mut dyn Forward,
        table: &BlockTable,
        timing: &mut Timing,
    ) -> (Self, Option<u64>) {
        match self {
            Self::Standalone(mut draft) => {
                let accepted = sample.read(draft.as_mut(), table, timing);
                (Self::Standalone(draft), accepted)
            }
            Self::Attached(drafter) => {
                let serving = target.attach(Some(drafter));
                let accepted = sample.read_attached(target, table, timing);
                let drafter = target.attach(serving).expect(ATTACHED);
                (Self::Attached(drafter), accepted)
            }
        }
    }

    /// Makes it the draft model of `target`, whose passes have at most `max_rows` rows.
    pub(super) fn serve(self, target: &mut dyn Forward, max_rows: usize) -> DraftModel {
        match self {
            Self::Standalone(draft) => {
                target.attach(None);
                DraftModel::standalone(draft, max_rows)
            }
            Self::Attached(drafter) => {
                target.attach(Some(drafter));
                DraftModel::attached(target).expect(ATTACHED)
            }
        }
    }
}

/// The new draft and what is known so far.
struct Contest {
    candidate: Candidate,
    candidate_timing: Timing,
    current_timing: Timing,
    samples: Vec<Sample>,
}

/// The comparison of a new draft with the one that serves: how it stands, and what it needs while it goes on.
#[derive(Default)]
pub(super) struct DraftComparison {
    contest: Option<Contest>,
    comparison: Option<Comparison>,
}

/// A new draft that has won.
pub(super) struct Winner {
    pub(super) draft: Candidate,
    /// What its passes cost.
    pub(super) cost: StepCost,
}

impl DraftComparison {
    /// Begins to compare a draft model by this name on `wanted` tokens; one that goes on is over.
    pub(super) fn start(
        &mut self,
        draft: String,
        candidate: Candidate,
        wanted: u64,
        tally: &Tally,
    ) {
        self.stop(tally);
        self.contest = Some(Contest {
            candidate,
            candidate_timing: Timing::default(),
            current_timing: Timing::default(),
            samples: Vec::new(),
        });
        self.comparison = Some(Comparison { draft, wanted, ..Comparison::default() });
    }

    /// Ends a comparison; the old draft goes on.
    pub(super) fn stop(&mut self, tally: &Tally) {
        self.end(Outcome::Stopped, tally);
    }

    /// The comparison that goes on, or the last one.
    pub(super) fn status(&self) -> Option<&Comparison> {
        self.comparison.as_ref()
    }

    /// A sequence ends: what it said is a sample for the comparison that goes on.
    pub(super) fn sample(&mut self, sequence: &Sequence) {
        if let Some(contest) = &mut self.contest {
            let prompt = sequence.stats.prompt_tokens;
            contest.samples.extend(Sample::of(&sequence.tokens, prompt, sequence.adapter.as_ref()));
        }
    }

    /// Lets both drafts read the samples that have come, in blocks of `pool`, and decides where they suffice; `most`
    /// draft tokens are proposed at a time.
    pub(super) fn read_samples(
        &mut self,
        pool: &mut BlockPool,
        drafting: &mut DraftController,
        target: &mut dyn Forward,
        most: usize,
        tally: &Tally,
    ) -> Option<Winner> {
        let samples = std::mem::take(&mut self.contest.as_mut()?.samples);
        let mut read =
            |sample: &_| self.read_sample(sample, pool, drafting, &mut *target, most, tally);
        samples.iter().find_map(&mut read)
    }

    fn read_sample(
        &mut self,
        sample: &Sample,
        pool: &mut BlockPool,
        drafting: &mut DraftController,
        target: &mut dyn Forward,
        most: usize,
        tally: &Tally,
    ) -> Option<Winner> {
        let mut table = BlockTable::new();
        if self.contest.is_none() || !table.reserve(sample.tokens.len(), pool) {
            return None;
        }
        let mut contest = self.contest.take()?;
        let (candidate, read) =
            contest.candidate.read(sample, target, &table, &mut contest.candidate_timing);
        contest.candidate = candidate;
        let current = drafting.draft_mut().filter(|draft| !draft.is_broken());
        let timing = &mut contest.current_timing;
        let current = current.map(|draft| {
            let accepted = match draft.standalone_mut() {
                Some(draft) => sample.read(draft, &table, timing),
                None => sample.read_attached(target, &table, timing),
            };
            accepted.unwrap_or_default()
        });
        table.truncate(0, pool);
        let contest = self.contest.insert(contest);
        let comparison = self.comparison.as_mut()?;
        let Some(candidate) = read else { return self.end(Outcome::Failed, tally) };
        comparison.tokens += sample.answer as u64;
        tally.compared(sample.answer, candidate, current);
        let (target, tokens) = (&drafting.costs().target, comparison.tokens);
        let score = |before: DraftScore, accepted: u64, timing: &Timing| {
            let accepted_tokens = before.accepted_tokens + accepted;
            let one = target.seconds(1).unwrap_or(f64::INFINITY);
            let step_cost = timing.step_seconds() / one;
            let alpha = accepted_tokens as f64 / tokens as f64;
            let verify = |gamma| target.seconds(gamma + 1).map_or(1.0, |pass| pass / one);
            let promised = (1..=most).map(|g| expected_speedup(alpha, g, step_cost, verify(g)));
            DraftScore { accepted_tokens, step_cost, speedup: promised.fold(0.0, f64::max) }
        };
        comparison.candidate = score(comparison.candidate, candidate, &contest.candidate_timing);
        comparison.current = current.map(|accepted| {
            score(comparison.current.unwrap_or_default(), accepted, &contest.current_timing)
        });
        if tokens < comparison.wanted {
            return None;
        }
        let outcome = if comparison.is_won() { Outcome::Switched } else { Outcome::Refused };
        self.end(outcome, tally)
    }

    /// Ends a comparison that goes on; the new draft, if it is to serve.
    fn end(&mut self, outcome: Outcome, tally: &Tally) -> Option<Winner> {
        let (contest, comparison) = (self.contest.take()?, self.comparison.as_mut()?);
        comparison.outcome = Some(outcome);
        tally.comparison_ended(outcome);
        tracing::info!(outcome = outcome.name(), ?comparison, "drafts compared");
        (outcome == Outcome::Switched)
            .then_some(Winner { draft: contest.candidate, cost: contest.candidate_timing.cost })
    }
}
