//! Traffic that is recorded.

use pleach::traffic::{Recorded, files_of};

use super::*;

fn recorded(folder: &std::path::Path) -> Vec<Recorded> {
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
    let state = AppState::new(64, 0, metrics).configure(&config).unwrap();
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
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
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
