//! Drafting for all sequences of a step: at each position the client's prediction, an n-gram match, what the grammar
//! leaves no choice about or the draft model, whichever promises most, for as long as a draft token is worth what it costs.

use super::chain::{Asked, Chain};
use super::draft_model::DraftModel;
use super::proposal::LeftOut;
use super::trials::Trials;
use super::{DraftStep, DraftToken, Prices, ProposeTask, Proposer, Work};
use crate::model::Forward;
use crate::sampling::Processor;
use pleach_kernels::{argmax, sum_exp};

/// Weight of a new round in the usage of the draft model.
const USAGE: f64 = 0.005;

/// Proposes draft tokens for all sequences, with a draft model or without.
pub(super) struct Cascade {
    draft: Option<DraftModel>,
    processor: Processor,
    trials: Trials,
    /// Share of the rounds in which the draft model was asked, of late.
    usage: f64,
}

impl Cascade {
    /// A cascade over a draft model, where there is one.
    pub(super) fn new(draft: Option<DraftModel>) -> Self {
        Self { draft, processor: Processor::new(), trials: Trials::default(), usage: 1.0 }
    }

    /// The draft model.
    pub(super) fn draft(&self) -> Option<&DraftModel> {
        self.draft.as_ref()
    }

    /// The draft model, to measure it or take its report.
    pub(super) fn draft_mut(&mut self) -> Option<&mut DraftModel> {
        self.draft.as_mut()
    }

    /// Puts another draft model in the place of the old one.
    pub(super) fn set_draft(&mut self, draft: DraftModel) {
        self.draft = Some(draft);
        self.usage = 1.0;
    }

    /// Fills in the proposals for a pass of `target` that is `work` without them. Failures of the
    /// draft model leave them short or empty and never reach the caller otherwise.
    pub(super) fn propose(
        &mut self,
        tasks: &mut [ProposeTask<'_>],
        target: &mut dyn Forward,
        mut work: Work,
        prices: &Prices<'_>,
    ) {
        let mut chains: Vec<Chain<'_, '_>> = tasks.iter_mut().map(Chain::new).collect();
        for chain in &mut chains {
            let task = &mut *chain.task;
            if let Some(index) = &mut task.state.index {
                index.extend(task.tokens);
                task.state.found = task.state.found.or_else(|| index.find(task.tokens));
            }
        }
        if let Some(draft) = &mut self.draft {
            // All that was read is known before anybody goes on from it.
            for Chain { task, .. } in &mut chains {
                draft.note(&mut task.state.draft, task.table, task.tokens.len());
            }
            for Chain { task, .. } in &mut chains {
                task.state.draft = draft.view(task.state.draft, task.table, task.tokens.len());
            }
        }
        self.trials.earn(chains.len());
        let mut step = DraftStep::First;
        loop {
            let draft = self.draft.as_ref().filter(|draft| !draft.is_broken());
            let mut open = chains.iter().filter(|chain| !chain.closed).count();
            let mut drafting = Vec::new();
            for (index, chain) in chains.iter_mut().enumerate().filter(|(_, c)| !c.closed) {
                let usage = self.usage;
                let asked = draft.map(|draft| Asked { draft, sharing: open, step, usage });
                if chain.copy(&mut work, prices, asked, &mut self.trials) {
                    drafting.push(index);
                } else {
                    chain.closed = true;
                    open -= 1;
                }
            }
            if drafting.is_empty() {
                break;
            }
            self.pass(&mut chains, &drafting, target, &mut work, prices, step);
            step = DraftStep::Further;
        }
        for Chain { task, .. } in chains.iter().filter(|chain| chain.task.state.draft_model) {
            let asked = f64::from(u8::from(task.proposal.passes > 0));
            self.usage += USAGE * (asked - self.usage);
        }
        for Chain { task, .. } in chains {
            let drafted = &task.proposal.tokens;
            task.tokens.truncate(task.tokens.len() - drafted.len());
            if task.params.uses_history() {
                drafted.iter().for_each(|token| task.history.pop(token.id));
            }
        }
    }

    /// One pass of the draft model: at most one more token for each of the `drafting` chains.
    fn pass(
        &mut self,
        chains: &mut [Chain<'_, '_>],
        drafting: &[usize],
        target: &mut dyn Forward,
        work: &mut Work,
        prices: &Prices<'_>,
        step: DraftStep,
    ) {
        let Self { draft: Some(draft), processor, .. } = self else { return };
        draft.clear();
        let mut complete = Vec::new();
        for &index in drafting {
            let last = chains[index].row;
            let task = &mut *chains[index].task;
            let known = task.tokens.len() - task.proposal.tokens.len();
            match draft.add(task.state, task.table, task.tokens, known, last) {
                None => continue,
                Some(false) => {}
                Some(true) => {
                    chains[index].row = Some(complete.len() as u32);
                    complete.push(index);
                }
            }
            chains[index].task.proposal.passes += 1;
        }
        let ids = draft.draft_vocab().cloned();
        let head_rows = draft.head_rows();
        let (mut failures, mut masked) = (0, Vec::new());
        let Some(logits) = draft.run(target, step) else { return };
        for (index, logits) in complete.into_iter().zip(logits.chunks_exact(head_rows)) {
            let chain = &mut chains[index];
            let task = &mut *chain.task;
            let place = task.proposal.tokens.len();
            let logits = match &mut task.grammar {
                None => logits,
                // Where the draft model knows no token that may come, the chain ends.
                Some(grammar) => match grammar.masked(place, logits, ids.as_deref(), &mut masked) {
                    Ok(masked) if masked.iter().any(|l| *l != f32::NEG_INFINITY) => masked,
                    _ => {
                        chain.closed = true;
                        continue;
                    }
                },
            };
            let exclude = task.params.excludes_top(&task.draws, task.tokens.len());
            let (params, history) = (task.params, &*task.history);
            let drawn = processor.distribution(logits, ids.as_ref(), params, history, exclude);
            let Ok(draft_probs) = drawn.inspect_err(|error| {
                tracing::warn!(%error, "the draft model failed; its sequence goes on without");
            }) else {
                (task.state.draft.failed, chain.closed) = (true, true);
                failures += 1;
                continue;
            };
            // Decided before the token is drawn, so that what is drawn stays unbiased.
            let confidence = confidence(logits);
            let chance = chain.chance * task.state.acceptance.confident(confidence);
            let id = task.draws.draft(&draft_probs, task.tokens.len());
            if chance < prices.rows(*work, 1, task.tokens.len()) {
                chain.closed = true;
                let coupled = task.draws.is_coupled().then_some(id);
                task.proposal.left_out = Some(LeftOut { draft_probs, coupled, confidence });
                continue;
            }
            chain.chance = chance;
            *work = work.further(1, task.tokens.len());
            let proposer = Proposer::DraftModel;
            chain.push(DraftToken { id, draft_probs, proposer, confidence });
        }
        draft.failures += failures;
    }
}

/// Probability of the most likely token at temperature 1.
fn confidence(logits: &[f32]) -> f32 {
    match argmax(logits) {
        Ok(Some((_, max))) => 1.0 / sum_exp(logits, max),
        _ => 0.0,
    }
}
