//! Lets requests pass that carry a key, as far as the key allows.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::ORIGIN;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;

use crate::server::error::ApiError;
use crate::server::keys::{CALLER, Key};
use crate::server::state::AppState;

/// Lets a request with a known key pass, as many at a time as the key allows.
pub(crate) async fn authorise(
    State(state): State<AppState>,
    request: Request,
    next: Next,
) -> Response {
    let Some(keys) = state.keys() else { return next.run(request).await };
    let Some(key) = keys.find(request.headers()) else {
        return ApiError::unauthorised().into_response();
    };
    let mut response = as_caller(&key, request, next).await;
    key.tell(response.headers_mut());
    response
}

/// Runs a request as one of those that its key may have at a time.
async fn as_caller(key: &Arc<Key>, request: Request, next: Next) -> Response {
    let permit = match &key.slots {
        None => None,
        Some(slots) => match Arc::clone(slots).try_acquire_owned() {
            Ok(permit) => Some(permit),
            Err(_) => {
                let message = "this key's requests at a time are used up";
                return ApiError::rate_limited(message, 1).into_response();
            }
        },
    };
    let response = CALLER.scope(Arc::clone(key), next.run(request)).await;
    // A stream holds its place to its end.
    response.map(|body| {
        Body::new(body.map_frame(move |frame| {
            let _ = &permit;
            frame
        }))
    })
}

/// Lets a request that uses tokens pass while its key has any left.
pub(crate) async fn within_allowance(request: Request, next: Next) -> Response {
    match CALLER.try_with(|key| key.admit()) {
        Ok(Err(seconds)) => {
            let message = "this key's tokens per minute are used up";
            ApiError::rate_limited(message, seconds).into_response()
        }
        _ => next.run(request).await,
    }
}

/// Lets a request that changes adapters pass where the operator allows it: with the admin key, or, where the server has no
/// keys at all, from anything but a page.
pub(crate) async fn authorise_adapters(
    State(state): State<AppState>,
    request: Request,
    next: Next,
) -> Response {
    if !state.allows_runtime_lora() {
        let message = "this server was started without --allow-runtime-lora, so its adapters stay as they are";
        return ApiError::status(StatusCode::FORBIDDEN, message).into_response();
    }
    if state.admin_key().is_none() && state.keys().is_none() {
        // Any page may have a browser send requests, which then name where they come from.
        if request.headers().contains_key(ORIGIN) {
            let message = "pages in browsers may not change the adapters of a server without keys";
            return ApiError::status(StatusCode::FORBIDDEN, message).into_response();
        }
        return next.run(request).await;
    }
    authorise_admin(State(state), request, next).await
}

/// Lets a request with the admin key pass.
pub(crate) async fn authorise_admin(
    State(state): State<AppState>,
    request: Request,
    next: Next,
) -> Response {
    match state.admin_key() {
        None => {
            let message = "this server has no --admin-key, so nobody may change it";
            ApiError::status(StatusCode::FORBIDDEN, message).into_response()
        }
        Some(key) if key.find(request.headers()).is_some() => next.run(request).await,
        Some(_) => ApiError::unauthorised().into_response(),
    }
}
