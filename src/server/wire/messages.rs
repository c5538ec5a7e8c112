//! What `/v1/messages` takes: Anthropic's shape.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::TextKind;

/// A request for a message.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct Messages {
    /// Name of the served model; may be left out.
    pub(crate) model: Option<String>,
    /// The conversation so far.
    #[schemars(length(min = 1))]
    pub(crate) messages: Vec<Turn>,
    /// What the assistant is and does.
    pub(crate) system: Option<Blocks>,
    /// Tokens to generate at most.
    #[schemars(range(min = 1))]
    pub(crate) max_tokens: usize,
    /// Divisor of the logits; 0 takes the most likely token. 1 where it is left out.
    #[schemars(range(min = 0, max = 100))]
    pub(crate) temperature: Option<f32>,
    /// Keep the smallest set of most likely tokens with at least this much probability.
    #[schemars(range(max = 1), extend("exclusiveMinimum" = 0))]
    pub(crate) top_p: Option<f32>,
    /// Keep the k most likely tokens; all where k is not positive.
    pub(crate) top_k: Option<i64>,
    /// Send the answer as server-sent events while it is generated.
    pub(crate) stream: Option<bool>,
    /// Draft tokens per round at most; 0 for no speculation.
    pub(crate) num_speculative_tokens: Option<usize>,
    /// Of no effect: nothing is stored.
    #[expect(dead_code, reason = "of no effect")]
    metadata: Option<Map<String, Value>>,
    /// There is one tier.
    #[expect(dead_code, reason = "of no effect")]
    service_tier: Option<Tier>,
    /// Only `{"type": "disabled"}`.
    #[expect(dead_code, reason = "has one value")]
    thinking: Option<Thinking>,
}

/// One turn of a conversation.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Turn {
    /// Who speaks.
    pub(crate) role: Speaker,
    /// The words.
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
}

/// Text, whole or in blocks.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged, expecting = "must be a string or a list of text blocks: this is a text model")]
pub(crate) enum Blocks {
    /// The text.
    Text(String),
    /// Its blocks, which are put together.
    Blocks(Vec<Block>),
}

/// A part of a text.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Block {
    /// `text`: the only kind that a text model reads.
    #[serde(rename = "type")]
    #[expect(dead_code, reason = "has one value")]
    kind: TextKind,
    /// The text.
    text: String,
    /// Of no effect: every prompt is cached.
    #[expect(dead_code, reason = "of no effect")]
    cache_control: Option<Map<String, Value>>,
}

impl Blocks {
    pub(crate) fn into_text(self) -> String {
        match self {
            Self::Text(text) => text,
            Self::Blocks(blocks) => blocks.into_iter().map(|block| block.text).collect(),
        }
    }
}

/// How a request is served.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Tier {
    /// As all are.
    Auto,
    /// As all are.
    StandardOnly,
}

/// Whether the model reasons before it answers.
#[derive(Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Thinking {
    /// It does not.
    Disabled {},
}
