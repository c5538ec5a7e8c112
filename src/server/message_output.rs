//! The output of a message in Anthropic's shape: its blocks, and the events that tell of them.

use serde_json::{Value, json};

use super::adapt::{Chunks, Events};

/// The blocks of a whole answer.
pub(super) fn content(message: &Value) -> Value {
    let mut blocks = Vec::new();
    let calls = message["tool_calls"].as_array().map(Vec::as_slice).unwrap_or_default();
    let text = message["content"].as_str().unwrap_or_default();
    if !text.is_empty() || calls.is_empty() {
        blocks.push(json!({"type": "text", "text": text}));
    }
    for call in calls {
        let arguments = call["function"]["arguments"].as_str().unwrap_or_default();
        // They are cut where the tokens ran out.
        let input = serde_json::from_str(arguments).unwrap_or_else(|_| json!({}));
        let name = &call["function"]["name"];
        blocks.push(json!({"type": "tool_use", "id": call["id"], "name": name, "input": input}));
    }
    blocks.into()
}

/// Why a choice ended, and the text that ended it.
pub(super) fn stopped(choice: &Value) -> (Value, Value) {
    let reason = match choice["finish_reason"].as_str() {
        Some("length") => "max_tokens",
        Some("tool_calls") => "tool_use",
        _ if choice["stop_reason"].is_string() => {
            return (json!("stop_sequence"), choice["stop_reason"].clone());
        }
        _ => "end_turn",
    };
    (json!(reason), Value::Null)
}

/// Tokens that came from the cache are counted apart.
pub(super) fn usage(chat: &Value) -> Value {
    let count = |value: &Value| value.as_u64().unwrap_or_default();
    let cached = count(&chat["prompt_tokens_details"]["cached_tokens"]);
    json!({
        "input_tokens": count(&chat["prompt_tokens"]) - cached,
        "cache_read_input_tokens": cached, "cache_creation_input_tokens": 0,
        "output_tokens": count(&chat["completion_tokens"]),
    })
}

/// A message that is sent as it grows.
pub(super) struct Output {
    events: Events,
    /// Blocks begun.
    blocks: usize,
    /// What the last one is, while it goes on.
    open: Option<Kind>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    ToolUse,
}

impl Output {
    pub(super) fn new(events: Events) -> Self {
        Self { events, blocks: 0, open: None }
    }

    /// Sends a chat completion's chunks as events of the message.
    pub(super) async fn forward(mut self, mut message: Value, mut chunks: Chunks) {
        message["usage"] = usage(&json!({"prompt_tokens": chunks.prompt_tokens}));
        if !self.events.send(&json!({"type": "message_start", "message": message})).await {
            return;
        }
        let (mut stop, mut used) = ((Value::Null, Value::Null), Value::Null);
        while let Some(chunk) = chunks.next().await {
            if let Some(error) = chunk.get("error") {
                let clients = error["type"] == "invalid_request_error";
                let kind = if clients { "invalid_request_error" } else { "api_error" };
                let error = json!({"type": kind, "message": error["message"]});
                self.events.send(&json!({"type": "error", "error": error})).await;
                return;
            }
            let choice = &chunk["choices"][0];
            if !self.add(&choice["delta"]).await {
                return;
            }
            if !choice["finish_reason"].is_null() {
                stop = stopped(choice);
            }
            if chunk["usage"].is_object() {
                used = usage(&chunk["usage"]);
            }
        }
        if self.blocks == 0 {
            self.begin(Kind::Text, json!({"type": "text", "text": ""})).await;
        }
        self.end().await;
        let delta = json!({"stop_reason": stop.0, "stop_sequence": stop.1});
        self.events.send(&json!({"type": "message_delta", "delta": delta, "usage": used})).await;
        self.events.send(&json!({"type": "message_stop"})).await;
    }

    /// Sends what a chunk adds; `false` where nobody listens any more.
    async fn add(&mut self, delta: &Value) -> bool {
        let mut heard = true;
        if let Some(text) = delta["content"].as_str().filter(|text| !text.is_empty()) {
            if self.open != Some(Kind::Text) {
                self.begin(Kind::Text, json!({"type": "text", "text": ""})).await;
            }
            heard = self.delta(json!({"type": "text_delta", "text": text})).await;
        }
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            let function = &call["function"];
            if call["id"].is_string() {
                let (id, name) = (&call["id"], &function["name"]);
                let block = json!({"type": "tool_use", "id": id, "name": name, "input": {}});
                self.begin(Kind::ToolUse, block).await;
            }
            let more = function["arguments"].as_str().unwrap_or_default();
            if !more.is_empty() {
                let delta = json!({"type": "input_json_delta", "partial_json": more});
                heard = self.delta(delta).await;
            }
        }
        heard
    }

    async fn begin(&mut self, kind: Kind, block: Value) {
        self.end().await;
        let index = self.blocks;
        let event = json!({"type": "content_block_start", "index": index, "content_block": block});
        self.events.send(&event).await;
        self.blocks += 1;
        self.open = Some(kind);
    }

    async fn delta(&self, delta: Value) -> bool {
        let index = self.blocks - 1;
        let event = json!({"type": "content_block_delta", "index": index, "delta": delta});
        self.events.send(&event).await
    }

    /// Ends the block that goes on, if there is one.
    async fn end(&mut self) {
        if self.open.take().is_some() {
            let event = json!({"type": "content_block_stop", "index": self.blocks - 1});
            self.events.send(&event).await;
        }
    }
}
