//! Reads request bodies, within bounds of size and time.

use std::sync::Arc;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use crate::server::bounds::{BODY_BYTES, SMALL_BODY_BYTES};
use crate::server::error::ApiError;
use crate::server::state::AppState;

/// Reads the whole body, up to a size and within a time, before anything is done with it.
pub(crate) async fn read_body(
    State(state): State<AppState>,
    request: Request,
    next: Next,
) -> Response {
    let (parts, body) = request.into_parts();
    let bytes = match timeout(state.limits().patience, collect(&state, body)).await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(error)) => return error.into_response(),
        Err(_) => {
            let message = "the body did not arrive in time";
            return ApiError::status(StatusCode::REQUEST_TIMEOUT, message).into_response();
        }
    };
    if state.logs_prompts() && !bytes.is_empty() {
        tracing::info!(body = %String::from_utf8_lossy(&bytes), "asked");
    }
    next.run(Request::from_parts(parts, Body::from(bytes))).await
}

/// A body that holds its share of what all bodies may hold, until it is dropped.
struct HeldBody {
    bytes: Vec<u8>,
    _share: Option<OwnedSemaphorePermit>,
}

impl AsRef<[u8]> for HeldBody {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

async fn collect(state: &AppState, mut body: Body) -> Result<Bytes, ApiError> {
    if body.size_hint().lower() > BODY_BYTES as u64 {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    let mut share: Option<OwnedSemaphorePermit> = None;
    while let Some(frame) = body.frame().await {
        let frame =
            frame.map_err(|_| ApiError::status(StatusCode::BAD_REQUEST, "the body ended early"))?;
        let Ok(data) = frame.into_data() else { continue };
        bytes.extend_from_slice(&data);
        if bytes.len() > BODY_BYTES {
            return Err(too_large());
        }
        // Taken as the bytes come, so that who sends slowly holds no more than what was sent.
        let held = share.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let wanted = bytes.len().saturating_sub(SMALL_BODY_BYTES + held);
        if wanted > 0 {
            let more = Arc::clone(&state.bodies).try_acquire_many_owned(wanted as u32);
            let more = more
                .map_err(|_| ApiError::rate_limited("too many large requests are under way", 1))?;
            match &mut share {
                Some(share) => share.merge(more),
                None => share = Some(more),
            }
        }
    }
    Ok(Bytes::from_owner(HeldBody { bytes, _share: share }))
}

fn too_large() -> ApiError {
    let message = format!("a body may have at most {BODY_BYTES} bytes");
    ApiError::status(StatusCode::PAYLOAD_TOO_LARGE, message)
}

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;
    use crate::server::bounds::BODIES_BYTES;

    #[tokio::test]
    async fn large_bodies_share_a_budget_until_they_are_dropped() {
        let state = AppState::new(PrometheusBuilder::new().build_recorder().handle());
        let body = |bytes: usize| collect(&state, Body::from(vec![b' '; bytes]));
        let mut held = Vec::new();
        for _ in 0..BODIES_BYTES / BODY_BYTES {
            held.push(body(BODY_BYTES).await.unwrap());
        }
        let refused = body(BODY_BYTES).await.unwrap_err().into_response();
        assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(body(SMALL_BODY_BYTES).await.unwrap().len(), SMALL_BODY_BYTES);
        held.pop();
        assert_eq!(body(BODY_BYTES).await.unwrap().len(), BODY_BYTES);
        let large = body(BODY_BYTES + 1).await.unwrap_err().into_response();
        assert_eq!(large.status(), StatusCode::PAYLOAD_TOO_LARGE);
    }
}
