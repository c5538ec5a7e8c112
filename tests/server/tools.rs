//! Calls of functions.

use super::*;

fn weather() -> Value {
    json!({"type": "function", "function": {
        "name": "get_weather", "description": "Current weather of a city",
        "parameters": {"type": "object", "required": ["city", "unit"], "properties": {
            "city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["celsius", "fahrenheit"]}}}}})
}

fn add() -> Value {
    json!({"type": "function", "function": {"name": "add", "strict": true, "parameters": {
        "type": "object", "required": ["a", "b"], "properties": {
            "a": {"type": "integer", "minimum": 0, "maximum": 999}, "b": {"type": "integer", "minimum": 0, "maximum": 999}}}}})
}

fn asking(text: &str, choice: Value) -> Value {
    let mut body = chat(text);
    body["max_tokens"] = json!(90);
    body["tools"] = json!([weather(), add()]);
    body["tool_choice"] = choice;
    body
}

/// Name and arguments of each call of an answer's message; null where they are cut.
fn calls(message: &Value) -> Vec<(String, Value)> {
    let of = |call: &Value| {
        assert!(call["id"].as_str().unwrap().starts_with("call_") && call["type"] == "function");
        let function = &call["function"];
        let arguments = serde_json::from_str(function["arguments"].as_str().unwrap());
        (function["name"].as_str().unwrap().to_owned(), arguments.unwrap_or_default())
    };
    message["tool_calls"].as_array().unwrap().iter().map(of).collect()
}

fn check(name: &str, arguments: &Value) {
    let fields = arguments.as_object().unwrap();
    assert_eq!(fields.len(), 2, "{arguments}");
    if name == "add" {
        assert!(fields["a"].as_u64().unwrap() < 1000 && fields["b"].as_u64().unwrap() < 1000);
    } else {
        assert!(fields["city"].as_str().unwrap().chars().count() <= 20);
        assert!(["celsius", "fahrenheit"].contains(&fields["unit"].as_str().unwrap()));
    }
}

/// The message that the chunks of a stream make, and why it ended.
async fn streamed(mut body: Value) -> (Value, Value) {
    body["stream"] = json!(true);
    let (status, text) = send("POST", "/v1/chat/completions", &body.to_string()).await;
    assert_eq!(status, StatusCode::OK, "{text}");
    let (mut message, mut reason) = (json!({"content": "", "tool_calls": []}), Value::Null);
    for line in text.lines().filter_map(|l| l.strip_prefix("data: ")).filter(|l| *l != "[DONE]") {
        let chunk: Value = serde_json::from_str(line).unwrap();
        let choice = &chunk["choices"][0];
        if let Some(text) = choice["delta"]["content"].as_str() {
            message["content"] = json!(format!("{}{text}", message["content"].as_str().unwrap()));
        }
        for delta in choice["delta"]["tool_calls"].as_array().into_iter().flatten() {
            let calls = message["tool_calls"].as_array_mut().unwrap();
            let index = delta["index"].as_u64().unwrap() as usize;
            if delta["id"].is_string() {
                assert_eq!(index, calls.len());
                calls.push(delta.clone());
            } else {
                let known = calls[index]["function"]["arguments"].as_str().unwrap().to_owned();
                let more = delta["function"]["arguments"].as_str().unwrap();
                calls[index]["function"]["arguments"] = json!(known + more);
            }
        }
        if !choice["finish_reason"].is_null() {
            reason = choice["finish_reason"].clone();
        }
    }
    (message, reason)
}

/// Required and named calls follow the schemas, the same with and without speculation, whole and
/// streamed.
#[tokio::test(flavor = "multi_thread")]
async fn calls_follow_the_schema() {
    let named = json!({"type": "function", "function": {"name": "add"}});
    for (choice, parallel) in [(json!("required"), false), (json!("required"), true), (named, true)]
    {
        let mut body = asking("What is 17 plus 25?", choice.clone());
        body["parallel_tool_calls"] = json!(parallel);
        let mut all = Vec::new();
        for speculate in [0, 8] {
            body["num_speculative_tokens"] = json!(speculate);
            let answer = post("/v1/chat/completions", body.clone()).await;
            let choice = &answer["choices"][0];
            let mut made = calls(&choice["message"]);
            assert!(choice["message"]["content"].is_null(), "{choice}");
            if choice["finish_reason"] == "length" {
                // Calls without end: the last one may be cut.
                assert!(parallel && made.len() > 1, "{choice}");
                made.pop();
            } else {
                assert_eq!(choice["finish_reason"], "tool_calls");
            }
            made.iter().for_each(|(name, arguments)| check(name, arguments));
            all.push(made);
        }
        assert_eq!(all[0], all[1]);
        let (message, _) = streamed(body.clone()).await;
        assert_eq!(calls(&message)[..all[0].len()], all[0]);
        assert!(parallel || all[0].len() == 1);
        if choice.is_object() {
            assert!(all[0].len() == 1 && all[0][0].0 == "add", "{all:?}");
        }
    }
}

/// Left to itself the model answers in text, or calls as earlier turns did.
#[tokio::test(flavor = "multi_thread")]
async fn the_model_may_choose() {
    let mut body = asking("Say hello.", json!("auto"));
    body["tool_choice"] = Value::Null;
    body["max_tokens"] = json!(12);
    let answer = post("/v1/chat/completions", body.clone()).await;
    assert!(
        !content(&answer).is_empty() && answer["choices"][0]["message"].get("tool_calls").is_none()
    );
    let (message, _) = streamed(body.clone()).await;
    assert_eq!(message["content"], content(&answer));
    body["tool_choice"] = json!("none");
    let none = post("/v1/chat/completions", body.clone()).await;
    body.as_object_mut().unwrap().remove("tools");
    let without = post("/v1/chat/completions", body).await;
    assert_eq!(none["usage"]["prompt_tokens"], without["usage"]["prompt_tokens"]);

    let mut body = asking("", json!("auto"));
    let mut messages = Vec::new();
    for (a, b) in [(1, 2), (20, 22)] {
        let id = format!("call_{a}");
        let arguments = json!({"a": a, "b": b}).to_string();
        let call = json!({"id": id, "type": "function", "function": {"name": "add", "arguments": arguments}});
        messages.extend([
            json!({"role": "user", "content": format!("Add {a} and {b}.")}),
            json!({"role": "assistant", "content": null, "tool_calls": [call]}),
        ]);
    }
    messages.push(json!({"role": "user", "content": "Add 3 and 4."}));
    body["messages"] = json!(messages);
    body["parallel_tool_calls"] = json!(false);
    let mut made = Vec::new();
    for speculate in [0, 8] {
        body["num_speculative_tokens"] = json!(speculate);
        let answer = post("/v1/chat/completions", body.clone()).await;
        assert_eq!(answer["choices"][0]["finish_reason"], "tool_calls", "{answer}");
        made.push(calls(&answer["choices"][0]["message"]));
    }
    assert_eq!(made[0], made[1]);
    check(&made[0][0].0, &made[0][0].1);
    let (message, reason) = streamed(body).await;
    assert_eq!((calls(&message), reason), (made.remove(0), json!("tool_calls")));
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_tools_are_refused() {
    let named = |name: &str| json!({"type": "function", "function": {"name": name}});
    let function = |parameters: Value| json!([{"type": "function", "function": {"name": "f", "parameters": parameters}}]);
    for (param, fields) in [
        ("tools", json!({"tools": [{"type": "function"}]})),
        ("tools", json!({"tools": [{"type": "custom", "custom": {"name": "x"}}]})),
        ("tools", json!({"tools": [named("a b")]})),
        ("tools", json!({"tools": [named("")]})),
        ("tools", json!({"tools": [named("f"), named("f")]})),
        ("tools", json!({"tools": function(json!({"type": "array"}))})),
        ("tools", json!({"tools": function(json!({"properties": {"x": {"type": "nonsense"}}}))})),
        ("tool_choice", json!({"tool_choice": "required"})),
        ("tool_choice", json!({"tools": [named("f")], "tool_choice": "sometimes"})),
        ("tool_choice", json!({"tools": [named("f")], "tool_choice": named("g")})),
        ("guided_regex", json!({"tools": [named("f")], "guided_regex": "a+"})),
    ] {
        let mut body = chat("hi");
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        refused("/v1/chat/completions", &body, param).await;
    }
}

/// Beside a form for its text, the model may still call.
#[tokio::test(flavor = "multi_thread")]
async fn text_beside_tools_has_the_form_asked_for() {
    let mut body = asking("Name a colour as JSON.", json!("auto"));
    let schema = json!({"type": "object", "required": ["colour"], "additionalProperties": false,
        "properties": {"colour": {"enum": ["red", "blue"]}}});
    body["response_format"] =
        json!({"type": "json_schema", "json_schema": {"name": "c", "schema": schema}});
    let answer = post("/v1/chat/completions", body).await;
    let message = &answer["choices"][0]["message"];
    match message["content"].as_str() {
        Some(text) => {
            let value: Value = serde_json::from_str(text).unwrap();
            assert!(["red", "blue"].contains(&value["colour"].as_str().unwrap()));
        }
        None => calls(message).iter().for_each(|(name, arguments)| check(name, arguments)),
    }
}
