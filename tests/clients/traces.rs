//! OpenTelemetry spans, as a collector receives them.

use std::sync::mpsc;
use std::time::Duration;

use axum::body::Bytes;
use axum::http::HeaderMap;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use serde_json::json;

use super::support::Server;

/// A collector; its address and what it receives.
fn collector() -> (String, mpsc::Receiver<ExportTraceServiceRequest>) {
    let (sender, received) = mpsc::channel();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let take = move |headers: HeaderMap, body: Bytes| async move {
        assert_eq!(headers["content-type"], "application/x-protobuf");
        let _ = sender.send(ExportTraceServiceRequest::decode(body).unwrap());
    };
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let app = axum::Router::new().route("/v1/traces", post(take));
            axum::serve(listener, app).await.unwrap();
        });
    });
    (address, received)
}

fn number(attributes: &[KeyValue], key: &str) -> i64 {
    let value = attributes.iter().find(|it| it.key == key).and_then(|it| it.value.as_ref());
    match value.and_then(|value| value.value.as_ref()) {
        Some(Value::IntValue(number)) => *number,
        other => panic!("{key}: {other:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn requests_leave_spans() {
    let (address, received) = collector();
    let mut server = Server::start(&["--fixed-drafts", "--otlp-endpoint", &address]);
    let body =
        json!({"prompt": "The capital of France is", "max_tokens": 12, "temperature": 0, "n": 2});
    let headers = "content-type: application/json\r\nx-request-id: mine-7\r\n\
                   traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n";
    let answer = server.request("POST", "/v1/completions", headers, &body.to_string());
    assert_eq!(answer.status, 200, "{answer:?}");
    server.get("/health");
    server.signal("TERM");
    assert!(server.wait(Duration::from_secs(20)).success(), "{}", server.log());
    // Ended, it has sent everything.
    let mut spans: Vec<Span> = Vec::new();
    while let Ok(batch) = received.recv_timeout(Duration::from_millis(500)) {
        for scope in batch.resource_spans.into_iter().flat_map(|it| it.scope_spans) {
            spans.extend(scope.spans);
        }
    }
    let named = |name: &str| spans.iter().filter(|span| span.name == name).collect::<Vec<_>>();
    let request = named("POST /v1/completions");
    let [request] = request[..] else { panic!("{spans:?}") };
    assert_eq!(hex(&request.trace_id), "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!(hex(&request.parent_span_id), "00f067aa0ba902b7");
    assert_eq!(number(&request.attributes, "http.response.status_code"), 200);
    let own = format!("00-4bf92f3577b34da6a3ce929d0e0e4736-{}-01", hex(&request.span_id));
    assert_eq!(answer.header("traceparent"), Some(&*own), "the answer names the request's span");

    let sequences = named("generate");
    assert_eq!(sequences.len(), 2);
    let (mut generated, mut accepted) = (0, 0);
    for sequence in sequences {
        assert_eq!(sequence.parent_span_id, request.span_id);
        for stage in ["queue", "prefill", "decode"] {
            let own = |span: &&Span| span.parent_span_id == sequence.span_id;
            let stages: Vec<&Span> = named(stage).into_iter().filter(own).collect();
            let [stage] = stages[..] else { panic!("{stage}: {spans:?}") };
            assert!(stage.start_time_unix_nano <= stage.end_time_unix_nano);
            assert!(stage.start_time_unix_nano >= sequence.start_time_unix_nano - 50_000_000);
        }
        let rounds = &sequence.events;
        let sum = |key| rounds.iter().map(|round| number(&round.attributes, key)).sum::<i64>();
        let own = number(&sequence.attributes, "gen_ai.usage.output_tokens");
        assert_eq!(sum("pleach.tokens"), own);
        generated += own;
        accepted += sum("pleach.accepted_tokens");
        assert_eq!(
            sum("pleach.accepted_tokens"),
            number(&sequence.attributes, "pleach.accepted_tokens")
        );
    }
    let usage = &answer.json()["usage"];
    assert_eq!(usage["completion_tokens"], generated);
    assert_eq!(usage["pleach"]["accepted_tokens"], accepted);
    assert_eq!(spans.len(), 1 + 2 * 4, "nothing of probes: {spans:?}");
}
