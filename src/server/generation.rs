//! From a validated request to pieces of text: one task per choice, feeding one channel.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::keys::Metered;
use super::queue::Place;
use super::spans::SequenceSpan;
use super::state::Serving;
use super::{ApiError, Body, structured};
use crate::engine::{Event, FinishReason, Request, SequenceStats, TokenOut};
use crate::grammar::GrammarSource;
use crate::sampling::SamplingParams;
use crate::text::{Detokenizer, StopStrings};

/// Most choices of one request.
const MAX_CHOICES: usize = 128;

/// What chat and plain completions have in common.
pub(super) struct Generation {
    pub(super) request: Request,
    pub(super) stop: Vec<String>,
    /// The form of the output, and the field that asks for it.
    pub(super) grammar: Option<(&'static str, GrammarSource)>,
    pub(super) choices: usize,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
    pub(super) token_sources: bool,
}

/// A part of one choice.
#[derive(Default)]
pub(super) struct Piece {
    pub(super) choice: usize,
    pub(super) text: String,
    pub(super) tokens: Vec<TokenOut>,
    /// What each token added to the text; empty where it is held back for the next one.
    pub(super) texts: Vec<String>,
    /// Set on the last piece.
    pub(super) end: Option<End>,
}

/// How a choice ended.
pub(super) struct End {
    /// `stop`, `length`, or `None` where the sequence failed.
    pub(super) reason: Result<&'static str, ApiError>,
    pub(super) stats: SequenceStats,
}

impl Generation {
    /// Takes the common fields out of a body. `max_tokens` names the limit, in order of preference.
    pub(super) fn take(
        body: &mut Body,
        max_tokens: &[&str],
        default_max_tokens: usize,
    ) -> Result<Self, ApiError> {
        // There is one model here; clients that insist on another name get it all the same, and the
        // answer says what it came from.
        body.take::<String>("model")?;
        let mut limit = None;
        for name in max_tokens {
            limit = limit.or(body.take::<usize>(name)?);
        }
        let stop = match body.take::<serde_json::Value>("stop")? {
            None => Vec::new(),
            Some(serde_json::Value::String(stop)) => vec![stop],
            Some(value) => serde_json::from_value(value).map_err(|_| {
                ApiError::invalid("stop", "`stop` must be a string or a list of strings")
            })?,
        };
        if stop.len() > 16 || stop.iter().any(String::is_empty) {
            return Err(ApiError::invalid("stop", "`stop` takes up to 16 strings, none empty"));
        }
        let bias: std::collections::BTreeMap<String, f32> =
            body.or("logit_bias", Default::default())?;
        let logit_bias = bias
            .into_iter()
            .map(|(id, bias)| id.parse().map(|id| (id, bias)))
            .collect::<Result<Vec<(u32, f32)>, _>>()
            .map_err(|_| {
                ApiError::invalid("logit_bias", "the keys of `logit_bias` must be token ids")
            })?;
        let params = SamplingParams {
            temperature: body.or("temperature", 1.0)?,
            // vLLM's clients send -1 or 0 for no limit.
            top_k: body
                .take::<i64>("top_k")?
                .filter(|k| *k > 0)
                .map(|k| k.min(u32::MAX.into()) as u32),
            top_p: body.or("top_p", 1.0)?,
            min_p: body.or("min_p", 0.0)?,
            seed: body.take::<i64>("seed")?.map(|seed| seed as u64),
            repetition_penalty: body.or("repetition_penalty", 1.0)?,
            presence_penalty: body.or("presence_penalty", 0.0)?,
            frequency_penalty: body.or("frequency_penalty", 0.0)?,
            logit_bias,
        };
        let choices = body.or("n", 1)?;
        if !(1..=MAX_CHOICES).contains(&choices) {
            return Err(ApiError::invalid("n", format!("`n` must be between 1 and {MAX_CHOICES}")));
        }
        let stream = body.or("stream", false)?;
        let mut include_usage = false;
        if let Some(options) = body.take::<serde_json::Map<_, _>>("stream_options")? {
            if !stream {
                return Err(ApiError::invalid(
                    "stream_options",
                    "`stream_options` needs `stream: true`",
                ));
            }
            include_usage =
                options.get("include_usage").and_then(serde_json::Value::as_bool).unwrap_or(false);
        }
        let request = Request {
            params,
            max_tokens: limit.unwrap_or(default_max_tokens),
            stop_token_ids: body.or("stop_token_ids", Vec::new())?,
            ignore_eos: body.or("ignore_eos", false)?,
            priority: body.or("priority", 0)?,
            num_speculative_tokens: body.take("num_speculative_tokens")?,
            ..Request::greedy(Vec::new(), 0)
        };
        // These identify the caller and change nothing.
        let _: Option<String> = body.take("user")?;
        let _: Option<serde_json::Map<_, _>> = body.take("metadata")?;
        // Routers send these on every request, at the values that ask for nothing.
        for (name, harmless) in [
            ("continue_final_message", false),
            ("no_stop_trim", false),
            ("return_hidden_states", false),
            ("include_reasoning", true),
            ("separate_reasoning", true),
            ("skip_special_tokens", true),
            ("stream_reasoning", true),
        ] {
            body.only(name, &[harmless.into()])?;
        }
        let grammar = structured::take(body)?;
        let token_sources = body.or("return_token_sources", false)?;
        Ok(Self { request, stop, grammar, choices, stream, include_usage, token_sources })
    }

    /// Submits every choice of every prompt; pieces arrive in order within a choice. Choice
    /// `p * choices + i` is choice i of prompt p. Dropping the receiver cancels them all.
    pub(super) async fn start(
        mut self,
        serving: &Arc<Serving>,
        prompts: Vec<Vec<u32>>,
        place: Place,
    ) -> Result<mpsc::Receiver<Piece>, ApiError> {
        if let Some((field, source)) = self.grammar.take() {
            self.request.grammar = Some(serving.compile(field, source).await?);
        }
        let limits = serving.engine.limits();
        let mut requests = Vec::new();
        for prompt in prompts {
            for choice in 0..self.choices {
                let mut request = Request { prompt: prompt.clone(), ..self.request.clone() };
                request.params.seed =
                    request.params.seed.map(|seed| seed.wrapping_add(choice as u64));
                request.validate(limits)?;
                requests.push(request);
            }
        }
        let (sender, receiver) = mpsc::channel(64);
        let place = Arc::new(place);
        for (choice, request) in requests.into_iter().enumerate() {
            let ends = Ends::of(&request, serving);
            let length = request.prompt.len();
            let events = Metered::new(length, serving.engine.submit(request).await?);
            let (sender, place) = (sender.clone(), Arc::clone(&place));
            let text = Detokenizer::new(Arc::clone(&serving.tokenizer));
            let stop = StopStrings::new(self.stop.clone());
            let span = SequenceSpan::start(choice);
            tokio::spawn(async move {
                read(choice, events, sender, text, stop, ends, span).await;
                drop(place);
            });
        }
        Ok(receiver)
    }
}

/// Tokens that end a sequence and are no text.
struct Ends(Vec<u32>);

impl Ends {
    fn of(request: &Request, serving: &Serving) -> Self {
        let mut ends = request.stop_token_ids.clone();
        if !request.ignore_eos {
            ends.extend(&serving.eos_token_ids);
        }
        Self(ends)
    }
}

/// Turns one sequence's events into pieces, until it ends, stops or nobody listens.
async fn read(
    choice: usize,
    mut events: Metered,
    pieces: mpsc::Sender<Piece>,
    mut detokenizer: Detokenizer,
    mut stop: StopStrings,
    ends: Ends,
    mut span: Option<SequenceSpan>,
) {
    let mut stats = SequenceStats::default();
    loop {
        let mut piece = Piece { choice, ..Piece::default() };
        match events.recv().await {
            Some(Event::Tokens(tokens)) => {
                span.iter().for_each(|span| span.round(&tokens));
                for token in tokens {
                    stats.generated_tokens += 1;
                    if !ends.0.contains(&token.id) {
                        let (text, stopped) = stop.push(&detokenizer.push(token.id));
                        piece.text += &text;
                        piece.tokens.push(token);
                        piece.texts.push(text);
                        if stopped {
                            span.into_iter().for_each(SequenceSpan::stopped);
                            let stats = std::mem::take(&mut stats);
                            piece.end = Some(End { reason: Ok("stop"), stats });
                            // Dropping the events cancels the sequence.
                            let _ = pieces.send(piece).await;
                            return;
                        }
                    }
                }
            }
            Some(Event::Finished { reason, stats }) => {
                if let Some(span) = span.take() {
                    span.end(reason.name(), &stats);
                }
                let (text, stopped) = stop.push(&detokenizer.finish());
                piece.text = text;
                if !stopped {
                    piece.text += &stop.finish();
                }
                let reason = match reason {
                    FinishReason::Eos | FinishReason::StopToken(_) | FinishReason::Grammar => {
                        Ok("stop")
                    }
                    FinishReason::Length if stopped => Ok("stop"),
                    FinishReason::Length => Ok("length"),
                    FinishReason::Error(reason) => Err(ApiError::internal(reason)),
                };
                piece.end = Some(End { reason, stats });
            }
            None => {
                let reason = Err(ApiError::internal("the engine has stopped"));
                piece.end = Some(End { reason, stats: std::mem::take(&mut stats) });
            }
        }
        let ended = piece.end.is_some();
        if pieces.send(piece).await.is_err() || ended {
            return;
        }
    }
}
