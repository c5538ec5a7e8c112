//! Answers of `/v1/chat/completions` and `/v1/completions`: whole, or streamed as server-sent events.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::response::{IntoResponse, Response};

use super::logprobs::Names;
use super::sse::Events;
use super::{logprobs, sse};
use crate::engine::{PromptToken, Readout, TokenOut};
use crate::server::bounds::PROMPT_LOGPROBS;
use crate::server::error::ApiError;
use crate::server::generate::running::{Prepared, RunningRequest};
use crate::server::generate::said::{Call, Message, Said};
use crate::server::models::Asked;
use crate::server::state::AppState;
use crate::server::wire::{
    Answer, AssistantMessage, CalledFunction, Choice, ChoiceText, Delta, FinishReason,
    FunctionKind, Header, Logprobs, PromptLogprobs, Sources, StopReason, TokenSource, ToolCall,
    ToolCallDelta,
};
use crate::speculation::Proposer;

/// Which of the two shapes an answer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Chat,
    Text,
}

/// How one request is answered.
struct Responder {
    format: Format,
    header: Header,
    /// Choices generated and kept for each prompt.
    best_of: (usize, usize),
    include_usage: bool,
    logprobs: bool,
    /// The likeliest tokens beside each of an echoed prompt, and beside each of one that is reported.
    echoed: Option<usize>,
    prompt_logprobs: Option<usize>,
    token_sources: bool,
    /// Whether log-probabilities name tokens by their ids.
    tokens_by_id: bool,
    running: RunningRequest,
}

/// Runs a generation and answers in a format.
pub(crate) async fn respond(
    state: &AppState,
    (asked, mut prepared): (Asked, Prepared),
    format: Format,
) -> Result<Response, ApiError> {
    let generation = &mut prepared.generation;
    let stream = generation.stream;
    let (prefix, object) = match format {
        Format::Chat if stream => ("chatcmpl", "chat.completion.chunk"),
        Format::Chat => ("chatcmpl", "chat.completion"),
        Format::Text => ("cmpl", "text_completion"),
    };
    let header = Header {
        id: format!("{prefix}-{}", uuid::Uuid::new_v4().simple()),
        object,
        created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs()),
        model: asked.name().to_owned(),
        system_fingerprint: concat!("pleach-", env!("CARGO_PKG_VERSION")),
    };
    let best_of = (generation.choices, generation.kept);
    let include_usage = generation.include_usage;
    let logprobs = generation.request.top_logprobs.is_some();
    let (token_sources, tokens_by_id) = (generation.token_sources, generation.tokens_by_id);
    let (echoed, prompt_logprobs) = (generation.echo_logprobs, generation.prompt_logprobs);
    if let Some(alternatives) = echoed.max(prompt_logprobs) {
        let answers = if format == Format::Chat { 1 } else { generation.choices };
        let tokens: usize = prepared.prompts.iter().map(Vec::len).sum();
        if tokens * answers * (alternatives + 1) > PROMPT_LOGPROBS {
            let field = if echoed.is_some() { "logprobs" } else { "prompt_logprobs" };
            let message = format!(
                "`{field}`: {tokens} tokens of prompts, {alternatives} of the likeliest beside each, in {answers} \
                 choices are more than {PROMPT_LOGPROBS} log-probabilities"
            );
            return Err(ApiError::invalid(field, message));
        }
        generation.request.readout = Readout::Logprobs(alternatives);
    }
    if generation.kept < generation.choices {
        // The best are chosen by log-probability.
        generation.request.top_logprobs.get_or_insert(0);
    }
    let running = prepared.start(state, asked).await?;
    let head = running.head.clone();
    let responder = Responder {
        format,
        header,
        best_of,
        include_usage,
        logprobs,
        echoed,
        prompt_logprobs,
        token_sources,
        tokens_by_id,
        running,
    };
    if stream {
        Ok((head, sse::stream(|events| responder.stream(events))).into_response())
    } else {
        let mut responder = responder;
        let choices = responder.gather().await?;
        let answer = state.aside(move || Ok(Json(responder.answer(choices)).into_response()));
        Ok((head, answer.await?).into_response())
    }
}

/// A choice as it grows.
#[derive(Default)]
struct Growing {
    message: Message,
    prompt: Arc<Vec<PromptToken>>,
    tokens: Vec<TokenOut>,
    texts: Vec<String>,
    offsets: Vec<usize>,
    end: Option<FinishReason>,
    mean_logprob: f32,
    stop: Option<StopReason>,
    /// What ended it, where that was the request's fault.
    failure: Option<ApiError>,
}

impl Growing {
    /// How good it is; a choice that failed is the worst.
    fn score(&self) -> f32 {
        if self.failure.is_some() { f32::NEG_INFINITY } else { self.mean_logprob }
    }
}

impl Responder {
    /// All choices, as they have ended.
    async fn gather(&mut self) -> Result<Vec<Growing>, ApiError> {
        let mut choices: Vec<Growing> = Vec::new();
        choices.resize_with(self.running.choices(), Growing::default);
        while let Some(piece) = self.running.next().await? {
            let choice = &mut choices[piece.choice];
            piece.said.into_iter().for_each(|said| choice.message.add(said));
            if !piece.prompt.is_empty() {
                choice.prompt = Arc::new(piece.prompt);
            }
            choice.tokens.extend(piece.tokens);
            choice.texts.extend(piece.texts);
            choice.offsets.extend(piece.offsets);
            if let Some(end) = piece.end {
                (choice.stop, choice.mean_logprob) = (end.stop, end.mean_logprob);
                (choice.end, choice.failure) = ending(end.reason);
            }
        }
        // One choice that stands makes an answer.
        if choices.iter().all(|choice| choice.failure.is_some())
            && let Some(failure) = choices.swap_remove(0).failure
        {
            return Err(failure);
        }
        Ok(choices)
    }

    fn answer(self, mut choices: Vec<Growing>) -> Answer {
        let usage = self.running.usage();
        // What is read of a prompt is read for its first choice.
        for of_prompt in choices.chunks_mut(self.best_of.0) {
            let prompt = Arc::clone(&of_prompt[0].prompt);
            of_prompt.iter_mut().for_each(|choice| choice.prompt = Arc::clone(&prompt));
        }
        // All choices of a chat have one prompt.
        let prompt_logprobs = match self.format {
            Format::Chat => self.prompt_logprobs(&choices[0]),
            Format::Text => None,
        };
        let choices = self.best(choices).into_iter().enumerate();
        let choices = choices.map(|(index, choice)| self.choice(index, choice)).collect();
        Answer { header: self.header, choices, prompt_logprobs, usage: Some(Some(usage)) }
    }

    /// Log-probabilities of a choice's prompt, where they are wanted.
    fn prompt_logprobs(&self, choice: &Growing) -> Option<Vec<PromptLogprobs>> {
        let alternatives = self.prompt_logprobs?;
        Some(logprobs::prompt(&self.running.serving, &choice.prompt, alternatives))
    }

    fn choice(&self, index: usize, mut choice: Growing) -> Choice {
        let read = (&choice.prompt[..], &choice.tokens[..]);
        let logprobs = self.logprobs(&choice.message.text, read, &choice.offsets);
        let prompt_logprobs = match self.format {
            Format::Chat => None,
            Format::Text => self.prompt_logprobs(&choice),
        };
        let text = match self.format {
            Format::Text => ChoiceText::Text(choice.message.text),
            Format::Chat => {
                let (role, content) = ("assistant", choice.message.content());
                let calls: Vec<ToolCall> =
                    choice.message.calls.into_iter().map(ToolCall::from).collect();
                let tool_calls = Some(calls).filter(|calls| !calls.is_empty());
                let reasoning = some_text(choice.message.reasoning);
                ChoiceText::Message(AssistantMessage {
                    role,
                    content,
                    reasoning_content: reasoning.clone(),
                    reasoning,
                    refusal: None,
                    tool_calls,
                })
            }
        };
        Choice {
            index,
            text,
            logprobs,
            prompt_logprobs,
            pleach: self.sources(&choice.tokens, choice.texts),
            finish_reason: choice.end,
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

    async fn stream(mut self, events: Events) {
        let count = self.running.choices();
        if self.format == Format::Chat {
            for index in 0..count {
                let (role, content) = (Some("assistant"), Some(String::new()));
                let delta = Delta { role, content, ..Delta::default() };
                if !events.send(&self.chunk(index, ChoiceText::Delta(delta))).await {
                    return;
                }
            }
        }
        // Calls begun in each choice.
        let mut calls = vec![0; count];
        let mut failures = Vec::new();
        loop {
            let piece = match self.running.next().await {
                Ok(Some(piece)) => piece,
                Ok(None) => break,
                Err(fault) => {
                    events.send(&fault.body()).await;
                    return;
                }
            };
            let index = piece.choice;
            let (mut finish_reason, mut stop_reason, mut failure) = (None, None, None);
            if let Some(end) = piece.end {
                stop_reason = end.stop;
                let (reason, failed) = ending(end.reason);
                finish_reason = reason;
                failure = failed.as_ref().map(|failed| failed.body().error);
                failures.extend(failed.map(|failed| failed.body()));
            }
            let read = (&piece.prompt[..], &piece.tokens[..]);
            let delta = delta(piece.said, &mut calls[index]);
            let added = delta.content.as_deref().unwrap_or_default();
            let logprobs = self.logprobs(added, read, &piece.offsets);
            // The last chunk of a choice has an empty delta where no text is left.
            let empty = delta == Delta::default();
            let text = match self.format {
                Format::Text => ChoiceText::Text(delta.content.unwrap_or_default()),
                Format::Chat => ChoiceText::Delta(delta),
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
        if failures.len() == count {
            events.send(&failures[0]).await;
        } else if self.include_usage {
            let usage = Some(Some(self.running.usage()));
            let (header, choices, prompt_logprobs) = (self.header, Vec::new(), None);
            events.send(&Answer { header, choices, prompt_logprobs, usage }).await;
        }
        events.done().await;
    }

    /// A chunk of one choice.
    fn chunk(&self, index: usize, text: ChoiceText) -> Answer {
        let (finish_reason, stop_reason) = (None, None);
        let (logprobs, prompt_logprobs, pleach, error) = (None, None, None, None);
        let choice = Choice {
            index,
            text,
            logprobs,
            prompt_logprobs,
            finish_reason,
            stop_reason,
            pleach,
            error,
        };
        Answer {
            header: self.header.clone(),
            choices: vec![choice],
            prompt_logprobs: None,
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
        let serving = &self.running.serving;
        let names = || Names::new(serving, self.tokens_by_id);
        self.logprobs.then(|| match self.format {
            Format::Chat => logprobs::chat(serving, &names(), tokens),
            Format::Text => {
                let echoed = self.echoed.map(|alternatives| (prompt, alternatives));
                logprobs::completion(&serving.tokenizer, &names(), text, echoed, tokens, offsets)
            }
        })
    }
}

/// Why a choice ended, and what failed where that was the request's fault.
fn ending(reason: Result<FinishReason, ApiError>) -> (Option<FinishReason>, Option<ApiError>) {
    match reason {
        Ok(reason) => (Some(reason), None),
        Err(failure) => (Some(FinishReason::Error), Some(failure)),
    }
}

/// What a piece adds to a message in which `begun` calls have begun.
fn delta(said: Vec<Said>, begun: &mut usize) -> Delta {
    let (mut reasoning, mut content) = (String::new(), String::new());
    let mut calls = Vec::<ToolCallDelta>::new();
    for said in said {
        match said {
            Said::Reasoning(more) => reasoning += &more,
            Said::Text(more) => content += &more,
            Said::Call { id, name } => {
                calls.push(ToolCallDelta::begin(*begun, id, name));
                *begun += 1;
            }
            Said::Arguments(more) => match calls.last_mut() {
                Some(call) => call.function.arguments += &more,
                None => calls.push(ToolCallDelta::more(begun.saturating_sub(1), more)),
            },
        }
    }
    let reasoning = some_text(reasoning);
    Delta {
        role: None,
        reasoning_content: reasoning.clone(),
        reasoning,
        content: some_text(content),
        tool_calls: Some(calls).filter(|calls| !calls.is_empty()),
    }
}

fn some_text(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

impl From<Call> for ToolCall {
    fn from(Call { id, name, arguments }: Call) -> Self {
        let function = CalledFunction { name, arguments };
        Self { id, kind: FunctionKind::Function, function }
    }
}
