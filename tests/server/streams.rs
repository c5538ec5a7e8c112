//! Streams that fail on the way, in the shape of each API.

use super::*;

/// A schema that lets an output begin that it does not let end.
fn stuck() -> Value {
    json!({
        "type": "object", "required": ["score"], "additionalProperties": false,
        "properties": {"score": {"type": "integer", "minimum": 1, "maximum": 5}},
        "patternProperties": {"^score$": {"type": "integer"}},
    })
}

/// The events of a stream that fails by the request's fault.
async fn failing(path: &str, body: Value) -> Vec<Value> {
    // The model does not always begin what cannot be ended.
    for _ in 0..64 {
        let (status, text) = send("POST", path, &body.to_string()).await;
        assert_eq!(status, StatusCode::OK, "{text}");
        if text.contains("cannot be followed") {
            let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
            let data = data.filter(|data| *data != "[DONE]");
            return data.map(|data| serde_json::from_str(data).unwrap()).collect();
        }
    }
    panic!("{path}: no stream fails");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_that_fails_ends_with_an_event_that_says_so() {
    let format = json!({"type": "json_schema", "name": "s", "schema": stuck()});
    let body = json!({"input": "Give an example.", "max_output_tokens": 60, "stream": true,
                      "text": {"format": format}});
    let events = failing("/v1/responses", body).await;
    for (place, event) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], place, "{event}");
    }
    let last = events.last().unwrap();
    assert_eq!(last["type"], "response.failed", "{last}");
    assert_eq!(last["response"]["status"], "failed");
    let error = &last["response"]["error"];
    assert_eq!(error["code"], "invalid_prompt");
    assert!(error["message"].as_str().unwrap().starts_with("`text`: "), "{error}");
    assert_eq!(last["response"]["usage"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_fails_ends_with_an_event_that_says_so() {
    let body = json!({"messages": [{"role": "user", "content": "Give an example."}],
        "max_tokens": 60, "stream": true, "tool_choice": {"type": "any"},
        "tools": [{"name": "score", "input_schema": stuck()}]});
    let events = failing("/v1/messages", body).await;
    assert_eq!(events[0]["type"], "message_start");
    let last = events.last().unwrap();
    assert_eq!(last["type"], "error", "{last}");
    assert_eq!(last["error"]["type"], "invalid_request_error");
    let message = last["error"]["message"].as_str().unwrap();
    assert!(message.starts_with("`tools`: "), "{message}");
    let other = |kind: &str| events.iter().any(|event| event["type"] == kind);
    assert!(!other("message_stop") && !other("message_delta"));
}

/// A failure names the field that the grammar came by.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_fails_names_the_field_of_its_grammar() {
    let function = json!({"name": "score", "parameters": stuck()});
    let named = json!({"type": "json_schema", "json_schema": {"name": "s", "schema": stuck()}});
    let mut typed = function.clone();
    typed["type"] = json!("function");
    for (path, prompt, field, more) in [
        ("/v1/chat/completions", "messages", "response_format", json!({"response_format": named})),
        ("/v1/chat/completions", "messages", "guided_json", json!({"guided_json": stuck()})),
        (
            "/v1/chat/completions",
            "messages",
            "structured_outputs",
            json!({"structured_outputs": {"json": stuck()}}),
        ),
        (
            "/v1/chat/completions",
            "messages",
            "tools",
            json!({"tool_choice": "required",
            "tools": [{"type": "function", "function": function}]}),
        ),
        ("/v1/completions", "prompt", "guided_json", json!({"guided_json": stuck().to_string()})),
        ("/v1/responses", "input", "tools", json!({"tool_choice": "required", "tools": [typed]})),
    ] {
        let asked = match prompt {
            "messages" => json!([{"role": "user", "content": "Give an example."}]),
            _ => json!("Give an example."),
        };
        let mut body = more;
        body[prompt] = asked;
        body["stream"] = json!(true);
        let limit = if prompt == "input" { "max_output_tokens" } else { "max_tokens" };
        body[limit] = json!(60);
        let events = failing(path, body).await;
        let last = events.last().unwrap();
        let error = if prompt == "input" { &last["response"]["error"] } else { &last["error"] };
        let message = error["message"].as_str().unwrap();
        assert!(message.starts_with(&format!("`{field}`: ")), "{path}: {message}");
        if prompt != "input" {
            assert_eq!(error["param"], field, "{path}");
        }
    }
}

/// Where calls and text each have a form, the one that fails is named.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_fails_names_the_one_of_two_fields() {
    let bracket = post("/tokenize", json!({"prompt": "<"})).await["tokens"][0].to_string();
    let fine = json!({"type": "object", "required": ["a"], "additionalProperties": false,
        "properties": {"a": {"type": "integer", "minimum": 1, "maximum": 5}}});
    let tools = |schema: Value| json!([{"type": "function", "function": {"name": "score", "parameters": schema}}]);
    let form = |schema: Value| json!({"type": "json_schema", "json_schema": {"name": "s", "schema": schema}});
    // An answer begins to call where it begins with what begins a call.
    for (field, tools, schema, choice, bias) in [
        ("response_format", tools(fine.clone()), stuck(), "auto", -100),
        ("tools", tools(stuck()), fine.clone(), "auto", 100),
        ("tools", tools(stuck()), stuck(), "required", 0),
    ] {
        let body = json!({"messages": [{"role": "user", "content": "Give an example."}],
            "max_tokens": 60, "stream": true, "tools": tools, "tool_choice": choice,
            "response_format": form(schema), "logit_bias": {&bracket: bias}});
        let events = failing("/v1/chat/completions", body).await;
        let error = &events.last().unwrap()["error"];
        assert_eq!(error["param"], field, "{error}");
        assert!(error["message"].as_str().unwrap().starts_with(&format!("`{field}`: ")), "{error}");
    }
}
