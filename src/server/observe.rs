//! What every request passes on its way to its handler.

use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use opentelemetry::context::FutureExt;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;
use tracing::Instrument;

use super::bounds::{BODY_BYTES, SMALL_BODY_BYTES};
use super::{ApiError, AppState, spans};
use crate::metrics::HTTP_REQUESTS;

/// Counts and logs requests: by route, never by raw path, which a client could make up without end.
/// A caller's trace goes on under a span of our own, and the answer says so.
pub(super) async fn observe(route: Option<MatchedPath>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let endpoint = route.map_or_else(|| "other".to_owned(), |route| route.as_str().to_owned());
    let method = request.method().clone();
    // Probes and scrapes would fill the log, and the traces.
    let asks = method == Method::POST;
    let own = if asks { spans::of_request(&method, &endpoint, request.headers()) } else { None };
    let trace = match &own {
        Some(context) => Some(spans::traceparent(context)),
        None => text(&request, "traceparent").and_then(child_of),
    };
    let id = text(&request, "x-request-id").map(str::to_owned);
    let span = tracing::info_span!(
        "request", %method, endpoint, id = id.as_deref(), traceparent = trace.as_deref()
    );
    let run = next.run(request).instrument(span.clone());
    let mut response = run.with_context(own.clone().unwrap_or_default()).await;
    if let Some(own) = &own {
        spans::answered(own, response.status(), id);
    }
    let status = response.status().as_u16();
    let seconds = started.elapsed().as_secs_f64();
    if asks {
        span.in_scope(|| tracing::info!(status, seconds, "answered"));
    } else {
        span.in_scope(|| tracing::debug!(status, seconds, "answered"));
    }
    let code = status.to_string();
    metrics::counter!(HTTP_REQUESTS, "endpoint" => endpoint, "code" => code).increment(1);
    if let Some(value) = trace.and_then(|trace| HeaderValue::from_str(&trace).ok()) {
        response.headers_mut().insert("traceparent", value);
    }
    response
}

fn text<'a>(request: &'a Request, header: &str) -> Option<&'a str> {
    request.headers().get(header)?.to_str().ok()
}

/// A span of our own in a caller's trace (W3C Trace Context, version 00).
fn child_of(traceparent: &str) -> Option<String> {
    let parts: Vec<&str> = traceparent.split('-').collect();
    let hex = |part: &str, length: usize| {
        part.len() == length && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    match parts[..] {
        ["00", trace, parent, flags]
            if hex(trace, 32)
                && hex(parent, 16)
                && hex(flags, 2)
                && trace.bytes().any(|b| b != b'0')
                && parent.bytes().any(|b| b != b'0') =>
        {
            let span = fastrand::u64(1..);
            Some(format!("00-{trace}-{span:016x}-{flags}"))
        }
        _ => None,
    }
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
        let state = AppState::new(1, 0, PrometheusBuilder::new().build_recorder().handle());
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

    #[test]
    fn a_trace_goes_on_under_a_new_span() {
        let given = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let own = child_of(given).unwrap();
        assert!(own.starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-") && own.ends_with("-01"));
        assert_eq!((own.len(), own == given), (given.len(), false));
        for wrong in [
            "",
            "00",
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(child_of(wrong), None);
        }
    }
}
