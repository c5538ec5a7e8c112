//! Errors in the shape OpenAI's clients expect.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::wire::{
    AnthropicFailure, AnthropicFailureDetail, Failure, FailureDetail, ResponseError,
};
use crate::engine::{RequestError, SubmitError};

/// Bytes of a message: what it quotes may be megabytes long.
const MESSAGE_BYTES: usize = 4 << 10;

/// An answer other than success.
#[derive(Debug, Clone)]
pub struct ApiError {
    status: StatusCode,
    message: String,
    param: Option<String>,
    code: Option<&'static str>,
    /// Seconds after which to try again.
    retry_after: u64,
}

impl ApiError {
    /// The request is at fault; `param` names the field.
    #[must_use]
    pub fn invalid(param: &str, message: impl Into<String>) -> Self {
        let param = Some(param[..param.floor_char_boundary(MESSAGE_BYTES)].to_owned());
        Self { param, ..Self::status(StatusCode::BAD_REQUEST, message) }
    }

    /// A prompt of `size` (tokens, or bytes where they tell enough) has no room in the context.
    #[must_use]
    pub fn too_long(param: &str, size: &str, context: usize) -> Self {
        let message = format!(
            "`{param}` has {size}; this model's maximum context length is {context} tokens, one of them for the answer"
        );
        Self { code: Some("context_length_exceeded"), ..Self::invalid(param, message) }
    }

    /// Any other status.
    #[must_use]
    pub fn status(status: StatusCode, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if message.len() > MESSAGE_BYTES {
            message.truncate(message.floor_char_boundary(MESSAGE_BYTES));
            message += "...";
        }
        Self { status, message, param: None, code: None, retry_after: 1 }
    }

    /// 404: the request names a model that is not served, beside what is.
    #[must_use]
    pub fn no_such_model(asked: &str, served: &str) -> Self {
        let message =
            format!("the model `{asked}` does not exist here; this server has `{served}`");
        Self { code: Some("model_not_found"), ..Self::not_found("model", message) }
    }

    /// 404: what a field names is not there.
    #[must_use]
    pub fn not_found(param: &str, message: impl Into<String>) -> Self {
        Self { status: StatusCode::NOT_FOUND, ..Self::invalid(param, message) }
    }

    /// 500: the server is at fault.
    #[must_use]
    pub fn internal(message: impl Into<String>) -> Self {
        Self::status(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// 403: the request's key may not use this field.
    #[must_use]
    pub fn forbidden(param: &str, message: &str) -> Self {
        Self { status: StatusCode::FORBIDDEN, ..Self::invalid(param, message) }
    }

    /// 429: too much at a time, or in a time; there may be room after `retry_after` seconds.
    #[must_use]
    pub fn rate_limited(message: &str, retry_after: u64) -> Self {
        let status = Self::status(StatusCode::TOO_MANY_REQUESTS, message);
        Self { code: Some("rate_limit_exceeded"), retry_after, ..status }
    }

    /// 401: the request has no key, or an unknown one.
    #[must_use]
    pub fn unauthorised() -> Self {
        let message = "a valid API key is needed: `Authorization: Bearer KEY`";
        Self { code: Some("invalid_api_key"), ..Self::status(StatusCode::UNAUTHORIZED, message) }
    }

    /// 504: the time that the server has for a request was over before its answer began.
    #[must_use]
    pub fn overdue() -> Self {
        let message =
            "the server's time for a request (--request-timeout) was over before the answer began";
        Self { code: Some("timeout"), ..Self::status(StatusCode::GATEWAY_TIMEOUT, message) }
    }

    /// 503: the model is not loaded yet, or no longer there.
    #[must_use]
    pub fn unavailable(message: &str) -> Self {
        Self::status(StatusCode::SERVICE_UNAVAILABLE, message)
    }

    /// Whether a field of the request is at fault.
    pub(super) fn is_invalid(&self) -> bool {
        self.status == StatusCode::BAD_REQUEST
    }

    /// Whether the request is at fault.
    pub(super) fn is_clients(&self) -> bool {
        self.status.is_client_error()
    }

    /// The error as a JSON body.
    pub(super) fn body(&self) -> Failure {
        let kind = match self.status {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_client_error() => "invalid_request_error",
            _ => "server_error",
        };
        let (message, param) = (self.message.clone(), self.param.clone());
        Failure { error: FailureDetail { message, kind, param, code: self.code } }
    }
}

impl ApiError {
    /// The error in Anthropic's words.
    pub(super) fn anthropic(&self) -> AnthropicFailureDetail {
        let kind = match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::NOT_FOUND => "not_found_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            StatusCode::SERVICE_UNAVAILABLE => "overloaded_error",
            StatusCode::GATEWAY_TIMEOUT => "timeout_error",
            status if status.is_client_error() => "invalid_request_error",
            _ => "api_error",
        };
        AnthropicFailureDetail { kind, message: self.message.clone() }
    }

    /// What went wrong in a response.
    pub(super) fn response_error(&self) -> ResponseError {
        let code = if self.is_clients() { "invalid_prompt" } else { "server_error" };
        ResponseError { code, message: self.message.clone() }
    }

    /// A response with the error in it, in the shape Anthropic's clients expect.
    pub(super) fn in_anthropics_shape(&self, mut response: Response) -> Response {
        let error = self.anthropic();
        let body = Json(AnthropicFailure { kind: "error", error }).into_response();
        response.headers_mut().remove(header::CONTENT_LENGTH);
        *response.body_mut() = body.into_body();
        response
    }
}

impl From<RequestError> for ApiError {
    fn from(error: RequestError) -> Self {
        Self::invalid(error.field, error.to_string())
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        match error {
            SubmitError::Invalid(error) => error.into(),
            SubmitError::Stopped => Self::internal(error.to_string()),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        let again = [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE];
        if again.contains(&self.status) {
            response.headers_mut().insert(header::RETRY_AFTER, self.retry_after.into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
        }
        response.extensions_mut().insert(self);
        response
    }
}
