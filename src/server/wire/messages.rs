//! What `/v1/messages` takes: Anthropic's shape.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{False, ReasoningEffort, TextKind};

/// How a message is made.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct Messages {
    /// Tokens to generate at most.
    #[schemars(range(min = 1))]
    pub(crate) max_tokens: usize,
    /// Texts that end the answer and are not part of it; 16 at most, of 1,024 bytes each
    /// and 4,096 in all.
    pub(crate) stop_sequences: Option<Vec<String>>,
    /// Send the answer as server-sent events while it is generated.
    pub(crate) stream: Option<bool>,
    /// Draft tokens per round at most; 0 for no speculation.
    pub(crate) num_speculative_tokens: Option<usize>,
    /// Only `false`: the answer must not be recorded, also where the server keeps a sample of what it answers
    /// to train its draft on (`--record-traffic`).
    pub(crate) store: Option<False>,
    /// Accepted and ignored.
    #[expect(dead_code, reason = "of no effect")]
    metadata: Option<Map<String, Value>>,
    /// Ignored: there is one tier.
    #[expect(dead_code, reason = "of no effect")]
    service_tier: Option<Tier>,
}

/// A conversation, and what the model may call in it.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct Dialogue {
    /// The conversation so far, of 4,096 turns at most. A last turn of the assistant is one to go on with; what the user
    /// says in turns that follow each other makes one message.
    #[schemars(length(min = 1, max = 4096))]
    pub(crate) messages: Vec<Turn>,
    /// What the assistant is and does.
    pub(crate) system: Option<Words>,
    /// Functions that the model may call.
    #[schemars(length(max = 128))]
    pub(crate) tools: Option<Vec<MessagesTool>>,
    /// Whether it calls: `auto`, where there are tools, leaves that to the model.
    pub(crate) tool_choice: Option<MessagesToolChoice>,
    /// Whether the model reasons before it answers, where its chat template leaves a choice.
    pub(crate) thinking: Option<ThinkingConfig>,
    /// What the text must be.
    pub(crate) output_config: Option<OutputConfig>,
    /// Ignored: every prompt is cached.
    #[expect(dead_code, reason = "of no effect")]
    cache_control: Option<Map<String, Value>>,
    /// Ignored: nothing is taken out of a conversation.
    #[expect(dead_code, reason = "of no effect")]
    context_management: Option<Map<String, Value>>,
}

/// The form of an answer.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct OutputConfig {
    /// How much the model thinks and says, where its chat template knows of `reasoning_effort`.
    pub(crate) effort: Option<ReasoningEffort>,
    /// JSON that a schema admits.
    pub(crate) format: Option<OutputFormat>,
}

/// What a text must be.
#[derive(Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum OutputFormat {
    /// JSON that a schema admits.
    JsonSchema {
        /// The schema.
        schema: Map<String, Value>,
    },
}

/// One turn of a conversation.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Turn {
    /// Who speaks.
    pub(crate) role: Speaker,
    /// The words, the calls and their results.
    pub(crate) content: Blocks,
}

/// Who speaks.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Speaker {
    /// The user.
    User,
    /// The assistant.
    Assistant,
    /// The client itself, in the midst of a conversation. Its words join the user's.
    System,
}

/// What a turn consists of.
#[derive(Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "must be a string or a list of text, thinking, tool_use and tool_result blocks: this is a text model"
)]
pub(crate) enum Blocks {
    /// A text.
    Text(String),
    /// Blocks.
    Blocks(Vec<Block>),
}

/// A part of a turn.
#[derive(Deserialize, JsonSchema)]
#[serde(
    untagged,
    deny_unknown_fields,
    expecting = "must be a text, thinking, tool_use or tool_result block: this is a text model"
)]
pub(crate) enum Block {
    /// A text.
    Text {
        /// `text`.
        #[expect(dead_code, reason = "has one value")]
        #[serde(rename = "type")]
        kind: TextKind,
        /// The text.
        text: String,
        /// Ignored: every prompt is cached.
        #[expect(dead_code, reason = "of no effect")]
        cache_control: Option<Map<String, Value>>,
        /// Part of the API's answers, and empty there.
        #[expect(dead_code, reason = "always empty")]
        #[schemars(length(max = 0))]
        citations: Option<[Value; 0]>,
    },
    /// What the assistant thought before it answered.
    Thinking {
        /// `thinking`.
        #[expect(dead_code, reason = "has one value")]
        #[serde(rename = "type")]
        kind: ThinkingKind,
        /// The reasoning.
        thinking: String,
        /// Accepted and ignored.
        #[expect(dead_code, reason = "of no effect")]
        signature: Option<String>,
    },
    /// Reasoning of another server's, which says nothing here.
    RedactedThinking {
        /// `redacted_thinking`.
        #[expect(dead_code, reason = "has one value")]
        #[serde(rename = "type")]
        kind: RedactedThinkingKind,
        /// Accepted and ignored.
        #[expect(dead_code, reason = "of no effect")]
        data: String,
    },
    /// A call that the assistant made.
    ToolUse {
        /// `tool_use`.
        #[expect(dead_code, reason = "has one value")]
        #[serde(rename = "type")]
        kind: ToolUseKind,
        /// Ties the result to the call.
        id: String,
        /// The function.
        name: String,
        /// Its arguments.
        input: Map<String, Value>,
        /// Ignored: every prompt is cached.
        #[expect(dead_code, reason = "of no effect")]
        cache_control: Option<Map<String, Value>>,
    },
    /// What a function gave back.
    ToolResult {
        /// `tool_result`.
        #[expect(dead_code, reason = "has one value")]
        #[serde(rename = "type")]
        kind: ToolResultKind,
        /// The call's `id`.
        tool_use_id: String,
        /// Its result.
        content: Option<Words>,
        /// Whether the call failed: then the model reads `Error: ` before the result.
        is_error: Option<bool>,
        /// Ignored: every prompt is cached.
        #[expect(dead_code, reason = "of no effect")]
        cache_control: Option<Map<String, Value>>,
    },
}

/// `thinking`.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ThinkingKind {
    /// Reasoning.
    Thinking,
}

/// `redacted_thinking`.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RedactedThinkingKind {
    /// Reasoning.
    RedactedThinking,
}

/// `tool_use`.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ToolUseKind {
    /// A call.
    ToolUse,
}

/// `tool_result`.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ToolResultKind {
    /// A result.
    ToolResult,
}

impl Blocks {
    pub(crate) fn into_blocks(self) -> Vec<Block> {
        match self {
            Self::Text(text) => {
                let (kind, cache_control, citations) = (TextKind::Text, None, None);
                vec![Block::Text { kind, text, cache_control, citations }]
            }
            Self::Blocks(blocks) => blocks,
        }
    }
}

/// Text, whole or in blocks.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged, expecting = "must be a string or a list of text blocks: this is a text model")]
pub(crate) enum Words {
    /// The text.
    Text(String),
    /// Its blocks, which are put together.
    Blocks(Vec<TextBlock>),
}

/// A part of a text.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TextBlock {
    /// `text`: the only kind that a text model reads.
    #[serde(rename = "type")]
    #[expect(dead_code, reason = "has one value")]
    kind: TextKind,
    /// The text.
    text: String,
    /// Ignored: every prompt is cached.
    #[expect(dead_code, reason = "of no effect")]
    cache_control: Option<Map<String, Value>>,
}

impl Words {
    pub(crate) fn into_text(self) -> String {
        match self {
            Self::Text(text) => text,
            Self::Blocks(blocks) => blocks.into_iter().map(|block| block.text).collect(),
        }
    }
}

/// A function that the model may call.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct MessagesTool {
    /// Only `custom`.
    #[serde(rename = "type")]
    #[expect(dead_code, reason = "has one value")]
    kind: Option<CustomKind>,
    /// Up to 64 letters, digits, `_` and `-`.
    pub(crate) name: String,
    /// What it does, for the model.
    pub(crate) description: Option<String>,
    /// JSON schema of its arguments, an object.
    pub(crate) input_schema: Map<String, Value>,
    /// Whether a schema is refused that is not supported in all it says. Else arguments follow it as far as it is: the
    /// header `x-pleach-loosened` names the keywords that are not followed, and `any object` where none can be.
    pub(crate) strict: Option<bool>,
    /// Ignored: every prompt is cached.
    #[expect(dead_code, reason = "of no effect")]
    cache_control: Option<Map<String, Value>>,
}

/// `custom`: a function of the client's.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum CustomKind {
    /// A function.
    Custom,
}

/// Whether the model calls, and what.
#[derive(Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum MessagesToolChoice {
    /// The model decides whether it calls.
    Auto {
        /// Whether it makes one call at most.
        disable_parallel_tool_use: Option<bool>,
    },
    /// The model must call a function.
    Any {
        /// Whether it makes one call at most.
        disable_parallel_tool_use: Option<bool>,
    },
    /// This function, once.
    Tool {
        /// Its name.
        name: String,
        /// Ignored: it is called once.
        #[expect(dead_code, reason = "of no effect")]
        disable_parallel_tool_use: Option<bool>,
    },
    /// The model calls nothing, and is not told of the tools.
    None {},
}

/// How a request is served.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Tier {
    /// As every request is served.
    Auto,
    /// As every request is served.
    StandardOnly,
}

/// Whether the model reasons before it answers.
#[derive(Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum ThinkingConfig {
    /// The model reasons before it answers.
    Enabled {
        /// Accepted and ignored: `max_tokens` alone bounds the reasoning.
        #[expect(dead_code, reason = "of no effect")]
        budget_tokens: Option<usize>,
        /// Whether the reasoning is part of the message.
        display: Option<ThinkingDisplay>,
    },
    /// The same.
    Adaptive {
        /// Whether the reasoning is part of the message.
        display: Option<ThinkingDisplay>,
    },
    /// The model does not reason before it answers.
    Disabled {},
}

/// How reasoning is shown.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ThinkingDisplay {
    /// As the model thinks it.
    Summarized,
    /// Not at all.
    Omitted,
}

impl ThinkingConfig {
    /// Whether the model is to reason.
    pub(crate) fn thinks(&self) -> bool {
        !matches!(self, Self::Disabled {})
    }

    /// Whether its reasoning is left out of the message.
    pub(crate) fn hides(&self) -> bool {
        match self {
            Self::Enabled { display, .. } | Self::Adaptive { display } => {
                *display == Some(ThinkingDisplay::Omitted)
            }
            Self::Disabled {} => false,
        }
    }
}
