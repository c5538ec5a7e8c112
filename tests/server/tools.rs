//! Calls of functions.

use pleach::server::Serving;
use pleach::text::{CallFormat, ChatTemplate};

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
        assert!(call["id"].as_str().unwrap().len() >= 9 && call["type"] == "function");
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
    assembled(&text)
}

fn assembled(text: &str) -> (Value, Value) {
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

/// A call that a stop text cuts in two is no finished one; what ends behind it is.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_cut_is_not_finished() {
    let named = json!({"type": "function", "function": {"name": "get_weather"}});
    for (stop, whole) in
        [("unit", false), ("city\":", false), ("</tool_call>", true), ("<|im_end|>", true)]
    {
        let mut body = asking("How warm is it in Paris?", named.clone());
        body["stop"] = json!([stop]);
        let answer = post("/v1/chat/completions", body.clone()).await;
        let choice = &answer["choices"][0];
        let arguments =
            choice["message"]["tool_calls"][0]["function"]["arguments"].as_str().unwrap();
        assert_eq!(serde_json::from_str::<Value>(arguments).is_ok(), whole, "{choice}");
        let reason = if whole { "tool_calls" } else { "stop" };
        assert_eq!(choice["finish_reason"], reason, "{choice}");
        assert_eq!(streamed(body).await.1, reason);
    }
    let tool = json!({"name": "get_weather", "input_schema": weather()["function"]["parameters"]});
    let body = json!({"max_tokens": 90, "temperature": 0, "stop_sequences": ["unit"], "tools": [tool],
        "tool_choice": {"type": "any"}, "messages": [{"role": "user", "content": "How warm is it in Paris?"}]});
    let message = post("/v1/messages", body).await;
    assert_eq!(
        (&message["stop_reason"], &message["stop_sequence"]),
        (&json!("stop_sequence"), &json!("unit"))
    );
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
    let strict = |parameters: Value| json!([{"type": "function", "function": {"name": "f", "parameters": parameters, "strict": true}}]);
    for (param, fields) in [
        ("tools", json!({"tools": [{"type": "function"}]})),
        ("tools", json!({"tools": [{"type": "custom", "custom": {"name": "x"}}]})),
        ("tools", json!({"tools": [named("a b")]})),
        ("tools", json!({"tools": [named("")]})),
        ("tools", json!({"tools": [named("f"), named("f")]})),
        ("tools", json!({"tools": function(json!({"type": "array"}))})),
        ("tools", json!({"tools": strict(json!({"properties": {"x": {"type": "nonsense"}}}))})),
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

const CHATML: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// A server on the same engine whose model writes calls in a format. With `special`, what stands around them
/// is a token of its own.
fn writing(format: CallFormat, special: bool) -> Router {
    following(CHATML, format, special)
}

/// The same on a model whose template knows tools, and says nothing of them.
pub(super) fn untold(format: CallFormat) -> Router {
    following(&format!("{{# tools #}}{CHATML}"), format, false)
}

fn following(template: &str, format: CallFormat, special: bool) -> Router {
    let served = state().asked(None).unwrap().serving;
    let mut tokenizer = serde_json::to_string(&*served.tokenizer).unwrap();
    if special {
        let names = ["<repo_name>", "<file_sep>", "<filename>", "<gh_stars>", "<issue_start>"];
        for (name, mark) in names.into_iter().zip(format.marks()) {
            let (name, mark) = (json!(name).to_string(), json!(mark).to_string());
            assert!(tokenizer.contains(&name));
            tokenizer = tokenizer.replace(&name, &mark);
        }
    }
    let template = ChatTemplate::new(template, "", "").unwrap().with_calls(format);
    let serving = Serving::new(
        format.to_string(),
        served.engine.clone(),
        tokenizer.parse().unwrap(),
        Some(template),
        served.eos_token_ids.clone(),
    );
    let metrics = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder().handle();
    let state = AppState::new(metrics);
    state.serve(serving);
    router(state)
}

/// In every format: calls that follow the schema, the same with and without speculation, whole and streamed;
/// text where no call is made; and the calls of earlier turns in the prompt.
#[tokio::test(flavor = "multi_thread")]
async fn calls_are_written_in_the_models_format() {
    let deepseek_v3 = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n{\"a\": 1, \"b\": 2}\n\
        ```<｜tool▁call▁end｜><｜tool▁calls▁end｜>";
    let deepseek_v31 = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>add<｜tool▁sep｜>{\"a\": 1, \"b\": 2}\
        <｜tool▁call▁end｜><｜tool▁calls▁end｜>";
    let cases = [
        (
            CallFormat::Hermes,
            false,
            "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 1, \"b\": 2}}\n</tool_call>",
        ),
        (
            CallFormat::Qwen3Coder,
            false,
            "<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n<parameter=b>\n2\n</parameter>\n\
             </function>\n</tool_call>",
        ),
        (CallFormat::DeepSeekV3, false, deepseek_v3),
        (CallFormat::DeepSeekV3, true, deepseek_v3),
        (CallFormat::DeepSeekV31, false, deepseek_v31),
        (CallFormat::DeepSeekV31, true, deepseek_v31),
        (CallFormat::Pythonic, false, "[add(a=1, b=2)]"),
        (CallFormat::Pythonic, true, "[add(a=1, b=2)]"),
        (
            CallFormat::Llama3Json,
            false,
            "{\"name\": \"add\", \"parameters\": {\"a\": 1, \"b\": 2}}",
        ),
        (
            CallFormat::Mistral,
            false,
            "[TOOL_CALLS][{\"name\": \"add\", \"arguments\": {\"a\": 1, \"b\": 2}}]",
        ),
        (
            CallFormat::Mistral,
            true,
            "[TOOL_CALLS][{\"name\": \"add\", \"arguments\": {\"a\": 1, \"b\": 2}}]",
        ),
        (CallFormat::MistralArgs, false, "[TOOL_CALLS]add[ARGS]{\"a\": 1, \"b\": 2}"),
        (CallFormat::MistralArgs, true, "[TOOL_CALLS]add[ARGS]{\"a\": 1, \"b\": 2}"),
    ];
    for (format, special, written) in cases {
        let app = writing(format, special);
        let ask = async |path: &str, body: &Value| {
            let (status, text) = send_to(app.clone(), "POST", path, &body.to_string()).await;
            assert_eq!(status, StatusCode::OK, "{format}: {text}");
            text
        };
        let path = "/v1/chat/completions";
        let mut body = asking("What is 17 plus 25?", json!("required"));
        // Of DeepSeek's texts, where they are no tokens, two calls take as many.
        body["max_tokens"] = json!(240);
        for parallel in [false, true] {
            body["parallel_tool_calls"] = json!(parallel);
            let mut all = Vec::new();
            for (speculate, stream) in [(0, false), (8, false), (8, true)] {
                body["num_speculative_tokens"] = json!(speculate);
                body["stream"] = json!(stream);
                let text = ask(path, &body).await;
                let (message, reason) = match stream {
                    true => assembled(&text),
                    false => {
                        let choice = &serde_json::from_str::<Value>(&text).unwrap()["choices"][0];
                        (choice["message"].clone(), choice["finish_reason"].clone())
                    }
                };
                let mut made = calls(&message);
                if reason == "length" {
                    assert!(parallel && made.len() > 1, "{format}: {message}");
                    made.pop();
                } else {
                    assert_eq!(reason, "tool_calls", "{format}: {message}");
                }
                made.iter().for_each(|(name, arguments)| check(name, arguments));
                assert!(message["content"].as_str().unwrap_or_default().is_empty(), "{message}");
                all.push(made);
            }
            assert!(
                !all[0].is_empty() && all.iter().all(|made| *made == all[0]),
                "{format}: {all:?}"
            );
        }
        // Left to itself the model answers in text, or calls as earlier turns did.
        body["tool_choice"] = json!("auto");
        body["stream"] = json!(false);
        body["parallel_tool_calls"] = json!(false);
        let call = json!({"id": "call00001", "type": "function", "function": {"name": "add", "arguments": "{\"a\": 1, \"b\": 2}"}});
        let earlier = json!([
            {"role": "user", "content": "Add 1 and 2."},
            {"role": "assistant", "content": null, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call00001", "content": "3"},
            {"role": "user", "content": "Say hello."},
        ]);
        for messages in [earlier.clone(), body["messages"].clone()] {
            body["messages"] = messages;
            let answer: Value = serde_json::from_str(&ask(path, &body).await).unwrap();
            let choice = &answer["choices"][0];
            if choice["message"]["tool_calls"].is_array() {
                calls(&choice["message"])
                    .iter()
                    .for_each(|(name, arguments)| check(name, arguments));
                assert_eq!(choice["finish_reason"], "tool_calls");
            } else {
                assert!(!content(&answer).is_empty(), "{format}: {answer}");
            }
        }
        let asked = json!({"messages": earlier, "tools": body["tools"]});
        let prompt: Value = serde_json::from_str(&ask("/apply-template", &asked).await).unwrap();
        let prompt = prompt["prompt"].as_str().unwrap();
        assert!(prompt.contains(&format!("assistant\n{written}<|im_end|>")), "{prompt}");
    }
}

/// Special tokens may stand around calls, where the format has such, and around calls of the other form of Llama 4; they
/// are no part of the answer.
#[tokio::test(flavor = "multi_thread")]
async fn calls_may_stand_between_special_tokens() {
    let id = |token: &str| state().asked(None).unwrap().serving.tokenizer.token_to_id(token);
    // One that the tokenizer has by another name.
    let before = id("<repo_name>").unwrap();
    for (format, json) in [
        (CallFormat::Pythonic, false),
        (CallFormat::Pythonic, true),
        (CallFormat::Llama3Json, true),
    ] {
        let app = writing(format, true);
        let mut body = asking("What is 17 plus 25?", json!("auto"));
        body["tools"] = json!([add()]);
        let mut bias = json!({before.to_string(): 100});
        // Arguments of functions have no further brackets of either kind here.
        let wanted: &[&str] = if json { &["{", "{\""] } else { &["["] };
        for token in wanted.iter().filter_map(|token| id(token)) {
            bias[token.to_string()] = json!(50);
        }
        body["logit_bias"] = bias;
        body["parallel_tool_calls"] = json!(false);
        body["logprobs"] = json!(true);
        let (status, text) =
            send_to(app.clone(), "POST", "/v1/chat/completions", &body.to_string()).await;
        assert_eq!(status, StatusCode::OK, "{text}");
        let choice = &serde_json::from_str::<Value>(&text).unwrap()["choices"][0];
        let made = calls(&choice["message"]);
        made.iter().for_each(|(name, arguments)| check(name, arguments));
        assert_eq!((made.len(), &choice["finish_reason"]), (1, &json!("tool_calls")), "{choice}");
        assert!(choice["message"]["content"].is_null(), "{choice}");
        let tokens = choice["logprobs"]["content"].as_array().unwrap();
        let ends = [tokens.first(), tokens.last()].map(|it| it.unwrap()["token"].clone());
        assert_eq!(ends, ["<|python_start|>", "<|python_end|>"], "{choice}");
        let written: String = tokens.iter().map(|it| it["token"].as_str().unwrap()).collect();
        let opening = if json { "{\"name\": \"" } else { "[" };
        assert!(written.starts_with(&format!("<|python_start|>{opening}")), "{written}");
        body["stream"] = json!(true);
        body["logprobs"] = json!(false);
        let (_, text) = send_to(app, "POST", "/v1/chat/completions", &body.to_string()).await;
        let (message, reason) = assembled(&text);
        assert_eq!((calls(&message), reason), (made, json!("tool_calls")));
    }
}
