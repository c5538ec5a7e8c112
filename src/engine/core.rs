//! The engine and its step: schedule → propose → verify → commit.

use std::collections::HashMap;

use super::comparison::{Comparison, Contest};
use super::report;
use super::scheduler::{Schedule, Scheduler};
use super::sequence::Sequence;
use super::{
    CacheNeeds, EngineConfig, EngineError, EngineLimits, EngineStats, Event, Request, RequestError,
    RequestId,
};
use crate::memory;
use crate::model::{CudaDecoder, CudaRunner, Decoder, Draft, Forward, Rows, Runner};
use crate::sampling::Processor;
use crate::spec::{Acceptance, Cascade, Costs, DraftModel};

/// Many sequences, one target and perhaps one draft model. Single-threaded: see
/// [`super::EngineHandle`] for use from many tasks.
pub struct Engine {
    pub(super) target: Box<dyn Forward>,
    pub(super) cascade: Cascade,
    pub(super) scheduler: Scheduler,
    pub(super) sequences: HashMap<RequestId, Sequence>,
    pub(super) processor: Processor,
    pub(super) rows: Rows,
    pub(super) config: EngineConfig,
    pub(super) limits: EngineLimits,
    eos_token_ids: Vec<u32>,
    pub(super) stats: EngineStats,
    pub(super) costs: Costs,
    pub(super) acceptance: Acceptance,
    /// The draft model that may take over, and how it fares.
    pub(super) contest: Option<Contest>,
    pub(super) comparison: Option<Comparison>,
    /// Seconds of the draft passes of this step.
    pub(super) draft_seconds: f64,
    /// Cleared when drafting met a bug.
    pub(super) speculates: bool,
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
        let target = Runner::new(target, num_blocks);
        let (target, draft) = match draft {
            None => (target, None),
            Some(Draft::Attached(drafter)) => (target.with_drafter(drafter), None),
            Some(Draft::Standalone(draft)) => (target, Some(Runner::new(draft, num_blocks))),
        };
        let draft = draft.map(|draft| Box::new(draft) as Box<dyn Forward>);
        Self::with_models(Box::new(target), draft, config)
    }

    /// An engine over a target and perhaps a draft model on a CUDA device. Without a number of blocks, the caches
    /// take what they want of the device's memory, and at most most of it.
    ///
    /// # Errors
    /// [`EngineError`] if the settings or the models do not fit together or the device.
    pub fn on_cuda(
        target: CudaDecoder,
        draft: Option<CudaDecoder>,
        mut config: EngineConfig,
    ) -> Result<Self, EngineError> {
        let needs = CacheNeeds {
            target: target.config(),
            draft: draft.as_ref().map(|draft| draft.config()),
            block_bytes: target.block_bytes() + draft.as_ref().map_or(0, CudaDecoder::block_bytes),
        };
        config.fit_blocks(needs, Some(target.device().free_bytes()? as u64))?;
        let (limits, num_blocks) = config.resolve(needs.target, needs.draft)?;
        let runner = |decoder| CudaRunner::new(decoder, num_blocks, limits.max_model_len);
        let target = Box::new(runner(target)?);
        let draft = draft.map(runner).transpose()?.map(|draft| Box::new(draft) as Box<dyn Forward>);
        Self::with_models(target, draft, config)
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
        standalone.as_deref().map_or(Ok(()), |draft| limits.check_draft(draft))?;
        let draft = match standalone {
            _ if limits.num_speculative_tokens == 0 => None,
            Some(draft) => Some(DraftModel::standalone(draft, rows)),
            None => DraftModel::attached(target.as_mut()),
        };
        limits.drafter_attached = draft.as_ref().is_some_and(DraftModel::is_attached);
        Ok(Self {
            eos_token_ids: target.config().eos_token_ids.clone(),
            target,
            cascade: Cascade::new(draft),
            scheduler: Scheduler::new(
                num_blocks,
                config.max_num_seqs,
                config.max_num_batched_tokens,
                config.prefix_caching,
            ),
            sequences: HashMap::new(),
            processor: Processor::new(),
            rows: Rows::default(),
            seeds: config.seed.map_or_else(fastrand::Rng::new, fastrand::Rng::with_seed),
            config,
            limits,
            stats: EngineStats::default(),
            costs: Costs::default(),
            acceptance: Acceptance::default(),
            contest: None,
            comparison: None,
            draft_seconds: 0.0,
            speculates: true,
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
        &self.stats
    }

    /// Blocks of the K/V cache in use, and in total.
    #[must_use]
    pub fn cache_blocks(&self) -> (usize, usize) {
        (self.scheduler.pool().num_used(), self.scheduler.pool().num_blocks())
    }

    /// Whether a draft model drafts.
    #[must_use]
    pub fn has_draft_model(&self) -> bool {
        self.cascade.draft().is_some_and(|draft| !draft.is_broken())
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
        request.validate(&self.limits)?;
        let id = RequestId(self.next_id);
        self.next_id += 1;
        self.scheduler.add_reading(id, &request.prompt, request.priority, request.readout);
        self.stats.prompt_tokens += request.prompt.len() as u64;
        report::prompt(request.prompt.len());
        let sequence = Sequence::new(
            request,
            &self.limits,
            &self.eos_token_ids,
            self.config.ngram,
            &self.acceptance,
            self.seeds.u64(..),
        );
        self.sequences.insert(id, sequence);
        Ok(id)
    }

    /// Drops a sequence and frees its blocks; no further events follow. Unknown ids are ignored.
    pub fn cancel(&mut self, id: RequestId) {
        self.scheduler.remove(id);
        if let Some(sequence) = self.sequences.remove(&id) {
            self.sample(&sequence);
            report::cancelled();
        }
        report::load(&self.scheduler);
    }

    /// Runs one target pass, with the draft passes before it, and returns what came of it. Does
    /// nothing without work.
    pub fn step(&mut self) -> Vec<(RequestId, Event)> {
        self.read_samples();
        let schedule = self.schedule();
        if schedule.items.is_empty() {
            // A cancelled request may have left the last block just now.
            report::load(&self.scheduler);
            return Vec::new();
        }
        let proposals = self.propose(&schedule.items);
        let events = self.verify(&schedule.items, &proposals);
        self.stats.steps += 1;
        self.read_samples();
        report::load(&self.scheduler);
        events
    }

    fn schedule(&mut self) -> Schedule {
        let schedule = self.scheduler.schedule(|id| match self.sequences.get(&id) {
            Some(sequence) if self.speculates => sequence.draft_bound(),
            _ => 0,
        });
        if let Some(draft) = self.cascade.draft_mut() {
            draft.forget(&schedule.fresh);
        }
        for id in &schedule.preempted {
            self.stats.preemptions += 1;
            report::preemption();
            if let Some(sequence) = self.sequences.get_mut(id) {
                sequence.stats.preemptions += 1;
                sequence.speculation.forget_cache();
            }
        }
        for item in &schedule.items {
            if let Some(sequence) = self.sequences.get_mut(&item.id)
                && sequence.stats.target_passes == 0
            {
                sequence.stats.queue_seconds = sequence.submitted.elapsed().as_secs_f64();
                report::queue_time(sequence.stats.queue_seconds);
                if self.config.prefix_caching {
                    sequence.stats.cached_tokens = item.start;
                    self.stats.prefix_cache_queries += sequence.stats.prompt_tokens as u64;
                    self.stats.prefix_cache_hits += item.start as u64;
                    report::prefix_cache(sequence.stats.prompt_tokens, item.start);
                }
            }
        }
        schedule
    }
}

#[cfg(test)]
mod tests;
