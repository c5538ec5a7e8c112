//! `POST /v1/responses`: OpenAI's newer shape, for text. Nothing is stored.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use super::adapt::{self, Chunks, Events};
use super::{ApiError, AppState, Body};

pub(super) async fn responses(
    State(state): State<AppState>,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let name = state.serving()?.name.clone();
    let mut body = Body::parse(bytes)?;
    let stream = body.or("stream", false)?;
    let metadata = body.take::<Map<String, Value>>("metadata")?;
    let instructions = body.take::<String>("instructions")?;
    let mut request = request(&mut body, instructions.as_deref())?;
    let parallel = body.or("parallel_tool_calls", true)?;
    body.finish()?;
    let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs());
    let response = json!({
        "id": format!("resp_{}", uuid::Uuid::new_v4().simple()),
        "object": "response", "created_at": created, "model": name, "status": "in_progress",
        "error": null, "incomplete_details": null, "metadata": metadata.unwrap_or_default(),
        "instructions": instructions, "output": [],
        "parallel_tool_calls": parallel, "tool_choice": "auto", "tools": [], "store": false,
        "temperature": request.get("temperature").cloned().unwrap_or(json!(1.0)),
        "top_p": request.get("top_p").cloned().unwrap_or(json!(1.0)),
        "max_output_tokens": request.get("max_completion_tokens"),
        "previous_response_id": null, "truncation": "disabled", "usage": null,
        "text": {"format": {"type": "text"}},
    });
    let mut answer = Answer { response, text: String::new(), sequence: 0 };
    if stream {
        let chunks = adapt::streamed(&state, &mut request).await?;
        let (events, response) = adapt::events();
        tokio::spawn(answer.forward(chunks, events));
        return Ok(response);
    }
    let chat = adapt::whole(&state, &request).await?;
    let choice = &chat["choices"][0];
    answer.text = choice["message"]["content"].as_str().unwrap_or_default().to_owned();
    answer.finish(&choice["finish_reason"], &chat["usage"]);
    Ok(Json(answer.response).into_response())
}

/// The chat completion that a request stands for.
fn request(body: &mut Body, instructions: Option<&str>) -> Result<Value, ApiError> {
    let mut chat = Map::new();
    let mut messages = Vec::new();
    if let Some(instructions) = instructions {
        messages.push(json!({"role": "system", "content": instructions}));
    }
    match body.require::<Value>("input")? {
        Value::String(text) => messages.push(json!({"role": "user", "content": text})),
        Value::Array(items) => {
            for item in items {
                let kind = item.get("type").map_or(Some("message"), Value::as_str);
                let (Some("message"), Some(role)) = (kind, item["role"].as_str()) else {
                    let message = "`input` takes messages, with a `role` and a `content`";
                    return Err(ApiError::invalid("input", message));
                };
                let kinds = ["input_text", "output_text"];
                let text = adapt::text("input", &item["content"], &kinds)?;
                messages.push(json!({"role": role, "content": text}));
            }
        }
        _ => {
            return Err(ApiError::invalid("input", "`input` must be a text or a list of messages"));
        }
    }
    chat.insert("messages".into(), messages.into());
    for (name, as_chat) in [
        ("max_output_tokens", "max_completion_tokens"),
        ("temperature", "temperature"),
        ("top_p", "top_p"),
        ("num_speculative_tokens", "num_speculative_tokens"),
    ] {
        if let Some(value) = body.take::<Value>(name)? {
            chat.insert(as_chat.into(), value);
        }
    }
    // These change nothing, or only their harmless values are taken.
    body.take::<String>("model")?;
    body.take::<String>("user")?;
    body.only("store", &[json!(false)])?;
    body.only("background", &[json!(false)])?;
    body.only("truncation", &[json!("disabled")])?;
    body.only("text", &[json!({"format": {"type": "text"}})])?;
    body.only("tools", &[json!([])])?;
    body.only("tool_choice", &[json!("none"), json!("auto")])?;
    Ok(Value::Object(chat))
}

struct Answer {
    response: Value,
    text: String,
    sequence: u64,
}

impl Answer {
    fn item(&self, status: &str) -> Value {
        let id = self.response["id"].as_str().unwrap_or_default().replace("resp_", "msg_");
        let content = if status == "in_progress" { json!([]) } else { json!([self.part()]) };
        json!({"id": id, "type": "message", "role": "assistant", "status": status,
            "content": content})
    }

    fn part(&self) -> Value {
        json!({"type": "output_text", "text": self.text, "annotations": [], "logprobs": []})
    }

    /// Completes the response object.
    fn finish(&mut self, finish_reason: &Value, usage: &Value) {
        let cut = finish_reason == "length";
        let status = if cut { "incomplete" } else { "completed" };
        self.response["status"] = json!(status);
        if cut {
            self.response["incomplete_details"] = json!({"reason": "max_output_tokens"});
        }
        self.response["output"] = json!([self.item(status)]);
        self.response["usage"] = json!({
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage["total_tokens"],
        });
    }

    /// Sends one event, numbered.
    async fn event(&mut self, events: &Events, kind: &str, mut event: Value) -> bool {
        event["type"] = json!(kind);
        event["sequence_number"] = json!(self.sequence);
        self.sequence += 1;
        events.send(&event).await
    }

    /// Sends a chat completion's chunks as events of a response.
    async fn forward(mut self, mut chunks: Chunks, events: Events) {
        let item = self.item("in_progress");
        let id = item["id"].clone();
        let place = json!({"item_id": id, "output_index": 0, "content_index": 0});
        let with = |name: &str, value: Value| {
            let mut event = place.clone();
            event[name] = value;
            event
        };
        let snapshot = json!({"response": self.response});
        self.event(&events, "response.created", snapshot.clone()).await;
        self.event(&events, "response.in_progress", snapshot).await;
        let added = json!({"output_index": 0, "item": item});
        self.event(&events, "response.output_item.added", added).await;
        let part = with("part", self.part());
        if !self.event(&events, "response.content_part.added", part).await {
            return;
        }
        let (mut reason, mut usage) = (Value::Null, Value::Null);
        while let Some(chunk) = chunks.next().await {
            if let Some(error) = chunk.get("error") {
                let error = json!({"code": "server_error", "message": error["message"]});
                self.response["status"] = json!("failed");
                self.response["error"] = error;
                let failed = json!({"response": self.response});
                self.event(&events, "response.failed", failed).await;
                return;
            }
            let choice = &chunk["choices"][0];
            if let Some(text) = choice["delta"]["content"].as_str().filter(|t| !t.is_empty()) {
                self.text += text;
                let mut event = with("delta", json!(text));
                event["logprobs"] = json!([]);
                if !self.event(&events, "response.output_text.delta", event).await {
                    return;
                }
            }
            if !choice["finish_reason"].is_null() {
                reason = choice["finish_reason"].clone();
            }
            if chunk["usage"].is_object() {
                usage = chunk["usage"].clone();
            }
        }
        self.finish(&reason, &usage);
        let mut done = with("text", json!(self.text));
        done["logprobs"] = json!([]);
        self.event(&events, "response.output_text.done", done).await;
        let part = with("part", self.part());
        self.event(&events, "response.content_part.done", part).await;
        let item = json!({"output_index": 0, "item": self.response["output"][0]});
        self.event(&events, "response.output_item.done", item).await;
        let kind = if reason == "length" { "response.incomplete" } else { "response.completed" };
        let last = json!({"response": self.response});
        self.event(&events, kind, last).await;
    }
}
