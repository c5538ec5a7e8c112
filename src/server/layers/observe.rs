//! Counts, logs and traces requests.

use std::any::Any;
use std::time::Instant;

use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderValue, Method};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use opentelemetry::context::FutureExt;
use tracing::Instrument;

use crate::metrics::HTTP_REQUESTS;
use crate::observe::spans;
use crate::server::error::ApiError;

/// Counts and logs requests: by route, never by raw path, which a client could make up without end.
/// A caller's trace goes on under a span of our own, and the answer says so.
pub(crate) async fn observe(route: Option<MatchedPath>, request: Request, next: Next) -> Response {
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

/// The answer to a request whose handler panicked: 500; other requests go on.
pub(crate) fn panicked(_: Box<dyn Any + Send>) -> Response {
    tracing::error!("a request met a bug; see the panic's message above");
    ApiError::internal("the server met a bug in this request").into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

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
