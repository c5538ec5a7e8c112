//! `score` on a few records.

use super::{json, kill_when, run};

pub(crate) fn a_model_is_scored_and_goes_on_after_a_kill() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let put = |name: &str, lines: &[&str]| {
        std::fs::create_dir_all(folder.join("data")).unwrap();
        std::fs::write(folder.join("data").join(name), lines.join("\n")).unwrap();
    };
    put(
        "arc_easy.jsonl",
        &[
            r#"{"query": "What do plants need to grow?", "choices": ["hammers", "light and water", "silver coins"], "gold": 1}"#,
            r#"{"query": "Which animal barks?", "choices": ["a dog", "a glass"], "gold": 0}"#,
            r#"{"query": "Which animal barks?", "choices": ["a dog", "a glass"], "gold": 1}"#,
        ],
    );
    put(
        "lambada.jsonl",
        &[r#"{"context": "One, two, three, four, five,", "continuation": "six"}"#],
    );
    put(
        "winogrande.jsonl",
        &[
            r#"{"contexts": ["He drank the stone", "He drank the water"], "choices": ["stone", "water"], "continuation": "because it was cold and fresh.", "gold": 1}"#,
        ],
    );
    put(
        "mmlu.jsonl",
        &[
            r#"{"query": "2 + 2 =", "choices": ["1", "2", "3", "4"], "gold": 3, "subject": "elementary_mathematics"}"#,
        ],
    );
    put(
        "mmlu_fewshot.jsonl",
        &[
            r#"{"query": "1 + 1 =", "choices": ["1", "2", "3", "4"], "gold": 1, "subject": "elementary_mathematics"}"#,
        ],
    );
    put(
        "truthfulqa_mc2.jsonl",
        &[
            r#"{"query": "Is the earth flat?", "choices": ["No, it is round.", "Yes."], "labels": [1, 0]}"#,
        ],
    );
    put("gsm8k.jsonl", &[r#####"{"turns": ["What is 1 + 1?"], "reference": "#### 2"}"#####]);
    put(
        "perplexity.jsonl",
        &[
            r#"{"text": "The sun is a star. It is very hot, and the earth moves around it once a year."}"#,
        ],
    );

    let score = "score --data data --max-tokens 16 --json";
    let table = run(folder, &format!("{score} whole.json"));
    assert!(table.contains("average of *"), "{table}");
    let whole = json(&folder.join("whole.json"));
    let value = |task: &str, metric: &str| whole["tasks"][task][metric]["value"].as_f64().unwrap();
    let thirds = value("arc_easy", "acc") * 3.0;
    assert!((thirds - thirds.round()).abs() < 1e-9 && (1.0..=2.0).contains(&thirds), "{whole}");
    assert_eq!(value("lambada", "acc"), 1.0);
    assert!((0.0..1.0).contains(&value("truthfulqa_mc2", "acc")));
    assert!((2.0..100.0).contains(&value("perplexity", "word_perplexity")), "{whole}");
    for (task, metric) in [("winogrande", "acc"), ("mmlu", "acc"), ("gsm8k", "exact_match")] {
        assert!([0.0, 1.0].contains(&value(task, metric)), "{whole}");
    }
    assert!(run(folder, &format!("{score} whole.json")).contains("done already"));

    kill_when(folder, &format!("{score} killed.json"), "killed.json.partial.jsonl", 3);
    run(folder, &format!("{score} killed.json"));
    assert_eq!(json(&folder.join("killed.json")), whole);
    assert!(!folder.join("killed.json.partial.jsonl").exists());

    // Pieces of a text, and worked examples, count.
    let line = "score --data data --tasks perplexity,mmlu --json short.json --max-length";
    run(folder, &format!("{line} 8"));
    let short = json(&folder.join("short.json"));
    let perplexity = &short["tasks"]["perplexity"]["word_perplexity"]["value"];
    assert!(perplexity.as_f64().unwrap() > value("perplexity", "word_perplexity"));
    run(folder, &format!("{line} 512 --num-fewshot 1 --precision f32"));
    let f32 = json(&folder.join("short.json"))["tasks"]["perplexity"]["word_perplexity"]["value"]
        .as_f64()
        .unwrap();
    assert!((f32 / value("perplexity", "word_perplexity") - 1.0).abs() < 0.05);
}

/// A text longer than a pass is scored in pieces, wherever a pass ends.
pub(crate) fn a_long_text_is_scored_in_pieces() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let text: String = (0..700).map(|n| format!("{n} bottles on the wall. ")).collect();
    let record = serde_json::json!({"text": text}).to_string();
    let short = serde_json::json!({"text": "The sun is a star."}).to_string();
    let perplexity = |name: &str, records: &[&str]| {
        std::fs::write(folder.join(format!("{name}.jsonl")), records.join("\n")).unwrap();
        let tasks = format!("--tasks perplexity={name}.jsonl");
        run(folder, &format!("score --data . {tasks} --max-length 300 --json {name}.json"));
        let scores = json(&folder.join(format!("{name}.json")));
        scores["tasks"]["perplexity"]["byte_perplexity"]["value"].as_f64().unwrap()
    };
    let once = perplexity("once", &[&record]);
    let twice = perplexity("twice", &[&record, &record]);
    assert!((once - twice).abs() < 1e-9 && once > 1.0, "{once} {twice}");
    let mixed = perplexity("mixed", &[&short, &record, &short]);
    assert!((once - mixed).abs() < 0.1 && mixed != once, "{once} {mixed}");
}
