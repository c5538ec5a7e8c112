//! The output of a response: its items as they grow, and the events that tell of it.

use serde_json::{Value, json};

use super::adapt::{Chunks, Events};

/// A response under way.
pub(super) struct Output {
    response: Value,
    items: Vec<Item>,
    /// Whether the last item goes on.
    open: bool,
    /// Events so far.
    sequence: u64,
}

enum Item {
    Message { id: String, text: String },
    Call { id: String, call_id: String, name: String, arguments: String },
}

impl Item {
    fn id(&self) -> &str {
        match self {
            Self::Message { id, .. } | Self::Call { id, .. } => id,
        }
    }

    fn json(&self, status: &str) -> Value {
        match self {
            Self::Message { id, text } => {
                // An item begins without its parts.
                let content = if status == "in_progress" { json!([]) } else { json!([part(text)]) };
                json!({"id": id, "type": "message", "role": "assistant", "status": status,
                    "content": content})
            }
            Self::Call { id, call_id, name, arguments } => {
                json!({"id": id, "type": "function_call", "status": status, "call_id": call_id,
                    "name": name, "arguments": arguments})
            }
        }
    }
}

fn part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

fn new_id(prefix: &str) -> String {
    format!("{prefix}_{}", uuid::Uuid::new_v4().simple())
}

impl Output {
    /// A response without output yet.
    pub(super) fn new(response: Value) -> Self {
        Self { response, items: Vec::new(), open: false, sequence: 0 }
    }

    /// Takes in a message of a chat completion, or a part of one; returns the events that tell of it.
    pub(super) fn add(&mut self, message: &Value) -> Vec<Value> {
        let mut events = Vec::new();
        if let Some(more) = message["content"].as_str().filter(|text| !text.is_empty()) {
            if !(self.open && matches!(self.items.last(), Some(Item::Message { .. }))) {
                self.begin_message(&mut events);
            }
            if let Some(Item::Message { text, .. }) = self.items.last_mut() {
                text.push_str(more);
            }
            let delta = json!({"content_index": 0, "delta": more, "logprobs": []});
            events.push(self.event("response.output_text.delta", delta));
        }
        for call in message["tool_calls"].as_array().into_iter().flatten() {
            let function = &call["function"];
            if let Some(call_id) = call["id"].as_str() {
                self.close("completed", &mut events);
                let (id, call_id) = (new_id("fc"), call_id.to_owned());
                let name = function["name"].as_str().unwrap_or_default().to_owned();
                self.begin(Item::Call { id, call_id, name, arguments: String::new() }, &mut events);
            }
            let more = function["arguments"].as_str().unwrap_or_default();
            if let Some(Item::Call { arguments, .. }) = self.items.last_mut()
                && !more.is_empty()
            {
                arguments.push_str(more);
                let delta = json!({"delta": more});
                events.push(self.event("response.function_call_arguments.delta", delta));
            }
        }
        events
    }

    fn begin_message(&mut self, events: &mut Vec<Value>) {
        self.close("completed", events);
        self.begin(Item::Message { id: new_id("msg"), text: String::new() }, events);
        let begun = json!({"content_index": 0, "part": part("")});
        events.push(self.event("response.content_part.added", begun));
    }

    fn begin(&mut self, item: Item, events: &mut Vec<Value>) {
        let begun = item.json("in_progress");
        self.items.push(item);
        self.open = true;
        events.push(self.item_event("response.output_item.added", begun));
    }

    /// Ends the item that goes on, if there is one.
    fn close(&mut self, status: &str, events: &mut Vec<Value>) {
        let Some(item) = self.items.last().filter(|_| self.open) else { return };
        let done = item.json(status);
        match item {
            Item::Message { text, .. } => {
                let whole = json!({"content_index": 0, "text": text, "logprobs": []});
                let whole_part = json!({"content_index": 0, "part": part(text)});
                events.push(self.event("response.output_text.done", whole));
                events.push(self.event("response.content_part.done", whole_part));
            }
            Item::Call { name, arguments, .. } => {
                let whole = json!({"name": name, "arguments": arguments});
                events.push(self.event("response.function_call_arguments.done", whole));
            }
        }
        events.push(self.item_event("response.output_item.done", done));
        self.open = false;
    }

    /// Ends the response; returns the events that tell of it.
    pub(super) fn finish(&mut self, finish_reason: &Value, usage: &Value) -> Vec<Value> {
        let mut events = Vec::new();
        if self.items.is_empty() {
            self.begin_message(&mut events);
        }
        let cut = finish_reason == "length";
        let status = if cut { "incomplete" } else { "completed" };
        self.close(status, &mut events);
        let last = self.items.len() - 1;
        let status_of = |place: usize| if place == last { status } else { "completed" };
        let items = self.items.iter().enumerate();
        self.response["output"] = items.map(|(place, item)| item.json(status_of(place))).collect();
        self.response["status"] = json!(status);
        if cut {
            self.response["incomplete_details"] = json!({"reason": "max_output_tokens"});
        }
        self.response["usage"] = json!({
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": usage["prompt_tokens_details"],
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage["total_tokens"],
        });
        let kind = if cut { "response.incomplete" } else { "response.completed" };
        events.push(json!({"type": kind, "response": self.response}));
        events
    }

    /// The response as it stands.
    pub(super) fn into_response(self) -> Value {
        self.response
    }

    /// An event about a part of the last item.
    fn event(&self, kind: &str, mut event: Value) -> Value {
        event["type"] = json!(kind);
        event["item_id"] = json!(self.items.last().map(Item::id));
        event["output_index"] = json!(self.items.len() - 1);
        event
    }

    /// An event about the last item.
    fn item_event(&self, kind: &str, item: Value) -> Value {
        json!({"type": kind, "output_index": self.items.len() - 1, "item": item})
    }

    /// Sends events, numbered; `false` where nobody listens any more.
    async fn send(&mut self, events: &Events, batch: Vec<Value>) -> bool {
        for mut event in batch {
            event["sequence_number"] = json!(self.sequence);
            self.sequence += 1;
            if !events.send(&event).await {
                return false;
            }
        }
        true
    }

    /// Sends a chat completion's chunks as events of a response.
    pub(super) async fn forward(mut self, mut chunks: Chunks, events: Events) {
        let begun = ["response.created", "response.in_progress"];
        let begun = begun.map(|kind| json!({"type": kind, "response": self.response}));
        if !self.send(&events, begun.to_vec()).await {
            return;
        }
        let (mut reason, mut usage) = (Value::Null, Value::Null);
        while let Some(chunk) = chunks.next().await {
            if let Some(error) = chunk.get("error") {
                self.response["status"] = json!("failed");
                let clients = error["type"] == "invalid_request_error";
                let code = if clients { "invalid_prompt" } else { "server_error" };
                self.response["error"] = json!({"code": code, "message": error["message"]});
                let failed = json!({"type": "response.failed", "response": self.response});
                self.send(&events, vec![failed]).await;
                return;
            }
            let choice = &chunk["choices"][0];
            let batch = self.add(&choice["delta"]);
            if !self.send(&events, batch).await {
                return;
            }
            if !choice["finish_reason"].is_null() {
                reason = choice["finish_reason"].clone();
            }
            if chunk["usage"].is_object() {
                usage = chunk["usage"].clone();
            }
        }
        let batch = self.finish(&reason, &usage);
        self.send(&events, batch).await;
    }
}
