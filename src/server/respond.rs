//! Answers: whole, or streamed as server-sent events.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::response::sse::{Event as Sse, KeepAlive};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::generation::{Generation, Piece};
use super::state::Serving;
use super::tools::Calls;
use super::wire::{
    Answer, AssistantMessage, Choice, ChoiceText, Delta, FinishReason, Header, Logprobs, Sources,
    StopReason, TokenSource, Usage,
};
use super::{ApiError, AppState, logprobs};
use crate::engine::{PromptToken, SequenceStats, TokenOut};
use crate::spec::Proposer;
use crate::text::CallFormat;

/// Which of the two shapes an answer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Chat,
    Text,
}

impl Format {
    /// The field that the prompt is made of.
    pub(super) const fn prompt(self) -> &'static str {
        match self {
            Self::Chat => "messages",
            Self::Text => "prompt",
        }
    }
}

/// Tokens of a streamed answer's prompts, known before its first event.
#[derive(Debug, Clone, Copy)]
pub(super) struct PromptTokens(pub(super) usize);

/// How one request is answered.
struct Responder {
    format: Format,
    header: Header,
    serving: Arc<Serving>,
    prompt_tokens: usize,
    /// Choices generated.
    count: usize,
    /// Choices generated and kept for each prompt.
    best_of: (usize, usize),
    include_usage: bool,
    logprobs: bool,
    token_sources: bool,
    /// How the answer calls functions, where it may.
    calls: Option<CallFormat>,
}

/// A request that is ready to run.
pub(super) struct Prepared {
    pub(super) generation: Generation,
    pub(super) prompts: Vec<Vec<u32>>,
    pub(super) format: Format,
}

/// Runs a generation and answers in its format.
pub(super) async fn respond(state: &AppState, prepared: Prepared) -> Result<Response, ApiError> {
    let serving = state.serving()?;
    let Prepared { mut generation, prompts, format } = prepared;
    let count = prompts.len() * generation.choices;
    // What more choices of one prompt would do, fewer prompts do as well.
    let field = if generation.choices == 1 { format.prompt() } else { "n" };
    let place = state.queue.enter(count, field)?;
    let stream = generation.stream;
    let (prefix, object) = match format {
        Format::Chat if stream => ("chatcmpl", "chat.completion.chunk"),
        Format::Chat => ("chatcmpl", "chat.completion"),
        Format::Text => ("cmpl", "text_completion"),
    };
    let responder = Responder {
        format,
        header: Header {
            id: format!("{prefix}-{}", uuid::Uuid::new_v4().simple()),
            object,
            created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs()),
            model: serving.name().to_owned(),
            system_fingerprint: concat!("pleach-", env!("CARGO_PKG_VERSION")),
        },
        serving: Arc::clone(serving),
        prompt_tokens: prompts.iter().map(Vec::len).sum(),
        count,
        best_of: (generation.choices, generation.kept),
        include_usage: generation.include_usage,
        logprobs: generation.request.top_logprobs.is_some(),
        token_sources: generation.token_sources,
        calls: generation.calls,
    };
    if generation.kept < generation.choices {
        // The best are chosen by log-probability.
        generation.request.top_logprobs.get_or_insert(0);
    }
    generation.recorder = state.recorder().filter(|_| generation.store);
    let prompt_tokens = PromptTokens(responder.prompt_tokens);
    let pieces = generation.start(serving, prompts, format, place).await?;
    if stream {
        let (sender, events) = mpsc::channel(64);
        tokio::spawn(responder.stream(pieces, sender));
        let events = ReceiverStream::new(events);
        let events = axum::response::Sse::new(events).keep_alive(KeepAlive::default());
        Ok((Extension(prompt_tokens), events).into_response())
    } else {
        Ok(Json(responder.whole(pieces).await?).into_response())
    }
}

/// A choice as it grows.
#[derive(Default)]
struct Growing {
    text: String,
    prompt: Vec<PromptToken>,
    tokens: Vec<TokenOut>,
    texts: Vec<String>,
    offsets: Vec<usize>,
    end: Option<FinishReason>,
    stop: Option<StopReason>,
    /// What ended it, where that was the request's fault.
    failure: Option<ApiError>,
}

impl Growing {
    /// Mean log-probability of the tokens; a choice that failed is the worst.
    fn score(&self) -> f32 {
        if self.failure.is_some() {
            return f32::NEG_INFINITY;
        }
        let sum: f32 = self.tokens.iter().filter_map(|token| token.logprob).sum();
        sum / self.tokens.len().max(1) as f32
    }
}

impl Responder {
    async fn whole(self, mut pieces: mpsc::Receiver<Piece>) -> Result<Answer, ApiError> {
        let mut choices: Vec<Growing> = Vec::new();
        choices.resize_with(self.count, Growing::default);
        let mut stats = vec![SequenceStats::default(); self.count];
        while let Some(piece) = pieces.recv().await {
            let choice = &mut choices[piece.choice];
            choice.text += &piece.text;
            choice.prompt.extend(piece.prompt);
            choice.tokens.extend(piece.tokens);
            choice.texts.extend(piece.texts);
            choice.offsets.extend(piece.offsets);
            if let Some(end) = piece.end {
                (choice.end, choice.failure) = ending(end.reason)?;
                choice.stop = end.stop;
                stats[piece.choice] = end.stats;
            }
        }
        if choices.iter().any(|choice| choice.end.is_none()) {
            return Err(broken_off());
        }
        // One choice that stands makes an answer.
        if choices.iter().all(|choice| choice.failure.is_some())
            && let Some(failure) = choices.swap_remove(0).failure
        {
            return Err(failure);
        }
        let usage = Usage::new(self.prompt_tokens, &stats, self.best_of.0);
        let choices = self.best(choices).into_iter().enumerate();
        let choices = choices.map(|(index, choice)| self.choice(index, choice)).collect();
        Ok(Answer { header: self.header, choices, usage: Some(Some(usage)) })
    }

    fn choice(&self, index: usize, choice: Growing) -> Choice {
        let mut finish_reason = choice.end;
        let read = (&choice.prompt[..], &choice.tokens[..]);
        let logprobs = self.logprobs(&choice.text, read, &choice.offsets);
        let text = match self.format {
            Format::Text => ChoiceText::Text(choice.text),
            Format::Chat => {
                let (content, tool_calls) = match self.calls {
                    Some(format) => Calls::split(format, &choice.text),
                    None => (Some(choice.text), None),
                };
                finish_reason = finish_reason.map(|reason| reason.with_calls(tool_calls.is_some()));
                let (role, refusal) = ("assistant", None);
                ChoiceText::Message(AssistantMessage { role, content, refusal, tool_calls })
            }
        };
        Choice {
            index,
            text,
            logprobs,
            pleach: self.sources(&choice.tokens, choice.texts),
            finish_reason,
            stop_reason: choice.stop,
            error: choice.failure.map(|failure| failure.body().error),
        }
    }

    /// The best choices of each prompt, where more were generated than wanted.
    fn best(&self, mut choices: Vec<Growing>) -> Vec<Growing> {
        let (generated, kept) = self.best_of;
        if kept == generated {
            return choices;
        }
        let mut best = Vec::new();
        while !choices.is_empty() {
            let mut of_prompt: Vec<Growing> = choices.drain(..generated).collect();
            of_prompt.sort_by(|a, b| b.score().total_cmp(&a.score()));
            best.extend(of_prompt.into_iter().take(kept));
        }
        best
    }

    async fn stream(
        self,
        mut pieces: mpsc::Receiver<Piece>,
        sender: mpsc::Sender<Result<Sse, Infallible>>,
    ) {
        let events = Events(sender);
        if self.format == Format::Chat {
            for index in 0..self.count {
                let (role, content) = (Some("assistant"), Some(String::new()));
                let delta = Delta { role, content, tool_calls: None };
                if !events.send(&self.chunk(index, ChoiceText::Delta(delta))).await {
                    return;
                }
            }
        }
        let mut calls: Vec<Option<Calls>> =
            (0..self.count).map(|_| self.calls.map(Calls::new)).collect();
        let mut stats = vec![SequenceStats::default(); self.count];
        let (mut ended, mut failures) = (0, Vec::new());
        while let Some(piece) = pieces.recv().await {
            let index = piece.choice;
            let (mut finish_reason, mut stop_reason, mut failure) = (None, None, None);
            if let Some(end) = piece.end {
                match ending(end.reason) {
                    Ok((reason, failed)) => {
                        finish_reason = reason;
                        failure = failed.as_ref().map(|failed| failed.body().error);
                        failures.extend(failed.map(|failed| failed.body()));
                        ended += 1;
                    }
                    Err(fault) => {
                        events.send(&fault.body()).await;
                        return;
                    }
                }
                stats[index] = end.stats;
                stop_reason = end.stop;
            }
            let read = (&piece.prompt[..], &piece.tokens[..]);
            let logprobs = self.logprobs(&piece.text, read, &piece.offsets);
            // The last chunk of a choice has an empty delta where no text is left.
            let (text, empty) = match self.format {
                Format::Text => {
                    let empty = piece.text.is_empty();
                    (ChoiceText::Text(piece.text), empty)
                }
                Format::Chat => {
                    let delta = match &mut calls[index] {
                        Some(calls) => {
                            let delta = calls.push(&piece.text, finish_reason.is_some());
                            finish_reason = finish_reason.map(|r| r.with_calls(calls.begun > 0));
                            delta
                        }
                        None => Delta::text(piece.text),
                    };
                    let empty = delta.content.is_none() && delta.tool_calls.is_none();
                    (ChoiceText::Delta(delta), empty)
                }
            };
            let reports = (self.logprobs || self.token_sources) && !piece.tokens.is_empty();
            if empty && !reports && finish_reason.is_none() {
                continue;
            }
            let mut chunk = self.chunk(index, text);
            chunk.choices[0].logprobs = logprobs;
            chunk.choices[0].pleach = self.sources(&piece.tokens, piece.texts);
            chunk.choices[0].finish_reason = finish_reason;
            chunk.choices[0].stop_reason = stop_reason;
            chunk.choices[0].error = failure;
            if !events.send(&chunk).await {
                return;
            }
        }
        if ended < self.count {
            events.send(&broken_off().body()).await;
            return;
        }
        if failures.len() == self.count {
            events.send(&failures[0]).await;
        } else if self.include_usage {
            let usage = Usage::new(self.prompt_tokens, &stats, self.best_of.0);
            let header = self.header.clone();
            events.send(&Answer { header, choices: Vec::new(), usage: Some(Some(usage)) }).await;
        }
        events.end().await;
    }

    /// A chunk of one choice.
    fn chunk(&self, index: usize, text: ChoiceText) -> Answer {
        let (finish_reason, stop_reason) = (None, None);
        let (logprobs, pleach, error) = (None, None, None);
        let choice = Choice { index, text, logprobs, finish_reason, stop_reason, pleach, error };
        Answer {
            header: self.header.clone(),
            choices: vec![choice],
            usage: self.include_usage.then_some(None),
        }
    }

    /// The extension that says where each token of a choice came from, for clients that ask for it.
    fn sources(&self, tokens: &[TokenOut], texts: Vec<String>) -> Option<Sources> {
        let source = |(token, text): (&TokenOut, String)| TokenSource {
            text,
            source: token.source.name(),
            proposer: token.source.proposer().map(Proposer::name),
        };
        let sources = || tokens.iter().zip(texts).map(source).collect();
        self.token_sources.then(|| Sources { sources: sources() })
    }

    /// Log-probabilities of prompt and generated tokens, which begin at `offsets` in the text.
    fn logprobs(
        &self,
        text: &str,
        (prompt, tokens): (&[PromptToken], &[TokenOut]),
        offsets: &[usize],
    ) -> Option<Logprobs> {
        let serving = &self.serving;
        self.logprobs.then(|| match self.format {
            Format::Chat => logprobs::chat(serving, tokens),
            Format::Text => logprobs::completion(&serving.tokenizer, text, prompt, tokens, offsets),
        })
    }
}

/// How a choice ended, and what failed where that was the request's fault.
///
/// # Errors
/// The server's own fault, which ends the whole answer.
fn ending(
    reason: Result<FinishReason, ApiError>,
) -> Result<(Option<FinishReason>, Option<ApiError>), ApiError> {
    match reason {
        Ok(reason) => Ok((Some(reason), None)),
        Err(failure) if failure.is_clients() => Ok((Some(FinishReason::Error), Some(failure))),
        Err(fault) => Err(fault),
    }
}

fn broken_off() -> ApiError {
    ApiError::internal("the answer broke off")
}

/// The stream to the client.
struct Events(mpsc::Sender<Result<Sse, Infallible>>);

impl Events {
    /// `false` where nobody listens any more.
    async fn send(&self, data: &impl Serialize) -> bool {
        let data = serde_json::to_string(data).expect("answers are JSON");
        self.0.send(Ok(Sse::default().data(data))).await.is_ok()
    }

    async fn end(&self) {
        let _ = self.0.send(Ok(Sse::default().data("[DONE]"))).await;
    }
}
