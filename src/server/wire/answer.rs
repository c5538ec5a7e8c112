//! Answers of the OpenAI endpoints.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;

use super::{FailureDetail, FunctionKind, ToolCall, Usage};

/// What all answers and chunks carry.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(crate) struct Header {
    /// Identifies the answer.
    pub(crate) id: String,
    /// Kind of the answer.
    pub(crate) object: &'static str,
    /// When it was begun, in seconds since 1970.
    pub(crate) created: u64,
    /// The model's name.
    pub(crate) model: String,
    /// The server's version.
    pub(crate) system_fingerprint: &'static str,
}

/// A chat completion, or a chunk of one.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Answer {
    #[serde(flatten)]
    pub(crate) header: Header,
    /// One per `n`; in a chunk one, or none where it has `usage`.
    pub(crate) choices: Vec<Choice>,
    /// Of a chat completion's prompt, where they were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prompt_logprobs: Option<Vec<PromptLogprobs>>,
    /// In whole answers, and in chunks where it was asked for: null except in the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) usage: Option<Option<Usage>>,
}

/// One of the answers to a prompt, or the next part of it.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Choice {
    /// Place among the choices of all prompts.
    pub(crate) index: usize,
    #[serde(flatten)]
    pub(crate) text: ChoiceText,
    /// Log-probabilities, where they were asked for.
    pub(crate) logprobs: Option<Logprobs>,
    /// Of a plain completion's prompt, where they were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prompt_logprobs: Option<Vec<PromptLogprobs>>,
    /// Why it ended; null while it goes on.
    pub(crate) finish_reason: Option<FinishReason>,
    /// The text or token of the request that ended it, where one did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) stop_reason: Option<StopReason>,
    /// Where its tokens came from, if that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pleach: Option<Sources>,
    /// What ended it, where that was the request's fault and other choices stand.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<FailureDetail>,
}

/// Log-probabilities at one place of a prompt, by token id: of the token itself and of the likeliest. Null for the
/// first token, which follows nothing.
pub(crate) type PromptLogprobs = Option<BTreeMap<u32, PromptLogprob>>;

/// A token that stands at a place of a prompt, or might have.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct PromptLogprob {
    /// Its log-probability; -9999 for none.
    pub(crate) logprob: f32,
    /// Its place among all tokens, 1 for the likeliest.
    pub(crate) rank: usize,
    /// Its text.
    pub(crate) decoded_token: String,
}

/// The text of a choice.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ChoiceText {
    /// Of a chat completion.
    Message(AssistantMessage),
    /// Of a chunk of a chat completion.
    Delta(Delta),
    /// Of a plain completion, whole or the next part.
    Text(String),
}

/// What the assistant says.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct AssistantMessage {
    /// `assistant`.
    pub(crate) role: &'static str,
    /// Its words.
    pub(crate) content: Option<String>,
    /// What it thought before, if it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reasoning_content: Option<String>,
    /// The same, by its newer name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reasoning: Option<String>,
    /// Always null.
    pub(crate) refusal: Option<String>,
    /// Functions it calls.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tool_calls: Option<Vec<ToolCall>>,
}

/// What comes next in a message.
#[derive(Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub(crate) struct Delta {
    /// `assistant`, in the first chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) role: Option<&'static str>,
    /// Reasoning, which comes before the words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reasoning_content: Option<String>,
    /// The same, by its newer name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reasoning: Option<String>,
    /// Words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) content: Option<String>,
    /// What comes next in calls of functions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tool_calls: Option<Vec<ToolCallDelta>>,
}

/// The beginning of a call, or more of its arguments.
#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub(crate) struct ToolCallDelta {
    /// Place among the calls of the message.
    pub(crate) index: usize,
    /// Ties the result to the call; at its beginning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) id: Option<String>,
    /// `function`; at its beginning.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub(crate) kind: Option<FunctionKind>,
    /// What is called.
    pub(crate) function: FunctionDelta,
}

/// A function's name, or more of its arguments.
#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub(crate) struct FunctionDelta {
    /// Its name; at its beginning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    /// What comes next in the text of a JSON object.
    pub(crate) arguments: String,
}

impl ToolCallDelta {
    pub(crate) fn begin(index: usize, id: String, name: String) -> Self {
        let function = FunctionDelta { name: Some(name), arguments: String::new() };
        Self { index, id: Some(id), kind: Some(FunctionKind::Function), function }
    }

    pub(crate) fn more(index: usize, arguments: String) -> Self {
        let function = FunctionDelta { name: None, arguments };
        Self { index, id: None, kind: None, function }
    }
}

/// Why a choice ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FinishReason {
    /// Its own end, a stop text or token, or the end of a grammar.
    Stop,
    /// The limit on tokens or on the context.
    Length,
    /// Functions are called.
    ToolCalls,
    /// The form that was asked for cannot be followed any further: see `error`.
    Error,
}

impl FinishReason {
    /// The reason where functions may have been called: an end that cuts no call is for their sake.
    pub(crate) fn with_calls(self, called: bool) -> Self {
        if called && self == Self::Stop { Self::ToolCalls } else { self }
    }
}

/// What ended a choice.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum StopReason {
    /// One of `stop`.
    Text(String),
    /// One of `stop_token_ids`.
    Token(u32),
}

/// Log-probabilities of tokens.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum Logprobs {
    /// Of a chat completion: one entry per token.
    Chat {
        /// Tokens of the content.
        content: Vec<TokenLogprob>,
        /// Always null.
        refusal: Option<Vec<TokenLogprob>>,
    },
    /// Of a plain completion: parallel lists.
    Text {
        /// The tokens' texts.
        tokens: Vec<String>,
        /// Their log-probabilities; null for the first token of an echoed prompt.
        token_logprobs: Vec<Option<f32>>,
        /// The most likely tokens at each place, by text.
        top_logprobs: Vec<Option<BTreeMap<String, f32>>>,
        /// Where each token begins in the text, in characters.
        text_offset: Vec<usize>,
    },
}

/// A token with its log-probability and those of the most likely ones.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct TokenLogprob {
    #[serde(flatten)]
    pub(crate) token: TopLogprob,
    /// The most likely tokens at its place, most likely first.
    pub(crate) top_logprobs: Vec<TopLogprob>,
}

/// A token with its log-probability.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct TopLogprob {
    /// Its text.
    pub(crate) token: String,
    /// Natural logarithm of its probability at temperature 1.
    pub(crate) logprob: f32,
    /// Its bytes, which need not be a whole character.
    pub(crate) bytes: Vec<u8>,
}

/// Where the tokens of a choice came from.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Sources {
    /// One entry per token.
    pub(crate) sources: Vec<TokenSource>,
}

/// Where a token came from.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct TokenSource {
    /// What it added to the text.
    pub(crate) text: String,
    /// `target`, `accepted`, `recovered` or `bonus`.
    pub(crate) source: &'static str,
    /// Who proposed it, where it was accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) proposer: Option<&'static str>,
}
