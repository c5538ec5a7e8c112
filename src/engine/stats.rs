//! Raw counters of one sequence and of the whole engine. Ratios are the reader's business.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{TokenOut, TokenSource};
use crate::speculation::{ByProposer, DraftToken, Proposer};

/// Draft tokens of one proposer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    pub(super) fn add(&mut self, more: Self) {
        self.spent += more.spent;
        self.saved += more.saved;
    }
}

/// What rounds did, counted once for each and added up: for a sequence, or for an engine.
/// `accepted + recovered + bonus + target = generated`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoundCounts {
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
    pub proposers: ByProposer<ProposerCounts>,
    /// Tokens that did not need a pass of their own: every token of a round but one.
    pub target_passes_saved: u64,
}

impl RoundCounts {
    /// A round of the draft tokens `drafted` that sent `tokens`.
    pub(super) fn of(drafted: &[DraftToken], tokens: &[TokenOut]) -> Self {
        let mut counts = Self {
            generated_tokens: tokens.len() as u64,
            drafts: u64::from(!drafted.is_empty()),
            draft_tokens: drafted.len() as u64,
            drafted_per_position: vec![1; drafted.len()],
            target_passes_saved: (tokens.len() as u64).saturating_sub(1),
            ..Self::default()
        };
        for token in drafted {
            counts.proposers[token.proposer as usize].draft_tokens += 1;
        }
        for token in tokens {
            match token.source {
                TokenSource::Target => counts.target_tokens += 1,
                TokenSource::Recovered => counts.recovered_tokens += 1,
                TokenSource::Bonus => counts.bonus_tokens += 1,
                TokenSource::Accepted(proposer) => {
                    // Accepted tokens come first, so that their places have no gaps.
                    counts.accepted_tokens += 1;
                    counts.accepted_per_position.push(1);
                    counts.proposers[proposer as usize].accepted_tokens += 1;
                }
            }
        }
        counts
    }

    /// Adds other rounds.
    pub fn add(&mut self, more: &Self) {
        self.generated_tokens += more.generated_tokens;
        self.target_tokens += more.target_tokens;
        self.accepted_tokens += more.accepted_tokens;
        self.recovered_tokens += more.recovered_tokens;
        self.bonus_tokens += more.bonus_tokens;
        self.drafts += more.drafts;
        self.draft_tokens += more.draft_tokens;
        add_each(&mut self.accepted_per_position, &more.accepted_per_position);
        add_each(&mut self.drafted_per_position, &more.drafted_per_position);
        for (sum, more) in self.proposers.iter_mut().zip(&more.proposers) {
            sum.draft_tokens += more.draft_tokens;
            sum.accepted_tokens += more.accepted_tokens;
        }
        self.target_passes_saved += more.target_passes_saved;
    }

    /// Draft tokens of one proposer.
    #[must_use]
    pub fn proposer(&self, proposer: Proposer) -> ProposerCounts {
        self.proposers[proposer as usize]
    }
}

/// Adds counts place by place, growing the sums as needed.
fn add_each(sums: &mut Vec<u64>, more: &[u64]) {
    if sums.len() < more.len() {
        sums.resize(more.len(), 0);
    }
    sums.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
}

/// What one sequence took.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SequenceStats {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of the prompt that were in the cache already.
    pub cached_tokens: usize,
    /// Its rounds.
    pub rounds: RoundCounts,
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
    /// All reasons, in the order of their numbers.
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
pub(super) struct RoundFlops {
    /// Saved against drafting the same tokens with the full model.
    pub(super) saved: u64,
    /// Spent on draft tokens that were not sent: by the target and by the draft model.
    pub(super) wasted: [u64; 2],
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
    pub(super) fn record(&mut self, rows: usize, decode: bool, seconds: f64) {
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
}

/// Seconds that tokens took to generate, prompts left out.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct DecodeTime {
    /// As it was: in target and draft passes.
    pub seconds: f64,
    /// For the same tokens without speculation, by the costs of steps without draft tokens.
    pub without_speculation: f64,
}

impl DecodeTime {
    pub(super) fn add(&mut self, more: Self) {
        self.seconds += more.seconds;
        self.without_speculation += more.without_speculation;
    }

    /// Tokens per second over those without speculation; 1 before the first.
    #[must_use]
    pub fn speedup(&self) -> f64 {
        if self.seconds > 0.0 { self.without_speculation / self.seconds } else { 1.0 }
    }
}

/// What the engine did since it started.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EngineStats {
    /// Steps that ran something.
    pub steps: u64,
    /// Prompt tokens of the requests taken on.
    pub prompt_tokens: u64,
    /// Prompt tokens of the requests that ran, where prefixes are cached.
    pub prefix_cache_queries: u64,
    /// Those of them that were in the cache already.
    pub prefix_cache_hits: u64,
    /// The rounds of all sequences.
    pub rounds: RoundCounts,
    /// Time by proposer, in the order of [`Proposer::ALL`].
    pub proposer_seconds: ByProposer<ProposerSeconds>,
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
    /// Sequences preempted.
    pub preemptions: u64,
    /// Sequences or engines that went on without their draft model.
    pub draft_failures: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sums over rounds are what one count over all of them would be, and tokens add up by their source.
    #[test]
    fn rounds_add_up() {
        let token = |source| TokenOut { id: 7, source, logprob: None, top_logprobs: Vec::new() };
        let drafted = |count| vec![DraftToken::copied(7, Proposer::Ngram); count];
        let accepted = TokenSource::Accepted(Proposer::Ngram);
        let mut sum = RoundCounts::default();
        for (drafts, sources) in [
            (3, vec![accepted, accepted, TokenSource::Recovered]),
            (1, vec![accepted, TokenSource::Bonus]),
            (0, vec![TokenSource::Target]),
        ] {
            let tokens: Vec<TokenOut> = sources.into_iter().map(token).collect();
            sum.add(&RoundCounts::of(&drafted(drafts), &tokens));
        }
        assert_eq!((sum.generated_tokens, sum.target_tokens), (6, 1));
        assert_eq!((sum.accepted_tokens, sum.recovered_tokens, sum.bonus_tokens), (3, 1, 1));
        assert_eq!((sum.drafts, sum.draft_tokens, sum.target_passes_saved), (2, 4, 3));
        assert_eq!(
            (&*sum.accepted_per_position, &*sum.drafted_per_position),
            (&[2, 1][..], &[2, 1, 1][..])
        );
        let counts = ProposerCounts { draft_tokens: 4, accepted_tokens: 3 };
        assert_eq!(sum.proposer(Proposer::Ngram), counts);
    }
}
