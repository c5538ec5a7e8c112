//! Outputs of a form that requests ask for.

use super::*;

/// The output has the form that was asked for, whole, and the same with and without speculation.
#[tokio::test(flavor = "multi_thread")]
async fn outputs_have_the_form_that_was_asked_for() {
    let schema = json!({
        "type": "object", "additionalProperties": false, "required": ["name", "age", "tags"],
        "properties": {
            "name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "maximum": 99, "minimum": 0},
            "tags": {"type": "array", "items": {"enum": ["red", "blue"]}, "maxItems": 2},
        },
    });
    let format = json!({"type": "json_schema", "json_schema": {"name": "p", "strict": true, "schema": schema}});
    for (field, value) in [
        ("response_format", format),
        ("guided_json", schema),
        ("guided_regex", json!("[A-Z]{3}-[0-9]{4}")),
        ("guided_choice", json!(["yes, of course", "no", "nobody knows"])),
        ("guided_grammar", json!("start: word (\" \" word)~2\nword: \"ba\" | \"bo\"")),
        ("structured_outputs", json!({"regex": "(la ){2,4}!"})),
    ] {
        for seed in [None, Some(5)] {
            let mut texts = Vec::new();
            for speculate in [4, 0, 2] {
                let mut body = chat("Describe a person as JSON.");
                body["max_tokens"] = json!(120);
                body["num_speculative_tokens"] = json!(speculate);
                body[field] = value.clone();
                if let Some(seed) = seed {
                    body["temperature"] = json!(1.2);
                    body["seed"] = json!(seed);
                }
                let answer = post("/v1/chat/completions", body).await;
                assert_eq!(answer["choices"][0]["finish_reason"], "stop", "{answer}");
                texts.push(content(&answer).to_owned());
            }
            let text = &texts[0];
            assert!(texts.iter().all(|other| other == text), "{field}: {texts:?}");
            match field {
                "guided_regex" => {
                    let (letters, digits) = text.split_once('-').unwrap();
                    assert!(letters.len() == 3 && letters.bytes().all(|b| b.is_ascii_uppercase()));
                    assert!(digits.len() == 4 && digits.bytes().all(|b| b.is_ascii_digit()));
                }
                "guided_choice" => {
                    assert!(["yes, of course", "no", "nobody knows"].contains(&&**text))
                }
                "guided_grammar" => assert!(text.len() == 8 && text.starts_with('b'), "{text}"),
                "structured_outputs" => assert!(text.starts_with("la la ") && text.ends_with(" !")),
                _ => {
                    let value: Value = serde_json::from_str(text).unwrap();
                    assert!(value["name"].as_str().unwrap().chars().count() <= 12, "{text}");
                    assert!(value["age"].as_u64().unwrap() < 100, "{text}");
                    assert!(value["tags"].as_array().unwrap().len() <= 2, "{text}");
                }
            }
        }
    }
}
