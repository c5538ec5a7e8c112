//! LoRA adapters that come and go while the server serves.

use std::path::Path;
use std::process::Command;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use http_body_util::BodyExt;
use pleach::checkpoint::Checkpoint;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::adapters::{Tiny, ask};
use super::send_to;
use super::support::adapter::write_adapter;
use super::support::letters;

const LOAD: &str = "/v1/load_lora_adapter";
const UNLOAD: &str = "/v1/unload_lora_adapter";

fn load(name: &str, path: &Path) -> Value {
    json!({"lora_name": name, "lora_path": path})
}

fn replace(name: &str, path: &Path) -> Value {
    json!({"lora_name": name, "lora_path": path, "load_inplace": true})
}

async fn change(app: &Router, path: &str, body: &Value) -> String {
    let (status, text) = send_to(app.clone(), "POST", path, &body.to_string()).await;
    assert_eq!(status, StatusCode::OK, "{text}");
    text
}

/// Sends a change that is refused, and gives the message.
async fn refused(app: &Router, path: &str, body: &Value, at: (u16, &str)) -> String {
    let (status, text) = send_to(app.clone(), "POST", path, &body.to_string()).await;
    let error: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((status.as_u16(), error["error"]["param"].as_str().unwrap_or("")), at, "{text}");
    error["error"]["message"].as_str().unwrap().to_owned()
}

/// The adapters that are listed: their names, folders and models.
async fn listed(app: &Router) -> Vec<[String; 3]> {
    let (_, text) = send_to(app.clone(), "GET", "/v1/models", "").await;
    let models: Value = serde_json::from_str(&text).unwrap();
    let adapters = models["data"].as_array().unwrap().iter().filter(|it| !it["parent"].is_null());
    adapters
        .map(|it| ["id", "root", "parent"].map(|field| it[field].as_str().unwrap().to_owned()))
        .collect()
}

fn completion(model: &str) -> Value {
    json!({"model": model, "prompt": "the quick brown fox jumps over it", "max_tokens": 20,
        "temperature": 0, "logprobs": 1})
}

/// What a model says, and how much of the prompt it found in the cache.
async fn said(app: &Router, model: &str) -> (Value, Value) {
    let answer = ask(app, "/v1/completions", &completion(model)).await;
    let cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"].clone();
    (answer["choices"][0].clone(), cached)
}

#[tokio::test(flavor = "multi_thread")]
async fn adapters_come_and_go() {
    let tiny = Tiny::new();
    let (one, two) = (tiny.path("one"), tiny.path("two"));
    let lora = format!("one={},two={}", one.display(), two.display());
    let start = tiny.app(&["--served-model-name", "base", "--lora", &lora]);
    let mut expected = Vec::new();
    for model in ["base", "one", "two"] {
        expected.push(said(&start, model).await.0);
    }
    let app = tiny.app(&["--served-model-name", "base", "--allow-runtime-lora"]);
    assert_eq!(said(&app, "base").await.0, expected[0]);
    let (status, _) =
        send_to(app.clone(), "POST", "/v1/completions", &completion("sql").to_string()).await;
    assert_eq!(status, StatusCode::NOT_FOUND);

    let told = change(&app, LOAD, &load("sql", &one)).await;
    assert_eq!(told, "Success: LoRA adapter 'sql' added successfully.");
    let entry = |name: &str, path: &Path| [name, path.to_str().unwrap(), "base"].map(str::to_owned);
    assert_eq!(listed(&app).await, [entry("sql", &one)]);
    let none = json!(0);
    assert_eq!(said(&app, "sql").await, (expected[1].clone(), none.clone()));
    let (again, cached) = said(&app, "sql").await;
    assert_eq!((again, cached), (expected[1].clone(), json!(32)));

    // The name stays, and what the other one has computed is found no more.
    change(&app, LOAD, &replace("sql", &two)).await;
    assert_eq!(listed(&app).await, [entry("sql", &two)]);
    assert_eq!(said(&app, "sql").await, (expected[2].clone(), none.clone()));
    change(&app, LOAD, &replace("tone", &one)).await;
    assert_eq!(listed(&app).await, [entry("sql", &two), entry("tone", &one)]);
    assert_eq!(said(&app, "tone").await, (expected[1].clone(), none.clone()));

    let told = change(&app, UNLOAD, &json!({"lora_name": "sql"})).await;
    assert_eq!(told, "Success: LoRA adapter 'sql' removed successfully.");
    assert_eq!(listed(&app).await, [entry("tone", &one)]);
    let gone = json!({"lora_name": "sql"});
    let message = refused(&app, UNLOAD, &gone, (404, "lora_name")).await;
    assert!(message.contains("`sql`"), "{message}");
    refused(&app, "/v1/completions", &completion("sql"), (404, "model")).await;
    change(&app, LOAD, &load("sql", &one)).await;
    assert_eq!(said(&app, "sql").await, (expected[1].clone(), none));
    assert_eq!(said(&app, "base").await.0, expected[0]);
    // Those of the start can go too.
    let app = tiny.app(&["--allow-runtime-lora", "--lora", &lora]);
    change(&app, UNLOAD, &json!({"lora_name": "one"})).await;
    assert_eq!(said(&app, "two").await.0, expected[2]);
    refused(&app, "/v1/completions", &completion("one"), (404, "model")).await;
}

/// A stream goes on with the adapter that it began with, unloaded or replaced meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn what_runs_keeps_its_adapter() {
    let tiny = Tiny::new();
    let app = tiny.app(&["--allow-runtime-lora"]);
    for leave in [(UNLOAD, json!({"lora_name": "sql"})), (LOAD, replace("sql", &tiny.path("two")))]
    {
        change(&app, LOAD, &replace("sql", &tiny.path("one"))).await;
        let mut body = json!({"model": "sql", "prompt": "abc", "max_tokens": 58, "temperature": 0, "ignore_eos": true});
        let whole = ask(&app, "/v1/completions", &body).await["choices"][0]["text"].clone();
        body["stream"] = json!(true);
        let request = Request::post("/v1/completions").body(Body::from(body.to_string())).unwrap();
        let mut stream = app.clone().oneshot(request).await.unwrap().into_body();
        let mut text = String::new();
        let mut changed = false;
        while let Some(frame) = stream.frame().await {
            text += std::str::from_utf8(&frame.unwrap().into_data().unwrap()).unwrap();
            if !changed {
                change(&app, leave.0, &leave.1).await;
                changed = true;
            }
        }
        let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
        let events = data.filter(|data| *data != "[DONE]");
        let events = events.map(|data| serde_json::from_str::<Value>(data).unwrap());
        let pieces = events.filter_map(|it| Some(it["choices"][0]["text"].as_str()?.to_owned()));
        assert_eq!(json!(pieces.collect::<String>()), whole);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_loaded_changes_nothing() {
    let tiny = Tiny::new();
    let (one, nowhere, deeper) = (tiny.path("one"), tiny.path("nowhere"), tiny.path("deeper"));
    let small = tiny.path("small.gguf");
    letters::write(&small, 256);
    let mut config = Checkpoint::open(&tiny.path("")).unwrap().config;
    config.num_hidden_layers += 1;
    write_adapter(&deeper, &config, 1, 2, 1.0);
    let pipe = tiny.path("pipe");
    write_adapter(&pipe, &config, 1, 2, 1.0);
    let tensors = pipe.join("adapter_model.safetensors");
    std::fs::remove_file(&tensors).unwrap();
    assert!(Command::new("mkfifo").arg(&tensors).status().unwrap().success());
    write_adapter(&tiny.path("own"), &Checkpoint::open(&small).unwrap().config, 1, 2, 0.5);
    let also = format!("other={}", small.display());
    let app = tiny.app(&["--served-model-name", "base", "--also", &also, "--allow-runtime-lora"]);
    change(&app, LOAD, &load("sql", &one)).await;
    let mut own = load("own", &tiny.path("own"));
    own["model"] = json!("other");
    change(&app, LOAD, &own).await;
    let before = listed(&app).await;
    assert_eq!(before.len(), 2, "{before:?}");
    assert_eq!(before[1][2], "other");
    let answer = ask(&app, "/v1/completions", &completion("own")).await;
    assert_eq!(answer["model"], "own");

    let mut body = load("x", &one);
    body["model"] = json!("other");
    let foreign = body.clone();
    body["model"] = json!("sql");
    let through = body.clone();
    body["model"] = json!("third");
    let missing = body.clone();
    let mut extra = load("x", &one);
    extra["rank"] = json!(3);
    for (body, status, param, message) in [
        (load("sql", &one), 400, "lora_name", "set `load_inplace`"),
        (load("base", &one), 400, "lora_name", "name of a model"),
        (load("other", &one), 400, "lora_name", "name of a model"),
        (replace("base", &one), 400, "lora_name", "name of a model"),
        (load(tiny.name(), &one), 400, "lora_name", "name of a model"),
        (replace("own", &one), 400, "lora_name", "adapter of `other`"),
        (load("", &one), 400, "lora_name", "empty"),
        (load("x", &nowhere), 400, "lora_path", "adapter_config.json"),
        (replace("sql", &nowhere), 400, "lora_path", "adapter_config.json"),
        (load("x", &deeper), 400, "lora_path", "model.layers.2."),
        (load("x", &pipe), 400, "lora_path", "not a regular file"),
        (load(&"x".repeat(1025), &one), 400, "lora_name", "1024 bytes"),
        (foreign, 400, "lora_path", "the model's is"),
        (through, 400, "model", "name of an adapter"),
        (missing, 404, "model", "does not exist"),
        (json!({"lora_name": "x"}), 400, "lora_path", "required"),
        (json!({"lora_path": "x"}), 400, "lora_name", "required"),
        (extra, 400, "rank", "not supported"),
    ] {
        let said = refused(&app, LOAD, &body, (status, param)).await;
        assert!(said.contains(message), "{said}");
    }
    for (body, status, said) in
        [(json!({"lora_name": "base"}), 404, "no adapter"), (json!({}), 400, "required")]
    {
        let message = refused(&app, UNLOAD, &body, (status, "lora_name")).await;
        assert!(message.contains(said), "{message}");
    }
    assert_eq!(listed(&app).await, before);
}

/// Only where the operator allows it, and with the right key where there are any.
#[tokio::test(flavor = "multi_thread")]
async fn the_operator_decides_who_may() {
    const PAGE: &str = "http://example.org";
    let tiny = Tiny::new();
    let body = load("sql", &tiny.path("one")).to_string();
    for (flags, key, expected) in [
        ("", None, (403, "--allow-runtime-lora")),
        ("--admin-key sesame", Some("sesame"), (403, "--allow-runtime-lora")),
        ("--allow-runtime-lora --admin-key sesame", None, (401, "key")),
        ("--allow-runtime-lora --admin-key sesame", Some("other"), (401, "key")),
        ("--allow-runtime-lora --admin-key sesame", Some("sesame"), (200, "Success")),
        ("--allow-runtime-lora --api-key user", Some("user"), (403, "--admin-key")),
        ("--allow-runtime-lora --api-key user --admin-key sesame", Some("user"), (401, "key")),
        ("--allow-runtime-lora", None, (200, "Success")),
        ("--allow-runtime-lora", Some(PAGE), (403, "browsers")),
    ] {
        let app = tiny.app(&flags.split_whitespace().collect::<Vec<_>>());
        for path in [LOAD, UNLOAD] {
            let body =
                if path == LOAD { body.clone() } else { json!({"lora_name": "sql"}).to_string() };
            let mut request = Request::post(path);
            request = match key {
                None => request,
                Some(PAGE) => request.header("origin", PAGE),
                Some(key) => request.header("authorization", format!("Bearer {key}")),
            };
            let response = app.clone().oneshot(request.body(Body::from(body)).unwrap()).await;
            let response = response.unwrap();
            let status = response.status().as_u16();
            let text = response.into_body().collect().await.unwrap().to_bytes();
            let text = String::from_utf8_lossy(&text).into_owned();
            assert!(status == expected.0 && text.contains(expected.1), "{flags:?}: {text}");
        }
    }
}
