//! The engine: the parts that a step takes turns at, and what others may ask of it.

use std::sync::Arc;
use std::time::Instant;

use super::comparison::Comparison;
use super::draft_comparison::{Candidate, DraftComparison};
use super::profile::{MeasuredCosts, Profile};
use super::prompt_pace::PromptPace;
use super::row_budget::RowBudget;
use super::scheduler::{Scheduled, Scheduler};
use super::sequence::{RoundError, Sequence};
use super::sequences::Sequences;
use super::step::{
    Commit, Verifier, account, begun, cost, preempted, prompt_rows, propose, schedule, with_drafts,
};
use super::tally::Tally;
use super::{
    CacheNeeds, EngineConfig, EngineError, EngineLimits, EngineStats, Event, FinishReason, Request,
    RequestError, RequestId,
};
use crate::memory;
use crate::model::{Decoder, Draft, Drafter, Forward, OutOfMemory, Runner};
use crate::speculation::{DraftController, DraftModel};

/// Many sequences, one target and perhaps one draft model. Single-threaded: see
/// [`super::EngineHandle`] for use from many tasks.
pub struct Engine {
    target: Box<dyn Forward>,
    drafting: DraftController,
    scheduler: Scheduler,
    sequences: Sequences,
    verifier: Verifier,
    config: EngineConfig,
    limits: EngineLimits,
    eos_token_ids: Vec<u32>,
    tally: Tally,
    comparing: DraftComparison,
    pace: PromptPace,
    budget: RowBudget,
    next_id: u64,
    seeds: fastrand::Rng,
}

impl Engine {
    /// An engine over a target and perhaps a draft model, each with a cache of its own. Without a number of
    /// blocks, the caches take what they want of the memory that is left, and at most most of it.
    ///
    /// # Errors
    /// [`EngineError`] if the settings or the models do not fit together.
    pub fn new(
        target: Decoder,
        draft: Option<Draft>,
        mut config: EngineConfig,
    ) -> Result<Self, EngineError> {
        config.fit_blocks(CacheNeeds::of(&target, draft.as_ref()), memory::available())?;
        let (_, num_blocks) = config.resolve(target.config(), draft.as_ref().map(Draft::config))?;
        let mut target = Runner::new(target, num_blocks);
        let mut standalone = None;
        match draft {
            None => {}
            Some(Draft::Attached(drafter)) => {
                target.attach(Some(Drafter::Cpu(drafter)));
            }
            Some(Draft::Standalone(draft)) => {
                standalone = Some(Box::new(Runner::new(*draft, num_blocks)) as Box<dyn Forward>);
            }
        }
        Self::with_models(Box::new(target), standalone, config)
    }

    /// An engine over models whose caches have the number of blocks `config` resolves to. Without a standalone
    /// draft model, the drafter that is attached to the target drafts, where one is.
    ///
    /// # Errors
    /// [`EngineError`] if the settings or the models do not fit together.
    pub fn with_models(
        mut target: Box<dyn Forward>,
        standalone: Option<Box<dyn Forward>>,
        config: EngineConfig,
    ) -> Result<Self, EngineError> {
        let rows = config.max_num_batched_tokens;
        let own = standalone.as_ref().map(|draft| draft.config().clone());
        let attached = target.attached().map(|drafter| drafter.config().clone());
        let (mut limits, num_blocks) =
            config.resolve(target.config(), own.or(attached).as_ref())?;
        if let Some(draft) = &standalone {
            limits.check_draft(draft.config(), draft.draft_vocab().map(|vocab| &**vocab))?;
        }
        let draft = match standalone {
            _ if limits.num_speculative_tokens == 0 => None,
            Some(draft) => Some(DraftModel::standalone(draft, rows)),
            None => DraftModel::attached(target.as_mut()),
        };
        limits.adapters = target.adapter_shapes().cloned();
        Ok(Self {
            eos_token_ids: target.config().eos_token_ids.clone(),
            target,
            drafting: DraftController::new(draft, config.adaptive),
            scheduler: Scheduler::new(
                num_blocks,
                config.max_num_seqs,
                config.max_num_batched_tokens,
                config.prefix_caching,
            ),
            sequences: Sequences::default(),
            verifier: Verifier::default(),
            seeds: config.seed.map_or_else(fastrand::Rng::new, fastrand::Rng::with_seed),
            tally: Tally::new(Arc::clone(&config.model)),
            config,
            limits,
            comparing: DraftComparison::default(),
            pace: PromptPace::default(),
            budget: RowBudget::new(rows),
            next_id: 0,
        })
    }

    /// What the engine can serve.
    #[must_use]
    pub fn limits(&self) -> &EngineLimits {
        &self.limits
    }

    /// What the engine did so far.
    #[must_use]
    pub fn stats(&self) -> &EngineStats {
        self.tally.stats()
    }

    /// Blocks of the K/V cache in use, and in total.
    #[must_use]
    pub fn cache_blocks(&self) -> (usize, usize) {
        (self.scheduler.pool().num_used(), self.scheduler.pool().num_blocks())
    }

    /// Whether a draft model drafts.
    #[must_use]
    pub fn has_draft_model(&self) -> bool {
        self.drafting.has_draft_model()
    }

    /// Whether any sequence is unfinished.
    #[must_use]
    pub fn has_work(&self) -> bool {
        !self.sequences.is_empty()
    }

    /// Queues a request.
    ///
    /// # Errors
    /// [`RequestError`] if it can never be served.
    pub fn submit(&mut self, request: Request) -> Result<RequestId, RequestError> {
        self.submit_since(request, Instant::now())
    }

    /// Queues a request that has waited since then.
    pub(super) fn submit_since(
        &mut self,
        request: Request,
        since: Instant,
    ) -> Result<RequestId, RequestError> {
        request.validate(&self.limits)?;
        let id = RequestId(self.next_id);
        self.next_id += 1;
        self.scheduler.add_request(id, &request);
        self.tally.submitted(request.prompt.len());
        let sequence = Sequence::new(
            request,
            &self.limits,
            &self.eos_token_ids,
            self.config.ngram,
            &self.drafting,
            self.seeds.u64(..),
            since,
        );
        self.sequences.insert(id, sequence);
        Ok(id)
    }

    /// Drops a sequence and frees its blocks; no further events follow. Unknown ids are ignored.
    pub fn cancel(&mut self, id: RequestId) {
        self.scheduler.remove(id);
        if let Some(sequence) = self.sequences.remove(id) {
            self.comparing.sample(&sequence);
            self.tally.cancelled();
        }
        self.tally.occupancy(&self.scheduler);
    }

    /// Runs one target pass, with the draft passes before it, and returns what came of it. Does
    /// nothing without work.
    pub fn step(&mut self) -> Vec<(RequestId, Event)> {
        self.compare_drafts();
        let events = self.end_overdue();
        let Self { target, drafting, scheduler, sequences, tally, comparing, pace, .. } = self;
        let target = target.as_mut();

        let items = schedule(scheduler, sequences, drafting, tally);
        if items.is_empty() {
            // A cancelled request may have left the last block just now.
            tally.occupancy(scheduler);
            return events;
        }
        let (proposals, drafts) = propose(&items, sequences, scheduler, drafting, target);
        tally.drafted(&drafts);
        let verified = self.verifier.verify(&items, &proposals, sequences, scheduler, target);
        let (pass, outcomes) = match verified {
            Ok(verified) => verified,
            Err((rows, error)) => return self.shrink(&items, rows, error, events),
        };
        self.budget.passed();
        scheduler.bound_rows(self.budget.rows());
        tally.target_pass(&pass);
        begun(&items, sequences, self.config.prefix_caching, tally);
        if pass.decode {
            drafting.observe_target(with_drafts(&items, &proposals), pass.seconds);
        }
        let target_cost = &drafting.costs().target;
        let prompts = prompt_rows(&items);
        let others = target_cost.seconds((pass.rows - prompts).max(1)).unwrap_or(0.0);
        pace.observe(prompts, pass.seconds - others);
        scheduler.bound_prompts(pace.rows());
        let cost = cost(&items, &pass, drafts.seconds(), target_cost);
        let commit = Commit { scheduler, sequences, drafting, comparing, target, tally, events };
        let events = commit.rounds(&items, &proposals, outcomes, cost);

        let costs = &self.drafting.costs().target;
        account(&items, &proposals, &pass, drafts.seconds(), &events, costs, &mut self.tally);
        self.tally.stepped();
        self.compare_drafts();
        self.tally.occupancy(&self.scheduler);
        events
    }

    /// Undoes a step whose pass of so many rows did not fit into memory. The next passes are smaller; one that cannot be
    /// is tried again after a while, and in the end its sequence ends.
    fn shrink(
        &mut self,
        items: &[Scheduled],
        rows: usize,
        error: OutOfMemory,
        events: Vec<(RequestId, Event)>,
    ) -> Vec<(RequestId, Event)> {
        let Self { target, drafting, scheduler, sequences, tally, comparing, .. } = self;
        let pause = self.budget.failed(rows);
        scheduler.bound_rows(self.budget.rows());
        tracing::warn!(
            %error, rows, next = self.budget.rows(),
            "a pass does not fit into memory: a lower --gpu-memory-utilization or fewer --kv-blocks leave more to passes"
        );
        let Some(pause) = pause else {
            let (target, error) = (target.as_ref(), RoundError::Memory(error));
            let mut commit =
                Commit { scheduler, sequences, drafting, comparing, target, tally, events };
            items.iter().for_each(|item| commit.fail(item.id, &error));
            let events = commit.events;
            self.tally.occupancy(&self.scheduler);
            return events;
        };
        for item in items {
            let sequence = sequences.scheduled_mut(item);
            sequence.speculation.truncate_cache(item.start);
            if let Some(grammar) = &mut sequence.grammar {
                grammar.take_back();
            }
        }
        preempted(&scheduler.retract(items), sequences, tally);
        tally.occupancy(scheduler);
        std::thread::sleep(pause);
        events
    }

    /// Ends the sequences whose time is up.
    fn end_overdue(&mut self) -> Vec<(RequestId, Event)> {
        let Some(limit) = self.config.request_timeout else { return Vec::new() };
        let overdue = self.sequences.submitted_before(limit);
        let Self { target, drafting, scheduler, sequences, tally, comparing, .. } = self;
        let (target, events) = (target.as_ref(), Vec::new());
        let mut commit =
            Commit { scheduler, sequences, drafting, comparing, target, tally, events };
        overdue.into_iter().for_each(|id| commit.finish(id, FinishReason::Overdue));
        commit.events
    }

    /// Measures step costs, by which speculation decides when a draft token pays, with about fifty passes. Does
    /// nothing without speculation. Where they do not fit into memory, costs are learnt while the engine serves.
    ///
    /// # Panics
    /// If the engine has work.
    pub fn profile(&mut self) {
        if self.limits.num_speculative_tokens > 0
            && let Err(error) = self.idle().learn()
        {
            tracing::warn!(%error, "step costs cannot be measured");
        }
    }

    /// Times passes of `row_counts` rows after `context` positions, `repeats` of each, and tells
    /// speculation. Statistics and metrics do not count them.
    ///
    /// # Errors
    /// [`OutOfMemory`] where a pass is too large.
    ///
    /// # Panics
    /// If the engine has work, or `context` and the rows exceed [`max_model_len`](EngineLimits::max_model_len).
    pub fn measure_costs(
        &mut self,
        context: usize,
        row_counts: &[usize],
        repeats: usize,
    ) -> Result<MeasuredCosts, OutOfMemory> {
        self.idle().measure(context, row_counts, repeats)
    }

    fn idle(&mut self) -> Profile<'_> {
        assert!(!self.has_work(), "step costs are measured on an idle engine");
        Profile {
            target: self.target.as_mut(),
            drafting: &mut self.drafting,
            pool: self.scheduler.pool_mut(),
            max_model_len: self.limits.max_model_len,
            max_rows: self.config.max_num_batched_tokens,
        }
    }

    /// Compares a draft by this name, whose cache, if it has one, has as many blocks as the target's, with the one
    /// that serves, on `wanted` tokens of the sequences that end from now on; then the faster one serves.
    /// Ends a comparison that goes on.
    ///
    /// # Errors
    /// [`EngineError`] if it cannot draft for the target.
    pub fn compare(
        &mut self,
        draft: String,
        candidate: Candidate,
        wanted: u64,
    ) -> Result<(), EngineError> {
        let vocab = candidate.draft_vocab().map(|vocab| &**vocab);
        self.limits.check_draft(candidate.config(), vocab)?;
        if self.limits.num_speculative_tokens == 0 {
            return Err(EngineError::NoSpeculation);
        }
        self.comparing.start(draft, candidate, wanted, &self.tally);
        Ok(())
    }

    /// Ends a comparison; the old draft goes on.
    pub fn stop_comparing(&mut self) {
        self.comparing.stop(&self.tally);
    }

    /// The comparison that goes on, or the last one.
    #[must_use]
    pub fn comparison(&self) -> Option<&Comparison> {
        self.comparing.status()
    }

    /// Lets drafts that are compared read what sequences said, and puts one that has won in its place.
    fn compare_drafts(&mut self) {
        let most = self.limits.num_speculative_tokens;
        let pool = self.scheduler.pool_mut();
        let Self { comparing, drafting, target, tally, .. } = self;
        let target = target.as_mut();
        if let Some(winner) = comparing.read_samples(pool, drafting, target, most, tally) {
            let rows = self.config.max_num_batched_tokens;
            drafting.replace_draft(winner.draft.serve(target, rows), &winner.cost);
            for (_, sequence) in self.sequences.iter_mut() {
                sequence.speculation.new_draft_model();
            }
        }
    }
}

#[cfg(test)]
mod tests;
