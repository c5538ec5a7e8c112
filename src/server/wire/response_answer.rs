//! Answers of `/v1/responses`, whole and as events.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

use super::response_tools::{ResponsesTool, ResponsesToolChoice};
use super::responses::TextFormat;
use super::{Number, PromptTokensDetails, ReasoningEffort, Usage};

/// A response.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(crate) struct ResponseAnswer {
    /// Identifies the response.
    pub(crate) id: String,
    /// `response`.
    pub(crate) object: &'static str,
    /// When it was begun, in seconds since 1970.
    pub(crate) created_at: u64,
    /// The model's name.
    pub(crate) model: String,
    /// How far it is.
    pub(crate) status: ResponseStatus,
    /// What failed, where something did.
    pub(crate) error: Option<ResponseError>,
    /// Why it is incomplete, where it is.
    pub(crate) incomplete_details: Option<IncompleteDetails>,
    /// As it was given.
    pub(crate) metadata: BTreeMap<String, String>,
    /// As they were given.
    pub(crate) instructions: Option<String>,
    /// What the model thought, said and called.
    pub(crate) output: Vec<OutputItem>,
    /// Whether the model may make several calls.
    pub(crate) parallel_tool_calls: bool,
    /// As it was given, or `auto`.
    #[schemars(with = "Value")]
    pub(crate) tool_choice: ResponsesToolChoice,
    /// As they were given, without those that are left out.
    #[schemars(with = "Vec<Map<String, Value>>")]
    pub(crate) tools: Vec<ResponsesTool>,
    /// Always false.
    pub(crate) store: bool,
    /// As it was given, or 1.
    pub(crate) temperature: Number,
    /// As it was given, or 1.
    pub(crate) top_p: Number,
    /// As it was given.
    pub(crate) max_output_tokens: Option<usize>,
    /// Always null: responses are not stored.
    pub(crate) previous_response_id: Option<String>,
    /// `disabled`.
    pub(crate) truncation: &'static str,
    /// What it took; null while it goes on.
    pub(crate) usage: Option<ResponseUsage>,
    /// The form of its text.
    pub(crate) text: ResponseText,
    /// How long the model was to reason.
    pub(crate) reasoning: ResponseReasoning,
}

/// How long a model was to reason.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(crate) struct ResponseReasoning {
    /// As it was given.
    pub(crate) effort: Option<ReasoningEffort>,
    /// Always null: reasoning is given whole.
    pub(crate) summary: Option<String>,
}

/// How far a response is, or an item of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ResponseStatus {
    /// It goes on.
    InProgress,
    /// It is whole.
    Completed,
    /// It is cut.
    Incomplete,
    /// It failed.
    Failed,
}

/// What failed.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(crate) struct ResponseError {
    /// `invalid_prompt` or `server_error`.
    pub(crate) code: &'static str,
    /// For people.
    pub(crate) message: String,
}

/// Why a response is incomplete.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(crate) struct IncompleteDetails {
    /// `max_output_tokens`.
    pub(crate) reason: &'static str,
}

/// The form of a response's text.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(crate) struct ResponseText {
    /// As it was given, or `{"type": "text"}`.
    #[schemars(with = "Map<String, Value>")]
    pub(crate) format: TextFormat,
}

/// A part of a response's output.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum OutputItem {
    /// What the model thought before it answered.
    Reasoning {
        /// Identifies the item.
        id: String,
        /// How far it is.
        status: ResponseStatus,
        /// Always empty.
        summary: [Value; 0],
        /// The reasoning, in one part; none where it only begins.
        content: Vec<OutputPart>,
    },
    /// What the assistant says.
    Message {
        /// Identifies the message.
        id: String,
        /// `assistant`.
        role: &'static str,
        /// How far it is.
        status: ResponseStatus,
        /// Its text, in one part; none where it only begins.
        content: Vec<OutputPart>,
    },
    /// A call of a function.
    FunctionCall {
        /// Identifies the item.
        id: String,
        /// How far it is.
        status: ResponseStatus,
        /// Ties the output to the call.
        call_id: String,
        /// The function.
        name: String,
        /// The namespace that has it, where one does.
        #[serde(skip_serializing_if = "Option::is_none")]
        namespace: Option<String>,
        /// The text of a JSON object.
        arguments: String,
    },
}

/// A text.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum OutputPart {
    /// Of the answer.
    OutputText {
        /// The text.
        text: String,
        /// Always empty.
        annotations: [Value; 0],
        /// Always empty.
        logprobs: [Value; 0],
    },
    /// Of the reasoning.
    ReasoningText {
        /// The text.
        text: String,
    },
}

/// What a response took.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(crate) struct ResponseUsage {
    /// Tokens of the prompt.
    pub(crate) input_tokens: usize,
    /// More on the prompt's tokens.
    pub(crate) input_tokens_details: PromptTokensDetails,
    /// Tokens generated.
    pub(crate) output_tokens: usize,
    /// More on the generated tokens.
    pub(crate) output_tokens_details: OutputTokensDetails,
    /// Both.
    pub(crate) total_tokens: usize,
}

/// More on generated tokens.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(crate) struct OutputTokensDetails {
    /// Tokens of the model's reasoning, tags included.
    pub(crate) reasoning_tokens: u64,
}

impl From<Usage> for ResponseUsage {
    fn from(usage: Usage) -> Self {
        Self {
            input_tokens: usage.prompt_tokens,
            input_tokens_details: usage.prompt_tokens_details,
            output_tokens: usage.completion_tokens,
            output_tokens_details: OutputTokensDetails {
                reasoning_tokens: usage.completion_tokens_details.reasoning_tokens,
            },
            total_tokens: usage.total_tokens,
        }
    }
}

/// An event of a response that is streamed.
#[derive(Debug, Serialize)]
pub(crate) struct ResponseEvent {
    /// What it tells, for instance `response.completed`.
    #[serde(rename = "type")]
    pub(crate) kind: &'static str,
    /// Its place among the events.
    pub(crate) sequence_number: u64,
    #[serde(flatten)]
    pub(crate) data: ResponseEventData,
}

/// What an event tells of.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum ResponseEventData {
    /// The response as it stands.
    Response { response: Box<ResponseAnswer> },
    /// An item as it stands.
    Item { output_index: usize, item: OutputItem },
    /// The text of an item as it stands.
    Part { item_id: String, output_index: usize, content_index: usize, part: OutputPart },
    /// More text.
    TextDelta {
        item_id: String,
        output_index: usize,
        content_index: usize,
        delta: String,
        logprobs: [Value; 0],
    },
    /// A whole text.
    Text {
        item_id: String,
        output_index: usize,
        content_index: usize,
        text: String,
        logprobs: [Value; 0],
    },
    /// More of the reasoning.
    ReasoningDelta { item_id: String, output_index: usize, content_index: usize, delta: String },
    /// The whole reasoning.
    Reasoning { item_id: String, output_index: usize, content_index: usize, text: String },
    /// More of the arguments of a call.
    ArgumentsDelta { item_id: String, output_index: usize, delta: String },
    /// The whole arguments of a call.
    Arguments { item_id: String, output_index: usize, name: String, arguments: String },
}
