//! Traffic that is recorded, and drafts that change while the server runs.

use std::path::Path;
use std::time::Duration;

use pleach::checkpoint::Checkpoint;
use pleach::observe::traffic::{Recorded, files_of};

use super::support::standalone_draft;
use super::*;

pub(super) fn recorded(folder: &Path) -> Vec<Recorded> {
    let files = files_of(folder).unwrap();
    let texts = files.iter().map(|file| std::fs::read_to_string(file).unwrap());
    let lines = texts.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>());
    lines.map(|line| serde_json::from_str(&line).unwrap()).collect()
}

async fn ask(app: &Router, path: &str, body: &Value) -> String {
    let request = Request::post(path).body(Body::from(body.to_string())).unwrap();
    let response = app.clone().oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

/// Answers of every shape are recorded with the tokens that the model wrote; those of clients that object
/// are not.
#[tokio::test(flavor = "multi_thread")]
async fn answers_are_recorded_unless_the_client_objects() {
    let folder = tempfile::tempdir().unwrap();
    let traffic = folder.path().join("traffic");
    let arguments =
        ["pleach", "--record-traffic", traffic.to_str().unwrap(), "--record-share", "1"];
    let config = Config::from(Args::parse_from(arguments));
    let metrics = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder().handle();
    let state = AppState::new(metrics).configure(&config).unwrap();
    state.serve(serving(&[]));
    let app = router(state);

    let messages = json!([{"role": "user", "content": "What is 2 + 2? KEEP"}]);
    let secret = json!([{"role": "user", "content": "What is 2 + 3? SECRET"}]);
    let chat = |messages: &Value, more: Value| {
        let mut body = json!({"messages": messages, "max_tokens": 8, "temperature": 0});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let whole: Value =
        serde_json::from_str(&ask(&app, "/v1/chat/completions", &chat(&messages, json!({}))).await)
            .unwrap();
    let two = json!({"n": 2, "stream": true, "temperature": 0.5, "stop": [" "], "seed": 1});
    ask(&app, "/v1/chat/completions", &chat(&messages, two)).await;
    let text = json!({"prompt": "1, 2, 3, KEEP", "max_tokens": 4});
    ask(&app, "/v1/completions", &text).await;
    ask(&app, "/v1/messages", &chat(&messages, json!({}))).await;
    let input = json!({"input": "Name a colour. KEEP", "max_output_tokens": 4});
    ask(&app, "/v1/responses", &input).await;

    let objection = json!({"store": false});
    for path in ["/v1/chat/completions", "/v1/messages"] {
        ask(&app, path, &chat(&secret, objection.clone())).await;
    }
    let streamed = json!({"store": false, "stream": true});
    ask(&app, "/v1/chat/completions", &chat(&secret, streamed)).await;
    let text = json!({"prompt": "SECRET", "max_tokens": 4, "store": false});
    ask(&app, "/v1/completions", &text).await;
    ask(&app, "/v1/responses", &json!({"input": "SECRET", "store": false})).await;
    // An echo alone is nothing that the model wrote.
    let echo = json!({"prompt": "SECRET", "max_tokens": 0, "echo": true});
    ask(&app, "/v1/completions", &echo).await;

    drop(app);
    let answers = || recorded(&traffic);
    for _ in 0..100 {
        if !files_of(&traffic).unwrap().is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(answers().len(), 6);
    assert!(answers().iter().all(|answer| answer.prompt.contains("KEEP")));
    let first = &answers()[0];
    assert!(first.response.starts_with(content(&whole)), "{first:?}");
    assert_eq!(first.prompt_tokens.len(), whole["usage"]["prompt_tokens"]);
    assert_eq!(first.response_tokens.len(), whole["usage"]["completion_tokens"]);
    assert_eq!((&*first.finish_reason, first.temperature), ("length", 0.0));
    let stopped = answers().into_iter().find(|answer| answer.temperature == 0.5).unwrap();
    assert_eq!(stopped.finish_reason, "stop");
}

async fn admin(app: &Router, method: &str, key: &str, body: &Value) -> (StatusCode, Value) {
    let request = Request::builder().method(method).uri("/admin/draft");
    let request = request.header("authorization", format!("Bearer {key}"));
    let request = request.body(Body::from(body.to_string())).unwrap();
    let response = app.clone().oneshot(request).await.unwrap();
    let status = response.status();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&bytes).unwrap())
}

/// Asks until the comparison has ended; how it did.
async fn outcome(app: &Router) -> Value {
    for turn in 0..300 {
        let text = format!("Name {turn} things that are blue.");
        ask(app, "/v1/chat/completions", &super::chat(&text)).await;
        let (_, status) = admin(app, "GET", "sesame", &json!(null)).await;
        if status["comparison"]["state"] != "comparing" {
            return status;
        }
    }
    panic!("no end");
}

/// A draft that says the same everywhere: one without its last norm.
fn bad_draft(good: &Path, bad: &Path) {
    let norm = Checkpoint::open(good).unwrap().tensor("model.norm.weight").unwrap().data;
    let mut bytes = std::fs::read(good).unwrap();
    let start = bytes.windows(norm.len()).position(|window| window == norm).unwrap();
    bytes[start..start + norm.len()].fill(0);
    std::fs::write(bad, bytes).unwrap();
}

/// A server whose draft may be changed.
fn with_draft(draft: &Path) -> Router {
    let arguments = ["pleach", "--admin-key", "sesame"];
    let config = Config::from(Args::parse_from(arguments));
    let metrics = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder().handle();
    let state = AppState::new(metrics).configure(&config).unwrap();
    state.serve(serving(&["--draft", draft.to_str().unwrap()]));
    router(state)
}

fn change(draft: &Path) -> Value {
    json!({"draft": draft, "tokens": 300})
}

/// Drafts of both kinds take the place of drafts of both kinds while a stream runs, which does not notice.
#[tokio::test(flavor = "multi_thread")]
async fn attached_drafts_change_too() {
    let Some(standalone) = standalone_draft() else { return };
    let Some(attached) = pleach::cli::default_draft() else { return };
    let folder = tempfile::tempdir().unwrap();
    let long = json!({"prompt": "1, 2, 3, 4, 5,", "max_tokens": 200, "ignore_eos": true, "temperature": 0});
    let mut plain = None;
    for (serving, better) in
        [(&attached, &attached), (&attached, &standalone), (&standalone, &attached)]
    {
        let bad = folder.path().join("bad.gguf");
        bad_draft(serving, &bad);
        let app = with_draft(&bad);
        let text = |answer: &str| {
            let answer: Value = serde_json::from_str(answer).unwrap();
            answer["choices"][0]["text"].as_str().unwrap().to_owned()
        };
        if plain.is_none() {
            let mut body = long.clone();
            body["num_speculative_tokens"] = json!(0);
            plain = Some(text(&ask(&app, "/v1/completions", &body).await));
        }
        let running = tokio::spawn({
            let (app, body) = (app.clone(), long.clone());
            async move { ask(&app, "/v1/completions", &body).await }
        });
        let (accepted, comparing) = admin(&app, "POST", "sesame", &change(better)).await;
        assert_eq!(accepted, StatusCode::ACCEPTED, "{comparing}");
        let switched = outcome(&app).await;
        assert_eq!(switched["comparison"]["state"], "switched", "{switched}");
        let share = |draft: &str| switched["comparison"][draft]["acceptance"].as_f64().unwrap();
        assert!(share("candidate") > 0.3 && share("current") < 0.1, "{switched}");
        assert_eq!(Some(text(&running.await.unwrap())), plain);
        let answer = ask(&app, "/v1/completions", &long).await;
        assert_eq!(Some(text(&answer)), plain);
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert!(answer["usage"]["pleach"]["draft_tokens"].as_u64() > Some(4), "{answer}");
        // What has won is kept against what it has replaced.
        assert_eq!(admin(&app, "POST", "sesame", &change(&bad)).await.0, StatusCode::ACCEPTED);
        let refused = outcome(&app).await;
        assert_eq!(refused["comparison"]["state"], "refused", "{refused}");
        let kept = refused["comparison"]["current"]["acceptance"].as_f64().unwrap();
        assert!(kept > 0.3, "{refused}");
    }
}

/// A draft takes the place of a worse one under live streams, which do not notice; a worse one does not.
#[tokio::test(flavor = "multi_thread")]
async fn drafts_change_under_live_streams() {
    let Some(good) = standalone_draft() else { return };
    let folder = tempfile::tempdir().unwrap();
    let bad = folder.path().join("bad.gguf");
    bad_draft(&good, &bad);
    let app = with_draft(&bad);

    let status = |key| admin(&app, "GET", key, &json!(null));
    assert_eq!(status("open").await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(status("sesame").await.1, json!({"draft": "bad", "comparison": null}));
    let llama = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/llama-tied");
    for (body, reason) in [
        (json!({"draft": "nowhere.gguf"}), "nowhere.gguf"),
        (change(&llama), "does not fit the target"),
        (json!({"draft": good, "tokens": 0.5}), "tokens"),
        (json!({"draft": good, "speed": 1}), "`speed` is not supported"),
    ] {
        let (status, error) = admin(&app, "POST", "sesame", &body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{error}");
        assert!(error.to_string().contains(reason), "{error}");
    }

    let long = |more: Value| {
        let mut body = json!({"prompt": "Once upon a time", "max_tokens": 400, "ignore_eos": true});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let greedy = json!({"temperature": 0});
    let seeded = json!({"seed": 7});
    let mut plain = Vec::new();
    for more in [&greedy, &seeded] {
        let mut body = long(more.clone());
        body["num_speculative_tokens"] = json!(0);
        let answer: Value =
            serde_json::from_str(&ask(&app, "/v1/completions", &body).await).unwrap();
        plain.push(answer["choices"][0]["text"].as_str().unwrap().to_owned());
    }
    let streams: Vec<_> = [&greedy, &seeded]
        .map(|more| {
            let (app, mut body) = (app.clone(), long(more.clone()));
            body["stream"] = json!(true);
            tokio::spawn(async move { ask(&app, "/v1/completions", &body).await })
        })
        .into();
    let (accepted, comparing) = admin(&app, "POST", "sesame", &change(&good)).await;
    assert_eq!(accepted, StatusCode::ACCEPTED, "{comparing}");
    let (twice, error) = admin(&app, "POST", "sesame", &change(&good)).await;
    assert_eq!(twice, StatusCode::CONFLICT, "{error}");
    let switched = outcome(&app).await;
    assert_eq!(switched["comparison"]["state"], "switched", "{switched}");
    assert_eq!(switched["draft"], "smollm2-135m-instruct-standalone");
    let share = |draft: &str| switched["comparison"][draft]["acceptance"].as_f64().unwrap();
    assert!(share("candidate") > 0.2 && share("current") < 0.1, "{switched}");
    assert!(streams.iter().any(|stream| !stream.is_finished()), "they run on");
    for (stream, plain) in streams.into_iter().zip(&plain) {
        let text = stream.await.unwrap();
        let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
        let chunks = data.filter(|data| *data != "[DONE]");
        let text: String = chunks
            .map(|chunk| {
                let chunk: Value = serde_json::from_str(chunk).unwrap();
                chunk["choices"][0]["text"].as_str().unwrap_or_default().to_owned()
            })
            .collect();
        assert_eq!(&text, plain);
    }
    // The new draft drafts, and is kept against a worse one.
    let body = json!({"prompt": "1, 2, 3, 4, 5,", "max_tokens": 24, "temperature": 0});
    let answer: Value = serde_json::from_str(&ask(&app, "/v1/completions", &body).await).unwrap();
    assert!(answer["usage"]["pleach"]["accepted_tokens"].as_u64() > Some(8), "{answer}");
    assert_eq!(admin(&app, "POST", "sesame", &change(&bad)).await.0, StatusCode::ACCEPTED);
    let refused = outcome(&app).await;
    assert_eq!(refused["comparison"]["state"], "refused", "{refused}");
    assert_eq!(refused["draft"], "smollm2-135m-instruct-standalone");
    assert_eq!(admin(&app, "POST", "sesame", &change(&bad)).await.0, StatusCode::ACCEPTED);
    let stopped = admin(&app, "DELETE", "sesame", &json!(null)).await.1;
    assert_eq!(stopped["comparison"]["state"], "stopped");
    assert_eq!(send("GET", "/admin/draft", "").await.0, StatusCode::FORBIDDEN, "no key, no change");
}
