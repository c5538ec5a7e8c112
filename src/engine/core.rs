//! The step: schedule → propose → verify → commit.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use super::comparison::{Comparison, Contest};
use super::decode_time::GeneratingStep;
use super::report;
use super::scheduler::{Schedule, Scheduled, Scheduler};
use super::sequence::{Round, RoundError, Sequence};
use super::stats::RoundFlops;
use super::{
    EngineConfig, EngineError, EngineLimits, EngineStats, Event, FinishReason, NoDraft, Request,
    RequestError, RequestId,
};
use crate::model::{CudaDecoder, CudaRunner, Decoder, Forward, Rows, Runner, VerifyTask};
use crate::sampling::Processor;
use crate::spec::{
    Acceptance, Cascade, DraftModel, DraftToken, Load, Prices, Proposal, ProposeTask, Proposer,
    StepCost,
};

/// Many sequences, one target and perhaps one draft model. Single-threaded: see
/// [`super::EngineHandle`] for use from many tasks.
pub struct Engine {
    pub(super) target: Box<dyn Forward>,
    pub(super) cascade: Cascade,
    pub(super) scheduler: Scheduler,
    pub(super) sequences: HashMap<RequestId, Sequence>,
    processor: Processor,
    rows: Rows,
    pub(super) config: EngineConfig,
    pub(super) limits: EngineLimits,
    eos_token_ids: Vec<u32>,
    stats: EngineStats,
    pub(super) target_cost: StepCost,
    pub(super) draft_cost: StepCost,
    pub(super) acceptance: Acceptance,
    /// The draft model that may take over, and how it fares.
    pub(super) contest: Option<Contest>,
    pub(super) comparison: Option<Comparison>,
    /// Seconds of the draft passes of this step.
    draft_seconds: f64,
    /// Cleared when drafting met a bug.
    speculates: bool,
    next_id: u64,
    seeds: fastrand::Rng,
}

impl Engine {
    /// An engine over a target and perhaps a draft model, each with a cache of its own.
    ///
    /// # Errors
    /// [`EngineError`] if the settings or the models do not fit together.
    pub fn new(
        target: Decoder,
        draft: Option<Decoder>,
        config: EngineConfig,
    ) -> Result<Self, EngineError> {
        let (_, num_blocks) =
            config.resolve(target.config(), draft.as_ref().map(|draft| draft.config()))?;
        let runner = |decoder| Box::new(Runner::new(decoder, num_blocks)) as Box<dyn Forward>;
        Self::with_models(runner(target), draft.map(runner), config)
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
        let models = (target.config().clone(), draft.as_ref().map(|draft| draft.config().clone()));
        let resolve = |config: &EngineConfig| config.resolve(&models.0, models.1.as_ref());
        if config.num_blocks.is_none() {
            let block = target.block_bytes() + draft.as_ref().map_or(0, CudaDecoder::block_bytes);
            // What is left is for the rows of a pass.
            let fit = target.device().free_bytes()? / 10 * 9 / block;
            config.num_blocks = Some(resolve(&config)?.1.min(fit).max(1));
        }
        let (limits, num_blocks) = resolve(&config)?;
        let runner = |decoder| CudaRunner::new(decoder, num_blocks, limits.max_model_len);
        let target = Box::new(runner(target)?);
        let draft = draft.map(runner).transpose()?.map(|draft| Box::new(draft) as Box<dyn Forward>);
        Self::with_models(target, draft, config)
    }

    /// An engine over models whose caches have the number of blocks `config` resolves to.
    ///
    /// # Errors
    /// [`EngineError`] if the settings or the models do not fit together.
    pub fn with_models(
        target: Box<dyn Forward>,
        draft: Option<Box<dyn Forward>>,
        config: EngineConfig,
    ) -> Result<Self, EngineError> {
        let (limits, num_blocks) =
            config.resolve(target.config(), draft.as_ref().map(|draft| draft.config()))?;
        draft.as_deref().map_or(Ok(()), |draft| limits.check_draft(draft))?;
        let draft = draft.filter(|_| limits.num_speculative_tokens > 0);
        let draft = draft.map(|draft| DraftModel::new(draft, config.max_num_batched_tokens));
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
            target_cost: StepCost::default(),
            draft_cost: StepCost::default(),
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

    /// One proposal per item, empty where none was asked for or worth it.
    fn propose(&mut self, items: &[Scheduled]) -> Vec<Proposal> {
        let mut proposals: Vec<Proposal> = items.iter().map(|_| Proposal::default()).collect();
        let places: HashMap<RequestId, usize> = items
            .iter()
            .enumerate()
            .filter(|(_, item)| item.lookahead > 0)
            .map(|(place, item)| (item.id, place))
            .collect();
        if places.is_empty() {
            return proposals;
        }
        let load = load(items);
        let rate = self.tokens_per_second(items);
        let prices = match rate.filter(|_| self.config.adaptive) {
            Some(rate) => Prices::new(&self.target_cost, &self.draft_cost, rate),
            None => Prices::free(),
        };
        let mut tasks = Vec::new();
        for (id, sequence) in &mut self.sequences {
            let Some(&place) = places.get(id) else { continue };
            let tokens_left = sequence.tokens_left();
            let task = ProposeTask {
                tokens: &mut sequence.tokens,
                num_tokens: items[place].lookahead,
                tokens_left,
                ends: &sequence.ends,
                table: self.scheduler.table(*id),
                params: &sequence.params,
                history: &mut sequence.history,
                draws: sequence.draws,
                grammar: sequence.grammar.as_mut(),
                state: &mut sequence.speculation,
                proposal: Proposal::default(),
            };
            tasks.push((place, task));
        }
        tasks.sort_unstable_by_key(|&(place, _)| place);
        let (places, mut tasks): (Vec<usize>, Vec<ProposeTask<'_>>) = tasks.into_iter().unzip();
        let cascade = &mut self.cascade;
        let propose = || cascade.propose(&mut tasks, load, &prices);
        if catch_unwind(AssertUnwindSafe(propose)).is_err() {
            tracing::error!("drafting met a bug; going on without speculation");
            report::draft_passes(&[], 1);
            self.stats.draft_failures += 1;
            self.speculates = false;
            for (place, task) in places.iter().zip(&mut tasks) {
                task.give_up(items[*place].start + items[*place].count);
            }
        }
        for (place, task) in places.into_iter().zip(tasks) {
            proposals[place] = task.proposal;
        }
        let Some(draft) = self.cascade.draft_mut() else { return proposals };
        let (passes, failures) = draft.take_report();
        report::draft_passes(&passes, failures);
        self.stats.draft_failures += failures;
        for pass in passes {
            self.stats.draft.record(pass.rows, pass.decode, pass.seconds);
            self.stats.draft_flops += pass.flops;
            let machine = self.draft_cost.observe(pass.rows, pass.seconds);
            self.target_cost.scale(machine);
            self.draft_seconds += pass.seconds;
        }
        proposals
    }

    /// Tokens per second at which the sequences of a step generate once all of them do, at their usual
    /// gain from speculation. A token more saves that time, also where it comes of a pass that reads
    /// prompts.
    fn tokens_per_second(&self, items: &[Scheduled]) -> Option<f64> {
        let tokens: f64 = items.iter().map(|i| self.sequences[&i.id].speculation.gain()).sum();
        Some(tokens / self.target_cost.seconds(one_row_each(items.iter()))?)
    }

    /// Runs the target over all items and their draft tokens, and commits what stands.
    fn verify(&mut self, items: &[Scheduled], proposals: &[Proposal]) -> Vec<(RequestId, Event)> {
        self.rows.clear();
        for (item, proposal) in items.iter().zip(proposals) {
            let sequence = &self.sequences[&item.id];
            let known = sequence.tokens[item.start..item.start + item.count].iter().copied();
            let tokens = known.chain(proposal.tokens.iter().map(|token| token.id));
            let num_logits = num_logits(sequence, item, proposal);
            self.rows.push(self.scheduler.table(item.id), item.start, tokens, num_logits);
        }
        let head_rows = self.target.head_rows();
        let flops = self.rows.flops(self.target.config(), head_rows);
        let by_model: Vec<bool> =
            items.iter().zip(proposals).map(|(i, proposal)| self.decides(i, proposal)).collect();
        let started = Instant::now();
        let tasks = verify_tasks(&self.sequences, items, proposals, &by_model);
        let (logits, verified) = self.target.forward_and_verify(&self.rows, &tasks);
        let seconds = started.elapsed().as_secs_f64();
        let decode = items.iter().all(|item| item.count == 1 && item.completes);
        self.stats.target.record(self.rows.len(), decode, seconds);
        self.stats.target_flops += flops;
        report::target_pass(flops);
        let seconds_drafting = std::mem::take(&mut self.draft_seconds);
        let mut cost = 1.0;
        if decode {
            let without = load(items);
            let with = items.iter().zip(proposals);
            let with = with.fold(without, |load, (item, proposal)| {
                load.further(proposal.tokens.len(), item.start + item.count)
            });
            let machine = self.target_cost.observe(with, seconds);
            self.draft_cost.scale(machine);
            let without = self.target_cost.seconds(without);
            cost = without.map_or(1.0, |without| (seconds + seconds_drafting) / without);
        }

        // [logit_rows, vocab_size], cut into one piece per sequence whose token is drawn here.
        let mut rest = logits;
        let mut verified = verified.into_iter();
        let mut outcomes = Vec::with_capacity(items.len());
        for ((item, proposal), by_model) in items.iter().zip(proposals).zip(by_model) {
            let sequence = self.sequences.get_mut(&item.id);
            let sequence = sequence.expect("invariant: scheduled sequences exist");
            if by_model {
                let outcome = verified.next().expect("invariant: one outcome a task");
                let take = || sequence.verified(&proposal.tokens, outcome);
                let taken = catch_unwind(AssertUnwindSafe(take));
                outcomes.push(Some(taken.unwrap_or(Err(RoundError::Bug))));
                continue;
            }
            let wanted = num_logits(sequence, item, proposal);
            let (own, others) = rest.split_at(wanted * head_rows);
            rest = others;
            let processor = &mut self.processor;
            let verify = || {
                let prompt = &sequence.tokens[..sequence.stats.prompt_tokens];
                sequence.readout.read_logits(prompt, item.start, own, head_rows);
                (item.completes && wanted > 0).then(|| {
                    let own = &own[(wanted - proposal.tokens.len() - 1) * head_rows..];
                    sequence.verify(&proposal.tokens, own, processor)
                })
            };
            // A bug met by one sequence is that sequence's alone.
            outcomes.push(catch_unwind(AssertUnwindSafe(verify)).unwrap_or_else(|_| {
                self.processor = Processor::new();
                Some(Err(RoundError::Bug))
            }));
        }
        let mut events = Vec::new();
        self.read_hidden(items);
        for ((item, proposal), outcome) in items.iter().zip(proposals).zip(outcomes) {
            let commit = || self.commit(item, proposal, outcome, cost, &mut events);
            if catch_unwind(AssertUnwindSafe(commit)).is_err() {
                self.fail(item.id, &RoundError::Bug, &mut events);
            }
        }
        let sequences = items.iter().filter(|item| item.completes).count();
        let step = GeneratingStep {
            rows: self.rows.len(),
            prompt_rows: items.iter().map(|item| item.count).sum::<usize>() - sequences,
            sequences,
            tokens: events.iter().map(|(_, event)| event.num_tokens()).sum(),
            target_seconds: seconds,
            draft_seconds: seconds_drafting,
        };
        let plain = one_row_each(items.iter().filter(|item| item.completes));
        if let Some(time) = self.target_cost.seconds(plain).and_then(|plain| step.time(plain)) {
            self.stats.decode_time.add(time);
            report::decode_time(time);
        }
        events
    }

    /// Whether the target itself decides a sequence's round.
    fn decides(&mut self, item: &Scheduled, proposal: &Proposal) -> bool {
        let sequence = self.sequences.get_mut(&item.id);
        let sequence = sequence.expect("invariant: scheduled sequences exist");
        self.target.verifies()
            && item.completes
            && num_logits(sequence, item, proposal) > 0
            && sequence.may_be_decided()
            // What goes wrong with a grammar is told where its sequence is verified.
            && sequence.grammar.as_mut().is_none_or(|grammar| {
                let compute = || grammar.compute_masks(proposal.tokens.len());
                catch_unwind(AssertUnwindSafe(compute)).is_ok_and(|masks| masks.is_ok())
            })
    }

    /// Takes in the hidden states of the last pass where they were asked for.
    fn read_hidden(&mut self, items: &[Scheduled]) {
        let mut hidden = vec![0.0; self.target.config().hidden_size];
        for (item, &row) in items.iter().zip(&self.rows.cu_seqlens_q) {
            let sequence = self.sequences.get_mut(&item.id);
            let sequence = sequence.expect("invariant: scheduled sequences exist");
            if sequence.readout.wants_hidden() {
                for place in 0..item.count {
                    self.target.hidden_state(row as usize + place, &mut hidden);
                    sequence.readout.read_hidden(item.start + place, &hidden);
                }
            }
        }
    }

    /// Brings scheduler, speculation and statistics up to date with one sequence's share of a pass,
    /// which took `cost` times as long as without speculation.
    fn commit(
        &mut self,
        item: &Scheduled,
        proposal: &Proposal,
        outcome: Option<Result<Round, RoundError>>,
        cost: f64,
        events: &mut Vec<(RequestId, Event)>,
    ) {
        let sequence = self.sequences.get_mut(&item.id);
        let sequence = sequence.expect("invariant: scheduled sequences exist");
        sequence.stats.target_passes += 1;
        sequence.stats.draft_passes += proposal.passes;
        if item.completes
            && let Some(event) = sequence.readout.take()
        {
            let embedded = matches!(event, Event::Embedding(_));
            events.push((item.id, event));
            if embedded {
                self.finish(item.id, FinishReason::Length, events);
                return;
            }
        }
        let round = match outcome {
            None => {
                let computed = item.start + item.count;
                self.scheduler.commit(item.id, computed, &sequence.tokens);
                return;
            }
            Some(Ok(round)) => round,
            Some(Err(error)) => {
                self.fail(item.id, &error, events);
                return;
            }
        };
        // Positions known before the round, and the accepted draft tokens after them, are valid in
        // both caches.
        let known = item.start + item.count;
        let valid = known + round.accepted;
        if sequence.speculate > 0 {
            let (tokens, new) = (&sequence.tokens, round.tokens.len());
            let speculation = &mut sequence.speculation;
            speculation.observe(tokens, new, proposal, round.accepted, cost, &mut self.acceptance);
        }
        let latency = sequence.tokens_sent(round.tokens.len());
        report::latency(latency, round.tokens.len());
        // A round that ended the sequence may have cut tokens off.
        self.scheduler.commit(item.id, valid.min(sequence.tokens.len() - 1), &sequence.tokens);
        if proposal.tokens.is_empty() {
            let (speculates, left) = (sequence.speculate > 0, sequence.tokens_left());
            let reason = self.why_no_draft(item, speculates, left);
            self.stats.rounds_without_drafts[reason as usize] += 1;
            report::no_draft(reason);
        }
        let sent = round.tokens.iter().filter(|token| token.source.proposer().is_some()).count();
        let flops = self.round_flops(known, &proposal.tokens, sent);
        self.stats.record_round(&proposal.tokens, &round.tokens, flops);
        report::round(&proposal.tokens, &round.tokens, flops);
        events.push((item.id, Event::Tokens(round.tokens)));
        if let Some(reason) = round.finish {
            self.finish(item.id, reason, events);
        }
    }

    /// Why a round had no draft tokens; its sequence can get `tokens_left` more.
    fn why_no_draft(&self, item: &Scheduled, speculates: bool, tokens_left: usize) -> NoDraft {
        match () {
            () if !speculates => NoDraft::Disabled,
            () if item.count > 1 => NoDraft::Prefill,
            () if tokens_left == 0 => NoDraft::LastToken,
            () if item.lookahead == 0 => NoDraft::NoRoom,
            () if self.cascade.draft().is_none_or(DraftModel::is_broken) => NoDraft::NoMatch,
            () => NoDraft::Unprofitable,
        }
    }

    /// Operations of the tokens `drafted` after `known` positions, of which the first `sent` were sent.
    fn round_flops(&self, known: usize, drafted: &[DraftToken], sent: usize) -> RoundFlops {
        let mut flops = RoundFlops::default();
        for (place, token) in drafted.iter().enumerate() {
            let context = known + place;
            let full = self.target.config().flops_per_token(context, self.target.head_rows());
            let pruned = self
                .cascade
                .draft()
                .filter(|_| token.proposer == Proposer::DraftModel)
                .map(|draft| draft.config().flops_per_token(context, draft.head_rows()));
            flops.saved += pruned.map_or(0, |pruned| full.saturating_sub(pruned));
            if place >= sent {
                flops.wasted[0] += full;
                flops.wasted[1] += pruned.unwrap_or(0);
            }
        }
        flops
    }

    /// Ends a sequence that cannot go on, and leaves nothing of it in the cache.
    fn fail(&mut self, id: RequestId, error: &RoundError, events: &mut Vec<(RequestId, Event)>) {
        tracing::error!(%error, request = id.0, "a sequence cannot go on");
        self.scheduler.discard(id);
        self.finish(id, FinishReason::Error(error.to_string()), events);
    }

    fn finish(
        &mut self,
        id: RequestId,
        reason: FinishReason,
        events: &mut Vec<(RequestId, Event)>,
    ) {
        self.scheduler.remove(id);
        if let Some(mut sequence) = self.sequences.remove(&id) {
            sequence.stats.total_seconds = sequence.submitted.elapsed().as_secs_f64();
            report::finished(&reason, &sequence.stats);
            self.sample(&sequence);
            events.push((id, Event::Finished { reason, stats: sequence.stats }));
        }
    }
}

/// What a pass computes without draft tokens.
fn load(items: &[Scheduled]) -> Load {
    let add = |load: Load, item: &Scheduled| load.sequence(item.count, item.start + item.count);
    items.iter().fold(Load::default(), add)
}

/// What a pass computes with one row of each sequence.
fn one_row_each<'a>(items: impl Iterator<Item = &'a Scheduled>) -> Load {
    items.fold(Load::default(), |load, item| load.sequence(1, item.start + item.count))
}

/// The rounds that the target decides itself.
fn verify_tasks<'a>(
    sequences: &'a HashMap<RequestId, Sequence>,
    items: &[Scheduled],
    proposals: &'a [Proposal],
    by_model: &[bool],
) -> Vec<VerifyTask<'a>> {
    let (mut tasks, mut first) = (Vec::new(), 0);
    for ((item, proposal), &by_model) in items.iter().zip(proposals).zip(by_model) {
        let sequence = &sequences[&item.id];
        if by_model {
            tasks.push(sequence.verify_task(&proposal.tokens, first));
        }
        first += num_logits(sequence, item, proposal);
    }
    tasks
}

/// Rows of an item whose logits are wanted: those that tokens are drawn from, and all of a prompt whose
/// log-probabilities were asked for.
fn num_logits(sequence: &Sequence, item: &Scheduled, proposal: &Proposal) -> usize {
    match &sequence.readout {
        readout if readout.wants_hidden() => 0,
        readout if readout.wants_logits() => item.count + proposal.tokens.len(),
        _ if item.completes => proposal.tokens.len() + 1,
        _ => 0,
    }
}

#[cfg(test)]
#[path = "core_tests.rs"]
mod tests;
