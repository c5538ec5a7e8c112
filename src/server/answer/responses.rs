//! Answers of `/v1/responses`: the items of a response as they grow, and the events that tell of them.

use super::sse::Events;
use crate::server::error::ApiError;
use crate::server::generate::running::{RunningRequest, Whole};
use crate::server::generate::said::{Message, Said};
use crate::server::wire::{
    FinishReason, IncompleteDetails, OutputItem, OutputPart, ResponseAnswer, ResponseEvent,
    ResponseEventData, ResponseStatus, Usage,
};

/// A response under way.
pub(crate) struct ResponsesWriter {
    response: ResponseAnswer,
    items: Vec<Item>,
    /// Whether the last item goes on.
    open: bool,
    /// Events that have not been sent.
    events: Vec<ResponseEvent>,
    /// Events so far.
    sequence: u64,
}

enum Item {
    Reasoning { id: String, text: String },
    Message { id: String, text: String },
    Call { id: String, call_id: String, name: String, namespace: Option<String>, arguments: String },
}

impl Item {
    fn id(&self) -> &str {
        match self {
            Self::Reasoning { id, .. } | Self::Message { id, .. } | Self::Call { id, .. } => id,
        }
    }

    fn output(&self, status: ResponseStatus) -> OutputItem {
        // An item begins without its parts.
        let begins = status == ResponseStatus::InProgress;
        let whole = |part| if begins { Vec::new() } else { vec![part] };
        match self {
            Self::Reasoning { id, text } => {
                let (id, content) = (id.clone(), whole(reasoning_part(text)));
                OutputItem::Reasoning { id, status, summary: [], content }
            }
            Self::Message { id, text } => {
                let (id, content) = (id.clone(), whole(part(text)));
                OutputItem::Message { id, role: "assistant", status, content }
            }
            Self::Call { id, call_id, name, namespace, arguments } => OutputItem::FunctionCall {
                id: id.clone(),
                status,
                call_id: call_id.clone(),
                name: name.clone(),
                namespace: namespace.clone(),
                arguments: arguments.clone(),
            },
        }
    }
}

fn part(text: &str) -> OutputPart {
    OutputPart::OutputText { text: text.to_owned(), annotations: [], logprobs: [] }
}

fn reasoning_part(text: &str) -> OutputPart {
    OutputPart::ReasoningText { text: text.to_owned() }
}

fn new_id(prefix: &str) -> String {
    format!("{prefix}_{}", uuid::Uuid::new_v4().simple())
}

impl ResponsesWriter {
    /// A response without output yet.
    pub(crate) fn new(response: ResponseAnswer) -> Self {
        Self { response, items: Vec::new(), open: false, events: Vec::new(), sequence: 0 }
    }

    /// The response with all that is said.
    pub(crate) fn whole(mut self, whole: Whole) -> ResponseAnswer {
        let Message { reasoning, text, calls } = whole.message;
        self.add(Said::Reasoning(reasoning));
        self.add(Said::Text(text));
        for call in calls {
            self.add(Said::Call { id: call.id, name: call.name });
            self.add(Said::Arguments(call.arguments));
        }
        self.finish(whole.reason, whole.usage);
        self.response
    }

    /// Sends an answer as events of a response.
    pub(crate) async fn forward(mut self, mut running: RunningRequest, events: Events) {
        for kind in ["response.created", "response.in_progress"] {
            self.response_event(kind);
        }
        if !self.send(&events).await {
            return;
        }
        let mut reason = FinishReason::Stop;
        let failure = loop {
            let piece = match running.next().await {
                Ok(Some(piece)) => piece,
                Ok(None) => break None,
                Err(fault) => break Some(fault),
            };
            piece.said.into_iter().for_each(|said| self.add(said));
            if !self.send(&events).await {
                return;
            }
            match piece.end.map(|end| end.reason) {
                None => {}
                Some(Ok(why)) => reason = why,
                Some(Err(failure)) => break Some(failure),
            }
        };
        match failure {
            None => self.finish(reason, running.usage()),
            Some(failure) => self.fail(&failure),
        }
        self.send(&events).await;
    }

    /// Takes in what is said next.
    fn add(&mut self, said: Said) {
        match said {
            Said::Reasoning(more) | Said::Text(more) | Said::Arguments(more) if more.is_empty() => {
            }
            Said::Reasoning(delta) => {
                if !(self.open && matches!(self.items.last(), Some(Item::Reasoning { .. }))) {
                    self.begin(Item::Reasoning { id: new_id("rs"), text: String::new() });
                    self.part_event("response.content_part.added", reasoning_part(""));
                }
                if let Some(Item::Reasoning { text, .. }) = self.items.last_mut() {
                    text.push_str(&delta);
                }
                let ((item_id, output_index), content_index) = (self.place(), 0);
                let data = ResponseEventData::ReasoningDelta {
                    item_id,
                    output_index,
                    content_index,
                    delta,
                };
                self.event("response.reasoning_text.delta", data);
            }
            Said::Text(more) => {
                if !(self.open && matches!(self.items.last(), Some(Item::Message { .. }))) {
                    self.begin_message();
                }
                if let Some(Item::Message { text, .. }) = self.items.last_mut() {
                    text.push_str(&more);
                }
                let (item_id, output_index) = self.place();
                let data = ResponseEventData::TextDelta {
                    item_id,
                    output_index,
                    content_index: 0,
                    delta: more,
                    logprobs: [],
                };
                self.event("response.output_text.delta", data);
            }
            Said::Call { id: call_id, name } => {
                self.close(ResponseStatus::Completed);
                let (id, arguments) = (new_id("fc"), String::new());
                let mut tools = self.response.tools.iter();
                let namespace = tools.find_map(|tool| tool.namespace_of(&name)).map(str::to_owned);
                self.begin(Item::Call { id, call_id, name, namespace, arguments });
            }
            Said::Arguments(delta) => {
                if let Some(Item::Call { arguments, .. }) = self.items.last_mut() {
                    arguments.push_str(&delta);
                    let (item_id, output_index) = self.place();
                    let data = ResponseEventData::ArgumentsDelta { item_id, output_index, delta };
                    self.event("response.function_call_arguments.delta", data);
                }
            }
        }
    }

    fn begin_message(&mut self) {
        self.close(ResponseStatus::Completed);
        self.begin(Item::Message { id: new_id("msg"), text: String::new() });
        self.part_event("response.content_part.added", part(""));
    }

    fn begin(&mut self, item: Item) {
        let begun = item.output(ResponseStatus::InProgress);
        self.items.push(item);
        self.open = true;
        self.item_event("response.output_item.added", begun);
    }

    /// Ends the item that goes on, if there is one.
    fn close(&mut self, status: ResponseStatus) {
        let Some(item) = self.items.last().filter(|_| self.open) else { return };
        let done = item.output(status);
        let (item_id, output_index) = self.place();
        match item {
            Item::Reasoning { text, .. } => {
                let (text, part, content_index) = (text.clone(), reasoning_part(text), 0);
                let data =
                    ResponseEventData::Reasoning { item_id, output_index, content_index, text };
                self.event("response.reasoning_text.done", data);
                self.part_event("response.content_part.done", part);
            }
            Item::Message { text, .. } => {
                let (text, part, content_index, logprobs) = (text.clone(), part(text), 0, []);
                let data = ResponseEventData::Text {
                    item_id,
                    output_index,
                    content_index,
                    text,
                    logprobs,
                };
                self.event("response.output_text.done", data);
                self.part_event("response.content_part.done", part);
            }
            Item::Call { name, arguments, .. } => {
                let (name, arguments) = (name.clone(), arguments.clone());
                let data = ResponseEventData::Arguments { item_id, output_index, name, arguments };
                self.event("response.function_call_arguments.done", data);
            }
        }
        self.item_event("response.output_item.done", done);
        self.open = false;
    }

    /// Ends the response.
    fn finish(&mut self, reason: FinishReason, usage: Usage) {
        if self.items.is_empty() {
            self.begin_message();
        }
        let cut = reason == FinishReason::Length;
        let status = if cut { ResponseStatus::Incomplete } else { ResponseStatus::Completed };
        self.end_items(status);
        self.response.status = status;
        self.response.incomplete_details =
            cut.then_some(IncompleteDetails { reason: "max_output_tokens" });
        self.response.usage = Some(usage.into());
        self.response_event(if cut { "response.incomplete" } else { "response.completed" });
    }

    /// Ends the last item, and puts all into the response; those before the last are complete.
    fn end_items(&mut self, status: ResponseStatus) {
        self.close(status);
        let last = self.items.len().saturating_sub(1);
        let status_of =
            |place: usize| if place == last { status } else { ResponseStatus::Completed };
        let items = self.items.iter().enumerate();
        self.response.output = items.map(|(place, item)| item.output(status_of(place))).collect();
    }

    /// Ends a response that failed.
    fn fail(&mut self, failure: &ApiError) {
        self.end_items(ResponseStatus::Incomplete);
        self.response.status = ResponseStatus::Failed;
        self.response.error = Some(failure.response_error());
        self.response_event("response.failed");
    }

    /// Identifier and place of the last item.
    fn place(&self) -> (String, usize) {
        let id = self.items.last().map(Item::id).unwrap_or_default();
        (id.to_owned(), self.items.len().saturating_sub(1))
    }

    fn response_event(&mut self, kind: &'static str) {
        let response = Box::new(self.response.clone());
        self.event(kind, ResponseEventData::Response { response });
    }

    /// Tells of the last item.
    fn item_event(&mut self, kind: &'static str, item: OutputItem) {
        let (_, output_index) = self.place();
        self.event(kind, ResponseEventData::Item { output_index, item });
    }

    /// Tells of the text of the last item.
    fn part_event(&mut self, kind: &'static str, part: OutputPart) {
        let (item_id, output_index) = self.place();
        let data = ResponseEventData::Part { item_id, output_index, content_index: 0, part };
        self.event(kind, data);
    }

    fn event(&mut self, kind: &'static str, data: ResponseEventData) {
        self.events.push(ResponseEvent { kind, sequence_number: self.sequence, data });
        self.sequence += 1;
    }

    /// Sends what has not been sent; `false` where nobody listens any more.
    async fn send(&mut self, events: &Events) -> bool {
        for event in self.events.drain(..) {
            if !events.send_named(event.kind, &event).await {
                return false;
            }
        }
        true
    }
}
