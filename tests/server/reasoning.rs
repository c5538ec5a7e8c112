//! Reasoning apart from the answer, in the three shapes of the API. The default model does not reason: here its template
//! writes past reasoning between tags, and three examples make it go on like that.

use std::sync::OnceLock;

use axum::Router;
use axum::http::StatusCode;
use pleach::server::{AppState, router};
use serde_json::{Value, json};

use super::{content, send_to, serving};

const TEMPLATE: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n\
    {% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}\
    {{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n\
    {% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n\
    {% elif begun is defined or reasoning_effort == 'high' %}<think>\n{% endif %}{% endif %}";
const THOUGHT: &str = "I add the numbers.";

/// A server with that template.
fn app() -> Router {
    static STATE: OnceLock<AppState> = OnceLock::new();
    let state = STATE.get_or_init(|| {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), TEMPLATE).unwrap();
        let metrics = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
        let state = AppState::new(metrics.handle());
        state.serve(serving(&["--chat-template", file.path().to_str().unwrap()]));
        state
    });
    router(state.clone())
}

async fn post(path: &str, body: Value) -> Value {
    let (status, text) = send_to(app(), "POST", path, &body.to_string()).await;
    assert_eq!(status, StatusCode::OK, "{text}");
    serde_json::from_str(&text).unwrap()
}

/// The data of a stream's events.
async fn events(path: &str, mut body: Value) -> Vec<Value> {
    body["stream"] = json!(true);
    let (status, text) = send_to(app(), "POST", path, &body.to_string()).await;
    assert_eq!(status, StatusCode::OK, "{text}");
    let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
    data.filter(|data| *data != "[DONE]").map(|data| serde_json::from_str(data).unwrap()).collect()
}

/// Three sums with the reasoning before each, and a fourth to be done.
fn sums(extra: Value) -> Value {
    let mut messages = Vec::new();
    for (a, b) in [(1, 1), (2, 3), (4, 5)] {
        messages.push(json!({"role": "user", "content": format!("What is {a} + {b}?")}));
        let said = format!("{{\"sum\": {}}}", a + b);
        messages.push(json!({"role": "assistant", "reasoning_content": THOUGHT, "content": said}));
    }
    messages.push(json!({"role": "user", "content": "What is 3 + 4?"}));
    let mut body = json!({"messages": messages, "max_tokens": 60, "temperature": 0});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

fn total() -> Value {
    let properties = json!({"total": {"type": "integer", "minimum": 0, "maximum": 99}});
    let schema = json!({"type": "object", "properties": properties, "required": ["total"],
        "additionalProperties": false});
    json!({"type": "json_schema", "json_schema": {"name": "total", "schema": schema}})
}

#[tokio::test(flavor = "multi_thread")]
async fn reasoning_stands_apart() {
    for extra in [json!({}), json!({"reasoning_effort": "high"})] {
        let answer = post("/v1/chat/completions", sums(extra.clone())).await;
        let message = &answer["choices"][0]["message"];
        assert_eq!(message["reasoning_content"], THOUGHT, "{answer}");
        assert_eq!(message["reasoning"], THOUGHT, "{answer}");
        assert!(content(&answer).starts_with("{\"sum\": "), "{answer}");
        let usage = &answer["usage"];
        let thought = usage["completion_tokens_details"]["reasoning_tokens"].as_u64().unwrap();
        let all = usage["completion_tokens"].as_u64().unwrap();
        assert!(thought > 5 && thought < all, "{usage}");

        let chunks = events("/v1/chat/completions", sums(extra)).await;
        let text = |field: &str| -> String {
            let deltas = chunks.iter().filter_map(|chunk| chunk["choices"][0].get("delta"));
            deltas.filter_map(|delta| delta[field].as_str()).collect()
        };
        assert_eq!(text("reasoning_content"), THOUGHT);
        assert_eq!(text("reasoning"), THOUGHT);
        assert_eq!(text("content"), content(&answer));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reasoning_is_shown_as_asked() {
    let shown = |extra: Value| async {
        let mut answer = post("/v1/chat/completions", sums(extra)).await;
        let message = &mut answer["choices"][0]["message"];
        (message["content"].take(), message.get("reasoning_content").cloned())
    };
    let (answer, thought) = shown(json!({})).await;
    let whole = format!("<think>\n{THOUGHT}\n</think>\n\n{}", answer.as_str().unwrap());
    assert_eq!(thought, Some(json!(THOUGHT)));
    for extra in [json!({"separate_reasoning": false}), json!({"reasoning_format": "none"})] {
        assert_eq!(shown(extra).await, (json!(whole), None));
    }
    assert_eq!(shown(json!({"include_reasoning": false})).await, (answer, None));
    // Nothing is thought where that is not wanted.
    for extra in [
        json!({"reasoning_effort": "none"}),
        json!({"chat_template_kwargs": {"enable_thinking": false}}),
        json!({"reasoning_effort": "high", "chat_template_kwargs": {"enable_thinking": false}}),
    ] {
        let (answer, thought) = shown(extra).await;
        assert!(thought.is_none() && !answer.as_str().unwrap().contains("think"), "{answer}");
    }
    let chunks =
        events("/v1/chat/completions", sums(json!({"stream_reasoning": false, "n": 2}))).await;
    for choice in [0, 1] {
        let of_choice = chunks.iter().filter(|chunk| chunk["choices"][0]["index"] == choice);
        let thoughts = of_choice
            .filter_map(|chunk| chunk["choices"][0]["delta"].get("reasoning_content")?.as_str());
        assert_eq!(thoughts.collect::<Vec<_>>(), [THOUGHT]);
    }
    // Cut off while it thinks, the model has said nothing.
    let cut = post("/v1/chat/completions", sums(json!({"max_tokens": 6}))).await;
    let choice = &cut["choices"][0];
    assert_eq!(
        (&choice["message"]["content"], &choice["finish_reason"]),
        (&json!(""), &json!("length"))
    );
    assert!(THOUGHT.starts_with(choice["message"]["reasoning"].as_str().unwrap()), "{cut}");
    assert_eq!(cut["usage"]["completion_tokens_details"]["reasoning_tokens"], 6, "{cut}");
}

/// The form begins behind the reasoning, and draft tokens across the border change nothing.
#[tokio::test(flavor = "multi_thread")]
async fn forms_begin_behind_the_reasoning() {
    let tool = json!({"type": "function", "function": {"name": "add", "parameters": {"type": "object",
        "properties": {"a": {"type": "integer", "maximum": 9, "minimum": 0}}, "required": ["a"]}}});
    for begun in [true, false] {
        for (form, expected) in [
            (json!({"response_format": total()}), "{\"total\": "),
            (json!({"structured_outputs": {"regex": "[A-Z]{3}[0-9]"}}), ""),
            (json!({"structured_outputs": {"choice": ["seven", "eight"]}}), ""),
            (json!({"structured_outputs": {"grammar": "start: \"ab\" /[cd]+/ \"e\""}}), "ab"),
            (json!({"tools": [tool], "tool_choice": "required"}), ""),
            (json!({"tools": [tool]}), "{\"sum\": "),
        ] {
            let mut answers = Vec::new();
            for drafts in [0, 1, 8] {
                let mut body = sums(form.clone());
                body["num_speculative_tokens"] = json!(drafts);
                // What is said is drafted well, up to the border and beyond it.
                let thought = format!("<think>\n{THOUGHT}\n</think>\n\n{{\"total\": 7}}");
                body["prediction"] = json!({"type": "content", "content": thought});
                if begun {
                    body["chat_template_kwargs"] = json!({"begun": true});
                }
                let mut answer = post("/v1/chat/completions", body).await;
                let accepted = answer["usage"]["pleach"]["accepted_tokens"].as_u64().unwrap();
                assert_eq!(accepted > 0, drafts > 0, "{answer}");
                let message = &mut answer["choices"][0]["message"];
                assert_eq!(message["reasoning_content"], THOUGHT, "{form}");
                if let Some(calls) = message.get_mut("tool_calls") {
                    assert_eq!(calls[0]["function"]["name"], "add");
                    calls[0]["id"].take();
                } else {
                    let said = message["content"].as_str().unwrap();
                    assert!(said.starts_with(expected) && !said.is_empty(), "{form} {said}");
                }
                answers.push(message.take());
            }
            assert!(answers.windows(2).all(|pair| pair[0] == pair[1]), "{answers:?}");
        }
    }
    // Without reasoning the form begins at once.
    let plain = sums(json!({"response_format": total(), "reasoning_effort": "none"}));
    let answer = post("/v1/chat/completions", plain).await;
    assert!(content(&answer).starts_with("{\"total\": "), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn responses_have_items_of_reasoning() {
    let body = |extra: Value| {
        let mut input = Vec::new();
        for message in sums(json!({}))["messages"].as_array().unwrap() {
            if let Some(thought) = message.get("reasoning_content") {
                let part = json!({"type": "reasoning_text", "text": thought});
                input.push(json!({"type": "reasoning", "id": "rs_1", "summary": [],
                    "encrypted_content": null, "content": [part]}));
            }
            input.push(json!({"role": message["role"], "content": message["content"]}));
        }
        let mut body = json!({"input": input, "temperature": 0, "max_output_tokens": 60,
            "include": ["reasoning.encrypted_content"]});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        body
    };
    let effort = json!({"reasoning": {"effort": "high", "summary": "auto"}});
    let answer = post("/v1/responses", body(effort.clone())).await;
    let [thought, said] = &answer["output"].as_array().unwrap()[..] else { panic!("{answer}") };
    assert_eq!((&thought["type"], &thought["status"]), (&json!("reasoning"), &json!("completed")));
    assert_eq!(thought["content"], json!([{"type": "reasoning_text", "text": THOUGHT}]));
    assert_eq!(
        (&said["type"], &answer["reasoning"]["effort"]),
        (&json!("message"), &json!("high"))
    );
    assert!(answer["usage"]["output_tokens_details"]["reasoning_tokens"].as_u64().unwrap() > 5);

    let events = events("/v1/responses", body(effort)).await;
    let of_type = |kind: &str| events.iter().filter(|event| event["type"] == kind).count();
    assert_eq!(of_type("response.reasoning_text.done"), 1);
    assert_eq!(of_type("response.output_item.done"), 2);
    let deltas = events.iter().filter(|event| event["type"] == "response.reasoning_text.delta");
    assert_eq!(deltas.filter_map(|event| event["delta"].as_str()).collect::<String>(), THOUGHT);
    let mut last = events.last().unwrap()["response"]["output"].clone();
    for (place, item) in answer["output"].as_array().unwrap().iter().enumerate() {
        last[place]["id"] = item["id"].clone();
    }
    assert_eq!(last, answer["output"]);

    let none = post("/v1/responses", body(json!({"reasoning": {"effort": "none"}}))).await;
    assert_eq!(none["output"].as_array().unwrap().len(), 1, "{none}");
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_have_blocks_of_thinking() {
    let body = |extra: Value| {
        let sums = sums(json!({}));
        let turns = sums["messages"].as_array().unwrap().iter().map(|message| {
            let mut blocks = vec![json!({"type": "text", "text": message["content"]})];
            if let Some(thought) = message.get("reasoning_content") {
                blocks.insert(0, json!({"type": "redacted_thinking", "data": "?"}));
                blocks.insert(1, json!({"type": "thinking", "thinking": thought, "signature": ""}));
            }
            json!({"role": message["role"], "content": blocks})
        });
        let turns: Vec<Value> = turns.collect();
        let mut body = json!({"messages": turns, "max_tokens": 60, "temperature": 0});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        body
    };
    let thinking = json!({"thinking": {"type": "enabled", "budget_tokens": 1024}});
    let answer = post("/v1/messages", body(thinking)).await;
    let expected = json!({"type": "thinking", "thinking": THOUGHT, "signature": ""});
    assert_eq!((&answer["content"][0], &answer["content"][1]["type"]), (&expected, &json!("text")));
    assert!(answer["usage"]["output_tokens_details"]["thinking_tokens"].as_u64().unwrap() > 5);

    let events = events("/v1/messages", body(json!({"thinking": {"type": "adaptive"}}))).await;
    let deltas: Vec<&Value> = events.iter().filter_map(|event| event.get("delta")).collect();
    let thoughts = deltas.iter().filter_map(|delta| delta["thinking"].as_str());
    assert_eq!(thoughts.collect::<String>(), THOUGHT);
    assert_eq!(deltas.iter().filter(|delta| delta["type"] == "signature_delta").count(), 1);
    let starts = events.iter().filter_map(|event| event.get("content_block"));
    let kinds: Vec<&str> = starts.filter_map(|block| block["type"].as_str()).collect();
    assert_eq!(kinds, ["thinking", "text"]);

    for (thinking, form) in [
        (json!({"type": "disabled"}), json!({"effort": "high"})),
        (
            json!({"type": "adaptive", "display": "omitted"}),
            json!({"format": {"type": "json_schema", "schema": total()["json_schema"]["schema"]}}),
        ),
    ] {
        let body = body(json!({"thinking": thinking, "output_config": form}));
        let answer = post("/v1/messages", body).await;
        let [said] = &answer["content"].as_array().unwrap()[..] else { panic!("{answer}") };
        let formed = form.get("format").is_some();
        assert_eq!(said["text"].as_str().unwrap().starts_with("{\"total\": "), formed, "{answer}");
    }
}
