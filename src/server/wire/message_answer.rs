//! Answers of `/v1/messages`, whole and as events: Anthropic's shape.

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

use super::{AnthropicFailureDetail, Usage};

/// A message of the assistant.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct MessageAnswer {
    /// Identifies the message.
    pub(crate) id: String,
    /// `message`.
    #[serde(rename = "type")]
    pub(crate) kind: &'static str,
    /// `assistant`.
    pub(crate) role: &'static str,
    /// The model's name.
    pub(crate) model: String,
    /// Its reasoning, its text and its calls.
    pub(crate) content: Vec<ContentBlock>,
    /// Why it ended; null while it goes on.
    pub(crate) stop_reason: Option<MessageStop>,
    /// The text of `stop_sequences` that ended it, where one did.
    pub(crate) stop_sequence: Option<String>,
    /// What it took.
    pub(crate) usage: MessageUsage,
}

/// A part of a message.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum ContentBlock {
    /// What the model thought before it answered.
    Thinking {
        /// The reasoning.
        thinking: String,
        /// Always empty.
        signature: &'static str,
    },
    /// A text.
    Text {
        /// The text.
        text: String,
    },
    /// A call of a function.
    ToolUse {
        /// Ties the result to the call.
        id: String,
        /// The function.
        name: String,
        /// Its arguments; empty where the tokens ran out within them.
        input: Map<String, Value>,
    },
}

/// Why a message ended.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum MessageStop {
    /// Its own end.
    EndTurn,
    /// The limit on tokens or on the context.
    MaxTokens,
    /// One of `stop_sequences`.
    StopSequence,
    /// Functions are called.
    ToolUse,
}

/// What a message took.
#[derive(Debug, Default, Serialize, JsonSchema)]
pub(crate) struct MessageUsage {
    /// Tokens of the prompt that were not in the cache.
    pub(crate) input_tokens: usize,
    /// Tokens of the prompt that were in the cache already.
    pub(crate) cache_read_input_tokens: usize,
    /// Always 0: every prompt is cached.
    pub(crate) cache_creation_input_tokens: usize,
    /// Tokens generated.
    pub(crate) output_tokens: usize,
    /// More on the generated tokens.
    pub(crate) output_tokens_details: ThinkingTokens,
}

/// More on the tokens that a message took.
#[derive(Debug, Default, Serialize, JsonSchema)]
pub(crate) struct ThinkingTokens {
    /// Tokens of the model's reasoning, tags included.
    pub(crate) thinking_tokens: u64,
}

impl From<Usage> for MessageUsage {
    fn from(usage: Usage) -> Self {
        let cached = usage.prompt_tokens_details.cached_tokens;
        Self {
            input_tokens: usage.prompt_tokens - cached,
            cache_read_input_tokens: cached,
            cache_creation_input_tokens: 0,
            output_tokens: usage.completion_tokens,
            output_tokens_details: ThinkingTokens {
                thinking_tokens: usage.completion_tokens_details.reasoning_tokens,
            },
        }
    }
}

/// Tokens of a conversation.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct MessageTokens {
    /// How many there are.
    pub(crate) input_tokens: usize,
}

/// An event of a message that is streamed.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum MessageEvent {
    /// The message, without content yet.
    MessageStart { message: MessageAnswer },
    /// A block begins, without text or arguments yet.
    ContentBlockStart { index: usize, content_block: ContentBlock },
    /// More of a block.
    ContentBlockDelta { index: usize, delta: BlockDelta },
    /// A block is whole.
    ContentBlockStop { index: usize },
    /// Why the message ended, and what it took.
    MessageDelta { delta: MessageEnd, usage: MessageUsage },
    /// The message is whole.
    MessageStop,
    /// The message failed, and nothing follows.
    Error { error: AnthropicFailureDetail },
}

impl MessageEvent {
    /// Its name, which is its type.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::MessageStart { .. } => "message_start",
            Self::ContentBlockStart { .. } => "content_block_start",
            Self::ContentBlockDelta { .. } => "content_block_delta",
            Self::ContentBlockStop { .. } => "content_block_stop",
            Self::MessageDelta { .. } => "message_delta",
            Self::MessageStop => "message_stop",
            Self::Error { .. } => "error",
        }
    }
}

/// More of a block.
#[derive(Debug, Serialize)]
#[serde(tag = "type")]
pub(crate) enum BlockDelta {
    /// More reasoning.
    #[serde(rename = "thinking_delta")]
    Thinking { thinking: String },
    /// The signature of the reasoning, behind it.
    #[serde(rename = "signature_delta")]
    Signature { signature: &'static str },
    /// More text.
    #[serde(rename = "text_delta")]
    Text { text: String },
    /// More of the text of the arguments.
    #[serde(rename = "input_json_delta")]
    InputJson { partial_json: String },
}

/// How a message ended.
#[derive(Debug, Serialize)]
pub(crate) struct MessageEnd {
    pub(crate) stop_reason: Option<MessageStop>,
    pub(crate) stop_sequence: Option<String>,
}
