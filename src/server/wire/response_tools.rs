//! The tools that `/v1/responses` takes, and which of them the model calls.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{FunctionKind, ToolMode};

/// A tool.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum ResponsesTool {
    /// A function that the model may call.
    Function(ResponsesFunction),
    /// Functions that belong together.
    Namespace(Namespace),
    /// A tool of another kind, `web_search` for instance, which this server has not: it is left out, and a request that has
    /// no others is refused.
    #[serde(other)]
    Hosted,
}

/// A function that the model may call.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ResponsesFunction {
    /// Up to 64 letters, digits, `_` and `-`.
    pub(crate) name: String,
    /// What it does, for the model.
    pub(crate) description: Option<String>,
    /// JSON schema of its arguments, an object; none where it is left out.
    pub(crate) parameters: Option<Map<String, Value>>,
    /// Whether a schema is refused that is not supported in all it says. Else arguments follow it as far as it is: the
    /// header `x-pleach-loosened` names the keywords that are not followed, and `any object` where none can be.
    pub(crate) strict: Option<bool>,
}

/// Functions that belong together. The model knows each by its own name.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Namespace {
    /// Its name, which calls of its functions carry.
    pub(crate) name: String,
    /// Accepted and ignored.
    description: Option<String>,
    /// The functions.
    pub(crate) tools: Vec<NamespaceTool>,
}

/// A tool of a namespace.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum NamespaceTool {
    /// A function that the model may call.
    Function(ResponsesFunction),
    /// A tool of another kind, which is left out.
    #[serde(other)]
    Hosted,
}

impl ResponsesTool {
    /// The functions that it brings.
    pub(crate) fn functions(&self) -> Vec<&ResponsesFunction> {
        match self {
            Self::Function(function) => vec![function],
            Self::Namespace(namespace) => {
                let functions = namespace.tools.iter().filter_map(|tool| match tool {
                    NamespaceTool::Function(function) => Some(function),
                    NamespaceTool::Hosted => None,
                });
                functions.collect()
            }
            Self::Hosted => Vec::new(),
        }
    }

    /// The namespace that has a function of this name.
    pub(crate) fn namespace_of(&self, function: &str) -> Option<&str> {
        match self {
            Self::Namespace(namespace) if self.functions().iter().any(|it| it.name == function) => {
                Some(&namespace.name)
            }
            _ => None,
        }
    }
}

/// Whether the model calls, and what.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(
    untagged,
    deny_unknown_fields,
    expecting = "must be `none`, `auto`, `required`, or name a function"
)]
pub(crate) enum ResponsesToolChoice {
    /// In general.
    Mode(ToolMode),
    /// This function, once.
    Named {
        /// `function`.
        #[serde(rename = "type")]
        kind: FunctionKind,
        /// Its name.
        name: String,
    },
}
