//! `POST /v1/messages`: Anthropic's shape, for text.

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::adapt::{self, Chunks, Events};
use super::wire::messages::{Messages, Speaker, Turn};
use super::{ApiError, AppState, Body};

pub(super) async fn messages(
    State(state): State<AppState>,
    bytes: Result<Bytes, BytesRejection>,
) -> Response {
    match answer(&state, bytes).await {
        Ok(response) => response,
        Err(error) => error.into_anthropic_response(),
    }
}

async fn answer(
    state: &AppState,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let name = state.serving()?.name().to_owned();
    let mut body = Body::parse(bytes)?;
    let wanted: Messages = body.read()?;
    body.finish()?;
    let stream = wanted.stream.unwrap_or(false);
    let mut request = request(wanted);
    let id = format!("msg_{}", uuid::Uuid::new_v4().simple());
    let mut message = json!({
        "id": id, "type": "message", "role": "assistant", "model": name, "content": [],
        "stop_reason": null, "stop_sequence": null,
        "usage": {"input_tokens": 0, "output_tokens": 0},
    });
    if stream {
        let chunks = adapt::streamed(state, &mut request).await?;
        let (events, response) = adapt::events();
        tokio::spawn(forward(message, chunks, events));
        return Ok(response);
    }
    let chat = adapt::whole(state, &request).await?;
    let choice = &chat["choices"][0];
    message["content"] = json!([{"type": "text", "text": choice["message"]["content"]}]);
    message["stop_reason"] = stop_reason(&choice["finish_reason"]);
    message["usage"] = usage(&chat["usage"]);
    Ok(Json(message).into_response())
}

/// The chat completion that a request stands for.
fn request(wanted: Messages) -> Value {
    let mut messages = Vec::new();
    if let Some(system) = wanted.system {
        messages.push(json!({"role": "system", "content": system.into_text()}));
    }
    for Turn { role, content } in wanted.messages {
        let role = match role {
            Speaker::User => "user",
            Speaker::Assistant => "assistant",
        };
        messages.push(json!({"role": role, "content": content.into_text()}));
    }
    json!({
        "model": wanted.model, "messages": messages, "max_tokens": wanted.max_tokens,
        "temperature": wanted.temperature, "top_p": wanted.top_p, "top_k": wanted.top_k,
        "num_speculative_tokens": wanted.num_speculative_tokens,
    })
}

/// Sends a chat completion's chunks as Anthropic's events.
async fn forward(message: Value, mut chunks: Chunks, events: Events) {
    if !events.send(&json!({"type": "message_start", "message": message})).await {
        return;
    }
    let block = json!({"type": "text", "text": ""});
    events.send(&json!({"type": "content_block_start", "index": 0, "content_block": block})).await;
    let (mut reason, mut used) = (Value::Null, Value::Null);
    while let Some(chunk) = chunks.next().await {
        if let Some(error) = chunk.get("error") {
            let error = json!({"type": "api_error", "message": error["message"]});
            events.send(&json!({"type": "error", "error": error})).await;
            return;
        }
        let choice = &chunk["choices"][0];
        if let Some(text) = choice["delta"]["content"].as_str().filter(|text| !text.is_empty()) {
            let delta = json!({"type": "text_delta", "text": text});
            let event = json!({"type": "content_block_delta", "index": 0, "delta": delta});
            if !events.send(&event).await {
                return;
            }
        }
        if !choice["finish_reason"].is_null() {
            reason = stop_reason(&choice["finish_reason"]);
        }
        if chunk["usage"].is_object() {
            used = usage(&chunk["usage"]);
        }
    }
    events.send(&json!({"type": "content_block_stop", "index": 0})).await;
    let delta = json!({"stop_reason": reason, "stop_sequence": null});
    events.send(&json!({"type": "message_delta", "delta": delta, "usage": used})).await;
    events.send(&json!({"type": "message_stop"})).await;
}

fn stop_reason(finish_reason: &Value) -> Value {
    if finish_reason == "length" { json!("max_tokens") } else { json!("end_turn") }
}

fn usage(chat: &Value) -> Value {
    json!({"input_tokens": chat["prompt_tokens"], "output_tokens": chat["completion_tokens"]})
}
