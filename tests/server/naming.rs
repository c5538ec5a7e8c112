//! Faults are named by the fields of the request's own API.

use super::*;

/// The param of an error, where the API has one, and its message.
async fn fault(path: &str, body: &str) -> (Option<String>, String) {
    let (status, text) = send("POST", path, body).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{path}: {body}: {text}");
    let error: Value = serde_json::from_str(&text).unwrap();
    let error = &error["error"];
    assert_eq!(error["type"], "invalid_request_error");
    (error["param"].as_str().map(str::to_owned), error["message"].as_str().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_have_the_names_of_their_api() {
    let messages = json!([{"role": "user", "content": "hi"}]);
    let wrong = json!({"type": "nonsense"});
    let (inner, fine) =
        (json!({"name": "f", "parameters": {"properties": {"a": wrong}}}), json!({"name": "f"}));
    let (nameless, named) =
        (json!({"name": "f g"}), json!({"type": "json_schema", "json_schema": {"schema": wrong}}));
    let function = |function: &Value| json!([{"type": "function", "function": function}]);
    let flat = |function: &Value| {
        let mut tool = function.clone();
        tool["type"] = json!("function");
        json!([tool])
    };
    let anthropic =
        json!([{"name": "f", "input_schema": {"type": "object", "properties": {"a": wrong}}}]);
    let format = json!({"format": {"type": "json_schema", "name": "s", "schema": wrong}});
    let (chat, responses) = ("/v1/chat/completions", "/v1/responses");
    for (path, field, mut body) in [
        (chat, "max_tokens", json!({"max_tokens": 0})),
        (chat, "max_completion_tokens", json!({"max_completion_tokens": 0})),
        (chat, "response_format", json!({"response_format": named})),
        (chat, "guided_json", json!({"guided_json": wrong})),
        (chat, "structured_outputs", json!({"structured_outputs": {"regex": "("}})),
        (chat, "tools", json!({"tools": function(&inner)})),
        (chat, "tools", json!({"tools": function(&nameless)})),
        // Of two fields, the one at fault.
        (chat, "response_format", json!({"tools": function(&fine), "response_format": named})),
        (chat, "tools", json!({"tools": function(&inner), "guided_json": {}})),
        ("/v1/completions", "logprobs", json!({"prompt": "hi", "logprobs": 21})),
        ("/v1/completions", "logprobs", json!({"prompt": "hi", "logprobs": 21, "echo": true})),
        ("/v1/completions", "prompt", json!({"prompt": ""})),
        (responses, "max_output_tokens", json!({"input": "hi", "max_output_tokens": 0})),
        (responses, "text", json!({"input": "hi", "text": format})),
        (responses, "tools", json!({"input": "hi", "tools": flat(&inner)})),
        (responses, "tools", json!({"input": "hi", "tools": flat(&nameless)})),
        (responses, "text", json!({"input": "hi", "text": format, "tools": flat(&fine)})),
        (responses, "input", json!({"input": []})),
        ("/v1/messages", "max_tokens", json!({"max_tokens": 0})),
        ("/v1/messages", "tools", json!({"max_tokens": 1, "tools": anthropic})),
        ("/v1/messages", "stop_sequences", json!({"max_tokens": 1, "stop_sequences": [""]})),
    ] {
        if [chat, "/v1/messages"].contains(&path) {
            body["messages"] = messages.clone();
        }
        let (param, message) = fault(path, &body.to_string()).await;
        assert!(message.contains(&format!("`{field}")), "{path} {body}: {message}");
        if path != "/v1/messages" {
            assert_eq!(param.as_deref(), Some(field), "{path} {body}: {message}");
        }
        for other in
            ["function.name", "`top_logprobs`", "`response_format`", "`stop`", "`messages`"]
        {
            assert!(other.contains(field) || !message.contains(other), "{path} {body}: {message}");
        }
    }
}
