//! Several models in one server: a request's `model` chooses one, which answers as it does alone.

use std::path::{Path, PathBuf};

use axum::Router;
use axum::http::StatusCode;
use clap::Parser;
use pleach::cli::{Args, Config};
use pleach::server::{AppState, load, router};
use serde_json::{Value, json};

use super::flywheel::recorded;
use super::support::{letters, metric};
use super::templates::tiny_model;
use super::{send_to, state};

/// Files of two models that share nothing but their letters.
struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        let folder = tiny_model("{{ messages[0].content }}");
        let path = folder.path().join("small.gguf");
        letters::write(&path, 256);
        Self { folder }
    }

    fn main(&self) -> &str {
        self.folder.path().to_str().unwrap()
    }

    fn main_name(&self) -> &str {
        self.folder.path().file_name().unwrap().to_str().unwrap()
    }

    fn small(&self) -> PathBuf {
        self.folder.path().join("small.gguf")
    }

    fn also(&self, name: &str) -> String {
        format!("{name}={}", self.small().display())
    }

    fn config(model: &Path, more: &[&str]) -> Config {
        let flags = ["pleach", "--model", model.to_str().unwrap(), "--threads", "2"];
        Config::from(Args::parse_from(flags.iter().chain(more)))
    }

    /// A server of the first model.
    fn app(&self, more: &[&str]) -> Router {
        app_of(&Self::config(self.folder.path(), more))
    }

    fn refused(&self, more: &[&str]) -> String {
        load(&Self::config(self.folder.path(), more)).err().expect("refused").to_string()
    }
}

fn app_of(config: &Config) -> Router {
    let metrics = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let state = AppState::new(metrics.handle());
    state.serve(load(config).unwrap());
    router(state)
}

async fn get(app: &Router, path: &str) -> Value {
    let (status, text) = send_to(app.clone(), "GET", path, "").await;
    assert_eq!(status, StatusCode::OK, "{path}: {text}");
    serde_json::from_str(&text).unwrap()
}

async fn ask(app: &Router, path: &str, body: &Value) -> Value {
    let (status, text) = send_to(app.clone(), "POST", path, &body.to_string()).await;
    assert!(status.is_success(), "{path}: {text}");
    serde_json::from_str(&text).unwrap()
}

/// What is asked of either model: long answers with their log-probabilities, and embeddings.
fn questions() -> Vec<(&'static str, Value)> {
    let texts = ["abc", "the quick brown fox", "12, 13, 14,", "to be or not to be"];
    let completion = |text: &str| json!({"prompt": text, "max_tokens": 60, "temperature": 0, "logprobs": 2, "ignore_eos": true});
    let chat = |text: &str| {
        let messages = json!([{"role": "user", "content": text}]);
        json!({"messages": messages, "max_tokens": 60, "seed": 5, "logprobs": true, "ignore_eos": true})
    };
    let embedding = |text: &str| json!({"input": text});
    let mut questions = Vec::new();
    for text in texts {
        questions.push(("/v1/completions", completion(text)));
        questions.push(("/v1/chat/completions", chat(text)));
        questions.push(("/v1/embeddings", embedding(text)));
    }
    questions
}

/// The part of an answer that the model gives.
fn said(answer: &Value) -> Value {
    if answer["data"].is_array() { answer["data"].clone() } else { answer["choices"].clone() }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_answers_as_it_does_alone() {
    let files = Files::new();
    let both = files.app(&["--also", &files.also("small")]);
    let alone = [files.app(&[]), app_of(&Files::config(&files.small(), &[]))];
    let mut expected = Vec::new();
    for app in &alone {
        let mut answers = Vec::new();
        for (path, body) in questions() {
            answers.push(said(&ask(app, path, &body).await));
        }
        expected.push(answers);
    }
    assert!(expected[0].iter().zip(&expected[1]).all(|(main, small)| main != small));
    // One after the other; then all at once, each thrice.
    for times in [1, 3] {
        let mut running = Vec::new();
        for (number, (path, body)) in (0..times).flat_map(|_| questions().into_iter().enumerate()) {
            let names = [(None, 0), (Some(files.main_name()), 0), (Some("small"), 1)];
            for (name, model) in names {
                let (app, mut body) = (both.clone(), body.clone());
                body["model"] = json!(name);
                let carried = if model == 0 { files.main_name() } else { "small" }.to_owned();
                let answer = tokio::spawn(async move {
                    let answer = ask(&app, path, &body).await;
                    assert_eq!(answer["model"], carried, "{path}");
                    said(&answer)
                });
                if times == 1 {
                    assert_eq!(answer.await.unwrap(), expected[model][number], "{path} {name:?}");
                } else {
                    running.push((model, number, answer));
                }
            }
        }
        for (model, number, answer) in running {
            assert_eq!(answer.await.unwrap(), expected[model][number], "{model} {number}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_takes_the_name() {
    // So that there is a recorder.
    state();
    let files = Files::new();
    let draft = format!("second={}", files.small().display());
    let flags = "--served-model-name first --admin-key sesame".split(' ');
    let also = files.also("second");
    let more: Vec<&str> = flags.chain(["--also", &also, "--also-draft", &draft]).collect();
    let config = Files::config(files.folder.path(), &more);
    let metrics = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let own = AppState::new(metrics.handle()).configure(&config).unwrap();
    own.serve(load(&config).unwrap());
    let app = router(own);

    let models = get(&app, "/v1/models").await;
    let of = |number: usize, field: &str| models["data"][number][field].clone();
    assert_eq!(models["data"].as_array().unwrap().len(), 2, "{models}");
    let small = files.small();
    for (number, name, root, hidden, context) in
        [(0, "first", files.main(), 32, 64), (1, "second", small.to_str().unwrap(), 64, 256)]
    {
        assert_eq!((of(number, "id"), of(number, "root")), (json!(name), json!(root)));
        assert_eq!(of(number, "max_model_len"), context);
        assert_eq!(of(number, "meta")["n_embd"], hidden, "{models}");
        assert_eq!(get(&app, &format!("/v1/models/{name}")).await, models["data"][number]);
    }
    // A bound on the context is cut to what a model has.
    let also = format!("second={}", files.main());
    let cut = app_of(&Files::config(&small, &["--max-model-len", "200", "--also", &also]));
    let cut = get(&cut, "/v1/models").await;
    let lengths = [0, 1].map(|number| cut["data"][number]["max_model_len"].clone());
    assert_eq!(lengths, [200, 64]);
    // The main model answers to its file's name too, others to their own alone.
    get(&app, &format!("/v1/models/{}", files.main_name())).await;
    for name in ["third", "small", "small.gguf"] {
        let body = json!({"model": name, "prompt": "abc"}).to_string();
        let (status, text) = send_to(app.clone(), "POST", "/v1/completions", &body).await;
        let error: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((status, &error["error"]["param"]), (StatusCode::NOT_FOUND, &json!("model")));
        assert_eq!(error["error"]["code"], "model_not_found");
        let message = error["error"]["message"].as_str().unwrap();
        assert!(message.contains("this server has `first`, `second`"), "{message}");
    }

    let chat = json!([{"role": "user", "content": "abc"}]);
    let templated = json!({"messages": chat, "model": "second"});
    let prompt = ask(&app, "/apply-template", &templated).await["prompt"].clone();
    assert_eq!(prompt, "<|start|>user:abc<|end|>\n<|start|>assistant:");
    let prompt = ask(&app, "/apply-template", &json!({"messages": chat})).await["prompt"].clone();
    assert_eq!(prompt, "abc");
    for (path, body) in [
        ("/v1/messages", json!({"messages": chat, "max_tokens": 4})),
        ("/v1/responses", json!({"input": chat, "max_output_tokens": 4})),
    ] {
        let mut body = body;
        body["model"] = json!("second");
        assert_eq!(ask(&app, path, &body).await["model"], "second", "{path}");
    }
    let tokens = |model: &str| json!({"messages": chat, "model": model});
    for path in ["/v1/messages/count_tokens", "/tokenize"] {
        let [first, second] =
            [ask(&app, path, &tokens("first")).await, ask(&app, path, &tokens("second")).await];
        let field = if path == "/tokenize" { "count" } else { "input_tokens" };
        assert!(first[field].as_u64() < second[field].as_u64(), "{first} {second}");
    }
    let text = json!({"tokens": [65, 66], "model": "second"});
    assert!(ask(&app, "/detokenize", &text).await["prompt"].is_string());

    // Each has its own figures, from the start.
    let page = send_to(router(state().clone()), "GET", "/metrics", "").await.1;
    let figure = |name: &str, model: &str| metric(&page, &format!("{name}{{model=\"{model}\"}}"));
    assert!(figure("pleach_generated_tokens_total", "second") >= 8.0, "{page}");
    assert_eq!(figure("pleach_generated_tokens_total", "first"), 0.0);
    assert!(page.contains("pleach_generated_tokens_total{model=\"first\"} 0"), "{page}");
    assert!(figure("pleach_kv_cache_blocks", "second") > 0.0);

    // And its own draft.
    let admin = async |method: &str, path: &str, body: &str| {
        let request = axum::http::Request::builder().method(method).uri(path);
        let request = request.header("authorization", "Bearer sesame");
        let request = request.body(axum::body::Body::from(body.to_owned())).unwrap();
        let response = tower::ServiceExt::oneshot(app.clone(), request).await.unwrap();
        let status = response.status();
        let bytes = http_body_util::BodyExt::collect(response.into_body()).await.unwrap();
        (status.as_u16(), serde_json::from_slice::<Value>(&bytes.to_bytes()).unwrap())
    };
    assert_eq!(admin("GET", "/admin/draft", "").await.1["draft"], Value::Null);
    assert_eq!(admin("GET", "/admin/draft?model=second", "").await.1["draft"], "small");
    let change = json!({"model": "second", "draft": files.small(), "tokens": 8}).to_string();
    let (status, answer) = admin("POST", "/admin/draft", &change).await;
    assert_eq!((status, &answer["comparison"]["state"]), (202, &json!("comparing")), "{answer}");
    assert_eq!(admin("GET", "/admin/draft", "").await.1["comparison"], Value::Null);
    let (status, answer) = admin("DELETE", "/admin/draft?model=second", "").await;
    assert_eq!((status, &answer["comparison"]["state"]), (200, &json!("stopped")), "{answer}");
    assert_eq!(admin("GET", "/admin/draft?model=third", "").await.0, 404);
    assert_eq!(admin("GET", "/admin/draft?modle=second", "").await.0, 400);
}

/// A draft is trained on what its own model says.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_main_model_says_is_recorded_alone() {
    let files = Files::new();
    let traffic = files.folder.path().join("traffic");
    let (folder, also) = (traffic.to_str().unwrap(), files.also("small"));
    let more = ["--also", &also, "--record-traffic", folder, "--record-share", "1"];
    let config = Files::config(files.folder.path(), &more);
    let metrics = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let own = AppState::new(metrics.handle()).configure(&config).unwrap();
    own.serve(load(&config).unwrap());
    let app = router(own);
    for (model, prompt) in [("small", "beside"), (files.main_name(), "main"), ("small", "beside")] {
        ask(&app, "/v1/completions", &json!({"model": model, "prompt": prompt, "max_tokens": 4}))
            .await;
    }
    drop(app);
    let prompts = || recorded(&traffic).into_iter().map(|it| it.prompt).collect::<Vec<_>>();
    for _ in 0..100 {
        if traffic.is_dir() && !prompts().is_empty() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(prompts(), ["main"]);
}

#[test]
fn what_clashes_is_refused_at_the_start() {
    let files = Files::new();
    let adapter = files.folder.path().join("one");
    let lora = format!("sql={}", adapter.display());
    let (main, small) = (files.main(), files.small());
    let also = |name: &str| files.also(name);
    let x = [also("x"), also("x")].join(",");
    for (more, named) in [
        (vec!["--also", &also(files.main_name())], vec![main, files.main_name()]),
        (vec!["--also", &also("base"), "--served-model-name", "a,base"], vec![main, "base"]),
        (vec!["--also", &also("sql"), "--lora", &lora], vec![adapter.to_str().unwrap(), "sql"]),
        (vec!["--also", &x], vec!["--also x=", small.to_str().unwrap()]),
        (
            vec!["--also", &also("x"), "--also-draft", "y=none"],
            vec!["--also-draft y=none", "--also y=SOURCE"],
        ),
        (
            vec!["--also", &also("x"), "--also-draft", "x=none,x=a.gguf"],
            vec!["--also-draft x=a.gguf", "--also-draft x=none"],
        ),
        (vec!["--also", "x=/nowhere"], vec!["--also x: ", "/nowhere"]),
    ] {
        let error = files.refused(&more);
        assert!(named.iter().all(|part| error.contains(part)), "{more:?}: {error}");
    }
    for wrong in ["x", "=x", "x=", "x=pypi:other"] {
        let error = Args::try_parse_from(["pleach", "--also", wrong]).unwrap_err().to_string();
        assert!(error.contains("--also"), "{error}");
    }
}
