//! Functions that the model may call.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::FunctionKind;

/// What a chat completion may call.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct Tools {
    /// Functions that the model may call.
    #[schemars(length(max = 128))]
    pub(crate) tools: Option<Vec<Tool>>,
    /// Whether it calls: `auto`, where there are tools, leaves that to the model.
    pub(crate) tool_choice: Option<ToolChoice>,
    /// Whether it may make several calls. True where it is left out.
    pub(crate) parallel_tool_calls: Option<bool>,
}

/// A tool.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tool {
    /// `function`.
    #[serde(rename = "type")]
    #[expect(dead_code, reason = "has one value")]
    kind: FunctionKind,
    /// The function.
    pub(crate) function: Function,
}

/// A function that the model may call.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Function {
    /// Up to 64 letters, digits, `_` and `-`.
    #[schemars(regex(pattern = r"^[a-zA-Z0-9_-]{1,64}$"))]
    pub(crate) name: String,
    /// What it does, for the model.
    pub(crate) description: Option<String>,
    /// JSON schema of its arguments, an object; none where it is left out.
    pub(crate) parameters: Option<Map<String, Value>>,
    /// Whether a schema is refused that is not supported in all it says. Else arguments follow it as far as it is: the
    /// header `x-pleach-loosened` names the keywords that are not followed, and `any object` where none can be.
    pub(crate) strict: Option<bool>,
}

/// Whether the model calls, and what.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged, expecting = "must be `none`, `auto`, `required`, or name a function")]
pub(crate) enum ToolChoice {
    /// In general.
    Mode(ToolMode),
    /// This function, once.
    Named(NamedTool),
}

/// Whether the model calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ToolMode {
    /// The model calls nothing, and is not told of the tools.
    None,
    /// The model decides whether it calls.
    Auto,
    /// The model must call a function.
    Required,
}

/// A tool by name.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NamedTool {
    /// `function`.
    #[serde(rename = "type")]
    #[expect(dead_code, reason = "has one value")]
    kind: FunctionKind,
    /// The function.
    pub(crate) function: NamedFunction,
}

/// A function by name.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NamedFunction {
    /// Its name.
    pub(crate) name: String,
}
