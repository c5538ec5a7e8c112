//! What every request passes on its way to its handler.

use std::any::Any;

use axum::body::{Body, HttpBody};
use axum::extract::{MatchedPath, Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tokio::time::timeout;

use super::{ApiError, AppState};
use crate::metrics::HTTP_REQUESTS;

/// Largest request body.
const MAX_BODY_BYTES: usize = 8 << 20;

/// Counts requests by route, never by raw path, which a client could make up without end.
pub(super) async fn count(route: Option<MatchedPath>, request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    let endpoint = route.map_or_else(|| "other".to_owned(), |route| route.as_str().to_owned());
    let code = response.status().as_u16().to_string();
    metrics::counter!(HTTP_REQUESTS, "endpoint" => endpoint, "code" => code).increment(1);
    response
}

/// A bug met by one request is that request's alone.
pub(super) fn panicked(_: Box<dyn Any + Send>) -> Response {
    tracing::error!("a request met a bug; see the panic's message above");
    ApiError::internal("the server met a bug in this request").into_response()
}

/// Reads the whole body, up to a size and within a time, before anything is done with it.
pub(super) async fn read_body(
    State(state): State<AppState>,
    request: Request,
    next: Next,
) -> Response {
    let (parts, body) = request.into_parts();
    if body.size_hint().lower() > MAX_BODY_BYTES as u64 {
        return too_large().into_response();
    }
    let read = Limited::new(body, MAX_BODY_BYTES).collect();
    let bytes = match timeout(state.limits().patience, read).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => return too_large().into_response(),
        Ok(Err(_)) => {
            let message = "the body ended early";
            return ApiError::status(StatusCode::BAD_REQUEST, message).into_response();
        }
        Err(_) => {
            let message = "the body did not arrive in time";
            return ApiError::status(StatusCode::REQUEST_TIMEOUT, message).into_response();
        }
    };
    next.run(Request::from_parts(parts, Body::from(bytes))).await
}

fn too_large() -> ApiError {
    let message = format!("a body may have at most {MAX_BODY_BYTES} bytes");
    ApiError::status(StatusCode::PAYLOAD_TOO_LARGE, message)
}
