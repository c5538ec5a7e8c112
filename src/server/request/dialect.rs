//! The names that an API gives to what all of them have in common, so that a fault names the client's own field.

use crate::engine::RequestError;
use crate::server::error::ApiError;

/// What one API calls its fields.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dialect {
    /// What the prompt is made of.
    pub(crate) prompt: &'static str,
    /// The most tokens to generate.
    pub(crate) max_tokens: &'static str,
    /// How many of the most likely tokens are reported beside each.
    pub(crate) top_logprobs: &'static str,
}

impl Dialect {
    /// `/v1/chat/completions`.
    pub(crate) const CHAT: Self =
        Self { prompt: "messages", max_tokens: "max_tokens", top_logprobs: "top_logprobs" };
    /// `/v1/completions`.
    pub(crate) const COMPLETIONS: Self =
        Self { prompt: "prompt", top_logprobs: "logprobs", ..Self::CHAT };
    /// `/v1/messages`.
    pub(crate) const MESSAGES: Self = Self::CHAT;
    /// `/v1/responses`.
    pub(crate) const RESPONSES: Self =
        Self { prompt: "input", max_tokens: "max_output_tokens", ..Self::CHAT };
    /// `/v1/embeddings`.
    pub(crate) const EMBEDDINGS: Self = Self { prompt: "input", ..Self::CHAT };

    /// What the engine finds wrong with a request.
    pub(crate) fn fault(&self, error: &RequestError) -> ApiError {
        let field = match error.field {
            "prompt" => self.prompt,
            "max_tokens" => self.max_tokens,
            "top_logprobs" => self.top_logprobs,
            field => field,
        };
        ApiError::invalid(field, format!("`{field}` {}", error.reason))
    }
}
