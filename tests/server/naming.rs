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
    let (inner, fine) = (
        json!({"name": "f", "strict": true, "parameters": {"properties": {"a": wrong}}}),
        json!({"name": "f"}),
    );
    let (nameless, named) =
        (json!({"name": "f g"}), json!({"type": "json_schema", "json_schema": {"schema": wrong}}));
    let function = |function: &Value| json!([{"type": "function", "function": function}]);
    let flat = |function: &Value| {
        let mut tool = function.clone();
        tool["type"] = json!("function");
        json!([tool])
    };
    let anthropic = json!([{"name": "f", "strict": true, "input_schema": {"type": "object", "properties": {"a": wrong}}}]);
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

/// Which of two values of one name counts is nobody's to guess.
#[tokio::test(flavor = "multi_thread")]
async fn names_that_are_there_twice_are_refused() {
    let (messages, chat) =
        (r#""messages": [{"role": "user", "content": "hi"}]"#, "/v1/chat/completions");
    for (path, field, name, body) in [
        (
            chat,
            "logit_bias",
            "11",
            format!(r#"{{{messages}, "logit_bias": {{"11": 1, "12": 1, "11": -1}}}}"#),
        ),
        (
            chat,
            "temperature",
            "temperature",
            format!(r#"{{{messages}, "temperature": 0, "temperature": 1}}"#),
        ),
        (
            chat,
            "messages",
            "role",
            r#"{"messages": [{"role": "user", "role": "system", "content": "hi"}]}"#.into(),
        ),
        (chat, "metadata", "k", format!(r#"{{{messages}, "metadata": {{"k": "a", "k": "a"}}}}"#)),
        (
            chat,
            "guided_json",
            "type",
            format!(r#"{{{messages}, "guided_json": {{"type": "object", "type": "array"}}}}"#),
        ),
        (
            chat,
            "guided_json",
            "type",
            format!(r#"{{{messages}, "guided_json": "{{\"type\": 1, \"type\": 2}}"}}"#),
        ),
        (
            chat,
            "tools",
            "a",
            format!(
                r#"{{{messages}, "tools": [{{"type": "function", "function": {{"name": "f", "parameters": {{"properties": {{"a": {{}}, "a": {{}}}}}}}}}}]}}"#
            ),
        ),
        ("/v1/completions", "prompt", "prompt", r#"{"prompt": "a", "prompt": "b"}"#.into()),
        (
            "/v1/completions",
            "logit_bias",
            "7",
            r#"{"prompt": "a", "logit_bias": {"7": 1, "\u0037": 1}}"#.into(),
        ),
        (
            "/v1/responses",
            "metadata",
            "k",
            r#"{"input": "a", "metadata": {"k": "a", "k": "b"}}"#.into(),
        ),
        (
            "/v1/messages",
            "system",
            "text",
            format!(
                r#"{{{messages}, "max_tokens": 1, "system": [{{"type": "text", "text": "a", "text": "b"}}]}}"#
            ),
        ),
        ("/v1/embeddings", "input", "input", r#"{"input": "a", "input": "b"}"#.into()),
        ("/tokenize", "prompt", "prompt", r#"{"prompt": "a", "prompt": "a"}"#.into()),
    ] {
        let (param, message) = fault(path, &body).await;
        assert!(message.contains(&format!("`{name}` is there twice")), "{path}: {message}");
        if path != "/v1/messages" {
            assert_eq!(param.as_deref(), Some(field), "{path}: {message}");
        }
    }
}
