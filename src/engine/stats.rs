//! Raw counters of one sequence and of the whole engine. Ratios are the reader's business.

use std::collections::BTreeMap;

use super::{DecodeTime, TokenOut, TokenSource};
use crate::spec::{DraftToken, Proposer};

/// Draft tokens of one proposer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProposerCounts {
    /// Draft tokens verified.
    pub draft_tokens: u64,
    /// Draft tokens accepted and sent.
    pub accepted_tokens: u64,
}

/// What drafting by one proposer took and gave, by the measured costs of passes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct ProposerSeconds {
    /// Seconds spent: the draft passes, and the rows that verified the draft tokens.
    pub spent: f64,
    /// Seconds that generating the accepted tokens would have taken without them.
    pub saved: f64,
}

impl ProposerSeconds {
    pub(crate) fn add(&mut self, more: Self) {
        self.spent += more.spent;
        self.saved += more.saved;
    }
}

/// What one sequence took.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SequenceStats {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of the prompt that were in the cache already.
    pub cached_tokens: usize,
    /// Tokens sent.
    pub generated_tokens: usize,
    /// Rounds with at least one draft token.
    pub drafts: u64,
    /// Draft tokens verified.
    pub draft_tokens: u64,
    /// Draft tokens accepted and sent.
    pub accepted_tokens: u64,
    /// Accepted draft tokens by place in their round.
    pub accepted_per_position: Vec<u64>,
    /// Verified draft tokens by place in their round.
    pub drafted_per_position: Vec<u64>,
    /// Draft tokens by proposer, in the order of [`Proposer::ALL`].
    pub proposers: [ProposerCounts; 3],
    /// Tokens drawn after a rejection.
    pub recovered_tokens: u64,
    /// Tokens drawn after full acceptance, rounds without draft tokens included.
    pub bonus_tokens: u64,
    /// Forward passes of the target this sequence took part in.
    pub target_passes: u64,
    /// Forward passes of the draft model this sequence took part in.
    pub draft_passes: u64,
    /// Times the sequence lost its cache to others and was computed anew.
    pub preemptions: u64,
    /// Seconds from submission to the first step that ran it.
    pub queue_seconds: f64,
    /// Seconds from submission to the first token.
    pub first_token_seconds: f64,
    /// Seconds from submission to the end.
    pub total_seconds: f64,
}

impl SequenceStats {
    /// Draft tokens of one proposer.
    #[must_use]
    pub fn proposer(&self, proposer: Proposer) -> ProposerCounts {
        self.proposers[proposer as usize]
    }
}

/// Why a round had no draft tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoDraft {
    /// The request or the server asked for no speculation.
    Disabled,
    /// The round completed a prompt.
    Prefill,
    /// Only one token was left to generate, which is never a draft's.
    LastToken,
    /// The batch or the K/V cache was full.
    NoRoom,
    /// There is no draft model, and nothing to copy was worth its price.
    NoMatch,
    /// No proposer promised more than it would cost.
    Unprofitable,
}

impl NoDraft {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 6] = [
        Self::Disabled,
        Self::Prefill,
        Self::LastToken,
        Self::NoRoom,
        Self::NoMatch,
        Self::Unprofitable,
    ];

    /// Its name in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        ["disabled", "prefill", "last_token", "no_room", "no_match", "unprofitable"][self as usize]
    }
}

/// Floating-point operations of one round's draft tokens.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct RoundFlops {
    /// Saved against drafting the same tokens with the full model.
    pub(crate) saved: u64,
    /// Spent on draft tokens that were not sent: by the target and by the draft model.
    pub(crate) wasted: [u64; 2],
}

/// Passes of one model with a certain number of rows.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PassCost {
    /// Number of passes.
    pub passes: u64,
    /// Seconds they took together.
    pub seconds: f64,
}

/// Passes by their number of rows. Passes over prompt chunks are kept apart, since their attention
/// costs differ.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PassCosts {
    /// Passes in which every sequence was decoding: rows → passes.
    pub decode: BTreeMap<usize, PassCost>,
    /// All other passes.
    pub prefill: PassCost,
    /// Rows of all passes.
    pub rows: u64,
}

impl PassCosts {
    pub(crate) fn record(&mut self, rows: usize, decode: bool, seconds: f64) {
        let cost = if decode { self.decode.entry(rows).or_default() } else { &mut self.prefill };
        cost.passes += 1;
        cost.seconds += seconds;
        self.rows += rows as u64;
    }

    /// All passes.
    #[must_use]
    pub fn passes(&self) -> u64 {
        self.decode.values().map(|cost| cost.passes).sum::<u64>() + self.prefill.passes
    }

    /// Seconds of all passes.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.decode.values().map(|cost| cost.seconds).sum::<f64>() + self.prefill.seconds
    }

    /// Mean seconds of a decoding pass with `rows` rows, if there was one.
    #[must_use]
    pub fn mean_seconds(&self, rows: usize) -> Option<f64> {
        let cost = self.decode.get(&rows)?;
        Some(cost.seconds / cost.passes as f64)
    }
}

/// What the engine did since it started. `accepted + recovered + bonus + target = generated`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EngineStats {
    /// Steps that ran something.
    pub steps: u64,
    /// Prompt tokens of the requests taken on.
    pub prompt_tokens: u64,
    /// Prompt tokens of the requests that ran, where prefixes are cached.
    pub prefix_cache_queries: u64,
    /// Those that were in the cache already.
    pub prefix_cache_hits: u64,
    /// Tokens sent.
    pub generated_tokens: u64,
    /// Tokens of sequences that do not speculate.
    pub target_tokens: u64,
    /// Draft tokens accepted and sent.
    pub accepted_tokens: u64,
    /// Tokens drawn after a rejection.
    pub recovered_tokens: u64,
    /// Tokens drawn after full acceptance, rounds without draft tokens included.
    pub bonus_tokens: u64,
    /// Rounds with at least one draft token.
    pub drafts: u64,
    /// Draft tokens verified.
    pub draft_tokens: u64,
    /// Accepted draft tokens by place in their round.
    pub accepted_per_position: Vec<u64>,
    /// Verified draft tokens by place in their round.
    pub drafted_per_position: Vec<u64>,
    /// Draft tokens by proposer, in the order of [`Proposer::ALL`].
    pub proposers: [ProposerCounts; 3],
    /// Time by proposer, in the order of [`Proposer::ALL`].
    pub proposer_seconds: [ProposerSeconds; 3],
    /// Forward passes of the target.
    pub target: PassCosts,
    /// Forward passes of the draft model.
    pub draft: PassCosts,
    /// Floating-point operations of the target.
    pub target_flops: u64,
    /// Floating-point operations of the draft model.
    pub draft_flops: u64,
    /// Operations saved against drafting the same tokens with the full model.
    pub flops_saved: u64,
    /// Operations spent on draft tokens that were not sent: by the target and by the draft model.
    pub flops_wasted: [u64; 2],
    /// Rounds without draft tokens, by reason in the order of [`NoDraft::ALL`].
    pub rounds_without_drafts: [u64; 6],
    /// Time of generating tokens, with speculation and, by estimate, without.
    pub decode_time: DecodeTime,
    /// Tokens that did not need a pass of their own: every token of a round but one.
    pub target_passes_saved: u64,
    /// Sequences preempted.
    pub preemptions: u64,
    /// Sequences or engines that went on without their draft model.
    pub draft_failures: u64,
}

impl EngineStats {
    /// Counts a round of the draft tokens `drafted` that sent `tokens`.
    pub(crate) fn record_round(
        &mut self,
        drafted: &[DraftToken],
        tokens: &[TokenOut],
        flops: RoundFlops,
    ) {
        self.drafts += u64::from(!drafted.is_empty());
        self.draft_tokens += drafted.len() as u64;
        for (place, token) in drafted.iter().enumerate() {
            add_at(&mut self.drafted_per_position, place, 1);
            self.proposers[token.proposer as usize].draft_tokens += 1;
        }
        self.flops_saved += flops.saved;
        self.flops_wasted.iter_mut().zip(flops.wasted).for_each(|(sum, more)| *sum += more);
        self.generated_tokens += tokens.len() as u64;
        self.target_passes_saved += (tokens.len() as u64).saturating_sub(1);
        for (place, token) in tokens.iter().enumerate() {
            match token.source {
                TokenSource::Target => self.target_tokens += 1,
                TokenSource::Recovered => self.recovered_tokens += 1,
                TokenSource::Bonus => self.bonus_tokens += 1,
                TokenSource::Accepted(proposer) => {
                    self.accepted_tokens += 1;
                    add_at(&mut self.accepted_per_position, place, 1);
                    self.proposers[proposer as usize].accepted_tokens += 1;
                }
            }
        }
    }
}

/// Adds `count` at `index`, growing the vector as needed.
pub(crate) fn add_at(counts: &mut Vec<u64>, index: usize, count: u64) {
    if counts.len() <= index {
        counts.resize(index + 1, 0);
    }
    counts[index] += count;
}
