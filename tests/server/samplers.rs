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
