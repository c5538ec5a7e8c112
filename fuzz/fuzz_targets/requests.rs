//! Random requests, from their JSON to the engine and back.

#![no_main]

use std::path::Path;
use std::sync::OnceLock;

use axum::body::Body;
use axum::http::Request;
use clap::Parser;
use http_body_util::BodyExt;
use libfuzzer_sys::{Corpus, fuzz_target};
use pleach::cli::{Args, Config};
use pleach::observe::exporter;
use pleach::server::{AppState, load, router};
use tokio::runtime::Runtime;
use tower::ServiceExt;

#[path = "../../tests/support/gguf.rs"]
mod gguf;

/// A tiny model, which has no tokenizer of its own.
const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/goldens/llama-tied");

/// Puts the model in a folder, with a tokenizer of letters and a chat template that knows reasoning.
fn write_model(folder: &Path) {
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(Path::new(MODEL).join(name), folder.join(name)).expect("the model is copied");
    }
    let written = std::fs::write(folder.join("tokenizer.json"), gguf::letters_json());
    written.expect("the tokenizer is written");
    // Requests choose whether the answer begins within reasoning.
    let template = gguf::TEMPLATE.to_owned() + "{% if think %}<think>{% elif done %}</think>{% endif %}";
    let written = std::fs::write(folder.join("chat_template.jinja"), template);
    written.expect("the template is written");
}

fn server() -> &'static (Runtime, AppState) {
    static SERVER: OnceLock<(Runtime, AppState)> = OnceLock::new();
    SERVER.get_or_init(|| {
        let runtime = Runtime::new().expect("a runtime starts");
        let state = AppState::new(exporter::install().expect("the first recorder"));
        let flags = ["--threads", "1", "--no-speculation", "--max-model-len", "64"];
        let folder = tempfile::tempdir().expect("a folder");
        write_model(folder.path());
        let model = folder.path().to_str().expect("its path is text");
        let arguments = ["pleach", "--model", model].into_iter().chain(flags);
        let config = Config::from(Args::parse_from(arguments));
        state.serve(load(&config).expect("the model loads"));
        (runtime, state)
    })
}

async fn ask(state: &AppState, request: Request<Body>) -> u16 {
    let response = router(state.clone()).oneshot(request).await.expect("routers do not fail");
    let status = response.status().as_u16();
    // A stream is read to its end.
    let _ = response.into_body().collect().await;
    status
}

fuzz_target!(|input: &[u8]| -> Corpus {
    let Some(end) = input.iter().position(|byte| *byte == b'\n') else { return Corpus::Reject };
    let (path, body) = (&input[..end], &input[end + 1..]);
    let request = Request::post(path).body(Body::from(body.to_vec()));
    let Ok(request) = request else { return Corpus::Reject };
    let (runtime, state) = server();
    runtime.block_on(async {
        let status = ask(state, request).await;
        assert!(status < 500, "status {status}");
        let health = Request::get("/health").body(Body::empty()).expect("a request");
        assert_eq!(ask(state, health).await, 200);
    });
    Corpus::Keep
});
