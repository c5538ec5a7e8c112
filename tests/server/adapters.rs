//! LoRA adapters over HTTP: a request's `model` chooses one; what cannot be served is refused at the start.

use std::path::{Path, PathBuf};

use axum::Router;
use axum::http::StatusCode;
use clap::Parser;
use pleach::checkpoint::Checkpoint;
use pleach::cli::{Args, Config};
use pleach::server::{AppState, load, router};
use serde_json::{Value, json};

use super::send_to;
use super::support::adapter::write_adapter;
use super::templates::tiny_model;

/// A tiny model with two adapters beside it.
pub(super) struct Tiny {
    folder: tempfile::TempDir,
}

impl Tiny {
    pub(super) fn new() -> Self {
        let folder = tiny_model("{{ messages[0].content }}");
        let config = Checkpoint::open(folder.path()).unwrap().config;
        for (seed, name) in [(1, "one"), (2, "two")] {
            write_adapter(&folder.path().join(name), &config, seed, 3, 0.5);
        }
        Self { folder }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn model(&self) -> &str {
        self.folder.path().to_str().unwrap()
    }

    /// The name of the model's folder, by which it may be called.
    pub(super) fn name(&self) -> &str {
        self.folder.path().file_name().unwrap().to_str().unwrap()
    }

    fn config(&self, more: &[&str]) -> Config {
        let flags = ["pleach", "--model", self.model(), "--threads", "2"];
        Config::from(Args::parse_from(flags.iter().chain(more)))
    }

    pub(super) fn app(&self, more: &[&str]) -> Router {
        let metrics = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
        let config = self.config(more);
        let state = AppState::new(metrics.handle()).configure(&config).unwrap();
        state.serve(load(&config).unwrap());
        router(state)
    }
}

pub(super) async fn ask(app: &Router, path: &str, body: &Value) -> Value {
    let (status, text) = send_to(app.clone(), "POST", path, &body.to_string()).await;
    assert!(status.is_success(), "{path}: {text}");
    serde_json::from_str(&text).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_model_of_a_request_chooses() {
    let tiny = Tiny::new();
    let (one, two) = (tiny.path("one"), tiny.path("two"));
    let lora = format!("first={},second={}", one.display(), two.display());
    let app = tiny.app(&["--served-model-name", "base,also", "--lora", &lora]);
    let (_, text) = send_to(app.clone(), "GET", "/v1/models", "").await;
    let models: Value = serde_json::from_str(&text).unwrap();
    let listed = models["data"].as_array().unwrap().iter();
    let listed: Vec<[&Value; 3]> =
        listed.map(|model| [&model["id"], &model["root"], &model["parent"]]).collect();
    let (model, one, two) = (json!(tiny.model()), json!(one), json!(two));
    let [base, also, first, second] = ["base", "also", "first", "second"].map(Value::from);
    let null = Value::Null;
    assert_eq!(
        listed,
        [
            [&base, &model, &null],
            [&also, &model, &null],
            [&first, &one, &base],
            [&second, &two, &base]
        ]
    );
    let (_, text) = send_to(app.clone(), "GET", "/v1/models/second", "").await;
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), models["data"][3]);

    // Every dialect chooses, and its answer says what answered.
    let mut vectors = Vec::new();
    for (asked, answers) in
        [("also", "base"), (tiny.name(), "base"), ("first", "first"), ("second", "second")]
    {
        let chat = json!([{"role": "user", "content": "abc"}]);
        for (path, body) in [
            ("/v1/completions", json!({"prompt": "abc", "max_tokens": 4})),
            ("/v1/chat/completions", json!({"messages": chat, "max_tokens": 4})),
            ("/v1/messages", json!({"messages": chat, "max_tokens": 4})),
            ("/v1/responses", json!({"input": chat, "max_output_tokens": 4})),
            ("/v1/embeddings", json!({"input": "abc"})),
        ] {
            let mut body = body;
            body["model"] = json!(asked);
            let answer = ask(&app, path, &body).await;
            assert_eq!(answer["model"], answers, "{path}: {answer}");
            if path == "/v1/embeddings" {
                vectors.push(answer["data"][0]["embedding"].clone());
            }
        }
        let tokens = ask(&app, "/tokenize", &json!({"prompt": "abc", "model": asked})).await;
        assert_eq!(tokens["count"], 3);
        let body = json!({"messages": chat, "model": asked});
        assert!(ask(&app, "/v1/messages/count_tokens", &body).await["input_tokens"].is_u64());
    }
    assert!(vectors[0] == vectors[1] && vectors[1] != vectors[2] && vectors[2] != vectors[3]);

    // Each alone says what it says beside the others, and what the adapter says that is served alone.
    let body = |model: &str| json!({"model": model, "prompt": "the quick brown fox", "max_tokens": 20, "temperature": 0, "logprobs": 1});
    let mut alone = Vec::new();
    for model in ["base", "first", "second"] {
        alone.push(ask(&app, "/v1/completions", &body(model)).await["choices"][0].clone());
    }
    assert!(alone[0] != alone[1] && alone[1] != alone[2] && alone[0] != alone[2], "{alone:?}");
    let bodies = [body("base"), body("first"), body("second")];
    let ask_one = async |body| ask(&app, "/v1/completions", body).await["choices"][0].clone();
    let (base, first, second) =
        tokio::join!(ask_one(&bodies[0]), ask_one(&bodies[1]), ask_one(&bodies[2]));
    assert_eq!([base, first, second].as_slice(), alone);
    let other = tiny.app(&["--lora", &format!("x={}", tiny.path("two").display())]);
    assert_eq!(ask(&other, "/v1/completions", &body("x")).await["choices"][0], alone[2]);

    for name in ["third", "one", ""] {
        let body = json!({"model": name, "prompt": "abc"}).to_string();
        let (status, text) = send_to(app.clone(), "POST", "/v1/completions", &body).await;
        let error: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(status, StatusCode::NOT_FOUND, "{text}");
        assert_eq!(error["error"]["code"], "model_not_found", "{text}");
    }
}

#[test]
fn what_cannot_be_served_is_said_at_the_start() {
    let tiny = Tiny::new();
    let one = tiny.path("one");
    let one = one.to_str().unwrap();
    let change = |name: &str, field: &str, value: Value| {
        let path = tiny.path(name);
        std::fs::create_dir_all(&path).unwrap();
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            std::fs::copy(Path::new(one).join(file), path.join(file)).unwrap();
        }
        let path = path.join("adapter_config.json");
        let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        config[field] = value;
        std::fs::write(path, config.to_string()).unwrap();
    };
    change("dora", "use_dora", json!(true));
    change("rank", "r", json!(4));
    let mut deeper = Checkpoint::open(tiny.folder.path()).unwrap().config;
    deeper.num_hidden_layers += 1;
    write_adapter(&tiny.path("deeper"), &deeper, 1, 2, 1.0);
    let mut wider = deeper;
    (wider.num_hidden_layers, wider.intermediate_size) = (1, 64);
    write_adapter(&tiny.path("wider"), &wider, 1, 2, 1.0);
    let nowhere = tiny.path("nowhere").join("adapter_config.json");
    for (name, folder, said) in [
        ("x", "nowhere", nowhere.to_str().unwrap()),
        ("x", "dora", "adapter_config.json: use_dora"),
        ("x", "rank", "says 4"),
        ("x", "deeper", "model.layers.2."),
        ("x", "wider", "mlp.down_proj"),
        (tiny.name(), "one", "the model has this name"),
        (tiny.model(), "one", "the model has this name"),
        ("served", "one", "the model has this name"),
        ("y", "one", "another adapter has this name"),
    ] {
        let lora = format!("y={one},{name}={}", tiny.path(folder).display());
        let flags = ["--served-model-name", "served", "--lora", &lora];
        let error = load(&tiny.config(&flags)).err().expect("refused").to_string();
        assert!(error.contains(&format!("--lora {name}: ")) && error.contains(said), "{error}");
    }
    for wrong in ["x", "=x", "x=", "a=b,c"] {
        let error = Args::try_parse_from(["pleach", "--lora", wrong]).unwrap_err().to_string();
        assert!(error.contains("--lora") && error.contains("sql=adapters/sql"), "{error}");
    }
}
