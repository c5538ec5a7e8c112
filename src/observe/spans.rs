//! OpenTelemetry spans of requests, sent to a collector where one is named: the request, what each
//! sequence did in it (queue, prefill, decode), and every round as an event.

use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use axum::http::{HeaderMap, Method, StatusCode};
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{Span, SpanKind, Status, TraceContextExt, Tracer};
use opentelemetry::{Context, KeyValue, global};
use opentelemetry_http::{Bytes, HeaderExtractor, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;

use crate::engine::{SequenceStats, TokenOut, TokenSource};

/// Rounds of one sequence that are kept as events; long answers have more.
const MAX_EVENTS: u32 = 512;
/// Seconds a collector may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Sends spans to the collector at `endpoint` (OTLP over HTTP, protobuf) from now on; shut the provider
/// down to send the last ones.
///
/// # Errors
/// If the endpoint is no URL.
pub fn export(endpoint: &str) -> Result<SdkTracerProvider, ExporterBuildError> {
    let agent = ureq::Agent::config_builder()
        .timeout_global(Some(PATIENCE))
        .http_status_as_error(false)
        .build();
    let exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(Client(agent.into()))
        .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
        .build()?;
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_max_events_per_span(MAX_EVENTS)
        .with_resource(Resource::builder().with_service_name("pleach").build())
        .build();
    global::set_tracer_provider(provider.clone());
    Ok(provider)
}

/// The exporter's client. It runs on the exporter's own thread, which may block.
#[derive(Debug)]
struct Client(ureq::Agent);

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let response = self.0.run(request.map(|body| body.to_vec()))?;
        let (parts, mut body) = response.into_parts();
        Ok(Response::from_parts(parts, body.read_to_vec()?.into()))
    }
}

/// The context of a request's own span, under the caller's where the headers name one; `None` where
/// nothing is exported or this request is not sampled.
pub(crate) fn of_request(method: &Method, endpoint: &str, headers: &HeaderMap) -> Option<Context> {
    let parent = TraceContextPropagator::new()
        .extract_with_context(&Context::new(), &HeaderExtractor(headers));
    let tracer = global::tracer("pleach");
    let attributes = [
        KeyValue::new("http.request.method", method.as_str().to_owned()),
        KeyValue::new("http.route", endpoint.to_owned()),
    ];
    let span = tracer
        .span_builder(format!("{method} {endpoint}"))
        .with_kind(SpanKind::Server)
        .with_attributes(attributes)
        .start_with_context(&tracer, &parent);
    span.is_recording().then(|| parent.with_span(span))
}

/// The header that names a span.
pub(crate) fn traceparent(context: &Context) -> String {
    let span = context.span();
    let span = span.span_context();
    format!("00-{}-{}-{:02x}", span.trace_id(), span.span_id(), span.trace_flags())
}

/// Notes the answer's status, and what the log calls the request.
pub(crate) fn answered(context: &Context, status: StatusCode, id: Option<String>) {
    let span = context.span();
    span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status.as_u16())));
    if let Some(id) = id {
        span.set_attribute(KeyValue::new("http.request.header.x-request-id", id));
    }
    if status.is_server_error() {
        span.set_status(Status::error(status.to_string()));
    }
}

/// The span of one sequence, under the request's.
pub(crate) struct SequenceSpan {
    context: Context,
    submitted: SystemTime,
    ended: bool,
}

impl SequenceSpan {
    /// Starts under the current context; `None` where that is not recorded.
    pub(crate) fn start(choice: usize) -> Option<Self> {
        let parent = Context::current();
        if !parent.span().is_recording() {
            return None;
        }
        let tracer = global::tracer("pleach");
        let span = tracer
            .span_builder("generate")
            .with_attributes([KeyValue::new("pleach.choice", choice as i64)])
            .start_with_context(&tracer, &parent);
        let context = parent.with_span(span);
        Some(Self { context, submitted: SystemTime::now(), ended: false })
    }

    /// Notes a round.
    pub(crate) fn round(&self, tokens: &[TokenOut]) {
        let mut drafts = tokens.iter().filter_map(|token| token.source.proposer());
        let mut attributes = vec![
            KeyValue::new("pleach.tokens", tokens.len() as i64),
            KeyValue::new("pleach.accepted_tokens", drafts.clone().count() as i64),
        ];
        if let Some(last) = drafts.next_back() {
            attributes.push(KeyValue::new("pleach.proposer", last.name()));
        }
        if let Some(own) = tokens.last().map(|token| token.source)
            && !matches!(own, TokenSource::Accepted(_))
        {
            attributes.push(KeyValue::new("pleach.last_token", own.name()));
        }
        self.context.span().add_event("round", attributes);
    }

    /// Ends it, with its stages as spans of their own.
    pub(crate) fn end(mut self, reason: &str, stats: &SequenceStats) {
        self.ended = true;
        let tracer = global::tracer("pleach");
        let after = |seconds: f64| {
            self.submitted + Duration::try_from_secs_f64(seconds).unwrap_or_default()
        };
        let (queue, first) = (stats.queue_seconds, stats.first_token_seconds);
        for (name, from, to) in [
            ("queue", 0.0, queue),
            ("prefill", queue, first),
            ("decode", first, stats.total_seconds),
        ] {
            // A sequence that failed early did not reach every stage.
            if to > from {
                let span = tracer.span_builder(name).with_start_time(after(from));
                span.start_with_context(&tracer, &self.context).end_with_timestamp(after(to));
            }
        }
        let span = self.context.span();
        span.set_attributes([
            KeyValue::new("gen_ai.usage.input_tokens", stats.prompt_tokens as i64),
            KeyValue::new("gen_ai.usage.output_tokens", stats.rounds.generated_tokens as i64),
            KeyValue::new("gen_ai.response.finish_reasons", reason.to_owned()),
            KeyValue::new("pleach.draft_tokens", stats.rounds.draft_tokens as i64),
            KeyValue::new("pleach.accepted_tokens", stats.rounds.accepted_tokens as i64),
            KeyValue::new("pleach.target_passes", stats.target_passes as i64),
            KeyValue::new("pleach.draft_passes", stats.draft_passes as i64),
            KeyValue::new("pleach.preemptions", stats.preemptions as i64),
        ]);
        if reason == "error" {
            span.set_status(Status::error("the sequence failed"));
        }
    }
}

impl Drop for SequenceSpan {
    fn drop(&mut self) {
        let span = self.context.span();
        if !self.ended {
            span.set_attribute(KeyValue::new("gen_ai.response.finish_reasons", "cancelled"));
        }
        span.end();
    }
}
