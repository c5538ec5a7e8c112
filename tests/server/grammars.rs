//! Schemas, grammars and expressions that cost too much, or cannot be followed to an end: each is refused or ends its own
//! answer, and the server goes on for others.

use axum::http::StatusCode;
use serde_json::{Map, Value, json};

use super::bounds::{alive, refuses, survives};
use super::{post, send};

/// Requests for output that follows a schema, in all shapes.
fn with_schema(schema: &Value) -> Vec<(&'static str, Value)> {
    let messages = json!([{"role": "user", "content": "hi"}]);
    let chat = |more: Value| {
        let mut body = json!({"messages": messages, "max_tokens": 1});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        ("/v1/chat/completions", body)
    };
    let named = json!({"name": "s", "schema": schema});
    let function = json!({"name": "f", "parameters": schema});
    let format = json!({"type": "json_schema", "name": "s", "schema": schema});
    vec![
        chat(json!({"tools": [{"type": "function", "function": function}]})),
        chat(
            json!({"tools": [{"type": "function", "function": function}], "tool_choice": "required"}),
        ),
        chat(json!({"response_format": {"type": "json_schema", "json_schema": named}})),
        chat(json!({"response_format": {"type": "json_object", "schema": schema}})),
        chat(json!({"structured_outputs": {"json": schema}})),
        chat(json!({"guided_json": schema.to_string()})),
        ("/v1/completions", json!({"prompt": "hi", "max_tokens": 1, "guided_json": schema})),
        (
            "/v1/responses",
            json!({"input": "hi", "max_output_tokens": 1, "text": {"format": format}}),
        ),
        (
            "/v1/responses",
            json!({"input": "hi", "max_output_tokens": 1, "tools": [
            {"type": "function", "name": "f", "parameters": schema}]}),
        ),
        (
            "/v1/messages",
            json!({"messages": messages, "max_tokens": 1, "tools": [
            {"name": "f", "input_schema": schema}]}),
        ),
    ]
}

/// Requests for output that follows a grammar or an expression.
fn with_rule(guided: &str, structured: &str, rule: &str) -> Vec<(&'static str, Value)> {
    let messages = json!([{"role": "user", "content": "hi"}]);
    let chat = "/v1/chat/completions";
    vec![
        (chat, json!({"messages": messages, "max_tokens": 1, guided: rule})),
        (
            chat,
            json!({"messages": messages, "max_tokens": 1, "structured_outputs": {structured: rule}}),
        ),
        ("/v1/completions", json!({"prompt": "hi", "max_tokens": 1, guided: rule})),
    ]
}

/// Definitions that each refer to the next.
fn references(count: usize, wrap: impl Fn(Value) -> Value) -> Value {
    let next = |i: usize| wrap(json!({"$ref": format!("#/$defs/{}", i + 1)}));
    let mut defs: Map<String, Value> = (0..count).map(|i| (i.to_string(), next(i))).collect();
    defs.insert(count.to_string(), json!({}));
    json!({"$defs": defs, "type": "object", "properties": {"x": {"$ref": "#/$defs/0"}}})
}

fn property(next: Value) -> Value {
    json!({"type": "object", "properties": {"x": next}, "required": ["x"]})
}

/// A schema that is `levels` deep.
fn nested(levels: usize, wrap: impl Fn(Value) -> Value) -> Value {
    let inner = (0..levels).fold(json!({"type": "integer"}), |schema, _| wrap(schema));
    json!({"type": "object", "properties": {"x": inner}})
}

/// An object that must have many names.
fn names(count: usize) -> Value {
    json!({"type": "object", "required": (0..count).map(|i| format!("n{i}")).collect::<Vec<_>>()})
}

/// An object whose many names are counted.
fn counted(bound: Value) -> Value {
    let names = (0..1200).map(|i| (format!("n{i}"), json!({"type": "integer"})));
    let object = json!({"type": "object", "properties": names.collect::<Map<_, _>>(),
        "additionalProperties": false});
    json!({"type": "object", "allOf": [object, bound]})
}

fn rules(count: usize) -> String {
    let rules: String = (0..count).map(|i| format!("r{i}: \"a\" r{}\n", i + 1)).collect();
    format!("start: r0\n{rules}r{count}: \"b\"\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn deep_schemas_end_nothing() {
    for (name, schema) in [
        ("280 references", references(280, property)),
        ("300 bare references", references(300, |next| next)),
        ("200 items", references(200, |next| json!({"type": "array", "items": next}))),
        ("properties", nested(25, property)),
        ("items", nested(50, |next| json!({"type": "array", "items": next}))),
        ("anyOf", nested(25, |next| json!({"anyOf": [next, {"type": "null"}]}))),
        ("doubled", references(100, |next| json!({"allOf": [next.clone(), next]}))),
        (
            "doubled properties",
            references(
                60,
                |next| json!({"type": "object", "properties": {"a": next.clone(), "b": next}}),
            ),
        ),
    ] {
        for (path, body) in with_schema(&schema) {
            survives(name, path, &body).await;
        }
        alive(name).await;
    }
    for (name, schema) in [
        ("1,000 references", references(1000, property)),
        ("20,000 references", references(20_000, property)),
        (
            "2,000 anyOf references",
            references(2000, |next| json!({"anyOf": [next, {"type": "null"}]})),
        ),
        (
            "a large pattern",
            json!({"type": "object", "properties": {
            "x": {"type": "string", "pattern": "(a|b)?".repeat(42_000)}}}),
        ),
        (
            "many patterns",
            json!({"type": "object", "properties": (0..500).map(|i| {
            (format!("p{i}"), json!({"type": "string", "pattern": format!("^({i}|[a-z]){{1,9}}$")}))
        }).collect::<Map<_, _>>()}),
        ),
        ("a name bounded by all others", counted(json!({"minProperties": 1}))),
        ("one name of many", counted(json!({"maxProperties": 1}))),
        (
            "names for each object",
            json!({"type": "object", "properties": (0..500).map(|i| {
                (format!("p{i}"), json!({"allOf": [names(500), {"required": [format!("x{i}")]}]}))
            }).collect::<Map<_, _>>()}),
        ),
        ("many names", names(20_000)),
        (
            "alternatives of alternatives",
            json!({"type": "object", "allOf": vec![json!({"anyOf": vec![names(2); 60]}); 3]}),
        ),
        (
            "patterns of names",
            json!({"type": "object", "patternProperties": {
            "(a|b)?".repeat(2000): {"type": "integer"}}}),
        ),
    ] {
        for (path, mut body) in with_schema(&schema) {
            if body.get("tools").is_some() {
                // Any object stands for what is not strict; the model has not the room to be told of all of it.
                let (status, text) = survives(name, path, &body).await;
                assert!(status == StatusCode::OK || !text.contains("tools"), "{name}: {text}");
                let tool = &mut body["tools"][0];
                let nested = tool["type"] == "function" && path == "/v1/chat/completions";
                (if nested { &mut tool["function"] } else { tool })["strict"] = json!(true);
            }
            refuses(name, path, &body).await;
        }
        alive(name).await;
    }
}

/// What is too deep for JSON itself; such a body cannot be made from a value.
#[tokio::test(flavor = "multi_thread")]
async fn deep_json_ends_nothing() {
    for (open, inner, close) in [
        ("{\"properties\":{\"x\":", "{}", "}}"),
        ("{\"items\":", "{}", "}"),
        ("{\"anyOf\":[", "{}", "]}"),
        ("[", "", "]"),
    ] {
        for levels in [70, 1000, 100_000] {
            let schema = format!("{}{inner}{}", open.repeat(levels), close.repeat(levels));
            let messages = "\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"max_tokens\":1";
            let quoted = json!(schema).to_string();
            for (path, body) in [
                (
                    "/v1/chat/completions",
                    format!(
                        "{{{messages},\"tools\":[{{\"type\":\"function\",\"function\":{{\"name\":\"f\",\"parameters\":{schema}}}}}]}}"
                    ),
                ),
                ("/v1/chat/completions", format!("{{{messages},\"guided_json\":{schema}}}")),
                ("/v1/chat/completions", format!("{{{messages},\"guided_json\":{quoted}}}")),
                (
                    "/v1/messages",
                    format!(
                        "{{{messages},\"tools\":[{{\"name\":\"f\",\"input_schema\":{schema}}}]}}"
                    ),
                ),
                (
                    "/v1/responses",
                    format!(
                        "{{\"input\":\"hi\",\"text\":{{\"format\":{{\"type\":\"json_schema\",\"name\":\"s\",\"schema\":{schema}}}}}}}"
                    ),
                ),
                ("/v1/completions", format!("{{\"prompt\":{schema}}}")),
                ("/apply-template", format!("{{\"messages\":{schema}}}")),
                ("/tokenize", format!("{{\"prompt\":\"x\",\"nonsense\":{schema}}}")),
            ] {
                let (status, text) = send("POST", path, &body).await;
                let shown: String = text.chars().take(200).collect();
                assert!(status == StatusCode::OK || status.is_client_error(), "{path}: {shown}");
            }
        }
        alive(open).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deep_grammars_and_costly_expressions_end_nothing() {
    let parentheses = |open: &str, count: usize| {
        let close = if open == "[" { "]" } else { ")" };
        format!("{}a{}", open.repeat(count), close.repeat(count))
    };
    for (name, rule, fine) in [
        ("400 rules", rules(400), true),
        ("1,100 rules", rules(1100), false),
        ("20,000 rules", rules(20_000), false),
        ("a circle of 2,000 rules", rules(2000).replace("\"b\"", "r0"), false),
        (
            "parentheses",
            format!("start: {}", parentheses("(", 100_000).replace('a', "\"a\"")),
            false,
        ),
        ("brackets", format!("start: {}", parentheses("[", 20_000).replace('a', "\"a\"")), false),
        ("a large expression", format!("start: /{}/", "(a|b)?".repeat(42_000)), false),
        ("many expressions", "A: /(a|b)?(c|d)?/\n".repeat(1000) + "start: A\n", false),
        ("a schema inside", format!("start: %json {}", references(1000, property)), false),
        ("1,000 rules", rules(1000), true),
        ("intersections", "start: A\nA: /.*a.{20}/ & /.*b.{19}/ & ~(/.*c.{18}/)\n".into(), false),
        ("a complement", "start: A\nA: ~/.*a.{200}/\n".into(), false),
    ] {
        for (path, body) in with_rule("guided_grammar", "grammar", &rule) {
            let (status, text) = survives(name, path, &body).await;
            assert_eq!(status == StatusCode::OK, fine, "{name}: {text}");
        }
        alive(name).await;
    }
    for (name, regex) in [
        ("252 kB", "(a|b)?".repeat(42_000)),
        ("120 kB", "(a|b)?".repeat(20_000)),
        ("30 kB", "[a-z]+ ".repeat(4300)),
        ("parentheses", parentheses("(", 100_000)),
        ("few parentheses", parentheses("(", 1000)),
    ] {
        for (path, body) in with_rule("guided_regex", "regex", &regex) {
            refuses(name, path, &body).await;
        }
        alive(name).await;
    }
    for regex in ["((a{1,999}){1,999}){1,999}", "(a|b|ab){1,5000}c", "(.*a){30}"] {
        for (path, body) in with_rule("guided_regex", "regex", regex) {
            survives(regex, path, &body).await;
        }
        alive(regex).await;
    }
}

/// A grammar that gets stuck while it is followed ends its own choice, as the client's fault, and no other.
#[tokio::test(flavor = "multi_thread")]
async fn a_stuck_grammar_ends_its_own_choice() {
    let schema = json!({
        "type": "object", "required": ["score"], "additionalProperties": false,
        "properties": {"score": {"type": "integer", "minimum": 1, "maximum": 5}},
        "patternProperties": {"^score$": {"type": "integer"}},
    });
    let body = |seed: usize, n: usize| {
        json!({"messages": [{"role": "user", "content": "Give an example."}], "max_tokens": 60,
               "temperature": 1, "seed": seed, "n": n, "response_format":
               {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}})
    };
    let path = "/v1/chat/completions";
    let all = post(path, body(0, 24)).await;
    let choices = all["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 24);
    let (failed, whole): (Vec<&Value>, Vec<&Value>) =
        choices.iter().partition(|choice| choice["finish_reason"] == "error");
    assert!(!failed.is_empty() && !whole.is_empty(), "{all}");
    for choice in &failed {
        let error = &choice["error"];
        assert_eq!(error["type"], "invalid_request_error", "{choice}");
        assert_eq!(error["param"], "response_format");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("cannot be followed") && !message.contains('<'), "{message}");
    }
    for choice in &whole {
        assert!(choice.get("error").is_none());
    }
    // Alone it is the whole answer's.
    let seed = failed[0]["index"].as_u64().unwrap() as usize;
    let mut alone = body(seed, 1);
    refuses("stuck", path, &alone).await;
    alone["stream"] = json!(true);
    let (status, text) = send("POST", path, &alone.to_string()).await;
    assert_eq!(status, StatusCode::OK);
    let data: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    let [.., error, end] = data[..] else { panic!("{text}") };
    let error: Value = serde_json::from_str(error).unwrap();
    assert_eq!((&error["error"]["type"], end), (&json!("invalid_request_error"), "[DONE]"));
    // Beside others it is the choice's, streamed too.
    let mut all = body(0, 24);
    all["stream"] = json!(true);
    let (_, text) = send("POST", path, &all.to_string()).await;
    let ends = |reason: &str| text.matches(&format!("\"finish_reason\":\"{reason}\"")).count();
    assert_eq!(ends("error"), failed.len(), "{text}");
    assert_eq!(ends("error") + ends("stop") + ends("length"), 24);
    assert!(text.trim_end().ends_with("data: [DONE]"));
    let page = send("GET", "/metrics", "").await.1;
    assert!(
        super::support::metric(&page, "pleach_requests_finished_total{reason=\"grammar_error\"}")
            > 0.0
    );
    assert!(!page.contains("code=\"500\""), "{page}");
    alive("a stuck grammar").await;
}

/// One that becomes too costly does the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_costly_grammar_is_the_clients_fault() {
    let names = (0..900).map(|i| (format!("p{i}"), json!({"type": "string", "pattern": "[a-z]*"})));
    let wide = json!({"type": "object", "properties": names.collect::<Map<_, _>>(), "additionalProperties": false});
    let any: Vec<Value> = (0..400)
        .map(|i| json!({"type": "object", "properties": {format!("a{i}"): {"type": "integer"}}}))
        .collect();
    for (name, schema) in [("wide", wide), ("any", json!({"anyOf": any}))] {
        for seed in 0..2 {
            let body = json!({"prompt": "An object: ", "max_tokens": 24, "seed": seed, "guided_json": schema});
            survives(name, "/v1/completions", &body).await;
        }
    }
    let ambiguous = "start: s\ns: s s | \"a\" | \"b\" | \"ab\" | \"ba\" | /[a-c]+/\n";
    let body = json!({"prompt": "x", "max_tokens": 48, "seed": 1, "guided_grammar": ambiguous});
    survives("ambiguous", "/v1/completions", &body).await;
    alive("costly grammars").await;
}
