//! Schemas that are not supported in all they say, of functions and of texts, through every API.

use super::*;

/// Asks, and gives what the answer says and what its head says was loosened.
async fn ask(path: &str, body: &Value) -> (StatusCode, Value, Option<String>) {
    let request = Request::post(path).body(Body::from(body.to_string())).unwrap();
    let response = router(state().clone()).oneshot(request).await.unwrap();
    let status = response.status();
    let header = response.headers().get("x-pleach-loosened");
    let loosened = header.map(|value| value.to_str().unwrap().to_owned());
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&bytes).unwrap_or_default(), loosened)
}

/// A function: its name, the schema of its arguments, and whether they follow it strictly.
type Tool<'a> = (&'a str, &'a Value, Option<bool>);

/// A request for a call of one of these functions, or of the one named, in each API.
fn requests(tools: &[Tool<'_>], named: Option<&str>) -> [(&'static str, Value); 3] {
    let function = |(name, schema, strict): &Tool<'_>| json!({"name": name, "parameters": schema, "strict": strict});
    let chat = tools.iter().map(|tool| json!({"type": "function", "function": function(tool)}));
    let responses = tools.iter().map(|tool| {
        let mut tool = function(tool);
        tool["type"] = json!("function");
        tool
    });
    let messages = tools.iter().map(
        |(name, schema, strict)| json!({"name": name, "input_schema": schema, "strict": strict}),
    );
    let (chat, responses, messages): (Vec<_>, Vec<_>, Vec<_>) =
        (chat.collect(), responses.collect(), messages.collect());
    let said = json!([{"role": "user", "content": "Call a function."}]);
    let choice = |of: &dyn Fn(&str) -> Value, any: Value| named.map_or(any, of);
    [
        (
            "/v1/chat/completions",
            json!({"messages": said, "max_tokens": 60, "temperature": 0, "tools": chat,
            "tool_choice": choice(&|name| json!({"type": "function", "function": {"name": name}}), json!("required"))}),
        ),
        (
            "/v1/responses",
            json!({"input": said, "max_output_tokens": 60, "temperature": 0, "tools": responses,
            "tool_choice": choice(&|name| json!({"type": "function", "name": name}), json!("required"))}),
        ),
        (
            "/v1/messages",
            json!({"messages": said, "max_tokens": 60, "temperature": 0, "tools": messages,
            "tool_choice": choice(&|name| json!({"type": "tool", "name": name}), json!({"type": "any"}))}),
        ),
    ]
}

/// The arguments of an answer's first call; null where they are cut.
fn arguments(path: &str, answer: &Value) -> Value {
    let text = match path {
        "/v1/chat/completions" => {
            &answer["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"]
        }
        "/v1/responses" => &answer["output"][0]["arguments"],
        _ => return answer["content"][0]["input"].clone(),
    };
    serde_json::from_str(text.as_str().unwrap_or_default()).unwrap_or_default()
}

/// An object with one property of a schema, and what else is said of it.
fn object(property: Value, more: Value) -> Value {
    let mut object = json!({"type": "object", "required": ["x"], "properties": {"x": property}});
    object.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    object
}

/// Schemas with what is not supported, each with the keyword that is named for it.
fn loose() -> Vec<(Value, &'static str)> {
    let number = || json!({"type": "integer", "minimum": 0, "maximum": 9});
    let text = |more: Value| {
        let mut text = json!({"type": "string", "maxLength": 5});
        text.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        object(text, json!({}))
    };
    vec![
        (
            object(
                json!({"type": "array", "items": number(), "maxItems": 2, "uniqueItems": true}),
                json!({}),
            ),
            "uniqueItems",
        ),
        (
            object(
                json!({"type": "array", "items": number(), "maxItems": 2, "contains": {"const": 1}}),
                json!({}),
            ),
            "contains",
        ),
        (text(json!({"not": {"const": "a"}})), "not"),
        (text(json!({"pattern": "^(?!a)[b-z]+$"})), "pattern"),
        (text(json!({"format": "password"})), "format"),
        (text(json!({"format": "byte"})), "format"),
        (
            object(
                number(),
                json!({"if": {"required": ["x"]}, "then": {}, "else": {"required": ["y"]}}),
            ),
            "if",
        ),
        (object(number(), json!({"propertyNames": {"maxLength": 3}})), "propertyNames"),
        (object(number(), json!({"dependentRequired": {"x": ["y"]}})), "dependentRequired"),
        (object(number(), json!({"unevaluatedProperties": false})), "unevaluatedProperties"),
        (
            object(number(), json!({"required": ["x", "y"], "additionalProperties": false})),
            "required",
        ),
        (
            object(
                json!({"oneOf": [number(), {"type": "integer", "minimum": 5, "maximum": 7}]}),
                json!({}),
            ),
            "oneOf",
        ),
        (object(json!({"type": "file"}), json!({})), "any object"),
        (object(json!({"$ref": "#/$defs/nothing"}), json!({})), "any object"),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tool_that_is_not_supported_whole_is_loosened_alone() {
    let kept = object(json!({"enum": ["red", "blue"]}), json!({"additionalProperties": false}));
    for (schema, keyword) in loose() {
        let expected = Some(format!("tool loose: {keyword}"));
        for strict in [None, Some(true)] {
            let tools = [("kept", &kept, strict), ("loose", &schema, None)];
            for (path, body) in requests(&tools, Some("kept")) {
                // What it may not call is no part of the grammar.
                let (status, answer, loosened) = ask(path, &body).await;
                assert_eq!((status, loosened), (StatusCode::OK, None), "{path} {answer}");
                let colour = &arguments(path, &answer)["x"];
                assert!(colour == "red" || colour == "blue", "{keyword} {path}: {answer}");
            }
            for (path, mut body) in requests(&tools, None) {
                let (status, answer, loosened) = ask(path, &body).await;
                assert_eq!(status, StatusCode::OK, "{keyword} {path}: {answer}");
                assert_eq!(loosened, expected, "{path}");
                body["stream"] = json!(true);
                let (status, _, loosened) = ask(path, &body).await;
                assert_eq!((status, loosened), (StatusCode::OK, expected.clone()), "{path}");
            }
        }
        for (path, body) in requests(&[("loose", &schema, None)], Some("loose")) {
            let (status, answer, loosened) = ask(path, &body).await;
            assert_eq!((status, &loosened), (StatusCode::OK, &expected), "{path} {answer}");
            // What is left of the schema is followed.
            let arguments = arguments(path, &answer);
            if keyword != "any object" && !arguments.is_null() {
                let x = &arguments["x"];
                let short = x.as_str().is_some_and(|text| text.chars().count() <= 5);
                let small = |value: &Value| value.as_u64().is_some_and(|number| number <= 9);
                let few = x.as_array().is_some_and(|all| all.len() <= 2 && all.iter().all(small));
                assert!(short || few || small(x), "{keyword} {path}: {answer}");
            }
        }
        for (path, body) in requests(&[("kept", &kept, None), ("loose", &schema, Some(true))], None)
        {
            let (status, answer, _) = ask(path, &body).await;
            let message = answer["error"]["message"].as_str().unwrap_or_default();
            assert_eq!(status, StatusCode::BAD_REQUEST, "{keyword} {path}: {answer}");
            assert!(message.starts_with("`tools`: tool loose: "), "{message}");
            let named = message.contains(&format!("{keyword}`"))
                || ["required", "any object"].contains(&keyword);
            assert!(named && !message.contains("%json") && !message.contains("call_"), "{message}");
        }
    }
}

/// Several at once are all named; what says nothing, or only what is supported, is not.
#[tokio::test(flavor = "multi_thread")]
async fn all_that_is_loosened_is_named_and_nothing_else() {
    let two =
        object(json!({"type": "string", "maxLength": 5, "format": "binary", "not": {}}), json!({}));
    let none = object(
        json!({"type": "array", "uniqueItems": false, "maxItems": 0}),
        json!({"type": ["object", "null"]}),
    );
    let others =
        json!({"type": "object", "required": ["y"], "properties": {"x": {"type": "integer"}}});
    let broken = object(json!({"minLength": -1}), json!({}));
    let tools = [
        ("two", &two, None),
        ("none", &none, None),
        ("others", &others, Some(true)),
        ("broken", &broken, None),
    ];
    for (path, mut body) in requests(&tools, None) {
        let (status, answer, loosened) = ask(path, &body).await;
        assert_eq!(status, StatusCode::OK, "{path}: {answer}");
        let expected = "tool two: not, format; tool broken: any object";
        assert_eq!(loosened.as_deref(), Some(expected), "{path}");
        if path == "/v1/chat/completions" {
            body["tool_choice"] = json!("auto");
            body["response_format"] =
                json!({"type": "json_schema", "json_schema": {"name": "r", "schema": two}});
            let expected = format!("response_format: not, format; {expected}");
            assert_eq!(ask(path, &body).await.2, Some(expected));
        }
    }
    for (path, body) in requests(&[("others", &others, None)], None) {
        let (_, answer, loosened) = ask(path, &body).await;
        assert!(loosened.is_none(), "{path}");
        let arguments = arguments(path, &answer);
        assert!(arguments.is_null() || arguments.get("y").is_some(), "{path}: {answer}");
    }
}

/// Text that has a form is loosened where the form is not strict, and refused by name where it is.
#[tokio::test(flavor = "multi_thread")]
async fn the_form_of_a_text_is_loosened_unless_it_is_strict() {
    for (schema, keyword) in loose() {
        for strict in [None, Some(false), Some(true)] {
            let named = json!({"name": "r", "schema": schema, "strict": strict});
            let format =
                json!({"type": "json_schema", "name": "r", "schema": schema, "strict": strict});
            let said = json!([{"role": "user", "content": "Give an object."}]);
            for (path, field, body) in [
                (
                    "/v1/chat/completions",
                    "response_format",
                    json!({"messages": said, "max_tokens": 8,
                    "response_format": {"type": "json_schema", "json_schema": named}}),
                ),
                (
                    "/v1/responses",
                    "text",
                    json!({"input": said, "max_output_tokens": 8, "text": {"format": format}}),
                ),
            ] {
                let (status, answer, loosened) = ask(path, &body).await;
                if strict == Some(true) || keyword == "any object" {
                    assert_eq!(status, StatusCode::BAD_REQUEST, "{keyword} {path}: {answer}");
                    assert_eq!(answer["error"]["param"], field, "{answer}");
                } else {
                    assert_eq!(status, StatusCode::OK, "{keyword} {path}: {answer}");
                    assert_eq!(loosened, Some(format!("{field}: {keyword}")));
                }
            }
        }
    }
}
