//! Calls that are not JSON in the model's words: the arguments that clients get follow the schema all the same.

use pleach::text::CallFormat;

use super::tools::untold;
use super::*;

const FORMATS: [CallFormat; 2] = [CallFormat::Qwen3Coder, CallFormat::Pythonic];

/// Parameters of every kind, `note` alone of which may be left out.
fn schema() -> Value {
    json!({"type": "object", "$defs": {"Unit": {"enum": ["m", "k m"]}, "Age": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["city", "unit", "age", "ok", "day", "tags", "by"], "properties": {
            "city": {"type": "string", "minLength": 2, "maxLength": 12},
            "unit": {"$ref": "#/$defs/Unit"},
            "age": {"$ref": "#/$defs/Age"},
            "ok": {"type": "boolean"},
            "note": {"anyOf": [{"type": "string", "maxLength": 9}, {"type": "null"}]},
            "day": {"type": "string", "format": "date"},
            "tags": {"type": "array", "items": {"enum": ["a'b", true, null]}, "maxItems": 3},
            "by": {"type": "object", "properties": {"age": {"$ref": "#/$defs/Age"}}, "required": ["age"],
                "additionalProperties": false}}})
}

fn check(arguments: &str) {
    let value: Value = serde_json::from_str(arguments).expect(arguments);
    let text = |value: &Value, most| value.as_str().is_some_and(|it| it.chars().count() <= most);
    let age = |value: &Value| value.as_u64().is_some_and(|age| age <= 99);
    assert!(text(&value["city"], 12) && value["city"].as_str().unwrap().chars().count() >= 2);
    assert!(["m", "k m"].contains(&value["unit"].as_str().unwrap()), "{value}");
    assert!(age(&value["age"]) && age(&value["by"]["age"]) && value["ok"].is_boolean(), "{value}");
    assert!(value["day"].as_str().unwrap().parse::<jiff::civil::Date>().is_ok(), "{value}");
    let tags = value["tags"].as_array().unwrap();
    let known = [json!("a'b"), json!(true), Value::Null];
    assert!(tags.len() <= 3 && tags.iter().all(|tag| known.contains(tag)), "{value}");
    let fields = value.as_object().unwrap();
    let noted = fields.get("note").is_some_and(|note| note.is_null() || text(note, 9));
    assert!(fields.len() == 7 || fields.len() == 8 && noted, "{value}");
    let order: Vec<&String> = schema()["properties"]
        .as_object()
        .unwrap()
        .keys()
        .cloned()
        .collect::<Vec<_>>()
        .iter()
        .filter_map(|name| fields.get_key_value(name))
        .map(|(name, _)| name)
        .collect();
    assert_eq!(order, fields.keys().collect::<Vec<_>>());
}

/// The data of a stream's events.
fn events(text: &str) -> Vec<Value> {
    let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
    data.filter(|data| *data != "[DONE]").map(|data| serde_json::from_str(data).unwrap()).collect()
}

/// Required calls of a strict schema, through every API, whole and in pieces.
#[tokio::test(flavor = "multi_thread")]
async fn arguments_follow_the_schema_in_every_format() {
    let words = "Where do Ann and Bob live?";
    let function = json!({"name": "f", "parameters": schema(), "strict": true});
    let mut flat = function.clone();
    flat["type"] = json!("function");
    let requests = [
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": words}], "max_tokens": 480,
            "tools": [{"type": "function", "function": function}], "tool_choice": "required",
            "parallel_tool_calls": false}),
        ),
        (
            "/v1/responses",
            json!({"input": words, "max_output_tokens": 480, "tools": [flat],
            "tool_choice": "required", "parallel_tool_calls": false}),
        ),
        (
            "/v1/messages",
            json!({"messages": [{"role": "user", "content": words}], "max_tokens": 480,
            "tools": [{"name": "f", "input_schema": schema(), "strict": true}],
            "tool_choice": {"type": "any", "disable_parallel_tool_use": true}}),
        ),
    ];
    for format in FORMATS {
        let app = untold(format);
        for (path, mut body) in requests.clone() {
            let mut whole = Vec::new();
            for (temperature, stream) in [(0.0, false), (0.0, true), (1.0, false), (1.0, true)] {
                body["temperature"] = json!(temperature);
                body["stream"] = json!(stream);
                let (status, text) = send_to(app.clone(), "POST", path, &body.to_string()).await;
                assert_eq!(status, StatusCode::OK, "{format}: {text}");
                let arguments: String = if stream {
                    let events = events(&text);
                    let piece = |event: &Value| match path {
                        "/v1/chat/completions" => {
                            let call = &event["choices"][0]["delta"]["tool_calls"][0];
                            call["function"]["arguments"].as_str().map(str::to_owned)
                        }
                        "/v1/responses" => (event["type"]
                            == "response.function_call_arguments.delta")
                            .then(|| event["delta"].as_str().unwrap().to_owned()),
                        _ => event["delta"]["partial_json"].as_str().map(str::to_owned),
                    };
                    let pieces: Vec<String> = events.iter().filter_map(piece).collect();
                    assert!(pieces.len() > 3, "{format}: {pieces:?}");
                    pieces.concat()
                } else {
                    let answer: Value = serde_json::from_str(&text).unwrap();
                    match path {
                        "/v1/chat/completions" => {
                            let choice = &answer["choices"][0];
                            assert_eq!(choice["finish_reason"], "tool_calls", "{format}: {answer}");
                            let call = &choice["message"]["tool_calls"][0];
                            call["function"]["arguments"].as_str().unwrap().to_owned()
                        }
                        "/v1/responses" => {
                            let output = answer["output"].as_array().unwrap();
                            output[0]["arguments"].as_str().unwrap().to_owned()
                        }
                        _ => {
                            assert_eq!(answer["stop_reason"], "tool_use", "{format}: {answer}");
                            answer["content"][0]["input"].to_string()
                        }
                    }
                };
                check(&arguments);
                if temperature == 0.0 {
                    whole.push(serde_json::from_str::<Value>(&arguments).unwrap());
                }
            }
            assert_eq!(whole[0], whole[1], "{format} {path}");
        }
    }
}

/// What these formats do not follow of a schema is named, and refused where the schema is strict.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_followed_is_told() {
    for format in FORMATS {
        for (parameters, strict, expected) in [
            (
                json!({"properties": {"a": {"type": "integer"}}, "anyOf": [{"required": ["a"]}]}),
                false,
                Ok("tool f: anyOf"),
            ),
            (
                json!({"properties": {"a": {"type": "integer"}}, "anyOf": [{"required": ["a"]}]}),
                true,
                Err("`anyOf`"),
            ),
            (
                json!({"properties": {"a": {"not": {}}, "b": {"not": {}}}, "required": ["a"]}),
                false,
                Ok("tool f: not"),
            ),
            (
                json!({"properties": {"a": {"type": "array", "items": {"$ref": "#/$defs/no"}}}, "required": ["a"]}),
                false,
                Ok("tool f: any object"),
            ),
            (
                json!({"properties": {"a": {"type": "array", "items": {"$ref": "#/$defs/no"}}}}),
                true,
                Err("tool f: "),
            ),
            (
                json!({"required": ["a"], "additionalProperties": false}),
                false,
                Ok("tool f: required"),
            ),
            (json!({"properties": {"a>\nb=": {}}}), false, Err("a>\\nb=")),
        ] {
            let body = json!({"messages": [{"role": "user", "content": "Go!"}], "max_tokens": 60, "temperature": 0,
                "tools": [{"type": "function", "function": {"name": "f", "parameters": parameters, "strict": strict}}],
                "tool_choice": "required", "parallel_tool_calls": false});
            let request = Request::builder().method("POST").uri("/v1/chat/completions");
            let request = request.body(Body::from(body.to_string())).unwrap();
            let response = untold(format).oneshot(request).await.unwrap();
            let (status, head) =
                (response.status(), response.headers().get("x-pleach-loosened").cloned());
            let text = response.into_body().collect().await.unwrap().to_bytes();
            let text = String::from_utf8(text.to_vec()).unwrap();
            match expected {
                Ok(loosened) => {
                    assert_eq!(status, StatusCode::OK, "{format}: {text}");
                    assert_eq!(head.unwrap(), loosened, "{format}: {parameters}");
                }
                Err(message) => {
                    let answer: Value = serde_json::from_str(&text).unwrap();
                    let said = answer["error"]["message"].as_str().unwrap();
                    assert_eq!(
                        (status, &answer["error"]["param"]),
                        (StatusCode::BAD_REQUEST, &json!("tools"))
                    );
                    assert!(said.contains(message), "{said}");
                }
            }
        }
    }
}
