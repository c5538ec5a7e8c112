//! What may not be generated, and what is shown of an answer's end.

use super::*;

/// Answers of a body with and without speculation, whole and streamed: all the same text, which is given with the
/// first whole answer's choice.
pub(super) async fn text(path: &str, body: &Value) -> (String, Value) {
    let chat = path == "/v1/chat/completions";
    let mut body = body.clone();
    let mut answers = Vec::new();
    for speculate in [0, 8] {
        body["num_speculative_tokens"] = json!(speculate);
        body["stream"] = json!(false);
        let whole = post(path, body.clone()).await;
        let choice = whole["choices"][0].clone();
        let text = if chat { &choice["message"]["content"] } else { &choice["text"] };
        answers.push((text.as_str().unwrap().to_owned(), whole));
        body["stream"] = json!(true);
        let (status, events) = send("POST", path, &body.to_string()).await;
        assert_eq!(status, StatusCode::OK);
        let events = events.lines().filter_map(|line| line.strip_prefix("data: {"));
        let pieces = events.map(|event| {
            let choice =
                &serde_json::from_str::<Value>(&format!("{{{event}")).unwrap()["choices"][0];
            let text = if chat { &choice["delta"]["content"] } else { &choice["text"] };
            text.as_str().unwrap_or_default().to_owned()
        });
        assert_eq!(pieces.collect::<String>(), answers.last().unwrap().0, "{body}");
    }
    let (text, whole) = answers.remove(0);
    assert_eq!(answers[0].0, text, "{body}");
    assert_eq!(answers[0].1["usage"]["completion_tokens"], whole["usage"]["completion_tokens"]);
    (text, whole)
}

fn counting(more: Value) -> Value {
    let mut body = json!({"prompt": "1, 2, 3, 4,", "max_tokens": 30, "temperature": 0});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

pub(super) const TEXTS: &str = "/v1/completions";

#[tokio::test(flavor = "multi_thread")]
async fn nothing_ends_an_answer_before_its_least_length() {
    let mut body = chat("What is the capital of France?");
    body["max_tokens"] = json!(60);
    let tokens = |answer: &Value| answer["usage"]["completion_tokens"].as_u64().unwrap();
    let (short, whole) = text("/v1/chat/completions", &body).await;
    assert!(whole["choices"][0]["finish_reason"] == "stop" && tokens(&whole) < 50, "{whole}");
    let least = tokens(&whole) + 5;
    body["min_tokens"] = json!(least);
    let (long, whole) = text("/v1/chat/completions", &body).await;
    assert!(long.starts_with(&short) && tokens(&whole) >= least, "{long} {whole}");
    // Stop tokens and stop strings wait too.
    let stopping = counting(json!({"stop": [" 6", "9"]}));
    assert_eq!(text(TEXTS, &stopping).await.0, " 5,");
    let (text_, whole) =
        text(TEXTS, &counting(json!({"stop": [" 6", "9"], "min_tokens": 9}))).await;
    assert!(text_.starts_with(" 5, 6") && !text_.contains('9') && tokens(&whole) >= 9, "{text_}");
    let six = post("/tokenize", json!({"prompt": "6", "add_special_tokens": false})).await;
    let six = six["tokens"].as_array().unwrap().last().unwrap().clone();
    let (_, whole) = text(TEXTS, &counting(json!({"stop_token_ids": [six]}))).await;
    assert_eq!(whole["choices"][0]["stop_reason"], six, "{whole}");
    let (_, whole) =
        text(TEXTS, &counting(json!({"stop_token_ids": [six], "min_tokens": 20}))).await;
    assert!(tokens(&whole) >= 20, "{whole}");
    // A grammar that can only end ends.
    let (yes, _) =
        text(TEXTS, &counting(json!({"guided_choice": ["yes"], "min_tokens": 20}))).await;
    assert_eq!(yes, "yes");
    // One that may go on goes on.
    let (letters, _) =
        text(TEXTS, &counting(json!({"guided_regex": "[ab]{1,40}", "min_tokens": 20}))).await;
    assert!(letters.len() >= 20, "{letters}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_words_are_not_generated() {
    let plain = text(TEXTS, &counting(json!({}))).await.0;
    assert!(plain.starts_with(" 5, 6, 7, 8"), "{plain}");
    for (words, never) in
        [(json!(["7"]), "7"), (json!(["6, 7", "8"]), "6, 7"), (json!([" 7"]), " 7")]
    {
        let text = text(TEXTS, &counting(json!({"bad_words": words}))).await.0;
        assert!(!text.contains(never), "{never}: {text}");
    }
    let sky = text("/v1/chat/completions", &chat("Why is the sky blue?")).await.0;
    assert!(sky.contains(" sky"), "{sky}");
    for seed in [None, Some(3)] {
        let mut body = chat("Why is the sky blue?");
        body["bad_words"] = json!(["sky", "sunlight"]);
        if seed.is_some() {
            body["temperature"] = json!(1);
            body["seed"] = json!(seed);
        }
        let text = text("/v1/chat/completions", &body).await.0;
        assert!(!text.contains(" sky") && !text.contains("sunlight"), "{text}");
    }
    // A grammar that admits nothing else is followed.
    let body =
        counting(json!({"bad_words": ["yes", "y", "ye", "es", "s"], "guided_choice": ["yes"]}));
    assert_eq!(text(TEXTS, &body).await.0, "yes");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_allowed_tokens_are_generated() {
    let ids = post("/tokenize", json!({"prompt": "1,", "add_special_tokens": false})).await;
    let ids = ids["tokens"].clone();
    for more in [json!({}), json!({"temperature": 1, "seed": 4}), json!({"min_tokens": 30})] {
        let mut body = counting(more);
        body["allowed_token_ids"] = ids.clone();
        let (text, whole) = text(TEXTS, &body).await;
        assert!(text.chars().all(|c| "1, ".contains(c)), "{text}");
        assert_eq!(whole["usage"]["completion_tokens"], 30);
    }
    let body = counting(json!({"allowed_token_ids": ids, "guided_choice": ["no"]}));
    assert_eq!(text(TEXTS, &body).await.0, "no");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ended_an_answer_may_be_shown() {
    for (stop, shown, text_) in [
        (json!({"stop": " 8, 9"}), false, " 5, 6, 7,"),
        (json!({"stop": " 8, 9"}), true, " 5, 6, 7, 8, 9"),
        (json!({"stop": ["zzz", "8,"]}), true, " 5, 6, 7, 8,"),
    ] {
        let mut body = counting(stop);
        body["include_stop_str_in_output"] = json!(shown);
        let (text, whole) = text(TEXTS, &body).await;
        assert_eq!((&*text, &whole["choices"][0]["finish_reason"]), (text_, &json!("stop")));
    }
    let seven = post("/tokenize", json!({"prompt": "7", "add_special_tokens": false})).await;
    let seven = seven["tokens"].as_array().unwrap().last().unwrap().clone();
    for (shown, end) in [(false, " 5, 6, "), (true, " 5, 6, 7")] {
        let more = json!({"stop_token_ids": [seven], "include_stop_str_in_output": shown});
        let text = text(TEXTS, &counting(more)).await.0;
        assert_eq!(text.trim_end(), end.trim_end());
    }
    // The model's own end is no text.
    let mut body = chat("What is the capital of France?");
    let plain = text("/v1/chat/completions", &body).await.0;
    body["include_stop_str_in_output"] = json!(true);
    assert_eq!(text("/v1/chat/completions", &body).await.0, plain);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_restrictions_name_the_field() {
    for (param, more) in [
        ("min_tokens", json!({"min_tokens": 31})),
        ("min_tokens", json!({"min_tokens": -1})),
        ("allowed_token_ids", json!({"allowed_token_ids": []})),
        ("allowed_token_ids", json!({"allowed_token_ids": [1_000_000]})),
        ("allowed_token_ids", json!({"allowed_token_ids": vec![1; 4097]})),
        ("bad_words", json!({"bad_words": [""]})),
        ("bad_words", json!({"bad_words": [" "]})),
        ("bad_words", json!({"bad_words": [1]})),
        ("bad_words", json!({"bad_words": vec!["x"; 257]})),
        ("include_stop_str_in_output", json!({"include_stop_str_in_output": "yes"})),
    ] {
        refused(TEXTS, &counting(more.clone()), param).await;
        let mut body = chat("hi");
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        refused("/v1/chat/completions", &body, param).await;
    }
}
