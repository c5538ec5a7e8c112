//! What a round leaves behind: in the cache, in what speculation knows, in statistics, and for the caller.

use super::report;
use super::scheduler::Scheduled;
use super::sequence::{Round, RoundError};
use super::stats::RoundFlops;
use super::{Engine, Event, FinishReason, NoDraft, RequestId};
use crate::spec::{Decided, DraftModel, DraftToken, Proposal, Proposer};

impl Engine {
    /// Brings scheduler, speculation and statistics up to date with one sequence's share of a pass,
    /// which took `cost` times as long as without speculation.
    pub(super) fn commit(
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
            let decided = Decided { accepted: round.accepted, bonus_prob: round.bonus_prob, cost };
            speculation.observe(tokens, new, proposal, decided, &mut self.acceptance);
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
    pub(super) fn fail(
        &mut self,
        id: RequestId,
        error: &RoundError,
        events: &mut Vec<(RequestId, Event)>,
    ) {
        self.scheduler.discard(id);
        let reason = match error {
            RoundError::Grammar(_) => {
                tracing::info!(%error, request = id.0, "a sequence's grammar ends it");
                FinishReason::GrammarError(error.to_string())
            }
            RoundError::Logits(_) | RoundError::Bug => {
                tracing::error!(%error, request = id.0, "a sequence cannot go on");
                FinishReason::Error(error.to_string())
            }
        };
        self.finish(id, reason, events);
    }

    pub(super) fn finish(
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
