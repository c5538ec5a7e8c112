//! `pleach check`, on the default model and on models beside it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use super::support::{letters, standalone_draft};

fn check(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pleach"))
        .args(["check", "--threads", "2"])
        .args(arguments)
        .output()
        .unwrap()
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/llama-tied")
}

fn reports(output: &Output) -> Vec<Value> {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The cache of the target, and that of a standalone draft.
#[test]
fn an_int8_cache_is_counted() {
    let memory = ["--json", "--limit", "1", "--max-model-len", "512", "--kv-blocks", "40"];
    let int8 = [&memory[..], &["--kv-cache-dtype", "int8"]].concat();
    let cache = |draft: &str| {
        let reports = reports(&check(&[&int8[..], &["--draft", draft]].concat()));
        let count = |path: &str| reports[0].pointer(path).and_then(Value::as_u64).unwrap();
        (count("/memory/kv_cache"), count("/layers/1"))
    };
    // 3 heads of 64 values, keys and values, a byte each, and four for each head.
    let block = 16 * 3 * (64 + 4) * 2;
    assert_eq!(cache("none").0, 40 * 30 * block);
    if let Some(standalone) = standalone_draft() {
        let (bytes, layers) = cache(standalone.to_str().unwrap());
        assert_eq!(bytes, 40 * (30 + layers) * block);
    }
}

#[test]
fn a_pair_is_measured_before_it_serves() {
    let output = check(&["--json", "--limit", "2", "--max-model-len", "512", "--kv-blocks", "40"]);
    let reports = reports(&output);
    let [report] = &reports[..] else { panic!("{reports:?}") };
    let positive = |path: &str| {
        let value = report.pointer(path).and_then(Value::as_f64);
        assert!(value.is_some_and(|value| value > 0.0), "{path} in {report}");
        value.unwrap()
    };
    assert!(positive("/memory/target_weights") > 5e7);
    // 30 blocks of 3 heads of 64 values, keys and values, two bytes each. The default draft is attached and has none.
    let expected = 40.0 * 16.0 * 30.0 * 3.0 * 64.0 * 2.0 * 2.0;
    let draft = pleach::cli::default_draft().is_some();
    assert_eq!(positive("/memory/kv_cache"), expected);
    assert_eq!(positive("/memory/kv_cache_full"), expected / 40.0 * 32.0 * 16.0);
    for rows in [1, 2, 4, 8] {
        positive(&format!("/target_seconds/{rows}"));
    }
    assert_eq!(report["prediction"].is_object(), draft);
    if draft {
        assert!(positive("/acceptance/alpha") < 1.0);
        assert!(positive("/draft_seconds") < positive("/target_seconds/1"));
        let best = positive("/prediction/num_speculative_tokens");
        let path = format!("/prediction/by_num_speculative_tokens/{best}");
        assert_eq!(positive(&path), positive("/prediction/speedup"));
    }
    if let Some(standalone) = standalone_draft() {
        let standalone = standalone.to_str().unwrap();
        let memory = ["--json", "--limit", "1", "--max-model-len", "512", "--kv-blocks", "40"];
        let output = check(&[&memory[..], &["--draft", standalone]].concat());
        let report: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
        let report = &report[0];
        let layers = report.pointer("/layers/1").and_then(Value::as_f64).unwrap();
        let cache = report.pointer("/memory/kv_cache").and_then(Value::as_f64);
        assert_eq!(cache, Some(expected * (1.0 + layers / 30.0)), "its cache lies beside");
    }
    let output = check(&["--draft", "none", "--max-model-len", "256"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("draft     none") && text.contains("speed-up  none"), "{text}");
}

#[test]
fn a_pair_that_does_not_fit_is_refused() {
    let golden = golden();
    let prompts = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("no-turns.jsonl");
    std::fs::write(&prompts, "{\"turns\": []}\n").unwrap();
    for (arguments, expected) in [
        (vec!["--draft", golden.to_str().unwrap()], "does not fit the target: hidden_size"),
        (vec!["--draft", "nowhere.gguf"], "nowhere.gguf"),
        (vec!["--draft", "none", "--kv-blocks", "900000000"], "lower --kv-blocks"),
        (vec!["--max-model-len", "9999999"], "max_model_len"),
        (vec!["--prompts", prompts.to_str().unwrap()], "no-turns.jsonl, line 1: `turns` is empty"),
    ] {
        let output = check(&arguments);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && text.contains(expected), "{arguments:?}: {text}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
}

/// Every model is measured with its own draft and limits, and named as requests name it.
#[test]
fn models_beside_the_main_one_are_checked() {
    let folder = tempfile::tempdir().unwrap();
    let small = folder.path().join("small.gguf");
    letters::write(&small, 256);
    let small = small.to_str().unwrap();
    let [also, alone] = ["pair", "alone"].map(|name| format!("{name}={small}"));
    let draft = format!("pair={small}");
    let prompts = folder.path().join("prompts.jsonl");
    std::fs::write(&prompts, "{\"turns\": [\"abc\"]}\n").unwrap();
    let prompts = prompts.to_str().unwrap();
    let flags = ["--draft", "none", "--max-model-len", "512", "--also", &also, "--also", &alone];
    let output =
        check(&[&flags[..], &["--also-draft", &draft, "--json", "--prompts", prompts]].concat());
    let reports = reports(&output);
    let names: Vec<&str> = reports.iter().map(|it| it["model"].as_str().unwrap()).collect();
    assert_eq!(names[1..], ["pair", "alone"]);
    let drafts: Vec<bool> = reports.iter().map(|it| it["prediction"].is_object()).collect();
    assert_eq!(drafts, [false, true, false]);
    assert_eq!(reports[1]["acceptance"]["alpha"], 1.0, "it drafts for itself");
    let memory = |at: usize, field: &str| reports[at]["memory"][field].as_u64().unwrap();
    assert_eq!([0, 1, 2].map(|at| memory(at, "max_model_len")), [512, 256, 256]);
    assert_eq!(memory(1, "kv_cache_full"), 2 * memory(2, "kv_cache_full"), "the draft has its own");

    let output = check(&[&flags[..], &["--kv-blocks", "40"]].concat());
    let text = String::from_utf8_lossy(&output.stdout);
    let models: Vec<&str> = text.lines().filter(|line| line.starts_with("model ")).collect();
    assert_eq!(models.len(), 3, "{text}");
    assert!(models[1].contains("pair: 2 decoder blocks"), "{text}");
    assert!(models[2].contains("alone: 2 decoder blocks"), "{text}");

    let golden = golden();
    let wrong = format!("pair={}", golden.display());
    for (more, expected) in [
        (["--also", "x=nowhere.gguf"], vec!["--also x: ", "nowhere.gguf"]),
        (["--also-draft", &wrong], vec!["--also pair: the draft cannot be used: "]),
        (["--also-draft", "y=none"], vec!["there is no --also y=SOURCE"]),
    ] {
        let output = check(&[&["--draft", "none", "--also", &also][..], &more].concat());
        let text = String::from_utf8_lossy(&output.stderr);
        let told = expected.iter().all(|part| text.contains(part));
        assert!(!output.status.success() && told, "{more:?}: {text}");
    }
}
