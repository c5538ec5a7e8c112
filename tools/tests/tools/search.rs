//! `search`, interrupted, on a model of three blocks.

use super::{json, kill_when, run};

pub(crate) fn drafts_are_searched() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    run(folder, "prune --list 2-28 --out three");
    let prompt = |i: usize| format!(r#"{{"id": "p{i}", "turns": ["Say {i}."]}}"#);
    let prompts: Vec<String> = (0..6).map(prompt).collect();
    std::fs::write(folder.join("prompts.jsonl"), prompts.join("\n")).unwrap();
    run(
        folder,
        "generate --model three --prompts prompts.jsonl --out answers.jsonl --max-tokens 16 --top-logprobs 4",
    );
    let common = "--model three --data answers.jsonl --steps 2 --prompts prompts.jsonl --limit 2 --max-tokens 16";
    let search = format!("search {common} --out search --keep-blocks 1-2 --draft-vocab 256");
    kill_when(folder, &search, "search/search.json.partial.jsonl", 2);
    let noted = std::fs::read_to_string(folder.join("search/search.json.partial.jsonl")).unwrap();
    let noted: serde_json::Value = serde_json::from_str(noted.lines().nth(1).unwrap()).unwrap();
    let said = run(folder, &search);
    assert!(said.contains("2 blocks, 640 neurons, 3 states, 256 rows: 2 of 2"), "{said}");
    assert!(!said.contains(": 1 of 2"), "{said}");
    let result = json(&folder.join("search/search.json"));
    let tried = result.as_array().unwrap();
    assert_eq!(tried[0], noted, "what was measured stays");
    for (one, blocks) in tried.iter().zip(1..) {
        assert_eq!((&one["keep_blocks"], &one["states"]), (&blocks.into(), &3.into()));
        check(one);
        let draft = format!("search/{blocks}-blocks-640-neurons-3-states-256-rows");
        let config = json(&folder.join(draft).join("train/model/config.json"));
        assert_eq!(config["num_hidden_layers"], blocks);
        assert_eq!(config["intermediate_size"], 640);
    }
    assert_eq!(tried.len(), 2);
    let picture = std::fs::read_to_string(folder.join("search/search.svg")).unwrap();
    assert!(picture.contains("Measured speed-up"));
    assert!(said.contains(" *"), "the best is marked: {said}");
    assert!(run(folder, &search).contains("done already"));

    // Other heads and numbers of states, and standalone drafts.
    run(
        folder,
        &format!("search {common} --out heads --keep-blocks 1 --states 1 --draft-vocab 128,256"),
    );
    run(folder, &format!("search {common} --out alone --keep-blocks 2 --draft-kind standalone"));
    let result = json(&folder.join("heads/search.json"));
    let heads: Vec<_> = result.as_array().unwrap().iter().map(|one| &one["draft_vocab"]).collect();
    assert_eq!(heads, [&128, &256]);
    let result = json(&folder.join("alone/search.json"));
    check(&result[0]);
    assert!(result[0]["states"].is_null() && result.as_array().unwrap().len() == 1, "{result}");
}

/// Holds that every figure is there.
fn check(one: &serde_json::Value) {
    let number = |name: &str| one[name].as_f64().unwrap();
    assert!((0.0..=1.0).contains(&number("alpha")), "{one}");
    for name in ["draft_step_cost", "mean_acceptance_length", "ngram", "draft", "both"] {
        assert!(number(name) > 0.0, "{name}: {one}");
    }
}
