//! One sequence in the engine: its tokens, its rules for ending and its own bookkeeping.

use std::time::Instant;

use super::stats::add_at;
use super::{FinishReason, Request, SequenceStats, TokenOut, TokenSource};
use crate::grammar::{GrammarError, GrammarState};
use crate::sampling::{
    Draws, History, LogitsError, Processor, SamplingParams, log_sum_exp, top_logprobs,
};
use crate::spec::{DraftLength, DraftToken, FinalToken, ProposerState, rejection_sample};

pub(super) struct Sequence {
    /// Prompt and generated tokens.
    pub(super) tokens: Vec<u32>,
    pub(super) params: SamplingParams,
    pub(super) history: History,
    pub(super) draws: Draws,
    /// Draft tokens per round at most; 0 if the sequence does not speculate.
    pub(super) speculate: usize,
    pub(super) proposer: ProposerState,
    pub(super) length: DraftLength,
    pub(super) stats: SequenceStats,
    pub(super) submitted: Instant,
    last_tokens: Option<Instant>,
    /// Number of tokens at which the sequence ends.
    end: usize,
    stop_token_ids: Vec<u32>,
    ignore_eos: bool,
    top_logprobs: Option<usize>,
    pub(super) grammar: Option<GrammarState>,
}

/// Why a sequence cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum RoundError {
    #[error(transparent)]
    Logits(#[from] LogitsError),
    #[error("the grammar cannot be followed any further: {0}")]
    Grammar(#[from] GrammarError),
}

/// Seconds a sequence's reader waited.
#[derive(Debug, Clone, Copy)]
pub(super) enum Latency {
    /// For the first tokens, since submission.
    First(f64),
    /// For each of the latest tokens, which share the time since the ones before.
    Between(f64),
}

/// What a round did to a sequence.
pub(super) struct Round {
    pub(super) tokens: Vec<TokenOut>,
    /// Draft tokens that stand, cut ones included.
    pub(super) accepted: usize,
    pub(super) finish: Option<FinishReason>,
}

impl Sequence {
    /// A sequence for a valid request; `seed` is used where the request has none.
    pub(super) fn new(
        request: Request,
        max_model_len: usize,
        max_speculative: usize,
        seed: u64,
    ) -> Self {
        let params = request.params;
        let history =
            if params.uses_history() { History::new(&request.prompt) } else { History::default() };
        let prompt_tokens = request.prompt.len();
        Self {
            history,
            // A seed is a promise of the same output, so it pays the price of coupling.
            draws: params.seed.map_or(Draws::new(seed), Draws::coupled),
            speculate: request
                .num_speculative_tokens
                .map_or(max_speculative, |n| n.min(max_speculative)),
            proposer: ProposerState::default(),
            length: DraftLength::default(),
            stats: SequenceStats { prompt_tokens, ..Default::default() },
            submitted: Instant::now(),
            last_tokens: None,
            end: prompt_tokens.saturating_add(request.max_tokens).min(max_model_len),
            tokens: request.prompt,
            params,
            stop_token_ids: request.stop_token_ids,
            ignore_eos: request.ignore_eos,
            top_logprobs: request.top_logprobs,
            grammar: request.grammar.map(|grammar| grammar.start()),
        }
    }

    /// Draft tokens a round may use at most: the last token is never a draft's.
    pub(super) fn draft_bound(&self) -> usize {
        if self.proposer.failed { 0 } else { self.speculate.min(self.end - self.tokens.len() - 1) }
    }

    /// Verifies a round and appends its tokens up to the first that ends the sequence. `logits` has
    /// shape `[draft.len() + 1, vocab_size]`: what follows the last token and each draft token.
    pub(super) fn verify(
        &mut self,
        draft: &[DraftToken],
        logits: &[f32],
        eos_token_ids: &[u32],
        processor: &mut Processor,
    ) -> Result<Round, RoundError> {
        let vocab_size = logits.len() / (draft.len() + 1);
        let row = |index: usize| &logits[index * vocab_size..(index + 1) * vocab_size];
        let (params, history, grammar) = (&self.params, &mut self.history, &mut self.grammar);
        let mut masked = Vec::new();
        let mut pushed = 0;
        let verdict = rejection_sample(draft, &self.draws, self.tokens.len(), |index| {
            // Row `index` follows `index` draft tokens, and penalties count them.
            while params.uses_history() && pushed < index {
                history.push(draft[pushed].id);
                pushed += 1;
            }
            let logits = match grammar {
                Some(grammar) => grammar.masked(index, row(index), None, &mut masked)?,
                None => row(index),
            };
            Ok::<_, RoundError>(processor.distribution(logits, None, params, history)?)
        });
        draft[..pushed].iter().for_each(|token| history.pop(token.id));
        let verdict = verdict?;

        self.observe_drafts(draft.len());
        let (last, source) = match verdict.last {
            FinalToken::Recovered(id) => (id, TokenSource::Recovered),
            FinalToken::Bonus(id) if self.speculate > 0 => (id, TokenSource::Bonus),
            FinalToken::Bonus(id) => (id, TokenSource::Target),
        };
        let accepted = draft[..verdict.accepted].iter().map(|t| (t.id, TokenSource::Accepted));
        let mut round = Round { tokens: Vec::new(), accepted: verdict.accepted, finish: None };
        for (index, (id, source)) in accepted.chain([(last, source)]).enumerate() {
            round.tokens.push(self.token_out(id, source, row(index)));
            self.append(id, source, index);
            round.finish = self.finish_at(id, eos_token_ids);
            if round.finish.is_some() {
                break;
            }
        }
        if round.finish.is_none()
            && let Some(grammar) = &mut self.grammar
        {
            grammar.commit(verdict.accepted, last)?;
            round.finish = grammar.is_complete().then_some(FinishReason::Grammar);
        }
        Ok(round)
    }

    /// Follows the draft tokens in the grammar and cuts them at the first it refuses. Tokens that
    /// were drawn under its mask are followed already; only copied ones can be refused, and a copied
    /// token that has no probability is lost without a trace.
    pub(super) fn cut_draft(&mut self, draft: &mut Vec<DraftToken>) {
        let Some(grammar) = &mut self.grammar else { return };
        while let Some(token) = draft.get(grammar.drafted()) {
            if !grammar.draft(token.id) {
                draft.truncate(grammar.drafted());
            }
        }
    }

    /// Notes that `count` tokens are about to be sent.
    pub(super) fn tokens_sent(&mut self, count: usize) -> Latency {
        let now = Instant::now();
        match self.last_tokens.replace(now) {
            None => {
                self.stats.first_token_seconds = (now - self.submitted).as_secs_f64();
                Latency::First(self.stats.first_token_seconds)
            }
            Some(last) => Latency::Between((now - last).as_secs_f64() / count as f64),
        }
    }

    fn observe_drafts(&mut self, drafted: usize) {
        if drafted > 0 {
            self.stats.drafts += 1;
            self.stats.draft_tokens += drafted as u64;
            (0..drafted).for_each(|place| add_at(&mut self.stats.drafted_per_position, place, 1));
        }
    }

    fn append(&mut self, id: u32, source: TokenSource, place: usize) {
        self.tokens.push(id);
        if self.params.uses_history() {
            self.history.push(id);
        }
        let stats = &mut self.stats;
        stats.generated_tokens += 1;
        match source {
            TokenSource::Target => {}
            TokenSource::Recovered => stats.recovered_tokens += 1,
            TokenSource::Bonus => stats.bonus_tokens += 1,
            TokenSource::Accepted => {
                stats.accepted_tokens += 1;
                add_at(&mut stats.accepted_per_position, place, 1);
            }
        }
    }

    fn finish_at(&self, id: u32, eos_token_ids: &[u32]) -> Option<FinishReason> {
        if !self.ignore_eos && eos_token_ids.contains(&id) {
            Some(FinishReason::Eos)
        } else if self.stop_token_ids.contains(&id) {
            Some(FinishReason::StopToken(id))
        } else if self.tokens.len() >= self.end {
            Some(FinishReason::Length)
        } else {
            None
        }
    }

    fn token_out(&self, id: u32, source: TokenSource, logits: &[f32]) -> TokenOut {
        let Some(count) = self.top_logprobs else {
            return TokenOut { id, source, logprob: None, top_logprobs: Vec::new() };
        };
        let normaliser = log_sum_exp(logits);
        TokenOut {
            id,
            source,
            logprob: Some(logits[id as usize] - normaliser),
            top_logprobs: top_logprobs(logits, normaliser, count),
        }
    }
}
