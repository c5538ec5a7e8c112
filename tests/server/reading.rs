//! What is read off prompts: echoed log-probabilities and embeddings.

use super::*;

/// Echoed log-probabilities are those of generating each token from the ones before it, to the bit.
#[tokio::test(flavor = "multi_thread")]
async fn echoed_prompts_are_scored() {
    let text = "The capital of France is Paris, Größe 42.";
    let ids = post("/tokenize", json!({"prompt": text})).await["tokens"].clone();
    let ids: Vec<u32> = serde_json::from_value(ids).unwrap();
    let body = json!({"prompt": text, "echo": true, "max_tokens": 0, "logprobs": 2});
    let answer = post("/v1/completions", body.clone()).await;
    let choice = &answer["choices"][0];
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!(text), &json!("length")));
    assert_eq!(answer["usage"]["completion_tokens"], 0);
    assert_eq!(answer["usage"]["prompt_tokens"], ids.len());
    let logprobs = &choice["logprobs"];
    let scores = logprobs["token_logprobs"].as_array().unwrap();
    assert_eq!(scores.len(), ids.len());
    assert!(scores[0].is_null() && logprobs["top_logprobs"][0].is_null());
    for (place, &id) in ids.iter().enumerate().skip(1) {
        let forced = json!({"prompt": ids[..place], "max_tokens": 1, "temperature": 0, "logprobs": 2,
            "logit_bias": {id.to_string(): 100}});
        let forced = post("/v1/completions", forced).await;
        let forced = &forced["choices"][0]["logprobs"];
        assert_eq!(forced["tokens"][0], logprobs["tokens"][place]);
        assert_eq!(forced["token_logprobs"][0], scores[place], "{place}");
        assert_eq!(forced["top_logprobs"][0], logprobs["top_logprobs"][place]);
    }
    // The same tokens by their ids, in both formats.
    let named = |id: &Value| format!("token_id:{id}");
    let mut by_id = body.clone();
    by_id["return_tokens_as_token_ids"] = json!(true);
    let by_id = post("/v1/completions", by_id).await["choices"][0]["logprobs"].take();
    assert_eq!(by_id["tokens"], ids.iter().map(|id| named(&json!(id))).collect::<Value>());
    assert_eq!(by_id["token_logprobs"], logprobs["token_logprobs"]);
    let likeliest = by_id["top_logprobs"][1].as_object().unwrap();
    assert!(likeliest.contains_key(&named(&json!(ids[1]))), "{likeliest:?}");
    let mut chat = json!({"messages": [{"role": "user", "content": text}], "max_tokens": 3,
        "temperature": 0, "logprobs": true, "top_logprobs": 2, "return_tokens_as_token_ids": true});
    let by_id = post("/v1/chat/completions", chat.clone()).await;
    chat["return_tokens_as_token_ids"] = Value::Null;
    let by_text = post("/v1/chat/completions", chat).await;
    let content = |answer: &Value| answer["choices"][0]["logprobs"]["content"].clone();
    for (by_id, by_text) in
        content(&by_id).as_array().unwrap().iter().zip(content(&by_text).as_array().unwrap())
    {
        let id = by_id["token"].as_str().unwrap().strip_prefix("token_id:").unwrap();
        let text = post("/detokenize", json!({"tokens": [id.parse::<u32>().unwrap()]})).await;
        assert_eq!(
            text["prompt"].as_str().unwrap().trim_start(),
            by_text["token"].as_str().unwrap().trim_start()
        );
        assert_eq!(
            (&by_id["bytes"], &by_id["top_logprobs"][0]["token"]),
            (&by_text["bytes"], &by_id["token"])
        );
    }
    // Long prompts, several at once, as ids, going on, streamed: the same scores for the same prompt.
    let long = "All work and no play makes Jack a dull boy. ".repeat(12);
    let mut several = body.clone();
    several["prompt"] = json!([long, ids, long]);
    several["max_tokens"] = json!(3);
    several["temperature"] = json!(0);
    let whole = post("/v1/completions", several.clone()).await;
    let of = |choice: usize| &whole["choices"][choice]["logprobs"]["token_logprobs"];
    let echoed = of(1).as_array().unwrap();
    assert_eq!((echoed.len(), &echoed[..ids.len()]), (ids.len() + 3, &scores[..]));
    assert_eq!(of(0), of(2));
    assert!(whole["choices"][1]["text"].as_str().unwrap().starts_with(text));
    several["stream"] = json!(true);
    let (_, stream) = send("POST", "/v1/completions", &several.to_string()).await;
    let mut texts = vec![String::new(); 3];
    let mut offsets: Vec<Vec<Value>> = vec![Vec::new(); 3];
    for line in stream.lines().filter_map(|l| l.strip_prefix("data: ")).filter(|l| *l != "[DONE]") {
        let chunk: Value = serde_json::from_str(line).unwrap();
        let choice = &chunk["choices"][0];
        let index = choice["index"].as_u64().unwrap() as usize;
        texts[index] += choice["text"].as_str().unwrap();
        offsets[index].extend(choice["logprobs"]["text_offset"].as_array().unwrap().clone());
    }
    for (index, text) in texts.iter().enumerate() {
        let choice = &whole["choices"][index];
        assert_eq!(choice["text"], *text);
        assert_eq!(choice["logprobs"]["text_offset"], json!(offsets[index]));
    }
    let plain = json!({"prompt": text, "echo": true, "max_tokens": 0});
    assert_eq!(post("/v1/completions", plain).await["choices"][0]["text"], text);
    refused("/v1/completions", &json!({"prompt": "x", "max_tokens": 0}), "max_tokens").await;
    refused("/v1/completions", &json!({"prompt": [9_999_999], "echo": true}), "prompt").await;
}

/// An embedding has length 1 and does not depend on what it is computed with; texts with like meaning
/// have like ones.
#[tokio::test(flavor = "multi_thread")]
async fn texts_are_embedded() {
    let texts = [
        "The cat sat on the mat.",
        "A kitten is sitting on a rug.",
        "Interest rates rose by 2 % in May.",
    ];
    let long = "word ".repeat(300);
    let all = post("/v1/embeddings", json!({"input": [texts[0], texts[1], long, texts[2]]})).await;
    let values = |answer: &Value, index: usize| -> Vec<f32> {
        let entry = &answer["data"][index];
        assert_eq!((&entry["index"], &entry["object"]), (&json!(index), &json!("embedding")));
        serde_json::from_value(entry["embedding"].clone()).unwrap()
    };
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    let [cat, kitten, rates] = [0, 1, 3].map(|index| values(&all, index));
    assert_eq!(cat.len(), 576);
    assert!((dot(&cat, &cat) - 1.0).abs() < 1e-5);
    assert!(dot(&cat, &kitten) > dot(&cat, &rates), "{} {}", dot(&cat, &kitten), dot(&cat, &rates));
    let ids = post("/tokenize", json!({"prompt": texts[0]})).await["tokens"].clone();
    for input in [json!(texts[0]), ids.clone(), json!([ids])] {
        let alone = post("/v1/embeddings", json!({"input": input})).await;
        assert_eq!(values(&alone, 0), cat);
        assert_eq!(alone["usage"]["prompt_tokens"], alone["usage"]["total_tokens"]);
    }
    let coded =
        post("/v1/embeddings", json!({"input": texts[0], "encoding_format": "base64"})).await;
    let first = coded["data"][0]["embedding"].as_str().unwrap();
    assert_eq!(first.len(), (576_usize * 4).div_ceil(3) * 4);
    // The first numbers, of length 1 again.
    for dimensions in [1, 64, 576] {
        let body = json!({"input": texts[0], "dimensions": dimensions});
        let cut = values(&post("/v1/embeddings", body).await, 0);
        let length = dot(&cat[..dimensions], &cat[..dimensions]).sqrt();
        let same = |(cut, whole): (&f32, &f32)| (cut - whole / length).abs() < 1e-6;
        assert!(cut.len() == dimensions && cut.iter().zip(&cat).all(same), "{dimensions}");
    }
    for dimensions in [json!(0), json!(577), json!(-1), json!("8")] {
        let body = json!({"input": "x", "dimensions": dimensions});
        refused("/v1/embeddings", &body, "dimensions").await;
    }
    refused("/v1/embeddings", &json!({"input": []}), "input").await;
    refused("/v1/embeddings", &json!({"input": [[]]}), "input").await;
    refused("/v1/embeddings", &json!({"input": [9_999_999]}), "input").await;
    refused("/v1/embeddings", &json!({"input": "x", "encoding_format": "hex"}), "encoding_format")
        .await;
    refused("/v1/embeddings", &json!({"input": "word ".repeat(600)}), "input").await;
}

/// `prompt_logprobs` says of a prompt what echoing it says, in vLLM's shape, and echoes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn prompts_are_scored_as_vllm_does() {
    let text = "The capital of France is Paris. The capital of Spain is";
    let echo = json!({"prompt": text, "echo": true, "max_tokens": 0, "logprobs": 2});
    let echoed = post("/v1/completions", echo).await["choices"][0]["logprobs"].clone();
    let ids = post("/tokenize", json!({"prompt": text})).await["tokens"].clone();
    let ids: Vec<u64> = ids.as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
    let body = |count: usize| json!({"prompt": text, "max_tokens": 3, "temperature": 0, "prompt_logprobs": count, "logprobs": 1, "n": 2});
    for count in [0, 2, 5] {
        let answer = post("/v1/completions", body(count)).await;
        assert!(answer.get("prompt_logprobs").is_none());
        for choice in answer["choices"].as_array().unwrap() {
            assert!(!choice["text"].as_str().unwrap().contains("capital of France"), "{choice}");
            assert_eq!(choice["logprobs"]["tokens"].as_array().unwrap().len(), 3, "{choice}");
            let places = choice["prompt_logprobs"].as_array().unwrap();
            assert_eq!((places.len(), &places[0]), (ids.len(), &Value::Null));
            for (place, id) in ids.iter().enumerate().skip(1) {
                let scores = places[place].as_object().unwrap();
                let own = &scores[&id.to_string()];
                assert_eq!(own["logprob"], echoed["token_logprobs"][place]);
                assert_eq!(own["decoded_token"], echoed["tokens"][place]);
                let rank = own["rank"].as_u64().unwrap() as usize;
                assert_eq!(scores.len(), count + usize::from(rank > count), "{scores:?}");
                let mut ranked: Vec<_> = scores.values().collect();
                ranked.sort_by_key(|score| score["rank"].as_u64());
                for (score, expected) in ranked.iter().zip(1..=count) {
                    assert_eq!(score["rank"], expected);
                }
                let likelihoods = ranked.iter().map(|score| score["logprob"].as_f64().unwrap());
                assert!(likelihoods.is_sorted_by(|a, b| a >= b), "{ranked:?}");
            }
        }
    }
    // Both at once, each with its own number of alternatives.
    let mut both = body(1);
    both["echo"] = json!(true);
    both["logprobs"] = json!(3);
    let both = post("/v1/completions", both).await["choices"][0].clone();
    let own = |place: usize| both["prompt_logprobs"][place].as_object().unwrap().len();
    assert!((1..ids.len()).all(|place| own(place) <= 2));
    let tops = both["logprobs"]["top_logprobs"].as_array().unwrap();
    assert!(tops[1..ids.len()].iter().all(|top| top.as_object().unwrap().len() >= 3), "{tops:?}");
    let mut body = chat("Why is the sky blue?");
    body["prompt_logprobs"] = json!(1);
    let answer = post("/v1/chat/completions", body.clone()).await;
    let count = answer["usage"]["prompt_tokens"].as_u64().unwrap() as usize;
    assert_eq!(answer["prompt_logprobs"].as_array().unwrap().len(), count);
    assert!(answer["choices"][0].get("prompt_logprobs").is_none());
    for (field, value) in
        [("prompt_logprobs", json!(21)), ("prompt_logprobs", json!(-1)), ("stream", json!(true))]
    {
        let mut wrong = body.clone();
        wrong[field] = value;
        refused("/v1/chat/completions", &wrong, "prompt_logprobs").await;
    }
}

/// However many choices there are, a prompt is scored once; what would make an endless answer is refused.
#[tokio::test(flavor = "multi_thread")]
async fn prompts_are_scored_once() {
    let mut body = json!({"prompt": ["Blue is", "Why?"], "max_tokens": 2, "seed": 1, "n": 3, "echo": true, "logprobs": 2,
        "prompt_logprobs": 1});
    let whole = post("/v1/completions", body.clone()).await["choices"].clone();
    for choices in whole.as_array().unwrap().chunks(3) {
        let begins = |choice: &Value| choice["logprobs"]["token_logprobs"][1].clone();
        assert!(
            begins(&choices[0]).is_number()
                && choices.iter().all(|it| begins(it) == begins(&choices[0]))
        );
        assert!(choices.iter().all(|it| it["prompt_logprobs"] == choices[0]["prompt_logprobs"]));
    }
    body.as_object_mut().unwrap().remove("prompt_logprobs");
    body["stream"] = json!(true);
    let (_, text) = send("POST", "/v1/completions", &body.to_string()).await;
    let scored = text.matches("\"token_logprobs\":[null,").count();
    assert_eq!(scored, 6, "each choice of a stream begins with its prompt: {text}");
    let prompts = vec![vec![5; 500]; 100];
    let many = json!({"prompt": prompts, "max_tokens": 1, "prompt_logprobs": 20});
    refused("/v1/completions", &many, "prompt_logprobs").await;
    let many = json!({"prompt": "x ".repeat(400), "max_tokens": 0, "echo": true, "logprobs": 20, "n": 128});
    refused("/v1/completions", &many, "logprobs").await;
}
