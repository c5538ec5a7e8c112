//! Errors, and the answers that say that there is none.

use schemars::JsonSchema;
use serde::Serialize;

/// An error.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Failure {
    /// What is wrong.
    pub(crate) error: FailureDetail,
}

/// What is wrong.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct FailureDetail {
    /// For people.
    pub(crate) message: String,
    /// `invalid_request_error`, `rate_limit_error` or `server_error`.
    #[serde(rename = "type")]
    pub(crate) kind: &'static str,
    /// The field at fault.
    pub(crate) param: Option<String>,
    /// For programs.
    pub(crate) code: Option<&'static str>,
}

/// An error in Anthropic's shape.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct AnthropicFailure {
    /// `error`.
    #[serde(rename = "type")]
    pub(crate) kind: &'static str,
    /// What is wrong.
    pub(crate) error: AnthropicFailureDetail,
}

/// What is wrong, in Anthropic's words.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct AnthropicFailureDetail {
    /// Anthropic's name for it.
    #[serde(rename = "type")]
    pub(crate) kind: &'static str,
    /// For people.
    pub(crate) message: String,
}

/// That all is well.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Status {
    /// `ok` or `ready`.
    pub(crate) status: &'static str,
}

/// The server's version.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Version {
    /// As in its package.
    pub(crate) version: &'static str,
}
