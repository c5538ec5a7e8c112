//! `/v1/messages`: Anthropic's shape.

use super::*;

fn asking(text: &str) -> Value {
    json!({"max_tokens": 40, "temperature": 0, "messages": [{"role": "user", "content": text}]})
}

/// The message that the events of a stream make.
async fn streamed(mut body: Value) -> Value {
    body["stream"] = json!(true);
    let (status, text) = send("POST", "/v1/messages", &body.to_string()).await;
    assert_eq!(status, StatusCode::OK, "{text}");
    let (mut message, mut inputs, mut open) = (Value::Null, Vec::<String>::new(), false);
    for event in text.split("\n\n").filter(|event| !event.is_empty()) {
        let (name, data) = event.split_once('\n').unwrap();
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(name.strip_prefix("event: "), data["type"].as_str());
        match data["type"].as_str().unwrap() {
            "message_start" => {
                message = data["message"].clone();
                assert!(message["usage"]["input_tokens"].as_u64().unwrap() > 0, "{message}");
            }
            "content_block_start" => {
                assert!(!open);
                let blocks = message["content"].as_array_mut().unwrap();
                assert_eq!(data["index"], blocks.len());
                blocks.push(data["content_block"].clone());
                inputs.push(String::new());
                open = true;
            }
            "content_block_delta" => {
                assert!(open);
                let place = data["index"].as_u64().unwrap() as usize;
                let delta = &data["delta"];
                match delta["type"].as_str().unwrap() {
                    "text_delta" => {
                        let text = message["content"][place]["text"].as_str().unwrap();
                        let more = delta["text"].as_str().unwrap();
                        message["content"][place]["text"] = json!(format!("{text}{more}"));
                    }
                    kind => {
                        assert_eq!(kind, "input_json_delta");
                        inputs[place] += delta["partial_json"].as_str().unwrap();
                    }
                }
            }
            "content_block_stop" => open = false,
            "message_delta" => {
                for name in ["stop_reason", "stop_sequence"] {
                    message[name] = data["delta"][name].clone();
                }
                message["usage"] = data["usage"].clone();
            }
            kind => assert_eq!(kind, "message_stop"),
        }
    }
    assert!(!open && text.contains("event: message_stop"));
    for (place, input) in inputs.iter().enumerate().filter(|(_, input)| !input.is_empty()) {
        message["content"][place]["input"] = serde_json::from_str(input).unwrap();
    }
    message
}

/// A message without what differs from one asking to the next.
fn plain(mut message: Value) -> Value {
    message["id"] = Value::Null;
    for block in message["content"].as_array_mut().unwrap() {
        block["id"] = Value::Null;
    }
    for name in ["input_tokens", "cache_read_input_tokens"] {
        message["usage"][name] = Value::Null;
    }
    message
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_sequences_end_a_message_and_are_named() {
    let mut body = asking("Count from 1 to 20.");
    let whole = post("/v1/messages", body.clone()).await;
    assert_eq!(
        (&whole["stop_reason"], &whole["stop_sequence"]),
        (&json!("max_tokens"), &Value::Null)
    );
    let text = whole["content"][0]["text"].as_str().unwrap();
    let middle = text.char_indices().nth(text.chars().count() / 2).unwrap().0;
    let stop: String = text[middle..].chars().take(3).collect();
    let shown = text.split(&stop).next().unwrap();
    body["stop_sequences"] = json!(["never said", stop]);
    let message = post("/v1/messages", body.clone()).await;
    assert_eq!(message["content"], json!([{"type": "text", "text": shown}]));
    assert_eq!(message["stop_reason"], "stop_sequence");
    assert_eq!(message["stop_sequence"], stop);
    assert_eq!(plain(streamed(body).await), plain(message));
    // Cached tokens and others make the prompt.
    let mut chat = chat("Count from 1 to 20.");
    chat["max_tokens"] = json!(1);
    let prompt = &post("/v1/chat/completions", chat).await["usage"]["prompt_tokens"];
    let count = |name: &str| whole["usage"][name].as_u64().unwrap();
    assert_eq!(count("input_tokens") + count("cache_read_input_tokens"), prompt.as_u64().unwrap());
}

fn add() -> Value {
    let number = json!({"type": "integer", "minimum": 0, "maximum": 99});
    json!({"name": "add", "description": "Adds", "input_schema": {
        "type": "object", "required": ["a", "b"], "properties": {"a": number, "b": number}}})
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_call_functions_and_read_results() {
    let mut body = asking("What is 2 + 3?");
    body["tools"] = json!([add()]);
    for choice in [
        json!({"type": "any", "disable_parallel_tool_use": true}),
        json!({"type": "tool", "name": "add"}),
    ] {
        body["tool_choice"] = choice;
        let message = post("/v1/messages", body.clone()).await;
        let call = &message["content"][0];
        assert_eq!(
            (&call["type"], &call["name"]),
            (&json!("tool_use"), &json!("add")),
            "{message}"
        );
        assert!(call["input"]["a"].is_u64() && call["input"]["b"].is_u64(), "{message}");
        assert_eq!(
            (message["content"].as_array().unwrap().len(), &message["stop_reason"]),
            (1, &json!("tool_use"))
        );
        assert_eq!(plain(streamed(body.clone()).await), plain(message));
    }
    // Calls and results of earlier turns are the same prompt as in a chat.
    let use_block =
        json!({"type": "tool_use", "id": "t1", "name": "add", "input": {"a": 2, "b": 3}});
    let result = json!({"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "5"}]});
    body["tool_choice"] = json!({"type": "auto"});
    body["messages"] = json!([
        {"role": "user", "content": "What is 2 + 3?"},
        {"role": "assistant", "content": [{"type": "text", "text": "Let me see."}, use_block]},
        {"role": "user", "content": [result, {"type": "text", "text": "And?"}]},
    ]);
    let (mut counted, tools) = (body.clone(), add());
    // What changes no prompt is taken there, too.
    counted["cache_control"] = json!({"type": "ephemeral"});
    counted["context_management"] = json!({});
    counted["output_config"] = json!({"effort": "low"});
    for name in ["max_tokens", "temperature"] {
        counted.as_object_mut().unwrap().remove(name);
    }
    let counted = post("/v1/messages/count_tokens", counted).await["input_tokens"].clone();
    let call = json!({"id": "t1", "type": "function", "function": {"name": "add", "arguments": "{\"a\": 2, \"b\": 3}"}});
    let function =
        json!({"name": "add", "description": "Adds", "parameters": tools["input_schema"]});
    let same = json!({"tools": [{"type": "function", "function": function}], "messages": [
        {"role": "user", "content": "What is 2 + 3?"},
        {"role": "assistant", "content": "Let me see.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "t1", "content": "5"}, {"role": "user", "content": "And?"},
    ]});
    assert_eq!(post("/tokenize", same).await["count"], counted);
    let message = post("/v1/messages", body.clone()).await;
    assert!(
        ["text", "tool_use"].map(Value::from).contains(&message["content"][0]["type"]),
        "{message}"
    );
    for (name, wrong) in [
        ("messages", json!([])),
        ("messages", json!([{"role": "user", "content": [use_block]}])),
        ("messages", json!([{"role": "assistant", "content": [result]}])),
        ("messages", json!([{"role": "user", "content": [{"type": 0, "text": "x"}]}])),
        ("top_p", json!(1.000_000_000_000_000_2)),
        ("messages", json!([{"role": "user", "content": [{"type": "image", "source": {}}]}])),
        ("tools", json!([{"type": "web_search_20250305", "name": "web_search"}])),
        ("tool_choice", json!({"type": "tool", "name": "other"})),
        ("stop_sequences", json!([""])),
        ("thinking", json!({"type": "always"})),
        ("container", json!("x")),
    ] {
        let mut body = body.clone();
        body[name] = wrong;
        let (status, text) = send("POST", "/v1/messages", &body.to_string()).await;
        let error: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((status, &error["type"]), (StatusCode::BAD_REQUEST, &json!("error")), "{text}");
        assert_eq!(error["error"]["type"], "invalid_request_error");
        assert!(error["error"]["message"].as_str().unwrap().contains(name), "{name}: {text}");
    }
}

/// What the assistant has begun goes on, in either shape.
#[tokio::test(flavor = "multi_thread")]
async fn a_last_turn_of_the_assistant_goes_on() {
    let turns = json!([
        {"role": "user", "content": "Name the first five letters."},
        {"role": "assistant", "content": "The first five letters are A, B, C,"},
    ]);
    let mut body = json!({"max_tokens": 4, "temperature": 0, "messages": turns});
    let message = post("/v1/messages", body.clone()).await;
    let text = message["content"][0]["text"].as_str().unwrap();
    assert!(text.starts_with(" D"), "{message}");
    body["continue_final_message"] = json!(true);
    assert_eq!(content(&post("/v1/chat/completions", body.clone()).await), text);
    body["add_generation_prompt"] = json!(true);
    refused("/v1/chat/completions", &body, "continue_final_message").await;
    let ending = |fields: Value| {
        let mut body = json!({"messages": turns});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        async move { post("/apply-template", body).await["prompt"].as_str().unwrap().to_owned() }
    };
    let closed = ending(json!({"add_generation_prompt": false})).await;
    let open = ending(json!({"continue_final_message": true})).await;
    assert!(open.ends_with("A, B, C,") && closed.starts_with(&open) && closed.len() > open.len());
    assert!(ending(json!({})).await.starts_with(&closed));
}
