//! Answers of `/v1/messages`: whole, and as the events of a message that grows.

use serde_json::Map;

use super::sse::Events;
use crate::server::error::ApiError;
use crate::server::generate::running::{RunningRequest, Whole};
use crate::server::generate::said::{Call, Message, Said};
use crate::server::wire::{
    BlockDelta, ContentBlock, FinishReason, MessageAnswer, MessageEnd, MessageEvent, MessageStop,
    MessageUsage, StopReason,
};

/// A message of a model before anything is said.
pub(crate) fn message(model: String) -> MessageAnswer {
    MessageAnswer {
        id: format!("msg_{}", uuid::Uuid::new_v4().simple()),
        kind: "message",
        role: "assistant",
        model,
        content: Vec::new(),
        stop_reason: None,
        stop_sequence: None,
        usage: MessageUsage::default(),
    }
}

impl MessageAnswer {
    /// The message with all that is said.
    pub(crate) fn with(mut self, whole: Whole) -> Self {
        let MessageEnd { stop_reason, stop_sequence } = end(whole.reason, whole.stop);
        (self.stop_reason, self.stop_sequence) = (stop_reason, stop_sequence);
        self.content = blocks(whole.message);
        self.usage = whole.usage.into();
        self
    }
}

fn blocks(mut message: Message) -> Vec<ContentBlock> {
    let thinking = std::mem::take(&mut message.reasoning);
    let thinking = Some(thinking).filter(|text| !text.is_empty());
    let thinking = thinking.map(|thinking| ContentBlock::Thinking { thinking, signature: "" });
    let text = message.content().map(|text| ContentBlock::Text { text });
    let call = |Call { id, name, arguments }| {
        // They are cut where the tokens ran out.
        let input = serde_json::from_str(&arguments).unwrap_or_default();
        ContentBlock::ToolUse { id, name, input }
    };
    let calls = message.calls.into_iter().map(call);
    thinking.into_iter().chain(text).chain(calls).collect()
}

/// Why a message ended, and the text that ended it.
fn end(reason: FinishReason, stop: Option<StopReason>) -> MessageEnd {
    let (reason, stop_sequence) = match (reason, stop) {
        (FinishReason::Length, _) => (MessageStop::MaxTokens, None),
        (FinishReason::ToolCalls, _) => (MessageStop::ToolUse, None),
        (_, Some(StopReason::Text(text))) => (MessageStop::StopSequence, Some(text)),
        _ => (MessageStop::EndTurn, None),
    };
    MessageEnd { stop_reason: Some(reason), stop_sequence }
}

/// A message that is sent as it grows.
pub(crate) struct AnthropicWriter {
    events: Events,
    /// Blocks begun.
    blocks: usize,
    /// What the last one is, while it goes on.
    open: Option<Kind>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Thinking,
    Text,
    ToolUse,
}

impl AnthropicWriter {
    pub(crate) fn new(events: Events) -> Self {
        Self { events, blocks: 0, open: None }
    }

    /// Sends an answer as events of the message.
    pub(crate) async fn forward(mut self, mut message: MessageAnswer, mut running: RunningRequest) {
        message.usage.input_tokens = running.prompt_tokens;
        if !self.send(MessageEvent::MessageStart { message }).await {
            return;
        }
        let (mut reason, mut stop) = (FinishReason::Stop, None);
        loop {
            let piece = match running.next().await {
                Ok(Some(piece)) => piece,
                Ok(None) => break,
                Err(fault) => return self.fail(&fault).await,
            };
            if !self.add(piece.said).await {
                return;
            }
            match piece.end.map(|end| (end.reason, end.stop)) {
                None => {}
                Some((Ok(why), text)) => (reason, stop) = (why, text),
                Some((Err(failure), _)) => return self.fail(&failure).await,
            }
        }
        if self.blocks == 0 {
            self.begin(Kind::Text, ContentBlock::Text { text: String::new() }).await;
        }
        self.end().await;
        let (delta, usage) = (end(reason, stop), running.usage().into());
        self.send(MessageEvent::MessageDelta { delta, usage }).await;
        self.send(MessageEvent::MessageStop).await;
    }

    async fn fail(&self, failure: &ApiError) {
        self.send(MessageEvent::Error { error: failure.anthropic() }).await;
    }

    /// Sends what a piece adds; `false` where nobody listens any more.
    async fn add(&mut self, said: Vec<Said>) -> bool {
        let mut heard = true;
        for said in said {
            heard = match said {
                Said::Reasoning(thinking) => {
                    if self.open != Some(Kind::Thinking) {
                        let (thinking, signature) = (String::new(), "");
                        let block = ContentBlock::Thinking { thinking, signature };
                        self.begin(Kind::Thinking, block).await;
                    }
                    self.delta(BlockDelta::Thinking { thinking }).await
                }
                Said::Text(text) => {
                    if self.open != Some(Kind::Text) {
                        let block = ContentBlock::Text { text: String::new() };
                        self.begin(Kind::Text, block).await;
                    }
                    self.delta(BlockDelta::Text { text }).await
                }
                Said::Call { id, name } => {
                    let block = ContentBlock::ToolUse { id, name, input: Map::new() };
                    self.begin(Kind::ToolUse, block).await
                }
                Said::Arguments(text) if text.is_empty() => continue,
                Said::Arguments(partial_json) => {
                    self.delta(BlockDelta::InputJson { partial_json }).await
                }
            };
        }
        heard
    }

    async fn begin(&mut self, kind: Kind, content_block: ContentBlock) -> bool {
        self.end().await;
        let index = self.blocks;
        self.blocks += 1;
        self.open = Some(kind);
        self.send(MessageEvent::ContentBlockStart { index, content_block }).await
    }

    async fn delta(&self, delta: BlockDelta) -> bool {
        let index = self.blocks - 1;
        self.send(MessageEvent::ContentBlockDelta { index, delta }).await
    }

    /// Ends the block that goes on, if there is one.
    async fn end(&mut self) {
        if let Some(kind) = self.open.take() {
            if kind == Kind::Thinking {
                self.delta(BlockDelta::Signature { signature: "" }).await;
            }
            let index = self.blocks - 1;
            self.send(MessageEvent::ContentBlockStop { index }).await;
        }
    }

    /// Sends an event; `false` where nobody listens any more.
    async fn send(&self, event: MessageEvent) -> bool {
        self.events.send_named(event.name(), &event).await
    }
}
