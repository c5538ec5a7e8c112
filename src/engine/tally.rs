//! Counts what the engine does: everything once, in the engine's own statistics and in its model's metrics.

use std::sync::Arc;

use metrics::{Counter, Gauge, Histogram, SharedString, counter, gauge, histogram};

use super::scheduler::Scheduler;
use super::sequence::Latency;
use super::stats::RoundFlops;
use super::{
    DecodeTime, EngineStats, FinishReason, NoDraft, Outcome, ProposerSeconds, RoundCounts,
    SequenceStats,
};
use crate::metrics as names;
use crate::speculation::{ByProposer, DraftReport, Proposer};

const TARGET: (&str, &str) = ("role", "target");
const DRAFT: (&str, &str) = ("role", "draft");

/// The statistics of an engine; what is added to them is added to the metrics of its model too.
pub(super) struct Tally {
    stats: EngineStats,
    model: Arc<str>,
}

/// A pass of the target.
pub(super) struct TargetPass {
    pub(super) rows: usize,
    /// Whether every sequence was decoding.
    pub(super) decode: bool,
    pub(super) seconds: f64,
    pub(super) flops: u64,
}

impl Tally {
    /// Counts what the engine of this model does.
    pub(super) fn new(model: Arc<str>) -> Self {
        Self { stats: EngineStats::default(), model }
    }

    fn counter(&self, name: &'static str) -> Counter {
        counter!(name, "model" => Arc::clone(&self.model))
    }

    fn counter_of(
        &self,
        name: &'static str,
        (label, value): (&'static str, impl Into<SharedString>),
    ) -> Counter {
        counter!(name, "model" => Arc::clone(&self.model), label => value)
    }

    fn histogram(&self, name: &'static str) -> Histogram {
        histogram!(name, "model" => Arc::clone(&self.model))
    }

    fn histogram_by_proposer(&self, name: &'static str, proposer: Proposer) -> Histogram {
        histogram!(name, "model" => Arc::clone(&self.model), "proposer" => proposer.name())
    }

    fn gauge(&self, name: &'static str) -> Gauge {
        gauge!(name, "model" => Arc::clone(&self.model))
    }

    pub(super) fn stats(&self) -> &EngineStats {
        &self.stats
    }

    /// A request with a prompt of `tokens` was taken on.
    pub(super) fn submitted(&mut self, tokens: usize) {
        self.stats.prompt_tokens += tokens as u64;
        self.counter(names::PROMPT_TOKENS).increment(tokens as u64);
    }

    /// A sequence ran for the first time, after `seconds`.
    pub(super) fn queued(&self, seconds: f64) {
        self.histogram(names::QUEUE_TIME).record(seconds);
    }

    /// Of a prompt of `queried` tokens, `hit` were in the cache.
    pub(super) fn prefix_cache(&mut self, queried: usize, hit: usize) {
        self.stats.prefix_cache_queries += queried as u64;
        self.stats.prefix_cache_hits += hit as u64;
        self.counter(names::PREFIX_CACHE_QUERIES).increment(queried as u64);
        self.counter(names::PREFIX_CACHE_HITS).increment(hit as u64);
    }

    /// A sequence lost its blocks to an older one.
    pub(super) fn preempted(&mut self) {
        self.stats.preemptions += 1;
        self.counter(names::PREEMPTIONS).increment(1);
    }

    /// How full the engine is.
    pub(super) fn occupancy(&self, scheduler: &Scheduler) {
        self.gauge(names::RUNNING_SEQUENCES).set(scheduler.num_running() as f64);
        self.gauge(names::WAITING_SEQUENCES).set(scheduler.num_waiting() as f64);
        self.gauge(names::KV_CACHE_USED_BLOCKS).set(scheduler.pool().num_used() as f64);
        self.gauge(names::KV_CACHE_BLOCKS).set(scheduler.pool().num_blocks() as f64);
    }

    /// What the draft model did in one step.
    pub(super) fn drafted(&mut self, report: &DraftReport) {
        let DraftReport { passes, failures } = report;
        if !passes.is_empty() {
            let flops = passes.iter().map(|pass| pass.flops).sum();
            self.stats.draft_flops += flops;
            self.counter_of(names::FORWARD_PASSES, DRAFT).increment(passes.len() as u64);
            self.counter_of(names::FLOPS, DRAFT).increment(flops);
        }
        for pass in passes {
            self.stats.draft.record(pass.rows, pass.decode, pass.seconds);
        }
        if *failures > 0 {
            self.stats.draft_failures += failures;
            self.counter(names::DRAFT_FAILURES).increment(*failures);
        }
    }

    pub(super) fn target_pass(&mut self, pass: &TargetPass) {
        self.stats.target.record(pass.rows, pass.decode, pass.seconds);
        self.stats.target_flops += pass.flops;
        self.counter_of(names::FORWARD_PASSES, TARGET).increment(1);
        self.counter_of(names::FLOPS, TARGET).increment(pass.flops);
    }

    /// How long the reader of a round's `tokens` waited.
    pub(super) fn latency(&self, latency: Latency, tokens: usize) {
        match latency {
            Latency::First(seconds) => self.histogram(names::TIME_TO_FIRST_TOKEN).record(seconds),
            Latency::Between(seconds) => {
                self.histogram(names::INTER_TOKEN_LATENCY).record_many(seconds, tokens);
            }
        }
    }

    /// A round of one sequence.
    pub(super) fn round(&mut self, counts: &RoundCounts, flops: RoundFlops) {
        self.stats.rounds.add(counts);
        self.stats.flops_saved += flops.saved;
        let wasted = self.stats.flops_wasted.iter_mut().zip(flops.wasted);
        wasted.for_each(|(sum, more)| *sum += more);
        self.counter(names::GENERATED_TOKENS).increment(counts.generated_tokens);
        self.counter(names::TARGET_PASSES_SAVED).increment(counts.target_passes_saved);
        self.counter(names::RECOVERED_TOKENS).increment(counts.recovered_tokens);
        // A sequence that does not speculate has nothing that could be rejected.
        self.counter(names::BONUS_TOKENS).increment(counts.bonus_tokens + counts.target_tokens);
        if counts.drafts == 0 {
            return;
        }
        self.counter(names::DRAFTS).increment(counts.drafts);
        self.counter(names::DRAFT_TOKENS).increment(counts.draft_tokens);
        self.counter(names::ACCEPTED_TOKENS).increment(counts.accepted_tokens);
        for (place, accepted) in counts.accepted_per_position.iter().enumerate() {
            let label = ("position", place.to_string());
            self.counter_of(names::ACCEPTED_PER_POSITION, label).increment(*accepted);
        }
        for (proposer, counts) in Proposer::ALL.into_iter().zip(&counts.proposers) {
            let label = ("proposer", proposer.name());
            let drafted = self.counter_of(names::PROPOSER_DRAFT_TOKENS, label);
            drafted.increment(counts.draft_tokens);
            let accepted = self.counter_of(names::PROPOSER_ACCEPTED_TOKENS, label);
            accepted.increment(counts.accepted_tokens);
        }
        self.counter(names::FLOPS_SAVED).increment(flops.saved);
        for (role, wasted) in [TARGET, DRAFT].into_iter().zip(flops.wasted) {
            self.counter_of(names::FLOPS_WASTED, role).increment(wasted);
        }
    }

    /// Why a round had no draft tokens.
    pub(super) fn no_draft(&mut self, reason: NoDraft) {
        self.stats.rounds_without_drafts[reason as usize] += 1;
        self.counter_of(names::ROUNDS_WITHOUT_DRAFTS, ("reason", reason.name())).increment(1);
    }

    /// A step is over.
    pub(super) fn stepped(&mut self) {
        self.stats.steps += 1;
    }

    /// What generating the tokens of a step took.
    pub(super) fn decode_time(&mut self, time: DecodeTime) {
        self.stats.decode_time.add(time);
        self.histogram(names::DECODE_STEP).record(time.seconds);
        self.histogram(names::DECODE_STEP_WITHOUT).record(time.without_speculation);
    }

    /// What drafting took and gave in a step, by proposer.
    pub(super) fn proposer_seconds(&mut self, seconds: ByProposer<ProposerSeconds>) {
        let sums = self.stats.proposer_seconds.iter_mut();
        sums.zip(seconds).for_each(|(sum, time)| sum.add(time));
        for (proposer, time) in Proposer::ALL.into_iter().zip(seconds) {
            if time.spent > 0.0 {
                self.histogram_by_proposer(names::PROPOSER_SPENT, proposer).record(time.spent);
                self.histogram_by_proposer(names::PROPOSER_SAVED, proposer).record(time.saved);
            }
        }
    }

    /// A sequence ended.
    pub(super) fn finished(&self, reason: &FinishReason, stats: &SequenceStats) {
        self.counter_of(names::REQUESTS_FINISHED, ("reason", reason.name())).increment(1);
        self.histogram(names::REQUEST_DURATION).record(stats.total_seconds);
        self.histogram(names::REQUEST_PROMPT_TOKENS).record(stats.prompt_tokens as f64);
        let generated = stats.rounds.generated_tokens as f64;
        self.histogram(names::REQUEST_GENERATED_TOKENS).record(generated);
    }

    /// A sequence was dropped.
    pub(super) fn cancelled(&self) {
        self.counter_of(names::REQUESTS_FINISHED, ("reason", "cancelled")).increment(1);
    }

    /// Two drafts read `tokens`, of which each held so many likeliest.
    pub(super) fn compared(&self, tokens: usize, candidate: u64, current: Option<u64>) {
        self.counter(names::COMPARED_TOKENS).increment(tokens as u64);
        self.counter_of(names::COMPARED_ACCEPTED_TOKENS, ("draft", "candidate"))
            .increment(candidate);
        self.counter_of(names::COMPARED_ACCEPTED_TOKENS, ("draft", "current"))
            .increment(current.unwrap_or_default());
    }

    /// A comparison of drafts ended.
    pub(super) fn comparison_ended(&self, outcome: Outcome) {
        self.counter_of(names::COMPARISONS, ("outcome", outcome.name())).increment(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the table of metrics says of labels holds.
    #[test]
    fn labels_have_the_values_of_the_table() {
        let values = |name: &str| -> Vec<&str> {
            let metric = names::ALL.iter().find(|metric| metric.name == name);
            metric
                .and_then(|metric| metric.labels.last())
                .expect("the table has it")
                .values
                .to_vec()
        };
        assert_eq!(values(names::PROPOSER_DRAFT_TOKENS), Proposer::ALL.map(Proposer::name));
        assert_eq!(values(names::ROUNDS_WITHOUT_DRAFTS), NoDraft::ALL.map(NoDraft::name));
        assert_eq!(values(names::COMPARISONS), Outcome::ALL.map(Outcome::name));
        assert_eq!(values(names::FORWARD_PASSES), [TARGET.1, DRAFT.1]);
        let reasons = values(names::REQUESTS_FINISHED);
        for reason in [
            FinishReason::Eos,
            FinishReason::StopToken(0),
            FinishReason::StopString,
            FinishReason::Grammar,
            FinishReason::Length,
            FinishReason::Overdue,
            FinishReason::GrammarError(String::new()),
            FinishReason::Error(String::new()),
        ] {
            assert!(reasons.contains(&reason.name()), "{}", reason.name());
        }
    }
}
