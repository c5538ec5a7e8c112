//! Counts what the engine does in the process-wide metrics.

use metrics::{counter, gauge, histogram};

use super::scheduler::Scheduler;
use super::sequence::Latency;
use super::stats::RoundFlops;
use super::{
    DecodeTime, FinishReason, NoDraft, Outcome, ProposerSeconds, SequenceStats, TokenOut,
    TokenSource,
};
use crate::metrics as names;
use crate::spec::{DraftPass, DraftToken, Proposer};

const TARGET: (&str, &str) = ("model", "target");
const DRAFT: (&str, &str) = ("model", "draft");

pub(super) fn compared(tokens: usize, candidate: u64, current: Option<u64>) {
    counter!(names::COMPARED_TOKENS).increment(tokens as u64);
    counter!(names::COMPARED_ACCEPTED_TOKENS, "draft" => "candidate").increment(candidate);
    counter!(names::COMPARED_ACCEPTED_TOKENS, "draft" => "current")
        .increment(current.unwrap_or_default());
}

pub(super) fn comparison(outcome: Outcome) {
    counter!(names::COMPARISONS, "outcome" => outcome.name()).increment(1);
}

pub(super) fn prompt(tokens: usize) {
    counter!(names::PROMPT_TOKENS).increment(tokens as u64);
}

pub(super) fn queue_time(seconds: f64) {
    histogram!(names::QUEUE_TIME).record(seconds);
}

pub(super) fn decode_time(time: DecodeTime) {
    histogram!(names::DECODE_STEP).record(time.seconds);
    histogram!(names::DECODE_STEP_WITHOUT).record(time.without_speculation);
}

pub(super) fn proposers(seconds: [ProposerSeconds; 3]) {
    for (proposer, time) in Proposer::ALL.into_iter().zip(seconds) {
        if time.spent > 0.0 {
            let label = [("proposer", proposer.name())];
            histogram!(names::PROPOSER_SPENT, &label).record(time.spent);
            histogram!(names::PROPOSER_SAVED, &label).record(time.saved);
        }
    }
}

pub(super) fn no_draft(reason: NoDraft) {
    counter!(names::ROUNDS_WITHOUT_DRAFTS, "reason" => reason.name()).increment(1);
}

pub(super) fn finished(reason: &FinishReason, stats: &SequenceStats) {
    counter!(names::REQUESTS_FINISHED, "reason" => reason.name()).increment(1);
    histogram!(names::REQUEST_DURATION).record(stats.total_seconds);
    histogram!(names::REQUEST_PROMPT_TOKENS).record(stats.prompt_tokens as f64);
    histogram!(names::REQUEST_GENERATED_TOKENS).record(stats.generated_tokens as f64);
}

pub(super) fn cancelled() {
    counter!(names::REQUESTS_FINISHED, "reason" => "cancelled").increment(1);
}

pub(super) fn prefix_cache(queried: usize, hit: usize) {
    counter!(names::PREFIX_CACHE_QUERIES).increment(queried as u64);
    counter!(names::PREFIX_CACHE_HITS).increment(hit as u64);
}

pub(super) fn preemption() {
    counter!(names::PREEMPTIONS).increment(1);
}

pub(super) fn load(scheduler: &Scheduler) {
    gauge!(names::RUNNING_SEQUENCES).set(scheduler.num_running() as f64);
    gauge!(names::WAITING_SEQUENCES).set(scheduler.num_waiting() as f64);
    gauge!(names::KV_CACHE_USED_BLOCKS).set(scheduler.pool().num_used() as f64);
    gauge!(names::KV_CACHE_BLOCKS).set(scheduler.pool().num_blocks() as f64);
}

pub(super) fn target_pass(flops: u64) {
    counter!(names::FORWARD_PASSES, &[TARGET]).increment(1);
    counter!(names::FLOPS, &[TARGET]).increment(flops);
}

pub(super) fn draft_passes(passes: &[DraftPass], failures: u64) {
    if !passes.is_empty() {
        counter!(names::FORWARD_PASSES, &[DRAFT]).increment(passes.len() as u64);
        counter!(names::FLOPS, &[DRAFT]).increment(passes.iter().map(|pass| pass.flops).sum());
    }
    if failures > 0 {
        counter!(names::DRAFT_FAILURES).increment(failures);
    }
}

pub(super) fn latency(latency: Latency, tokens: usize) {
    match latency {
        Latency::First(seconds) => histogram!(names::TIME_TO_FIRST_TOKEN).record(seconds),
        Latency::Between(seconds) => {
            histogram!(names::INTER_TOKEN_LATENCY).record_many(seconds, tokens);
        }
    }
}

pub(super) fn round(drafted: &[DraftToken], tokens: &[TokenOut], flops: RoundFlops) {
    if !drafted.is_empty() {
        counter!(names::DRAFTS).increment(1);
        counter!(names::DRAFT_TOKENS).increment(drafted.len() as u64);
        counter!(names::FLOPS_SAVED).increment(flops.saved);
        for (model, wasted) in [TARGET, DRAFT].into_iter().zip(flops.wasted) {
            counter!(names::FLOPS_WASTED, &[model]).increment(wasted);
        }
    }
    for token in drafted {
        let label = [("proposer", token.proposer.name())];
        counter!(names::PROPOSER_DRAFT_TOKENS, &label).increment(1);
    }
    counter!(names::GENERATED_TOKENS).increment(tokens.len() as u64);
    counter!(names::TARGET_PASSES_SAVED).increment((tokens.len() as u64).saturating_sub(1));
    for (place, token) in tokens.iter().enumerate() {
        let name = match token.source {
            TokenSource::Recovered => names::RECOVERED_TOKENS,
            // A sequence that does not speculate has nothing that could be rejected.
            TokenSource::Bonus | TokenSource::Target => names::BONUS_TOKENS,
            TokenSource::Accepted(proposer) => {
                let label = [("position", place.to_string())];
                counter!(names::ACCEPTED_PER_POSITION, &label).increment(1);
                let label = [("proposer", proposer.name())];
                counter!(names::PROPOSER_ACCEPTED_TOKENS, &label).increment(1);
                names::ACCEPTED_TOKENS
            }
        };
        counter!(name).increment(1);
    }
}
