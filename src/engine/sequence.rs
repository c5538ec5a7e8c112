//! One sequence in the engine: its tokens, its rules for ending and its own bookkeeping.

use std::sync::Arc;
use std::time::Instant;

use super::prompt_readout::PromptReadout;
use super::{EngineLimits, FinishReason, Readout, Request, SequenceStats, TokenOut, TokenSource};
use crate::grammar::{GrammarError, GrammarState};
use crate::model::{AdapterWeights, OutOfMemory, Verified, VerifyTask};
use crate::sampling::{
    Draws, History, LogitsError, Processor, SamplingParams, log_sum_exp, top_logprobs,
};
use crate::speculation::{
    DraftController, DraftToken, FinalToken, Proposers, SpeculationState, Verdict, rejection_sample,
};
use crate::text::StoppingText;

pub(super) struct Sequence {
    /// Prompt and generated tokens.
    pub(super) tokens: Vec<u32>,
    pub(super) params: SamplingParams,
    pub(super) history: History,
    pub(super) draws: Draws,
    /// Draft tokens per round at most; 0 if the sequence does not speculate.
    pub(super) speculate: usize,
    pub(super) speculation: SpeculationState,
    pub(super) stats: SequenceStats,
    pub(super) submitted: Instant,
    last_tokens: Option<Instant>,
    /// Number of tokens at which the sequence ends.
    end: usize,
    /// Tokens that end it: the model's own, unless they are ignored, then the request's.
    pub(super) ends: Vec<u32>,
    own_ends: usize,
    /// The text so far, where stop strings end it.
    stop: Option<StoppingText>,
    top_logprobs: Option<usize>,
    pub(super) grammar: Option<GrammarState>,
    pub(super) readout: PromptReadout,
    /// The adapter that its rows go through.
    pub(super) adapter: Option<Arc<AdapterWeights>>,
}

/// Why a sequence cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum RoundError {
    #[error(transparent)]
    Logits(#[from] LogitsError),
    #[error("the grammar cannot be followed any further: {0}")]
    Grammar(#[from] GrammarError),
    #[error("the server has no memory left for this request ({0}); it may be sent again later")]
    Memory(#[from] OutOfMemory),
    #[error("the engine met a bug in this request")]
    Bug,
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
    /// The target's probability of a bonus token, where it is known.
    pub(super) bonus_prob: Option<f32>,
    pub(super) finish: Option<FinishReason>,
}

impl Sequence {
    /// A sequence for a valid request that came at `submitted`; `seed` is used where the request has none.
    pub(super) fn new(
        request: Request,
        limits: &EngineLimits,
        eos_token_ids: &[u32],
        ngram: bool,
        drafting: &DraftController,
        seed: u64,
        submitted: Instant,
    ) -> Self {
        let max_speculative = limits.num_speculative_tokens;
        let mut params = request.params;
        let mut ends = if request.ignore_eos { Vec::new() } else { eos_token_ids.to_vec() };
        let own_ends = ends.len();
        ends.extend(&*request.stop_token_ids);
        params.restrictions.ends = ends.as_slice().into();
        let history =
            if params.uses_history() { History::new(&request.prompt) } else { History::default() };
        let prompt_tokens = request.prompt.len();
        let Proposers { draft_model, ngram: wanted } = request.proposers;
        let proposers = Proposers { draft_model, ngram: ngram && wanted };
        Self {
            history,
            // A seeded request must give the same output with and without speculation, so its draws are coupled,
            // of which fewer draft tokens stand.
            draws: params.seed.map_or(Draws::new(seed), Draws::coupled),
            speculate: match request.readout {
                Readout::Embedding => 0,
                _ => request.num_speculative_tokens.unwrap_or(usize::MAX).min(max_speculative),
            },
            speculation: drafting.new_sequence(prompt_tokens, proposers, request.prediction),
            stats: SequenceStats { prompt_tokens, ..Default::default() },
            submitted,
            last_tokens: None,
            end: prompt_tokens.saturating_add(request.max_tokens).min(limits.max_model_len),
            readout: PromptReadout::new(request.readout, &request.prompt),
            tokens: request.prompt,
            params,
            ends,
            own_ends,
            stop: request.stop,
            adapter: request.adapter,
            top_logprobs: request.top_logprobs,
            grammar: request.grammar.map(|grammar| grammar.start()),
        }
    }

    /// Tokens the sequence can still get.
    pub(super) fn tokens_left(&self) -> usize {
        self.end - self.tokens.len()
    }

    /// Draft tokens a round may use at most: the last token is never a draft's.
    pub(super) fn draft_bound(&self) -> usize {
        self.speculate.min(self.tokens_left() - 1)
    }

    /// Verifies a round and appends its tokens up to the first that ends the sequence. `logits` has
    /// shape `[draft.len() + 1, vocab_size]`: what follows the last token and each draft token.
    pub(super) fn verify_logits(
        &mut self,
        draft: &[DraftToken],
        logits: &[f32],
        processor: &mut Processor,
    ) -> Result<Round, RoundError> {
        let vocab_size = logits.len() / (draft.len() + 1);
        let row = |index: usize| &logits[index * vocab_size..(index + 1) * vocab_size];
        let (params, history, grammar) = (&self.params, &mut self.history, &mut self.grammar);
        let (draws, position) = (self.draws, self.tokens.len());
        let mut masked = Vec::new();
        let mut pushed = 0;
        let verdict = rejection_sample(draft, &draws, position, |index| {
            // Row `index` follows `index` draft tokens, and penalties count them.
            while params.uses_history() && pushed < index {
                history.push(draft[pushed].id);
                pushed += 1;
            }
            let logits = match grammar {
                Some(grammar) => grammar.masked(index, row(index), None, &mut masked)?,
                None => row(index),
            };
            let exclude = params.excludes_top(&draws, position + index);
            Ok::<_, RoundError>(processor.distribution(logits, None, params, history, exclude)?)
        });
        draft[..pushed].iter().for_each(|token| history.pop(token.id));
        self.take(draft, verdict?, |sequence, index, id| sequence.logprobs_of(id, row(index)))
    }

    /// Whether a model that verifies itself can decide this sequence's rounds: it knows what is common of sampling, and
    /// tells log-probabilities of the tokens that come out, and of no others.
    pub(super) fn may_be_decided(&self) -> bool {
        self.top_logprobs.unwrap_or(0) == 0
            && !self.readout.wants_logits()
            && !self.params.is_uncommon()
    }

    /// The round for a model to decide, with logits from `first_logit` on; the grammar's masks are computed.
    pub(super) fn verify_task<'a>(
        &'a self,
        draft: &'a [DraftToken],
        first_logit: usize,
    ) -> VerifyTask<'a> {
        let masks = self.grammar.iter().flat_map(GrammarState::masks);
        VerifyTask {
            first_logit,
            draft: draft.iter().map(|token| (token.id, &token.draft_probs)).collect(),
            params: &self.params,
            draws: self.draws,
            position: self.tokens.len(),
            history: &self.history,
            masks: masks.take(draft.len() + 1).collect(),
        }
    }

    /// Takes in a round that the model decided, as [`verify_logits`](Self::verify_logits) does.
    pub(super) fn apply_verdict(
        &mut self,
        draft: &[DraftToken],
        outcome: Result<Verified, LogitsError>,
    ) -> Result<Round, RoundError> {
        let Verified { accepted, last, logprobs } = outcome?;
        let stands = accepted == draft.len();
        let last = if stands { FinalToken::Bonus(last) } else { FinalToken::Recovered(last) };
        let verdict = Verdict { accepted, last, bonus_prob: None };
        self.take(draft, verdict, |sequence, index, _| {
            sequence.top_logprobs.map(|_| (logprobs[index], Vec::new()))
        })
    }

    /// Appends the tokens of a round up to the first that ends the sequence; `logprobs` gives the
    /// log-probability of the token at a place of the round and those of the likeliest there, where they are wanted.
    fn take(
        &mut self,
        draft: &[DraftToken],
        verdict: Verdict,
        logprobs: impl Fn(&Self, usize, u32) -> Option<(f32, Vec<(u32, f32)>)>,
    ) -> Result<Round, RoundError> {
        let (last, source) = match verdict.last {
            FinalToken::Recovered(id) => (id, TokenSource::Recovered),
            FinalToken::Bonus(id) if self.speculate > 0 => (id, TokenSource::Bonus),
            FinalToken::Bonus(id) => (id, TokenSource::Target),
        };
        let accepted = draft[..verdict.accepted].iter();
        let accepted = accepted.map(|t| (t.id, TokenSource::Accepted(t.proposer)));
        // Nothing follows draft tokens that complete the grammar.
        let complete = |g: &GrammarState| g.drafted() == verdict.accepted && g.is_complete();
        let complete = verdict.accepted > 0 && self.grammar.as_ref().is_some_and(complete);
        let last_token = (!complete).then_some((last, source));
        let mut round = Round {
            tokens: Vec::new(),
            accepted: verdict.accepted,
            bonus_prob: verdict.bonus_prob,
            finish: None,
        };
        for (index, (id, source)) in accepted.chain(last_token).enumerate() {
            let (logprob, top_logprobs) = logprobs(self, index, id).unzip();
            let top_logprobs = top_logprobs.unwrap_or_default();
            round.tokens.push(TokenOut { id, source, logprob, top_logprobs });
            self.append(id);
            round.finish = self.finish_at(id);
            if round.finish.is_some() {
                break;
            }
        }
        if round.finish.is_none() && complete {
            round.finish = Some(FinishReason::Grammar);
        } else if round.finish.is_none()
            && let Some(grammar) = &mut self.grammar
        {
            grammar.commit(verdict.accepted, last)?;
            round.finish = grammar.is_complete().then_some(FinishReason::Grammar);
        }
        Ok(round)
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

    fn append(&mut self, id: u32) {
        self.tokens.push(id);
        if self.params.uses_history() {
            self.history.push(id);
        }
    }

    /// Whether the sequence ends with its last token, `id`.
    fn finish_at(&mut self, id: u32) -> Option<FinishReason> {
        match self.ends.iter().position(|&end| end == id) {
            Some(place) if place < self.own_ends => return Some(FinishReason::Eos),
            Some(_) => return Some(FinishReason::StopToken(id)),
            None => {}
        }
        if self.stop.as_mut().is_some_and(|text| text.push(id).1.is_some()) {
            return Some(FinishReason::StopString);
        }
        (self.tokens_left() == 0).then_some(FinishReason::Length)
    }

    /// Log-probability of a token and those of the likeliest, where they are wanted.
    fn logprobs_of(&self, id: u32, logits: &[f32]) -> Option<(f32, Vec<(u32, f32)>)> {
        let count = self.top_logprobs?;
        let normaliser = log_sum_exp(logits);
        Some((logits[id as usize] - normaliser, top_logprobs(logits, normaliser, count)))
    }
}
