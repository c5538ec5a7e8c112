//! Samplers beside temperature, top-k, top-p and min-p.

use super::restrictions::{TEXTS, text};
use super::*;

fn body(more: Value) -> Value {
    let mut body = json!({"prompt": "The old man walked along", "max_tokens": 30, "temperature": 1, "seed": 5});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// Each draws something else than plain sampling does, the same with and without speculation.
#[tokio::test(flavor = "multi_thread")]
async fn samplers_are_lossless() {
    let plain = text(TEXTS, &body(json!({}))).await.0;
    for more in [
        json!({"typical_p": 0.5}),
        json!({"top_n_sigma": 1}),
        json!({"xtc_probability": 0.7, "xtc_threshold": 0.05}),
        json!({"xtc_probability": 1, "xtc_threshold": 0.2, "typical_p": 0.9, "dry_multiplier": 1}),
    ] {
        assert_ne!(text(TEXTS, &body(more.clone())).await.0, plain, "{more}");
    }
    // What llama.cpp takes for off is off.
    let off = json!({
        "typical_p": 1, "top_n_sigma": -1, "xtc_probability": 0, "xtc_threshold": 0.1, "dry_multiplier": 0,
        "dry_base": 1.75, "dry_allowed_length": 2, "dry_penalty_last_n": 64,
        "dry_sequence_breakers": ["\n", ":", "\"", "*"],
    });
    assert_eq!(text(TEXTS, &body(off)).await.0, plain);
    assert_eq!(
        text(TEXTS, &body(json!({"xtc_probability": 1, "xtc_threshold": 0.6}))).await.0,
        plain
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn repetitions_are_penalised_up_to_their_breakers() {
    let with = async |more: Value| {
        let mut body = body(json!({"prompt": "yes, yes, yes, yes, yes, yes,", "temperature": 0}));
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        text(TEXTS, &body).await.0
    };
    let plain = with(json!({})).await;
    assert!(plain.starts_with(" yes, yes, yes"), "{plain}");
    let varied = with(json!({"dry_multiplier": 20})).await;
    assert!(!varied.starts_with(" yes"), "{varied}");
    for same in [
        json!({"dry_multiplier": 20, "dry_sequence_breakers": [","]}),
        json!({"dry_multiplier": 20, "dry_sequence_breakers": ["s, yes"]}),
        json!({"dry_multiplier": 20, "dry_penalty_last_n": 2}),
        json!({"dry_multiplier": 20, "dry_allowed_length": 100}),
    ] {
        assert_eq!(with(same.clone()).await, plain, "{same}");
    }
    let all = with(json!({"dry_multiplier": 20, "dry_penalty_last_n": -1})).await;
    assert!(!all.starts_with(" yes"), "{all}");
}

#[tokio::test(flavor = "multi_thread")]
async fn values_out_of_range_are_refused_by_name() {
    for (field, value) in [
        ("typical_p", json!(0)),
        ("typical_p", json!(1.01)),
        ("typical_p", json!("high")),
        ("top_n_sigma", json!(101)),
        ("xtc_probability", json!(-0.1)),
        ("xtc_probability", json!(1.1)),
        ("xtc_threshold", json!(2)),
        ("dry_multiplier", json!(-1)),
        ("dry_base", json!(0.5)),
        ("dry_allowed_length", json!(-1)),
        ("dry_penalty_last_n", json!(-2)),
        ("dry_penalty_last_n", json!(1.5)),
        ("dry_sequence_breakers", json!([])),
        ("dry_sequence_breakers", json!([""])),
        ("dry_sequence_breakers", json!("[\"x\"]")),
        ("dry_sequence_breakers", json!(vec!["x"; 33])),
    ] {
        refused(TEXTS, &body(json!({field: value})), field).await;
    }
}

/// Whatever the endpoint, the same fields draw the same tokens of the same conversation.
#[tokio::test(flavor = "multi_thread")]
async fn every_dialect_takes_them() {
    let asked = "Tell me of a walk along the sea.";
    let turns = json!([{"role": "user", "content": asked}]);
    let chat = json!({"messages": turns, "max_tokens": 30});
    let messages = json!({"messages": turns, "max_tokens": 30});
    let responses = json!({"input": asked, "max_output_tokens": 30});
    let mut drawn = Vec::new();
    for more in [
        json!({}),
        json!({"min_p": 0.3}),
        json!({"repetition_penalty": 1.5, "typical_p": 0.9}),
        json!({"xtc_probability": 1, "xtc_threshold": 0.05}),
        json!({"bad_words": [" the"], "frequency_penalty": 1}),
        json!({"top_k": 1}),
    ] {
        let with = |body: &Value| {
            let mut body = body.clone();
            body["seed"] = json!(7);
            body["temperature"] = json!(1);
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            body
        };
        let said = text("/v1/chat/completions", &with(&chat)).await.0;
        let message = post("/v1/messages", with(&messages)).await;
        assert_eq!(message["content"][0]["text"], *said, "{more}");
        let response = post("/v1/responses", with(&responses)).await;
        assert_eq!(response["output"][0]["content"][0]["text"], *said, "{more}");
        assert_eq!(response["temperature"], 1.0);
        assert!(!drawn.contains(&said), "{more}: {said}");
        drawn.push(said);
    }
    let mut body = responses.clone();
    body["min_p"] = json!(2);
    refused("/v1/responses", &body, "min_p").await;
    let mut body = messages.clone();
    body["min_p"] = json!(2);
    let (status, said) = send("POST", "/v1/messages", &body.to_string()).await;
    assert!(status == StatusCode::BAD_REQUEST && said.contains("`min_p`"), "{status} {said}");
}
