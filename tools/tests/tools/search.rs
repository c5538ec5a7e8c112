//! `search`, interrupted, on a model of three blocks.

use super::{json, kill_when, run};

pub(crate) fn the_number_of_blocks_is_searched() {
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
    let search = "search --model three --data answers.jsonl --out search --keep-blocks 1-2 --steps 2 --draft-vocab 256 --prompts prompts.jsonl --limit 2 --max-tokens 16";
    kill_when(folder, search, "search/search.json.partial.jsonl", 2);
    let noted = std::fs::read_to_string(folder.join("search/search.json.partial.jsonl")).unwrap();
    let noted: serde_json::Value = serde_json::from_str(noted.lines().nth(1).unwrap()).unwrap();
    let said = run(folder, search);
    assert!(said.contains("keeping 2 of 3") && !said.contains("keeping 1 of 3"), "{said}");
    let result = json(&folder.join("search/search.json"));
    let tried = result.as_array().unwrap();
    assert_eq!(tried[0], noted, "what was measured stays");
    for (one, blocks) in tried.iter().zip(1..) {
        let number = |name: &str| one[name].as_f64().unwrap();
        assert_eq!(one["keep_blocks"], blocks);
        assert!((0.0..=1.0).contains(&number("alpha")), "{one}");
        assert!(number("draft_step_cost") > 0.0 && number("predicted_speedup") >= 1.0, "{one}");
        assert_eq!(one["verify_cost"].as_array().unwrap().len(), 9);
        let config = json(&folder.join(format!("search/{blocks}/train/model/config.json")));
        assert_eq!(config["num_hidden_layers"], blocks);
    }
    assert_eq!(tried.len(), 2);
    let picture = std::fs::read_to_string(folder.join("search/search.svg")).unwrap();
    assert!(picture.contains("Predicted speed-up"));
    assert!(said.contains(" *"), "the best is marked: {said}");
    assert!(run(folder, search).contains("done already"));
}
