//! Messages of a conversation.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize};
use std::borrow::Cow;

/// Text, whole or in parts.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged, expecting = "must be a string or a list of text parts: this is a text model")]
pub(crate) enum Content {
    /// The text.
    Text(String),
    /// Its parts, which are put together.
    Parts(Vec<Part>),
}

/// A part of a text.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Part {
    /// `text`: the only kind that a text model reads.
    #[serde(rename = "type")]
    #[expect(dead_code, reason = "has one value")]
    kind: TextKind,
    /// The text.
    text: String,
}

/// `text`.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum TextKind {
    /// Text.
    Text,
}

impl Content {
    pub(crate) fn into_text(self) -> String {
        match self {
            Self::Text(text) => text,
            Self::Parts(parts) => parts.into_iter().map(|part| part.text).collect(),
        }
    }
}

/// A message of a conversation.
#[derive(Deserialize, JsonSchema)]
#[serde(tag = "role", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Message {
    /// What the assistant is and does.
    System {
        /// The instructions.
        content: Content,
        /// Who speaks.
        name: Option<String>,
    },
    /// The same as `system`.
    Developer {
        /// The instructions.
        content: Content,
        /// Who speaks.
        name: Option<String>,
    },
    /// What the user says.
    User {
        /// The words.
        content: Content,
        /// Who speaks.
        name: Option<String>,
    },
    /// What the assistant said.
    Assistant {
        /// Its words; may be left out beside `tool_calls`.
        content: Option<Content>,
        /// Who speaks.
        name: Option<String>,
        /// What it thought before, where the model's chat template shows that to it.
        reasoning_content: Option<String>,
        /// Another name of `reasoning_content`.
        reasoning: Option<String>,
        /// Stands for the content where there is none.
        refusal: Option<String>,
        /// Functions it called.
        tool_calls: Option<Vec<ToolCall>>,
        /// Part of the API's answers, and empty there.
        #[expect(dead_code, reason = "always empty")]
        #[schemars(length(max = 0))]
        annotations: Option<[Never; 0]>,
        /// Not supported.
        #[expect(dead_code, reason = "has no value")]
        audio: Option<Never>,
        /// Not supported: see `tool_calls`.
        #[expect(dead_code, reason = "has no value")]
        function_call: Option<Never>,
    },
    /// What a function gave back.
    Tool {
        /// Its result.
        content: Content,
        /// The call's `id`.
        tool_call_id: String,
        /// The function's name.
        name: Option<String>,
    },
}

/// A call of a function.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ToolCall {
    /// Ties the result to the call.
    pub(crate) id: String,
    /// `function`.
    #[serde(rename = "type")]
    pub(crate) kind: FunctionKind,
    /// What is called.
    pub(crate) function: CalledFunction,
}

/// A function by name, with its arguments.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CalledFunction {
    /// Its name.
    pub(crate) name: String,
    /// The text of a JSON object.
    pub(crate) arguments: String,
}

/// `function`: the only kind of tool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FunctionKind {
    /// A function.
    Function,
}

/// A field that may only be absent or null.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Never {}

impl<'de> Deserialize<'de> for Never {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(serde::de::Error::custom("is not supported by this server; leave it out"))
    }
}

impl JsonSchema for Never {
    fn schema_name() -> Cow<'static, str> {
        "Never".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"not": {}})
    }
}
