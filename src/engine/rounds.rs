//! A round of every scheduled sequence: draft tokens are proposed and the target verifies them.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use super::decode_time::{GeneratingStep, by_proposer};
use super::report;
use super::scheduler::Scheduled;
use super::sequence::{Round, RoundError, Sequence};
use super::{Engine, Event, RequestId};
use crate::model::VerifyTask;
use crate::sampling::Processor;
use crate::spec::{Load, Prices, Proposal, ProposeTask};

impl Engine {
    /// One proposal per item, empty where none was asked for or worth it.
    pub(super) fn propose(&mut self, items: &[Scheduled]) -> Vec<Proposal> {
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
            Some(rate) => Prices::new(&self.costs, rate),
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
        let target = self.target.as_mut();
        let propose = || cascade.propose(&mut tasks, target, load, &prices);
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
            self.costs.observe_draft(pass.step, pass.rows, pass.seconds);
            self.draft_seconds += pass.seconds;
        }
        proposals
    }

    /// Tokens per second at which the sequences of a step generate once all of them do, at their usual
    /// gain from speculation. A token more saves that time, also where it comes of a pass that reads
    /// prompts.
    fn tokens_per_second(&self, items: &[Scheduled]) -> Option<f64> {
        let tokens: f64 = items.iter().map(|i| self.sequences[&i.id].speculation.gain()).sum();
        Some(tokens / self.costs.target.seconds(one_row_each(items.iter()))?)
    }

    /// Runs the target over all items and their draft tokens, and commits what stands.
    pub(super) fn verify(
        &mut self,
        items: &[Scheduled],
        proposals: &[Proposal],
    ) -> Vec<(RequestId, Event)> {
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
        let without = load(items);
        let with = items.iter().zip(proposals).fold(without, |load, (item, proposal)| {
            load.further(proposal.tokens.len(), item.start + item.count)
        });
        let mut cost = 1.0;
        if decode {
            self.costs.observe_target(with, seconds);
            let without = self.costs.target.seconds(without);
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
        self.read_states(items, &outcomes);
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
        let [plain, with, without] =
            [plain, with, without].map(|load| self.costs.target.seconds(load));
        let (Some(plain), Some(with), Some(without)) = (plain, with, without) else {
            return events;
        };
        if let Some(time) = step.time(plain) {
            self.stats.decode_time.add(time);
            report::decode_time(time);
        }
        let rows = (with - without).max(0.0);
        let token = plain / sequences.max(1) as f64;
        let time = by_proposer(proposals, &events, rows, seconds_drafting, token);
        for (sum, more) in self.stats.proposer_seconds.iter_mut().zip(time) {
            sum.add(more);
        }
        report::proposers(time);
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

    /// Keeps what an attached drafter reads of the last pass: the states of every sequence's last row that stands.
    fn read_states(&mut self, items: &[Scheduled], outcomes: &[Option<Result<Round, RoundError>>]) {
        let Some(drafter) = self.target.attached() else { return };
        for ((item, outcome), &first) in items.iter().zip(outcomes).zip(&self.rows.cu_seqlens_q) {
            let sequence = self.sequences.get_mut(&item.id);
            let sequence = sequence.expect("invariant: scheduled sequences exist");
            if let Some(Ok(round)) = outcome
                && sequence.speculate > 0
            {
                let valid = item.count + round.accepted;
                let row = first as usize + valid - 1;
                let known = item.start + valid + 1;
                sequence.speculation.set_states(known, |out| drafter.read_states(row, out));
            }
        }
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
