//! Answers: whole, or streamed as server-sent events.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::response::sse::{Event as Sse, KeepAlive};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::generation::{Generation, Piece};
use super::state::Serving;
use super::{ApiError, AppState, logprobs, usage};
use crate::engine::{SequenceStats, TokenOut};

/// Which of the two shapes an answer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Chat,
    Text,
}

/// What every part of one answer carries.
struct Header {
    format: Format,
    id: String,
    created: u64,
    serving: Arc<Serving>,
    logprobs: bool,
    token_sources: bool,
}

/// Runs a generation and answers in its format.
pub(super) async fn respond(
    state: &AppState,
    serving: &Arc<Serving>,
    generation: Generation,
    prompts: Vec<Vec<u32>>,
    format: Format,
) -> Result<Response, ApiError> {
    let count = prompts.len() * generation.choices;
    let place = state.queue.enter(count)?;
    let (stream, include_usage) = (generation.stream, generation.include_usage);
    let header = Header {
        format,
        id: format!(
            "{}-{}",
            if format == Format::Chat { "chatcmpl" } else { "cmpl" },
            uuid::Uuid::new_v4().simple()
        ),
        created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs()),
        serving: Arc::clone(serving),
        logprobs: generation.request.top_logprobs.is_some(),
        token_sources: generation.token_sources,
    };
    let prompt_tokens = prompts.iter().map(Vec::len).sum();
    let pieces = generation.start(serving, prompts, place).await?;
    if stream {
        let (sender, events) = mpsc::channel(64);
        tokio::spawn(stream_pieces(header, pieces, sender, prompt_tokens, count, include_usage));
        let events = ReceiverStream::new(events);
        Ok(axum::response::Sse::new(events).keep_alive(KeepAlive::default()).into_response())
    } else {
        Ok(Json(whole(&header, pieces, prompt_tokens, count).await?).into_response())
    }
}

async fn whole(
    header: &Header,
    mut pieces: mpsc::Receiver<Piece>,
    prompt_tokens: usize,
    count: usize,
) -> Result<Value, ApiError> {
    let mut choices: Vec<(String, Vec<TokenOut>, Vec<String>, &str)> =
        vec![Default::default(); count];
    let mut stats = vec![SequenceStats::default(); count];
    while let Some(piece) = pieces.recv().await {
        let choice = &mut choices[piece.choice];
        choice.0 += &piece.text;
        choice.1.extend(piece.tokens);
        choice.2.extend(piece.texts);
        if let Some(end) = piece.end {
            choice.3 = end.reason?;
            stats[piece.choice] = end.stats;
        }
    }
    let choices = choices
        .iter()
        .enumerate()
        .map(|(index, (text, tokens, texts, reason))| {
            let mut choice = json!({"index": index, "finish_reason": reason});
            match header.format {
                Format::Chat => {
                    choice["message"] =
                        json!({"role": "assistant", "content": text, "refusal": null});
                }
                Format::Text => choice["text"] = json!(text),
            }
            choice["logprobs"] = header.logprobs(tokens, 0);
            header.add_sources(&mut choice, tokens, texts);
            choice
        })
        .collect();
    let object = if header.format == Format::Chat { "chat.completion" } else { "text_completion" };
    let mut answer = header.answer(object, choices);
    answer["usage"] = usage(prompt_tokens, &stats);
    Ok(answer)
}

async fn stream_pieces(
    header: Header,
    mut pieces: mpsc::Receiver<Piece>,
    events: mpsc::Sender<Result<Sse, Infallible>>,
    prompt_tokens: usize,
    count: usize,
    include_usage: bool,
) {
    let object =
        if header.format == Format::Chat { "chat.completion.chunk" } else { "text_completion" };
    let send = async |value: Value| {
        let mut value = value;
        if include_usage && value.get("usage").is_none() && value.get("error").is_none() {
            value["usage"] = Value::Null;
        }
        events.send(Ok(Sse::default().data(value.to_string()))).await.is_ok()
    };
    if header.format == Format::Chat {
        for index in 0..count {
            let delta = json!({"role": "assistant", "content": ""});
            let choice =
                json!({"index": index, "delta": delta, "logprobs": null, "finish_reason": null});
            if !send(header.answer(object, vec![choice])).await {
                return;
            }
        }
    }
    let mut offsets = vec![0; count];
    let mut stats = vec![SequenceStats::default(); count];
    while let Some(piece) = pieces.recv().await {
        let index = piece.choice;
        let mut reason = Value::Null;
        if let Some(end) = piece.end {
            match end.reason {
                Ok(text) => reason = json!(text),
                Err(error) => {
                    send(error.body()).await;
                    return;
                }
            }
            stats[index] = end.stats;
        }
        if piece.text.is_empty() && piece.tokens.is_empty() && reason.is_null() {
            continue;
        }
        let mut choice = json!({"index": index, "finish_reason": reason});
        match header.format {
            // The last chunk of a choice has an empty delta where no text is left.
            Format::Chat if piece.text.is_empty() => choice["delta"] = json!({}),
            Format::Chat => choice["delta"] = json!({"content": piece.text}),
            Format::Text => choice["text"] = json!(piece.text),
        }
        choice["logprobs"] = header.logprobs(&piece.tokens, offsets[index]);
        header.add_sources(&mut choice, &piece.tokens, &piece.texts);
        offsets[index] += piece.text.chars().count();
        if !send(header.answer(object, vec![choice])).await {
            return;
        }
    }
    if include_usage {
        let mut last = header.answer(object, vec![]);
        last["usage"] = usage(prompt_tokens, &stats);
        send(last).await;
    }
    let _ = events.send(Ok(Sse::default().data("[DONE]"))).await;
}

impl Header {
    fn answer(&self, object: &str, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id, "object": object, "created": self.created, "model": self.serving.name,
            "system_fingerprint": concat!("pleach-", env!("CARGO_PKG_VERSION")),
            "choices": choices,
        })
    }

    /// The extension that says where each token of a choice came from, for clients that ask for it.
    fn add_sources(&self, choice: &mut Value, tokens: &[TokenOut], texts: &[String]) {
        if self.token_sources {
            let sources: Vec<_> = tokens
                .iter()
                .zip(texts)
                .map(|(token, text)| {
                    let mut source = json!({"text": text, "source": token.source.name()});
                    if let Some(proposer) = token.source.proposer() {
                        source["proposer"] = json!(proposer.name());
                    }
                    source
                })
                .collect();
            choice["pleach"] = json!({"sources": sources});
        }
    }

    fn logprobs(&self, tokens: &[TokenOut], offset: usize) -> Value {
        match self.format {
            _ if !self.logprobs => Value::Null,
            Format::Chat => logprobs::chat(&self.serving.tokenizer, tokens),
            Format::Text => logprobs::completion(&self.serving.tokenizer, tokens, offset),
        }
    }
}
