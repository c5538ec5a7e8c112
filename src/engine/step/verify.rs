//! What the target says of the rows and the draft tokens.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use crate::engine::scheduler::{Scheduled, Scheduler};
use crate::engine::sequence::{Round, RoundError, Sequence};
use crate::engine::sequences::Sequences;
use crate::engine::tally::TargetPass;
use crate::model::{Forward, OutOfMemory, Rows, VerifyTask};
use crate::sampling::Processor;
use crate::speculation::Proposal;

/// Runs passes of the target and decides their rounds.
#[derive(Default)]
pub(in crate::engine) struct Verifier {
    processor: Processor,
    /// The rows of the last pass.
    rows: Rows,
    /// What an attached drafter reads of some of them.
    states: Vec<f32>,
}

/// What became of an item: a round, or none where a prompt is not complete yet.
pub(in crate::engine) type Outcome = Option<Result<Round, RoundError>>;

impl Verifier {
    /// Runs the target over all items and their draft tokens; one outcome per item.
    ///
    /// # Errors
    /// Where the pass does not fit into memory: how many rows it would have had, and why.
    pub(in crate::engine) fn verify(
        &mut self,
        items: &[Scheduled],
        proposals: &[Proposal],
        sequences: &mut Sequences,
        scheduler: &Scheduler,
        target: &mut dyn Forward,
    ) -> Result<(TargetPass, Vec<Outcome>), (usize, OutOfMemory)> {
        self.rows.clear();
        for (item, proposal) in items.iter().zip(proposals) {
            let sequence = sequences.scheduled(item);
            let known = sequence.tokens[item.start..item.start + item.count].iter().copied();
            let tokens = known.chain(proposal.tokens.iter().map(|token| token.id));
            let num_logits = num_logits(sequence, item, proposal);
            self.rows.push(scheduler.table(item.id), item.start, tokens, num_logits);
            if let Some(adapter) = &sequence.adapter {
                self.rows.adapt_last(adapter);
            }
        }
        let head_rows = target.head_rows();
        let flops = self.rows.flops(target.config(), head_rows);
        let verifies = target.verifies();
        let by_model: Vec<bool> = items
            .iter()
            .zip(proposals)
            .map(|(item, proposal)| {
                verifies && may_be_decided(sequences.scheduled_mut(item), item, proposal)
            })
            .collect();
        let started = Instant::now();
        let tasks = verify_tasks(sequences, items, proposals, &by_model);
        let computed = target.forward_and_verify(&self.rows, &tasks);
        let (logits, verified) = computed.map_err(|error| {
            let rows = self.rows.len();
            self.rows.clear();
            (rows, error)
        })?;
        let seconds = started.elapsed().as_secs_f64();

        // [logit_rows, vocab_size], cut into one piece per sequence whose token is drawn here.
        let mut rest = logits;
        let mut verified = verified.into_iter();
        let mut outcomes = Vec::with_capacity(items.len());
        for ((item, proposal), by_model) in items.iter().zip(proposals).zip(by_model) {
            let sequence = sequences.scheduled_mut(item);
            if by_model {
                let verdict = verified.next().expect("invariant: one outcome a task");
                let apply = || sequence.apply_verdict(&proposal.tokens, verdict);
                let applied = catch_unwind(AssertUnwindSafe(apply));
                outcomes.push(Some(applied.unwrap_or(Err(RoundError::Bug))));
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
                    sequence.verify_logits(&proposal.tokens, own, processor)
                })
            };
            // A bug met by one sequence is that sequence's alone.
            outcomes.push(catch_unwind(AssertUnwindSafe(verify)).unwrap_or_else(|_| {
                self.processor = Processor::new();
                Some(Err(RoundError::Bug))
            }));
        }
        self.read_hidden(items, sequences, target);
        self.read_states(items, &outcomes, sequences, target);
        let decode = items.iter().all(|item| item.count == 1 && item.completes);
        let rows = self.rows.len();
        // An adapter lives no longer than the sequences that go through it.
        self.rows.clear();
        Ok((TargetPass { rows, decode, seconds, flops }, outcomes))
    }

    /// Keeps what an attached drafter reads of the last pass: the states of every sequence's last row that stands.
    fn read_states(
        &mut self,
        items: &[Scheduled],
        outcomes: &[Outcome],
        sequences: &mut Sequences,
        target: &mut dyn Forward,
    ) {
        let Some(drafter) = target.attached() else { return };
        let (mut rows, mut readers) = (Vec::new(), Vec::new());
        for ((item, outcome), &first) in items.iter().zip(outcomes).zip(&self.rows.cu_seqlens_q) {
            let sequence = sequences.scheduled_mut(item);
            if let Some(Ok(round)) = outcome
                && sequence.speculate > 0
            {
                let valid = item.count + round.accepted;
                rows.push(first + valid as u32 - 1);
                readers.push((item, item.start + valid + 1));
            }
        }
        if rows.is_empty() {
            return;
        }
        drafter.read_states(&rows, &mut self.states);
        let width = self.states.len() / rows.len();
        for ((item, known), states) in readers.into_iter().zip(self.states.chunks_exact(width)) {
            sequences.scheduled_mut(item).speculation.set_states(known, states);
        }
    }

    /// Takes in the hidden states of the last pass where they were asked for.
    fn read_hidden(&self, items: &[Scheduled], sequences: &mut Sequences, target: &dyn Forward) {
        let mut hidden = vec![0.0; target.config().hidden_size];
        for (item, &row) in items.iter().zip(&self.rows.cu_seqlens_q) {
            let sequence = sequences.scheduled_mut(item);
            if sequence.readout.wants_hidden() {
                for place in 0..item.count {
                    target.hidden_state(row as usize + place, &mut hidden);
                    sequence.readout.read_hidden(item.start + place, &hidden);
                }
            }
        }
    }
}

/// Whether a target that verifies may decide a sequence's round.
fn may_be_decided(sequence: &mut Sequence, item: &Scheduled, proposal: &Proposal) -> bool {
    item.completes
        && num_logits(sequence, item, proposal) > 0
        && sequence.may_be_decided()
        // Faults of a grammar are reported where its sequence is verified, so here they only mean that the target
        // does not decide.
        && sequence.grammar.as_mut().is_none_or(|grammar| {
            let compute = || grammar.compute_masks(proposal.tokens.len());
            catch_unwind(AssertUnwindSafe(compute)).is_ok_and(|masks| masks.is_ok())
        })
}

/// The rounds that the target decides itself.
fn verify_tasks<'a>(
    sequences: &'a Sequences,
    items: &[Scheduled],
    proposals: &'a [Proposal],
    by_model: &[bool],
) -> Vec<VerifyTask<'a>> {
    let (mut tasks, mut first) = (Vec::new(), 0);
    for ((item, proposal), &by_model) in items.iter().zip(proposals).zip(by_model) {
        let sequence = sequences.scheduled(item);
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
