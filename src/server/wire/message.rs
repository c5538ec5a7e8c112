//! Messages of a conversation.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, json};
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
#[derive(Debug, Clone, Copy, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FunctionKind {
    /// A function.
    Function,
}

impl Message {
    /// The message as chat templates read it: `content` is a text, and the arguments of calls are
    /// objects where they are JSON.
    pub(crate) fn into_template(self) -> Value {
        let (role, content, name) = match self {
            Self::System { content, name } | Self::Developer { content, name } => {
                ("system", Some(content), name)
            }
            Self::User { content, name } => ("user", Some(content), name),
            Self::Assistant { content, name, refusal, tool_calls, .. } => {
                let content = content.or(refusal.map(Content::Text));
                let mut message = template("assistant", content, name);
                let calls: Vec<Value> = tool_calls.into_iter().flatten().map(call).collect();
                if !calls.is_empty() {
                    message.insert("tool_calls".into(), calls.into());
                }
                return message.into();
            }
            Self::Tool { content, tool_call_id, name } => {
                let mut message = template("tool", Some(content), name);
                message.insert("tool_call_id".into(), tool_call_id.into());
                return message.into();
            }
        };
        template(role, content, name).into()
    }
}

fn template(role: &str, content: Option<Content>, name: Option<String>) -> Map<String, Value> {
    let content = content.map(Content::into_text).unwrap_or_default();
    let mut message = Map::new();
    message.insert("role".into(), role.into());
    message.insert("content".into(), content.into());
    message.extend(name.map(|name| ("name".into(), name.into())));
    message
}

fn call(call: ToolCall) -> Value {
    let CalledFunction { name, arguments } = call.function;
    let arguments: Value = serde_json::from_str(&arguments).unwrap_or(Value::String(arguments));
    let function = json!({"name": name, "arguments": arguments});
    json!({"id": call.id, "type": "function", "function": function})
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
