//! Errors in the shape of the API whose path was asked, wherever on the way of a request they come from.

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;

use crate::server::error::ApiError;

/// Rewrites errors of `/v1/messages` and what lies below it in Anthropic's shape; all others have OpenAI's.
pub(crate) async fn errors(request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let path = path.strip_prefix("/v1").unwrap_or(path);
    let below = |rest: &str| rest.is_empty() || rest.starts_with('/');
    let is_anthropics = path.strip_prefix("/messages").is_some_and(below);
    let response = next.run(request).await;
    match response.extensions().get::<ApiError>().filter(|_| is_anthropics).cloned() {
        Some(error) => error.in_anthropics_shape(response),
        None => response,
    }
}
