//! The owner of drafting: the draft model, what passes cost, and how often draft tokens are accepted. Together they
//! decide what is drafted.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::cascade::Cascade;
use super::{
    Acceptance, Costs, Decided, DraftModel, DraftPass, Prices, Proposal, ProposeTask, Proposers,
    SpeculationState, StepCost, Work,
};
use crate::model::Forward;

/// Proposes draft tokens for all sequences of an engine, and learns from what becomes of them.
pub struct DraftController {
    cascade: Cascade,
    costs: Costs,
    acceptance: Acceptance,
    /// Whether only draft tokens that are worth their price are proposed.
    adaptive: bool,
    /// Cleared when drafting met a bug.
    works: bool,
}

/// What the draft model did in one step.
#[derive(Debug, Default)]
pub struct DraftReport {
    /// Its passes, in order.
    pub passes: Vec<DraftPass>,
    /// Times that it failed, for a sequence or for good.
    pub failures: u64,
}

impl DraftReport {
    /// Seconds of the passes.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.passes.iter().map(|pass| pass.seconds).sum()
    }
}

impl DraftController {
    /// Drafting with a draft model, where there is one; an `adaptive` controller proposes only what is worth its
    /// price, any other as much as is wanted.
    #[must_use]
    pub fn new(draft: Option<DraftModel>, adaptive: bool) -> Self {
        let (costs, acceptance) = (Costs::default(), Acceptance::default());
        Self { cascade: Cascade::new(draft), costs, acceptance, adaptive, works: true }
    }

    /// Whether draft tokens are proposed at all: not after drafting met a bug.
    #[must_use]
    pub fn works(&self) -> bool {
        self.works
    }

    /// The draft model, which may have failed.
    #[must_use]
    pub fn draft(&self) -> Option<&DraftModel> {
        self.cascade.draft()
    }

    /// The draft model, to measure it.
    pub fn draft_mut(&mut self) -> Option<&mut DraftModel> {
        self.cascade.draft_mut()
    }

    /// Whether there is a draft model that has not failed.
    #[must_use]
    pub fn has_draft_model(&self) -> bool {
        self.draft().is_some_and(|draft| !draft.is_broken())
    }

    /// What passes cost, as far as it is known.
    #[must_use]
    pub fn costs(&self) -> &Costs {
        &self.costs
    }

    /// What passes cost, to take in measurements.
    pub fn costs_mut(&mut self) -> &mut Costs {
        &mut self.costs
    }

    /// What is remembered of a new sequence with a prompt of `prompt_len` tokens, for which `proposers` draft, and
    /// the client's prediction of its output, which may be empty.
    #[must_use]
    pub fn new_sequence(
        &self,
        prompt_len: usize,
        proposers: Proposers,
        prediction: Arc<[u32]>,
    ) -> SpeculationState {
        SpeculationState::new(prompt_len, proposers, prediction, &self.acceptance)
    }

    /// These blocks were handed out anew: what the draft model's cache holds of them is void.
    pub fn forget(&mut self, blocks: &[u32]) {
        if let Some(draft) = self.cascade.draft_mut() {
            draft.forget(blocks);
        }
    }

    /// Fills in the proposals for a pass of `target` that is `work` without them, while the engine generates
    /// `tokens_per_second`, as far as that is known. Whatever fails leaves proposals short or empty, and the
    /// failure in the report; after a bug, nothing is proposed any more.
    pub fn propose(
        &mut self,
        tasks: &mut [ProposeTask<'_>],
        target: &mut dyn Forward,
        work: Work,
        tokens_per_second: Option<f64>,
    ) -> DraftReport {
        let prices = match tokens_per_second.filter(|_| self.adaptive) {
            Some(rate) => Prices::new(&self.costs, rate),
            None => Prices::free(),
        };
        let known: Vec<usize> = tasks.iter().map(|task| task.tokens.len()).collect();
        let cascade = &mut self.cascade;
        let propose = || cascade.propose(tasks, target, work, &prices);
        let bug = catch_unwind(AssertUnwindSafe(propose)).is_err();
        if bug {
            tracing::error!("drafting met a bug; going on without speculation");
            self.works = false;
            tasks.iter_mut().zip(known).for_each(|(task, known)| task.give_up(known));
        }
        let draft = self.cascade.draft_mut();
        let (passes, failures) = draft.map(DraftModel::take_report).unwrap_or_default();
        for pass in &passes {
            self.costs.observe_draft(pass.step, pass.rows, pass.seconds);
        }
        DraftReport { passes, failures: failures + u64::from(bug) }
    }

    /// Takes a pass of the target into account in which every sequence generated.
    pub fn observe_target(&mut self, work: Work, seconds: f64) {
        self.costs.observe_target(work, seconds);
    }

    /// Learns from a round of a sequence: `tokens` are all known ones, of which the last `new` came of `proposal`,
    /// as the target has `decided`.
    pub fn observe(
        &mut self,
        sequence: &mut SpeculationState,
        tokens: &[u32],
        new: usize,
        proposal: &Proposal,
        decided: Decided,
    ) {
        sequence.observe(tokens, new, proposal, decided, &mut self.acceptance);
    }

    /// Puts another draft model, one pass of which costs `cost`, in the place of the old one. Nothing is known of
    /// its acceptance.
    pub fn replace_draft(&mut self, draft: DraftModel, cost: &StepCost) {
        self.cascade.set_draft(draft);
        self.costs.replace_draft(cost);
        self.acceptance.forget_draft_model();
    }
}
