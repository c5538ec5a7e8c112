//! Models of a hub.

use std::process::Command;

use axum::Router;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::support::program;
use super::{golden, load, logits};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A hub with one model: its listing, and its files by range.
async fn hub(request: Request) -> Response {
    let path = request.uri().path().to_owned();
    if path == "/api/models/pleach/tiny/revision/main" {
        let files = ["README.md", "config.json", "model.safetensors", "pytorch_model.bin"];
        let siblings: Vec<_> = files.iter().map(|f| serde_json::json!({"rfilename": f})).collect();
        let body = serde_json::json!({"id": "pleach/tiny", "sha": COMMIT, "siblings": siblings});
        return axum::Json(body).into_response();
    }
    let Some(name) = path.strip_prefix("/pleach/tiny/resolve/main/") else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let Ok(bytes) = std::fs::read(golden("llama-tied").join(name)) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let range = request.headers().get(header::RANGE).and_then(|range| {
        let (start, end) = range.to_str().ok()?.strip_prefix("bytes=")?.split_once('-')?;
        let end = end.parse::<usize>().map_or(bytes.len(), |end| bytes.len().min(end + 1));
        Some(start.parse::<usize>().ok()?..end)
    });
    let range = range.unwrap_or(0..bytes.len());
    let content = format!("bytes {}-{}/{}", range.start, range.end - 1, bytes.len());
    let headers = [
        ("etag", format!("\"{name}\"")),
        ("x-repo-commit", COMMIT.to_owned()),
        ("accept-ranges", "bytes".to_owned()),
        ("content-range", content),
    ];
    (StatusCode::PARTIAL_CONTENT, headers, bytes[range].to_vec()).into_response()
}

/// `hf:` sources, against a server that speaks the hub's protocol.
#[tokio::test(flavor = "multi_thread")]
async fn models_come_from_a_hub() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(hub)).await });
    let temporary = tempfile::tempdir().unwrap();
    let prune = |source: &str, out: &str| {
        let mut command = Command::new(program("pleach-tools"));
        command
            .args(["prune", "--list", "1", "--model", source, "--out"])
            .arg(temporary.path().join(out))
            .env("HF_ENDPOINT", &endpoint)
            .env("PLEACH_CACHE_DIR", temporary.path().join("cache"));
        tokio::task::spawn_blocking(move || command.output().unwrap())
    };
    let output = prune("hf:pleach/tiny", "pruned").await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let pruned = load(&temporary.path().join("pruned")).unwrap();
    assert_eq!(pruned.config().num_hidden_layers, 1);
    assert!(logits(&pruned).iter().all(|v| v.is_finite()));
    assert!(
        !temporary.path().join("cache").join("pytorch_model.bin").exists(),
        "only what serving needs is fetched"
    );
    let output = prune("hf:pleach/huge", "other").await.unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && error.contains("pleach/huge"), "{error}");
}
