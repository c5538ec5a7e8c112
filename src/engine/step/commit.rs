//! What a step leaves behind: in the cache, in what speculation knows, in statistics, and for the caller.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::verify::Outcome;
use crate::engine::draft_comparison::DraftComparison;
use crate::engine::scheduler::{Scheduled, Scheduler};
use crate::engine::sequence::RoundError;
use crate::engine::sequences::Sequences;
use crate::engine::stats::{NoDraft, RoundCounts, RoundFlops};
use crate::engine::tally::Tally;
use crate::engine::{Event, FinishReason, RequestId};
use crate::model::Forward;
use crate::speculation::{Decided, DraftController, DraftToken, Proposal, Proposer};

/// The parts of an engine that a round changes, and the events that come of it.
pub(in crate::engine) struct Commit<'a> {
    pub(in crate::engine) scheduler: &'a mut Scheduler,
    pub(in crate::engine) sequences: &'a mut Sequences,
    pub(in crate::engine) drafting: &'a mut DraftController,
    pub(in crate::engine) comparing: &'a mut DraftComparison,
    pub(in crate::engine) target: &'a dyn Forward,
    pub(in crate::engine) tally: &'a mut Tally,
    pub(in crate::engine) events: Vec<(RequestId, Event)>,
}

impl Commit<'_> {
    /// Takes in the rounds of a pass that took `cost` times as long as without speculation. Returns what happened to
    /// every sequence.
    pub(in crate::engine) fn rounds(
        mut self,
        items: &[Scheduled],
        proposals: &[Proposal],
        outcomes: Vec<Outcome>,
        cost: f64,
    ) -> Vec<(RequestId, Event)> {
        for ((item, proposal), outcome) in items.iter().zip(proposals).zip(outcomes) {
            let round = || self.round(item, proposal, outcome, cost);
            if catch_unwind(AssertUnwindSafe(round)).is_err() {
                self.fail(item.id, &RoundError::Bug);
            }
        }
        self.events
    }

    /// Brings scheduler, speculation and statistics up to date with one sequence's share of a pass.
    fn round(&mut self, item: &Scheduled, proposal: &Proposal, outcome: Outcome, cost: f64) {
        let sequence = self.sequences.scheduled_mut(item);
        sequence.stats.target_passes += 1;
        sequence.stats.draft_passes += proposal.passes;
        if item.completes
            && let Some(event) = sequence.readout.take()
        {
            let embedded = matches!(event, Event::Embedding(_));
            self.events.push((item.id, event));
            if embedded {
                self.finish(item.id, FinishReason::Length);
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
                self.fail(item.id, &error);
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
            let decided = Decided { accepted: round.accepted, bonus_prob: round.bonus_prob, cost };
            self.drafting.observe(speculation, tokens, new, proposal, decided);
        }
        let counts = RoundCounts::of(&proposal.tokens, &round.tokens);
        sequence.stats.rounds.add(&counts);
        let latency = sequence.tokens_sent(round.tokens.len());
        self.tally.latency(latency, round.tokens.len());
        // A round that ended the sequence may have cut tokens off.
        self.scheduler.commit(item.id, valid.min(sequence.tokens.len() - 1), &sequence.tokens);
        if proposal.tokens.is_empty() {
            let (speculates, left) = (sequence.speculate > 0, sequence.tokens_left());
            let reason = self.why_no_draft(item, speculates, left);
            self.tally.no_draft(reason);
        }
        let flops = self.round_flops(known, &proposal.tokens, counts.accepted_tokens as usize);
        self.tally.round(&counts, flops);
        self.events.push((item.id, Event::Tokens(round.tokens)));
        if let Some(reason) = round.finish {
            self.finish(item.id, reason);
        }
    }

    /// Why a round had no draft tokens; its sequence can get `tokens_left` more.
    fn why_no_draft(&self, item: &Scheduled, speculates: bool, tokens_left: usize) -> NoDraft {
        match () {
            () if !speculates || !self.drafting.works() => NoDraft::Disabled,
            () if item.count > 1 => NoDraft::Prefill,
            () if tokens_left == 0 => NoDraft::LastToken,
            () if item.lookahead == 0 => NoDraft::NoRoom,
            () if !self.drafting.has_draft_model() => NoDraft::NoMatch,
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
                .drafting
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
    pub(in crate::engine) fn fail(&mut self, id: RequestId, error: &RoundError) {
        self.scheduler.discard(id);
        let reason = match error {
            RoundError::Grammar(_) => {
                tracing::info!(%error, request = id.0, "a sequence's grammar ends it");
                FinishReason::GrammarError(error.to_string())
            }
            RoundError::Logits(_) | RoundError::Memory(_) | RoundError::Bug => {
                tracing::error!(%error, request = id.0, "a sequence cannot go on");
                FinishReason::Error(error.to_string())
            }
        };
        self.finish(id, reason);
    }

    /// Ends a sequence.
    pub(in crate::engine) fn finish(&mut self, id: RequestId, reason: FinishReason) {
        self.scheduler.remove(id);
        if let Some(mut sequence) = self.sequences.remove(id) {
            sequence.stats.total_seconds = sequence.submitted.elapsed().as_secs_f64();
            self.tally.finished(&reason, &sequence.stats);
            self.comparing.sample(&sequence);
            self.events.push((id, Event::Finished { reason, stats: sequence.stats }));
        }
    }
}
