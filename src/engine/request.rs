//! What goes into the engine and what comes out of it.

use std::sync::Arc;

use super::{EngineLimits, PromptToken, SequenceStats, TokenOut};
use crate::grammar::Grammar;
use crate::kv_cache::CacheSalt;
use crate::model::AdapterWeights;
use crate::sampling::{ParamError, SamplingParams};
use crate::speculation::Proposers;
use crate::text::StoppingText;

/// Most alternatives a request may ask log-probabilities for.
pub const MAX_TOP_LOGPROBS: usize = 20;

/// Identifies a request within one engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// One sequence to generate.
#[derive(Debug, Clone)]
pub struct Request {
    /// Token ids of the prompt; at least one.
    pub prompt: Vec<u32>,
    /// How tokens are drawn.
    pub params: SamplingParams,
    /// Tokens to generate at most; the context limit may end the sequence earlier.
    pub max_tokens: usize,
    /// Of the requests that wait, those with a lower number run earlier; equals in order of arrival.
    pub priority: i64,
    /// Tokens that end the sequence besides the model's own.
    pub stop_token_ids: Arc<[u32]>,
    /// The text so far, where stop strings end the sequence.
    pub stop: Option<StoppingText>,
    /// Whether the model's end-of-sequence tokens are ordinary tokens.
    pub ignore_eos: bool,
    /// Draft tokens per round: `None` for the engine's value, 0 for no speculation, otherwise a
    /// bound on the engine's value.
    pub num_speculative_tokens: Option<usize>,
    /// Who drafts, of those that the engine has.
    pub proposers: Proposers,
    /// What the generated text must follow.
    pub grammar: Option<Grammar>,
    /// What the client expects as the output: drafted from while the output follows it.
    pub prediction: Arc<[u32]>,
    /// `None` for no log-probabilities, otherwise how many alternatives to report beside the
    /// token's own.
    pub top_logprobs: Option<usize>,
    /// What is read off the prompt besides.
    pub readout: Readout,
    /// Sets what it leaves and finds in the prefix cache apart from that of requests with another one, or none.
    pub cache_salt: Option<CacheSalt>,
    /// The adapter that it goes through; `None` for the model as it is.
    pub adapter: Option<Arc<AdapterWeights>>,
}

/// What is read off a prompt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Readout {
    /// Nothing.
    #[default]
    None,
    /// The log-probability of each token, with as many alternatives: [`Event::Prompt`], before the first
    /// generated token.
    Logprobs(usize),
    /// The mean of the hidden states behind the final norm: [`Event::Embedding`]. Nothing is generated.
    Embedding,
}

impl Request {
    /// A greedy request for up to `max_tokens` tokens with everything else at its default.
    #[must_use]
    pub fn greedy(prompt: Vec<u32>, max_tokens: usize) -> Self {
        Self {
            prompt,
            params: SamplingParams::greedy(),
            max_tokens,
            priority: 0,
            stop_token_ids: Arc::default(),
            stop: None,
            ignore_eos: false,
            num_speculative_tokens: None,
            proposers: Proposers::default(),
            grammar: None,
            prediction: Arc::default(),
            top_logprobs: None,
            readout: Readout::None,
            cache_salt: None,
            adapter: None,
        }
    }

    /// Checks the request against what the engine can serve.
    ///
    /// # Errors
    /// The first field that is out of range.
    pub fn validate(&self, limits: &EngineLimits) -> Result<(), RequestError> {
        let check = |ok: bool, field, reason: &dyn Fn() -> String| {
            if ok { Ok(()) } else { Err(RequestError { field, reason: reason() }) }
        };
        let len = self.prompt.len();
        check(len > 0, "prompt", &|| "must not be empty".into())?;
        check(len < limits.max_model_len, "prompt", &|| {
            format!(
                "has {len} tokens; at most {} leave room to generate (context limit {})",
                limits.max_model_len.saturating_sub(1),
                limits.max_model_len
            )
        })?;
        let known = self.prompt.iter().all(|&id| (id as usize) < limits.vocab_size);
        check(known, "prompt", &|| "contains a token outside the vocabulary".into())?;
        check(self.prediction.len() <= limits.max_model_len, "prediction", &|| {
            format!("has more tokens than the context limit {}", limits.max_model_len)
        })?;
        let known = self.prediction.iter().all(|&id| (id as usize) < limits.vocab_size);
        check(known, "prediction", &|| "contains a token outside the vocabulary".into())?;
        let known = self.stop_token_ids.iter().all(|&id| (id as usize) < limits.vocab_size);
        check(known, "stop_token_ids", &|| {
            format!("must be token ids, which lie below {}", limits.vocab_size)
        })?;
        check(self.max_tokens > 0, "max_tokens", &|| "must be at least 1".into())?;
        let min_tokens = self.params.restrictions.min_tokens;
        check(min_tokens <= self.max_tokens, "min_tokens", &|| {
            format!("must be at most the number of tokens to generate, {}", self.max_tokens)
        })?;
        check(self.top_logprobs.is_none_or(|n| n <= MAX_TOP_LOGPROBS), "top_logprobs", &|| {
            format!("must be at most {MAX_TOP_LOGPROBS}")
        })?;
        let alternatives = if let Readout::Logprobs(count) = self.readout { count } else { 0 };
        check(alternatives <= MAX_TOP_LOGPROBS, "logprobs", &|| {
            format!("must be at most {MAX_TOP_LOGPROBS}")
        })?;
        let fits =
            |adapter: &Arc<AdapterWeights>| limits.adapters.as_ref() == Some(adapter.shapes());
        check(self.adapter.as_ref().is_none_or(fits), "model", &|| {
            "is an adapter of another model".into()
        })?;
        Ok(self.params.validate(limits.vocab_size)?)
    }
}

/// A request the engine refuses.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{field} {reason}")]
pub struct RequestError {
    /// Name of the field at fault.
    pub field: &'static str,
    /// What is wrong with it.
    pub reason: String,
}

impl From<ParamError> for RequestError {
    fn from(error: ParamError) -> Self {
        Self { field: error.field, reason: error.reason }
    }
}

/// Why a sequence ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FinishReason {
    /// The model's end-of-sequence token, which is the last token sent.
    Eos,
    /// One of the request's stop tokens, which is the last token sent.
    StopToken(u32),
    /// One of the request's stop strings, which the last token sent completes.
    StopString,
    /// The request's grammar admits nothing more.
    Grammar,
    /// `max_tokens` or the context limit; the end of a prompt that is only read.
    Length,
    /// The time that the engine has for a request is up.
    Overdue,
    /// The request's grammar is stuck, or too costly to follow any further.
    GrammarError(String),
    /// The sequence cannot go on.
    Error(String),
}

impl FinishReason {
    /// Its name in metrics.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Eos | Self::StopToken(_) | Self::StopString => "stop",
            Self::Grammar => "grammar",
            Self::Length => "length",
            Self::Overdue => "timeout",
            Self::GrammarError(_) => "grammar_error",
            Self::Error(_) => "error",
        }
    }
}

/// What happened to one sequence in a step.
#[expect(clippy::large_enum_variant, reason = "the large one comes once for each sequence")]
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The whole prompt with its log-probabilities, where they were asked for; comes first.
    Prompt(Vec<PromptToken>),
    /// The mean hidden state of the prompt, where it was asked for. Shape `[hidden_size]`.
    Embedding(Vec<f32>),
    /// The tokens of one step, in order; never empty.
    Tokens(Vec<TokenOut>),
    /// The last event.
    Finished {
        /// Why the sequence ended.
        reason: FinishReason,
        /// Tokens, passes and seconds that it took.
        stats: SequenceStats,
    },
}

impl Event {
    /// Tokens it carries.
    #[must_use]
    pub fn num_tokens(&self) -> usize {
        match self {
            Self::Tokens(tokens) => tokens.len(),
            Self::Prompt(_) | Self::Embedding(_) | Self::Finished { .. } => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The choices of one request are clones of it.
    #[test]
    fn clones_share_what_is_large() {
        let mut one = Request::greedy(vec![1], 1);
        one.params.logit_bias = [(3, 1.0)].into();
        one.prediction = [4, 5].into();
        let other = one.clone();
        assert!(Arc::ptr_eq(&one.params.logit_bias, &other.params.logit_bias));
        assert!(Arc::ptr_eq(&one.prediction, &other.prediction));
        assert!(Arc::ptr_eq(&one.stop_token_ids, &other.stop_token_ids));
    }

    #[test]
    fn refusals_name_the_field() {
        let limits = EngineLimits {
            max_model_len: 8,
            vocab_size: 100,
            hidden_size: 8,
            max_num_seqs: 1,
            num_speculative_tokens: 0,
            adapters: None,
        };
        let refused = |request: Request| request.validate(&limits).map_err(|e| e.field);
        assert_eq!(refused(Request::greedy(vec![1; 7], 100)), Ok(()));
        assert_eq!(refused(Request::greedy(vec![], 1)), Err("prompt"));
        assert_eq!(refused(Request::greedy(vec![1; 8], 1)), Err("prompt"));
        assert_eq!(refused(Request::greedy(vec![100], 1)), Err("prompt"));
        assert_eq!(refused(Request::greedy(vec![1], 0)), Err("max_tokens"));
        let stop = Request { stop_token_ids: [100].into(), ..Request::greedy(vec![1], 1) };
        assert_eq!(refused(stop), Err("stop_token_ids"));
        let logprobs = Request { top_logprobs: Some(21), ..Request::greedy(vec![1], 1) };
        assert_eq!(refused(logprobs), Err("top_logprobs"));
        let mut long = Request::greedy(vec![1], 3);
        long.params.restrictions.min_tokens = 4;
        assert_eq!(refused(long), Err("min_tokens"));
        for prediction in [vec![1; 9], vec![100]] {
            let prediction = prediction.into();
            let request = Request { prediction, ..Request::greedy(vec![1], 1) };
            assert_eq!(refused(request), Err("prediction"));
        }
        let mut hot = Request::greedy(vec![1], 1);
        hot.params.temperature = -1.0;
        assert_eq!(refused(hot), Err("temperature"));
    }
}
