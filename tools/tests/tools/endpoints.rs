//! Another server in place of the model: our own.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

use super::support::Server;
use super::{json, run, tools};

fn with_key(folder: &Path, line: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pleach-tools"))
        .args(line.split(' '))
        .env("OPENAI_API_KEY", "secret")
        .current_dir(folder)
        .output()
        .unwrap()
}

/// Answers and scores are those of the same model here.
pub(crate) fn an_endpoint_takes_the_place_of_the_model() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    run(folder, "prune --list 1-28 --out two");
    let model = folder.join("two");
    let server = Server::start(&["--model", model.to_str().unwrap(), "--api-key", "secret"]);
    let endpoint = format!("--endpoint http://{}/v1 --concurrency 3", server.address);

    let prompts = [
        r#"{"id": "a", "category": "one", "turns": ["Name three colours.", "And three more."]}"#,
        r#"{"id": "b", "category": "two", "turns": ["Say it."], "reference": "Well, that is it."}"#,
        r#"{"id": "c", "category": "two", "turns": ["Write a haiku."]}"#,
        r#"{"id": "d", "category": "two", "turns": ["What is 2 + 2?"]}"#,
    ];
    std::fs::write(folder.join("prompts.jsonl"), prompts.join("\n")).unwrap();
    let generate = "generate --model two --prompts prompts.jsonl --max-tokens 24 --out";
    run(folder, &format!("{generate} here.jsonl"));
    let line = format!("{generate} there.jsonl {endpoint}");
    let nobody = tools(folder, &line.split(' ').collect::<Vec<_>>());
    let error = String::from_utf8_lossy(&nobody.stderr);
    assert!(!nobody.status.success() && error.contains("401"), "{error}");
    let output = with_key(folder, &line);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let read = |name: &str| -> Vec<Value> {
        let text = std::fs::read_to_string(folder.join(name)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let (here, there) = (read("here.jsonl"), read("there.jsonl"));
    assert_eq!((here.len(), there.len()), (5, 5));
    for (here, there) in here.iter().zip(&there) {
        for field in ["id", "turns", "prompt_tokens", "finish_reason", "origin"] {
            assert_eq!(here[field], there[field], "{field}");
        }
        // A character that the last token leaves incomplete is shown or left out.
        let text = |answer: &Value| answer["response"].as_str().unwrap().replace('\u{FFFD}', "");
        assert_eq!(text(here), text(there));
        assert!(!there["response_tokens"].as_array().unwrap().is_empty());
    }

    // The likeliest tokens come over the wire as they are read here, but for the ends of answers, which are certain.
    let with_top = format!("{generate} here-top.jsonl --top-logprobs 4");
    run(folder, &with_top);
    let output = with_key(folder, &format!("{} {endpoint}", with_top.replace("here", "there")));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let [here, there] = ["here-top.jsonl.topk", "there-top.jsonl.topk"]
        .map(|name| std::fs::read(folder.join(name)).unwrap());
    let mut places = here[12..].chunks_exact(32).zip(there[12..].chunks_exact(32));
    for (here, there) in read("here-top.jsonl").iter().zip(read("there-top.jsonl")) {
        assert_eq!(here["response_tokens"], there["response_tokens"], "{}", here["id"]);
        let tokens = here["response_tokens"].as_array().unwrap().len();
        let ends = usize::from(here["finish_reason"] == "stop");
        assert!(places.by_ref().take(tokens - ends).all(|(here, there)| here == there));
        for (_, there) in places.by_ref().take(ends) {
            assert_eq!(there[16..20], 0f32.to_le_bytes(), "the end is certain");
        }
    }
    assert!(places.next().is_none() && here.len() == there.len());

    std::fs::create_dir(folder.join("data")).unwrap();
    let put =
        |name: &str, line: &str| std::fs::write(folder.join("data").join(name), line).unwrap();
    put(
        "arc_easy.jsonl",
        r#"{"query": "What do plants need to grow?", "choices": ["hammers", "light and water", "silver coins"], "gold": 1}"#,
    );
    put("lambada.jsonl", r#"{"context": "One, two, three, four, five,", "continuation": "six"}"#);
    put("gsm8k.jsonl", r#####"{"turns": ["What is 1 + 1?"], "reference": "#### 2"}"#####);
    put("perplexity.jsonl", r#"{"text": "The sun is a star. It is very hot."}"#);
    let score = "score --model two --data data --max-tokens 16 --json";
    run(folder, &format!("{score} here.json"));
    let output = with_key(folder, &format!("{score} there.json {endpoint}"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (here, there) = (json(&folder.join("here.json")), json(&folder.join("there.json")));
    for (task, metric) in [
        ("arc_easy", "acc"),
        ("arc_easy", "acc_norm"),
        ("gsm8k", "exact_match"),
        ("lambada", "acc"),
        ("lambada", "word_perplexity"),
        ("perplexity", "word_perplexity"),
    ] {
        let value = |of: &Value| of["tasks"][task][metric]["value"].as_f64().unwrap();
        let (here, there) = (value(&here), value(&there));
        assert!((there - here).abs() <= 1e-4 * here, "{task} {metric}: {there}, not {here}");
    }

    // Once it is gone, that is said.
    drop(server);
    let output = with_key(folder, &format!("{generate} nowhere.jsonl {endpoint}"));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.contains("onnect"), "{error}");
}

/// An answer without text, which some servers give where a model only reasons, is left out, and the others stay.
pub(crate) fn an_answer_without_text_is_left_out() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = std::thread::spawn(move || {
        for content in [Value::Null, json!("Blue.")] {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = BufReader::new(stream.try_clone().unwrap());
            let (mut line, mut length) = (String::new(), 0);
            while request.read_line(&mut line).unwrap() > 2 {
                let lower = line.to_lowercase();
                let said =
                    lower.strip_prefix("content-length:").map(|it| it.trim().parse().unwrap());
                length = said.unwrap_or(length);
                line.clear();
            }
            request.read_exact(&mut vec![0; length]).unwrap();
            let choice = json!({"message": {"content": content}, "finish_reason": "stop"});
            let body = json!({"choices": [choice]}).to_string();
            let head =
                format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}", body.len());
            write!(stream, "{head}\r\n\r\n{body}").unwrap();
        }
    });
    let prompts = ["a", "b"].map(|id| json!({"id": id, "turns": ["Which colour?"]}).to_string());
    std::fs::write(folder.join("prompts.jsonl"), prompts.join("\n")).unwrap();
    let line = format!(
        "generate --prompts prompts.jsonl --out a.jsonl --endpoint http://{address}/v1 --endpoint-model m --concurrency 1"
    );
    let output = tools(folder, &line.split(' ').collect::<Vec<_>>());
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && error.contains("prompt a: an answer without content"),
        "{error}"
    );
    server.join().unwrap();
    let answers = std::fs::read_to_string(folder.join("a.jsonl")).unwrap();
    let answer: Value = serde_json::from_str(answers.trim()).unwrap();
    assert_eq!((&answer["id"], &answer["response"]), (&json!("b"), &json!("Blue.")));
}
