//! Texts of a SentencePiece model keep their spaces, and characters of several tokens their place.

use std::path::Path;

use pleach::checkpoint::{Gguf, Value as Key};
use pleach::model::{Design, Family, ModelConfig, RopeConfig, RopeScaling};
use pleach_kernels::DType;
use serde_json::{Value, json};

use super::support::gguf::{self, Foreign};
use super::{AppState, Config, load, router, send, send_to};
use clap::Parser;

/// A model of random weights over the vocabulary of the SentencePiece golden.
fn write_model(path: &Path) {
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens/sentencepiece/model.gguf");
    let golden = Gguf::open(Path::new(golden)).unwrap();
    let list = |key: &str| golden.get(key).and_then(Key::as_array).unwrap();
    let tokens = list("tokenizer.ggml.tokens").iter().map(|t| t.as_str().unwrap().to_owned());
    let tokens: Vec<String> = tokens.collect();
    let config = ModelConfig {
        family: Family::Llama,
        vocab_size: tokens.len(),
        hidden_size: 64,
        intermediate_size: 64,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 32,
        max_position_embeddings: 512,
        rms_norm_eps: 1e-5,
        rope: RopeConfig { theta: 10_000.0, scaling: RopeScaling::None },
        sliding_window: None,
        design: Design::default(),
        tie_word_embeddings: true,
        bos_token_id: Some(1),
        eos_token_ids: vec![2],
    };
    super::support::random_model::write_model(path, &config, 5, &|_| DType::F16, &|_| 1.0);
    let scores = list("tokenizer.ggml.scores").iter().map(|s| s.as_f64().unwrap() as f32);
    let kinds = list("tokenizer.ggml.token_type").iter().map(|k| k.as_u64().unwrap() as i32);
    gguf::add(
        path,
        &[
            ("tokenizer.ggml.model", Foreign::Text("llama")),
            ("tokenizer.ggml.tokens", Foreign::Texts(tokens)),
            ("tokenizer.ggml.scores", Foreign::Floats(scores.collect())),
            ("tokenizer.ggml.token_type", Foreign::Numbers(kinds.collect())),
            ("tokenizer.ggml.bos_token_id", Foreign::Number(1)),
            ("tokenizer.ggml.unknown_token_id", Foreign::Number(0)),
            ("tokenizer.ggml.add_bos_token", Foreign::Bool(true)),
            (
                "tokenizer.chat_template",
                Foreign::Text(
                    "{{ bos_token }}{% for m in messages %}[{{ m.content }}]{% endfor %}",
                ),
            ),
        ],
    );
}

fn choice(answer: &str) -> Value {
    serde_json::from_str::<Value>(answer).unwrap_or_else(|e| panic!("{e}: {answer}"))["choices"][0]
        .clone()
}

/// The choices of a stream's events.
fn events(answer: &str) -> Vec<Value> {
    let data = answer.lines().filter_map(|line| line.strip_prefix("data: {"));
    let all = data.map(|data| choice(&format!("{{{data}"))).collect::<Vec<_>>();
    all.into_iter().filter(|choice| !choice.is_null()).collect()
}

fn texts(list: &Value) -> Vec<String> {
    serde_json::from_value(list.clone()).unwrap()
}

#[tokio::test]
async fn sentencepiece_keeps_its_spaces() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("spaces.gguf");
    write_model(&path);
    let model = path.to_string_lossy().into_owned();
    let config =
        Config::from(super::Args::parse_from(["pleach", "--threads", "1", "--model", &model]));
    let metrics = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder().handle();
    let state = AppState::new(metrics);
    state.serve(load(&config).unwrap());
    let app = router(state);
    let ask = async |path: &str, body: Value| {
        let (status, text) = send_to(app.clone(), "POST", path, &body.to_string()).await;
        assert_eq!(status, 200, "{text}");
        text
    };
    for said in [" a truth", "a truth", "  two\n spaces", " naïve 東京 🌳"] {
        let completion = |more: Value| {
            let mut body = json!({"prompt": "It is", "max_tokens": 60, "temperature": 0,
                "guided_choice": [said]});
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            body
        };
        let plain = choice(&ask("/v1/completions", completion(json!({}))).await);
        assert_eq!(plain["text"], said);
        let streamed = ask("/v1/completions", completion(json!({"stream": true}))).await;
        let pieces = events(&streamed);
        let whole: String = pieces.iter().map(|c| c["text"].as_str().unwrap()).collect();
        assert_eq!(whole, said);
        let echoed = completion(json!({"echo": true, "logprobs": 1}));
        let echoed = choice(&ask("/v1/completions", echoed).await);
        let text = echoed["text"].as_str().unwrap();
        assert_eq!(text, format!("It is{said}"));
        let logprobs = &echoed["logprobs"];
        let tokens = texts(&logprobs["tokens"]);
        let offsets: Vec<usize> = serde_json::from_value(logprobs["text_offset"].clone()).unwrap();
        let characters: Vec<char> = text.chars().collect();
        for (token, offset) in tokens.iter().zip(&offsets).skip(1) {
            let here: String = characters[*offset..].iter().collect();
            assert!(token.contains('\u{fffd}') || here.starts_with(token), "{token:?}: {logprobs}");
        }
        if said.is_ascii() {
            assert_eq!(tokens[1..].concat(), text, "{logprobs}");
        }
        let chat = json!({"messages": [{"role": "user", "content": "It is"}], "temperature": 0,
            "guided_choice": [said], "logprobs": true, "top_logprobs": 2});
        let chat = choice(&ask("/v1/chat/completions", chat).await);
        assert_eq!(chat["message"]["content"], said);
        let content = chat["logprobs"]["content"].as_array().unwrap();
        let bytes = content.iter().flat_map(|t| t["bytes"].as_array().unwrap());
        let bytes: Vec<u8> = bytes.map(|b| b.as_u64().unwrap() as u8).collect();
        assert_eq!(String::from_utf8_lossy(&bytes).trim_end_matches("</s>"), said);
        for token in content {
            let text = token["token"].as_str().unwrap();
            let bytes: Vec<u8> = serde_json::from_value(token["bytes"].clone()).unwrap();
            let own = String::from_utf8(bytes);
            assert!(own.is_err() || own.as_deref() == Ok(text), "{token}");
        }
    }
    let stopped = json!({"prompt": "It is", "max_tokens": 60, "temperature": 0,
        "guided_choice": [" a truth universally"], "stop": [" tr"]});
    assert_eq!(choice(&ask("/v1/completions", stopped).await)["text"], " a");
    let at_once = json!({"prompt": "It is", "max_tokens": 60, "temperature": 0,
        "guided_choice": [" a truth"], "stop": [" a"]});
    assert_eq!(choice(&ask("/v1/completions", at_once).await)["text"], "");
}

/// Every token of a character begins where the character does, whole and streamed.
#[tokio::test]
async fn offsets_count_characters() {
    let body = |stream: bool| {
        json!({"prompt": "Say: ", "max_tokens": 80, "temperature": 0, "stream": stream,
            "guided_choice": ["😀 hi 日本"], "logprobs": 1})
    };
    let (_, whole) = send("POST", "/v1/completions", &body(false).to_string()).await;
    let whole = choice(&whole)["logprobs"]["text_offset"].clone();
    let mut begun: Vec<u64> = serde_json::from_value(whole).unwrap();
    begun.truncate(9);
    assert_eq!(begun, [0, 0, 0, 1, 2, 4, 5, 5, 6]);
    let (_, stream) = send("POST", "/v1/completions", &body(true).to_string()).await;
    let all = events(&stream);
    let offsets = all.iter().filter_map(|choice| choice["logprobs"]["text_offset"].as_array());
    let offsets: Vec<u64> = offsets.flatten().map(|o| o.as_u64().unwrap()).collect();
    assert_eq!(offsets[..9], begun);
    let echo = json!({"prompt": "Hi 😀 there", "max_tokens": 1, "temperature": 0, "echo": true,
        "logprobs": 0});
    let (_, echoed) = send("POST", "/v1/completions", &echo.to_string()).await;
    let echoed = choice(&echoed);
    let tokens = texts(&echoed["logprobs"]["tokens"]);
    let at = tokens.iter().position(|token| token == " there").unwrap();
    assert_eq!(echoed["logprobs"]["text_offset"][at], 4, "{echoed}");
}
