//! Requests that hold too much, by every route that reaches the place they aim at: each is refused or answered, and the
//! server goes on for others. Those whose schemas and grammars cost too much are next door.

use std::time::{Duration, Instant};

use axum::http::StatusCode;
use serde_json::{Map, Value, json};

use super::{post, send};

/// The server answers, and generates.
pub(super) async fn alive(after: &str) {
    assert_eq!(send("GET", "/health", "").await.0, StatusCode::OK, "{after}");
    let body = json!({"prompt": "2 + 2 =", "max_tokens": 2, "temperature": 0});
    assert_eq!(post("/v1/completions", body).await["usage"]["completion_tokens"], 2, "{after}");
}

/// Sends a body that must not end anything, nor take long; gives the answer's status and text.
pub(super) async fn survives(name: &str, path: &str, body: &Value) -> (StatusCode, String) {
    let started = Instant::now();
    let (status, text) = send("POST", path, &body.to_string()).await;
    let shown: String = text.chars().take(300).collect();
    let took = started.elapsed();
    assert!(
        status == StatusCode::OK || status.is_client_error(),
        "{name} {path}: {status} {shown}"
    );
    assert!(took < Duration::from_secs(20), "{name} {path}: {took:?}");
    assert!(text.len() < 100_000, "{name} {path}: an answer of {} bytes", text.len());
    (status, text)
}

/// The same for one that is refused as the client's fault.
pub(super) async fn refuses(name: &str, path: &str, body: &Value) {
    let (status, text) = survives(name, path, body).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{name} {path}: {text}");
    assert!(text.contains("invalid_request_error"), "{name} {path}: {text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn long_lists_and_texts_are_refused() {
    let messages = json!([{"role": "user", "content": "hi"}]);
    let (chat, plain) = ("/v1/chat/completions", "/v1/completions");
    let biases = |count: usize| -> Map<String, Value> {
        (0..count).map(|i| (format!("{i}"), json!(1))).collect()
    };
    let spelled: Map<String, Value> =
        (0..1000).map(|i| (format!("{}1", "0".repeat(i)), json!(1))).collect();
    let turns = vec![json!({"role": "user", "content": ""}); 270_000];
    let parts = vec![json!({"type": "text", "text": "x"}); 60_000];
    let said = json!([{"role": "user", "content": parts}]);
    for (path, param, body) in [
        (plain, "stop_token_ids", json!({"prompt": "x", "n": 128, "stop_token_ids": vec![1; 257]})),
        (chat, "stop_token_ids", json!({"messages": messages, "stop_token_ids": vec![1; 100_000]})),
        (plain, "body", json!({"prompt": "x", "n": 128, "stop_token_ids": vec![1; 3_990_000]})),
        (chat, "body", json!({"messages": messages, "stop_token_ids": vec![1; 3_900_000]})),
        (plain, "stop", json!({"prompt": "x", "stop": ["x".repeat(8_000_000)]})),
        (chat, "stop", json!({"messages": messages, "stop": "x".repeat(1025)})),
        (chat, "stop", json!({"messages": messages, "stop": vec!["x".repeat(1000); 5]})),
        (chat, "stop", json!({"messages": messages, "stop": vec!["x"; 17]})),
        (
            "/v1/messages",
            "",
            json!({"messages": messages, "max_tokens": 1, "stop_sequences": ["x".repeat(8_000_000)]}),
        ),
        (plain, "logit_bias", json!({"prompt": "x", "logit_bias": biases(400_000)})),
        (chat, "logit_bias", json!({"messages": messages, "logit_bias": biases(1025)})),
        (chat, "logit_bias", json!({"messages": messages, "logit_bias": spelled})),
        (chat, "logit_bias", json!({"messages": messages, "logit_bias": {"+1": 1}})),
        (chat, "body", json!({"messages": turns})),
        ("/apply-template", "body", json!({"messages": turns})),
        ("/tokenize", "body", json!({"messages": turns})),
        ("/v1/responses", "body", json!({"input": turns})),
        ("/v1/messages", "", json!({"messages": turns, "max_tokens": 1})),
        ("/v1/messages/count_tokens", "", json!({"messages": turns})),
        (chat, "messages", json!({"messages": &turns[..4097]})),
        ("/apply-template", "messages", json!({"messages": &turns[..4097]})),
        ("/v1/responses", "input", json!({"input": &turns[..4097]})),
        ("/v1/messages", "", json!({"messages": &turns[..4097], "max_tokens": 1})),
        (chat, "messages", json!({"messages": said})),
        ("/v1/responses", "input", json!({"input": said})),
        (chat, "tools", json!({"messages": messages, "tools": vec![json!({}); 129]})),
        ("/v1/responses", "tools", json!({"input": "x", "tools": vec![json!({}); 129]})),
        (chat, "model", json!({"messages": messages, "model": "x".repeat(1_000_000)})),
        (
            "/v1/responses",
            "metadata",
            json!({"input": "x", "metadata": {"key": "x".repeat(1_000_000)}}),
        ),
        (plain, "prompt", json!({"prompt": vec!["x"; 129]})),
        ("/v1/embeddings", "input", json!({"input": vec!["x"; 2049]})),
        (plain, "n", json!({"prompt": "x", "n": 129})),
        // More than there will ever be room for: coming back would not help.
        (plain, "n", json!({"prompt": "x", "n": 65})),
        (plain, "n", json!({"prompt": ["a", "b"], "n": 33})),
        (plain, "n", json!({"prompt": "a", "best_of": 65})),
        (plain, "prompt", json!({"prompt": vec!["x"; 65]})),
        (chat, "x".repeat(4000).as_str(), json!({"messages": messages, "x".repeat(4000): 1})),
        (
            chat,
            "prediction",
            json!({"messages": messages, "prediction": {"type": "content", "content": "x ".repeat(3_000_000)}}),
        ),
    ] {
        let (status, text) = survives(param, path, &body).await;
        let error: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(status, StatusCode::BAD_REQUEST, "{path} {param}: {text}");
        assert_eq!(error["error"]["type"], "invalid_request_error", "{path} {param}: {text}");
        if !param.is_empty() {
            assert_eq!(error["error"]["param"], param, "{path}: {text}");
        }
    }
    alive("all of them").await;
    // What the bounds allow is served.
    for body in [
        json!({"prompt": "x", "max_tokens": 1, "stop_token_ids": vec![1; 256], "logit_bias": biases(1024)}),
        json!({"prompt": "x", "max_tokens": 1, "stop": vec!["y".repeat(256); 16]}),
        json!({"prompt": vec!["x"; 32], "max_tokens": 1}),
    ] {
        post("/v1/completions", body).await;
    }
}

/// Reading requests, however large, keeps nobody from asking how the server is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_is_told_at_once_beside_large_requests() {
    // The first request of all loads the model.
    assert_eq!(send("GET", "/health", "").await.0, StatusCode::OK);
    let turns = vec![json!({"role": "user", "content": "x".repeat(1000)}); 4096];
    let bodies = [
        ("/apply-template", json!({"messages": turns})),
        ("/tokenize", json!({"messages": turns})),
        ("/v1/chat/completions", json!({"messages": turns})),
        ("/v1/messages/count_tokens", json!({"messages": turns})),
    ];
    let asked: Vec<_> = bodies
        .iter()
        .cycle()
        .take(8)
        .map(|(path, body)| {
            let (path, body) = (*path, body.to_string());
            tokio::spawn(async move { send("POST", path, &body).await.0 })
        })
        .collect();
    let mut slowest = Duration::ZERO;
    while !asked.iter().all(tokio::task::JoinHandle::is_finished) {
        let started = Instant::now();
        assert_eq!(send("GET", "/health", "").await.0, StatusCode::OK);
        slowest = slowest.max(started.elapsed());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(slowest < Duration::from_millis(500), "{slowest:?}");
}
