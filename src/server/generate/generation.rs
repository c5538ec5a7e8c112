//! From a request's common fields to sequences of the engine: one task per choice, feeding one channel.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::drawing;
use super::loosened::{self, Head};
use super::pieces::{Ends, Piece, Reader};
use super::speech::{Reasoning, Speech};
use super::tool_calls::Calling;
use crate::engine::{MAX_TOP_LOGPROBS, Readout, Request};
use crate::grammar::{Grammar, GrammarSource};
use crate::observe::spans::SequenceSpan;
use crate::observe::traffic::{Recorded, Recorder};
use crate::sampling::SamplingParams;
use crate::server::bounds::CHOICES;
use crate::server::error::ApiError;
use crate::server::keys::Metered;
use crate::server::queue::Place;
use crate::server::request::body::Body;
use crate::server::request::dialect::Dialect;
use crate::server::request::structured;
use crate::server::serving::Serving;
use crate::server::wire::{ReasoningOptions, RouterDefaults, Sampling, Stop};
use crate::text::{StoppingText, ThinkTags, Thinking};

/// Checks a number of choices.
pub(crate) fn in_range(field: &str, choices: usize) -> Result<(), ApiError> {
    if (1..=CHOICES).contains(&choices) {
        return Ok(());
    }
    Err(ApiError::invalid(field, format!("`{field}` must be between 1 and {CHOICES}")))
}

/// The strings that end an answer, which none but `field` gives.
pub(crate) fn stop_strings(field: &str, strings: Vec<String>) -> Result<Vec<String>, ApiError> {
    if strings.iter().any(String::is_empty) {
        return Err(ApiError::invalid(
            field,
            format!("the strings of `{field}` must not be empty"),
        ));
    }
    Ok(strings)
}

/// Checks how many of the likeliest tokens are reported beside each token of a prompt.
fn check_prompt_logprobs(count: Option<usize>, stream: bool) -> Result<(), ApiError> {
    let field = "prompt_logprobs";
    match count {
        Some(count) if count > MAX_TOP_LOGPROBS => {
            let message = format!("`{field}` must be at most {MAX_TOP_LOGPROBS}");
            Err(ApiError::invalid(field, message))
        }
        Some(_) if stream => Err(ApiError::invalid(field, format!("`{field}` cannot be streamed"))),
        _ => Ok(()),
    }
}

/// What is generated, as every API's request is read into it.
pub(crate) struct Generation {
    pub(crate) request: Request,
    /// Texts that end a choice.
    pub(crate) stop: Vec<String>,
    /// Whether a choice shows what ended it.
    pub(crate) shows_stop: bool,
    /// The form of the output, and the field that asks for it.
    pub(crate) grammar: Option<(&'static str, GrammarSource)>,
    /// The form of its text alone, where the output may also call functions, and the field that asks for it.
    pub(crate) form: Option<(&'static str, GrammarSource)>,
    pub(crate) choices: usize,
    /// Choices of each prompt that are answered: the best of those generated.
    pub(crate) kept: usize,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
    pub(crate) token_sources: bool,
    /// Whether log-probabilities name tokens by their ids.
    pub(crate) tokens_by_id: bool,
    /// How the answer calls functions, where it may.
    pub(crate) calls: Option<Calling>,
    /// How the answer reasons before it begins, where it may.
    pub(crate) thinking: Option<(ThinkTags, Thinking)>,
    /// What becomes of its reasoning.
    pub(crate) reasoning: Reasoning,
    /// Texts of the prompts, where answers begin with them.
    pub(crate) echo: Vec<String>,
    /// The likeliest tokens to report beside each token of an echoed prompt, where it is reported with
    /// log-probabilities.
    pub(crate) echo_logprobs: Option<usize>,
    /// The same beside each token of a prompt that is not echoed.
    pub(crate) prompt_logprobs: Option<usize>,
    /// Whether the answer is the prompt alone.
    pub(crate) prompt_only: bool,
    /// What the client sets its prefix cache apart by.
    pub(crate) cache_salt: Option<String>,
    /// Whether the client lets its answers be recorded.
    pub(crate) store: bool,
    /// The recorder of its answers, where they are recorded.
    pub(crate) recorder: Option<Arc<Recorder>>,
}

impl Generation {
    /// One whole text of up to `max_tokens` tokens for each prompt, drawn as `params` say.
    pub(crate) fn new(params: SamplingParams, max_tokens: usize) -> Self {
        Self {
            request: Request { params, max_tokens, ..Request::greedy(Vec::new(), 0) },
            stop: Vec::new(),
            shows_stop: false,
            grammar: None,
            form: None,
            choices: 1,
            kept: 1,
            stream: false,
            include_usage: false,
            token_sources: false,
            tokens_by_id: false,
            calls: None,
            thinking: None,
            reasoning: Reasoning::default(),
            echo: Vec::new(),
            echo_logprobs: None,
            prompt_logprobs: None,
            prompt_only: false,
            cache_salt: None,
            store: true,
            recorder: None,
        }
    }

    /// Reads the fields that chat and plain completions share out of a body; up to `max_tokens` tokens are
    /// generated.
    pub(crate) fn read(
        body: &mut Body,
        serving: &Serving,
        max_tokens: usize,
    ) -> Result<Self, ApiError> {
        let wanted: Sampling = body.read()?;
        let params = drawing::params(body, serving)?;
        let _: RouterDefaults = body.read()?;
        let reasoning = Reasoning::from(body.read::<ReasoningOptions>()?);
        let stop = stop_strings("stop", wanted.stop.map(Stop::into_list).unwrap_or_default())?;
        let mut stop_token_ids = wanted.stop_token_ids.unwrap_or_default();
        stop_token_ids.sort_unstable();
        stop_token_ids.dedup();
        let choices = wanted.n.unwrap_or(1);
        in_range("n", choices)?;
        let stream = wanted.stream.unwrap_or(false);
        if wanted.stream_options.is_some() && !stream {
            let message = "`stream_options` needs `stream: true`";
            return Err(ApiError::invalid("stream_options", message));
        }
        check_prompt_logprobs(wanted.prompt_logprobs, stream)?;
        let mut generation = Self::new(params, max_tokens);
        generation.salt(wanted.cache_salt)?;
        generation.request.stop_token_ids = stop_token_ids.into();
        generation.request.ignore_eos = wanted.ignore_eos.unwrap_or(false);
        generation.request.num_speculative_tokens = wanted.num_speculative_tokens;
        generation.request.priority = wanted.priority.unwrap_or(0);
        Ok(Self {
            stop,
            shows_stop: wanted.include_stop_str_in_output.unwrap_or(false),
            grammar: structured::grammar(body.read()?)?,
            choices,
            kept: choices,
            prompt_logprobs: wanted.prompt_logprobs,
            stream,
            include_usage: wanted.stream_options.and_then(|o| o.include_usage).unwrap_or(false),
            reasoning,
            token_sources: wanted.return_token_sources.unwrap_or(false),
            tokens_by_id: wanted.return_tokens_as_token_ids.unwrap_or(false),
            store: wanted.store.is_none(),
            ..generation
        })
    }

    /// Sets the prefix cache of the request apart, where the client asks for it.
    pub(crate) fn salt(&mut self, salt: Option<String>) -> Result<(), ApiError> {
        if salt.as_ref().is_some_and(String::is_empty) {
            return Err(ApiError::invalid("cache_salt", "`cache_salt` must not be empty"));
        }
        self.cache_salt = salt;
        Ok(())
    }

    /// The grammar of the output.
    async fn compile(&mut self, serving: &Serving) -> Result<Option<Grammar>, ApiError> {
        let Some((field, source)) = self.grammar.take() else { return Ok(None) };
        let failed = match serving.compile(field, source).await {
            Ok(grammar) => return Ok(Some(grammar)),
            Err(failed) => failed,
        };
        // Of two fields, the one at fault is named, unless there is no time to find out.
        if let Some((field, source)) = self.form.take().filter(|_| failed.is_invalid()) {
            serving.compile(field, source).await?;
        }
        Err(failed)
    }

    /// Submits every choice of every prompt; pieces arrive in order within a choice. Choice
    /// `p * choices + i` is choice i of prompt p. Dropping the receiver cancels them all. The head names
    /// what is not followed of the request's schemas.
    pub(crate) async fn start(
        mut self,
        serving: &Arc<Serving>,
        prompts: Vec<Vec<u32>>,
        dialect: Dialect,
        place: Place,
    ) -> Result<(mpsc::Receiver<Piece>, Option<Head>), ApiError> {
        let [form, text_form] =
            [&self.grammar, &self.form].map(|form| form.as_ref().map(|(field, _)| *field));
        self.request.grammar = self.compile(serving).await?;
        let tags = self.thinking.map(|(tags, _)| [tags.open, tags.close]);
        let calls = self.calls.as_ref().map(|calling| calling.format.marks());
        let marks =
            [tags.as_ref().map_or(&[][..], |tags| tags), calls.unwrap_or_default()].concat();
        let marks = serving.marks(&marks);
        let loosened = self.request.grammar.as_ref().map_or(&[][..], Grammar::loosened);
        let head = loosened::head(form.unwrap_or_default(), loosened);
        let text = StoppingText::new(Arc::clone(&serving.tokenizer), self.stop.clone());
        let text = text.showing(&marks).showing_stop(self.shows_stop);
        let text = text.behind(self.request.params.restrictions.min_tokens);
        self.request.stop = (!self.stop.is_empty()).then(|| text.clone());
        let limits = serving.engine.limits();
        let mut requests = Vec::new();
        for prompt in prompts {
            if prompt.len() >= limits.max_model_len {
                let size = format!("{} tokens", prompt.len());
                return Err(ApiError::too_long(dialect.prompt, &size, limits.max_model_len));
            }
            for choice in 0..self.choices {
                let mut request = Request { prompt: prompt.clone(), ..self.request.clone() };
                request.params.seed =
                    request.params.seed.map(|seed| seed.wrapping_add(choice as u64));
                // A prompt is read for its first choice, unless each begins with it in a stream.
                if choice > 0 && !self.stream {
                    request.readout = Readout::None;
                }
                request.validate(limits).map_err(|fault| dialect.fault(&fault))?;
                requests.push(request);
            }
        }
        let (sender, receiver) = mpsc::channel(64);
        let place = Arc::new(place);
        for (choice, request) in requests.into_iter().enumerate() {
            let ends = Ends::of(&request, serving, self.shows_stop);
            let length = request.prompt.len();
            let recorder = self.recorder.clone().filter(|_| !self.prompt_only);
            let record = recorder.map(|recorder| {
                let (prompt_tokens, temperature) =
                    (request.prompt.clone(), request.params.temperature);
                (recorder, Recorded { prompt_tokens, temperature, ..Recorded::default() })
            });
            // However many choices a prompt has, it counts once.
            let charged = if choice.is_multiple_of(self.choices) { length } else { 0 };
            let events = Metered::new(charged, serving.engine.submit(request).await?);
            let place = Arc::clone(&place);
            let reader = Reader {
                choice,
                pieces: sender.clone(),
                text: text.clone(),
                speech: Speech::new(self.thinking, self.reasoning, self.calls.clone()),
                form,
                text_form,
                stopped: None,
                drawn: (0, 0.0),
                ends,
                echoed: self.echo.get(choice / self.choices).map_or(0, |echo| echo.chars().count()),
                echo: self.echo.get(choice / self.choices).cloned(),
                prompt_only: self.prompt_only,
                span: SequenceSpan::start(choice),
                serving: Arc::clone(serving),
                record,
            };
            tokio::spawn(async move {
                reader.read(events).await;
                drop(place);
            });
        }
        Ok((receiver, head))
    }
}
