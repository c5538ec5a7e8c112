//! What `/v1/responses` takes.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::response_tools::{ResponsesTool, ResponsesToolChoice};
use super::{False, ReasoningEffort, ServiceTier, Verbosity};

/// A request for a response.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct Responses {
    /// What the user says, or the conversation so far.
    pub(crate) input: Input,
    /// What the assistant is and does.
    pub(crate) instructions: Option<String>,
    /// Tokens to generate at most.
    #[schemars(range(min = 1))]
    pub(crate) max_output_tokens: Option<usize>,
    /// Send the answer as server-sent events while it is generated.
    pub(crate) stream: Option<bool>,
    /// Given back with the response.
    pub(crate) metadata: Option<BTreeMap<String, String>>,
    /// Functions that the model may call.
    pub(crate) tools: Option<Vec<ResponsesTool>>,
    /// Accepted and ignored.
    #[expect(dead_code, reason = "of no effect")]
    client_metadata: Option<Map<String, Value>>,
    /// Whether it calls: `auto`, where there are tools, leaves that to the model.
    pub(crate) tool_choice: Option<ResponsesToolChoice>,
    /// Whether it may make several calls. True where it is left out.
    pub(crate) parallel_tool_calls: Option<bool>,
    /// Draft tokens per round at most; 0 for no speculation.
    pub(crate) num_speculative_tokens: Option<usize>,
    /// What the text must be.
    pub(crate) text: Option<TextOptions>,
    /// How long the model reasons before it answers.
    pub(crate) reasoning: Option<ReasoningRequest>,
    /// Only `reasoning.encrypted_content`, which has no effect: reasoning is given in plain text.
    #[expect(dead_code, reason = "of no effect")]
    include: Option<Vec<Included>>,
    /// Only `false`: the answer must not be recorded, also where the server keeps a sample of what it answers
    /// to train its draft on (`--record-traffic`).
    pub(crate) store: Option<False>,
    /// Only `false`.
    #[expect(dead_code, reason = "has one value")]
    background: Option<False>,
    /// Only `disabled`.
    #[expect(dead_code, reason = "has one value")]
    truncation: Option<Truncation>,
    /// Ignored: there is one tier.
    #[expect(dead_code, reason = "of no effect")]
    service_tier: Option<ServiceTier>,
    /// Identifies the end user; ignored.
    #[expect(dead_code, reason = "of no effect")]
    user: Option<String>,
    /// Identifies the end user; ignored.
    #[expect(dead_code, reason = "of no effect")]
    safety_identifier: Option<String>,
    /// Requests with another one, or none, find nothing of this one in the prefix cache, nor this one of theirs; not
    /// empty, 1,024 bytes at most. Requests with different API keys never do.
    #[schemars(length(min = 1, max = 1024))]
    pub(crate) cache_salt: Option<String>,
    /// Ignored: requests of an API key share one prefix cache.
    #[expect(dead_code, reason = "of no effect")]
    prompt_cache_key: Option<String>,
}

/// How long the model reasons before it answers.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReasoningRequest {
    /// As `reasoning_effort` in chat completions.
    pub(crate) effort: Option<ReasoningEffort>,
    /// Accepted and ignored: reasoning is given whole.
    #[expect(dead_code, reason = "of no effect")]
    summary: Option<Summary>,
    /// The older name of `summary`.
    #[expect(dead_code, reason = "of no effect")]
    generate_summary: Option<Summary>,
}

/// How reasoning is summarised.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Summary {
    Auto,
    Concise,
    Detailed,
}

/// What a response is to include besides.
#[derive(Deserialize, JsonSchema)]
pub(crate) enum Included {
    /// The reasoning, for a client that keeps the conversation itself.
    #[serde(rename = "reasoning.encrypted_content")]
    EncryptedReasoning,
}

/// What a response answers to.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged, expecting = "must be a string or a list of messages, calls and their outputs")]
pub(crate) enum Input {
    /// The user's words.
    Text(String),
    /// A conversation.
    Items(Vec<InputItem>),
}

/// A part of a conversation, as it is written or as an earlier response gave it.
#[derive(Deserialize, JsonSchema)]
#[serde(
    untagged,
    deny_unknown_fields,
    expecting = "must be a message with `role` and `content`, a function_call, a function_call_output or a reasoning item"
)]
pub(crate) enum InputItem {
    /// What the model thought before it answered or called.
    Reasoning {
        /// `reasoning`.
        #[expect(dead_code, reason = "has one value")]
        #[serde(rename = "type")]
        kind: ReasoningKind,
        /// The reasoning.
        content: Option<Vec<ReasoningPart>>,
        /// Accepted and ignored.
        #[expect(dead_code, reason = "of no effect")]
        summary: Option<Vec<Value>>,
        /// Accepted and ignored.
        #[expect(dead_code, reason = "of no effect")]
        encrypted_content: Option<String>,
        /// Accepted and ignored.
        #[expect(dead_code, reason = "of no effect")]
        id: Option<String>,
        /// Accepted and ignored.
        #[expect(dead_code, reason = "of no effect")]
        status: Option<String>,
    },
    /// A call that the model made.
    Call {
        /// `function_call`.
        #[expect(dead_code, reason = "has one value")]
        #[serde(rename = "type")]
        kind: CallKind,
        /// Ties the output to the call.
        call_id: String,
        /// The function.
        name: String,
        /// The text of a JSON object.
        arguments: String,
        /// Accepted and ignored.
        #[expect(dead_code, reason = "of no effect")]
        namespace: Option<String>,
        /// Accepted and ignored.
        #[expect(dead_code, reason = "of no effect")]
        id: Option<String>,
        /// Accepted and ignored.
        #[expect(dead_code, reason = "of no effect")]
        status: Option<String>,
    },
    /// What a function gave back.
    Output {
        /// `function_call_output`.
        #[expect(dead_code, reason = "has one value")]
        #[serde(rename = "type")]
        kind: OutputKind,
        /// The call's `call_id`.
        call_id: String,
        /// Its result.
        output: InputContent,
        /// Accepted and ignored.
        #[expect(dead_code, reason = "of no effect")]
        id: Option<String>,
        /// Accepted and ignored.
        #[expect(dead_code, reason = "of no effect")]
        status: Option<String>,
    },
    /// A message.
    Message {
        /// `message`.
        #[expect(dead_code, reason = "has one value")]
        #[serde(rename = "type")]
        kind: Option<MessageKind>,
        /// Who speaks.
        role: Role,
        /// The words.
        content: InputContent,
        /// Accepted and ignored.
        #[expect(dead_code, reason = "of no effect")]
        id: Option<String>,
        /// Accepted and ignored.
        #[expect(dead_code, reason = "of no effect")]
        status: Option<String>,
    },
}

/// `reasoning`.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ReasoningKind {
    /// Reasoning.
    Reasoning,
}

/// A part of a reasoning.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReasoningPart {
    /// `reasoning_text`.
    #[expect(dead_code, reason = "has one value")]
    #[serde(rename = "type")]
    kind: ReasoningPartKind,
    /// The text.
    pub(crate) text: String,
}

/// `reasoning_text`.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ReasoningPartKind {
    /// Text.
    ReasoningText,
}

/// `function_call`.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum CallKind {
    /// A call.
    FunctionCall,
}

/// `function_call_output`.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OutputKind {
    /// An output.
    FunctionCallOutput,
}

/// `message`.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum MessageKind {
    /// A message.
    Message,
}

/// Who speaks.
#[derive(Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Role {
    /// What the assistant is and does.
    System,
    /// The same.
    Developer,
    /// The user.
    User,
    /// The assistant.
    Assistant,
}

/// Text, whole or in parts.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged, expecting = "must be a string or a list of text parts: this is a text model")]
pub(crate) enum InputContent {
    /// The text.
    Text(String),
    /// Its parts, which are put together.
    Parts(Vec<InputPart>),
}

/// A part of a text.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct InputPart {
    /// Whether it is the user's or an earlier response's.
    #[serde(rename = "type")]
    #[expect(dead_code, reason = "both are text")]
    kind: InputPartKind,
    /// The text.
    text: String,
    /// Accepted and ignored.
    #[expect(dead_code, reason = "of no effect")]
    annotations: Option<Vec<Value>>,
    /// Accepted and ignored.
    #[expect(dead_code, reason = "of no effect")]
    logprobs: Option<Vec<Value>>,
}

/// Whose text it is.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum InputPartKind {
    /// The user's.
    InputText,
    /// An earlier response's.
    OutputText,
}

impl InputContent {
    pub(crate) fn into_text(self) -> String {
        match self {
            Self::Text(text) => text,
            Self::Parts(parts) => parts.into_iter().map(|part| part.text).collect(),
        }
    }
}

/// The form of a response's text.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TextOptions {
    /// Text, any JSON object, or JSON that a schema admits.
    pub(crate) format: Option<TextFormat>,
    /// Only `medium`, which asks for nothing.
    #[expect(dead_code, reason = "has one value")]
    verbosity: Option<Verbosity>,
}

/// What a text must be.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum TextFormat {
    /// Any text.
    Text {},
    /// Any JSON object.
    JsonObject {},
    /// JSON that a schema admits.
    JsonSchema {
        /// Accepted and ignored.
        name: String,
        /// Accepted and ignored.
        description: Option<String>,
        /// The schema.
        schema: Map<String, Value>,
        /// Whether a schema is refused that is not supported in all it says. Else the text follows it as far as it is,
        /// and the header `x-pleach-loosened` names the keywords that are not followed.
        strict: Option<bool>,
    },
}

/// What is done with a conversation that is too long.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Truncation {
    /// It is refused.
    Disabled,
}
