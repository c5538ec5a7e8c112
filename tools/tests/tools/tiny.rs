//! Models of every rotary scaling, from folder and file to a draft that serves.

use std::path::{Path, PathBuf};

use pleach::checkpoint::Checkpoint;
use pleach::checkpoint::write::Meta;
use pleach::model::{ModelConfig, RopeScaling};
use serde_json::{Value, json};

use super::support::{Server, gguf};
use super::{json as read, run, tools};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens").join(name)
}

/// A golden that can speak: its weights with a tokenizer, a template and perhaps another scaling.
fn speaking(folder: &Path, model: &str, scaling: Option<Value>) {
    std::fs::create_dir_all(folder).unwrap();
    std::fs::copy(golden(model).join("model.safetensors"), folder.join("model.safetensors"))
        .unwrap();
    let mut config = read(&golden(model).join("config.json"));
    if let Some(scaling) = scaling {
        config.as_object_mut().unwrap().remove("rope_parameters");
        config["rope_scaling"] = scaling;
    }
    let write = |name: &str, text: String| std::fs::write(folder.join(name), text).unwrap();
    write("config.json", config.to_string());
    write("tokenizer.json", gguf::letters_json());
    let settings = json!({"chat_template": gguf::TEMPLATE, "bos_token": null,
        "eos_token": {"content": "<|end|>", "special": true}, "pad_token": "!"});
    write("tokenizer_config.json", settings.to_string());
    let generation = json!({"eos_token_id": [2, 0], "temperature": 0.7, "pad_token_id": 0});
    write("generation_config.json", generation.to_string());
}

/// The same model as other programs write GGUF files.
fn as_gguf(folder: &Path, path: &Path) {
    let more = [
        ("tokenizer.ggml.eos_token_id", Meta::Number(2)),
        ("tokenizer.ggml.eot_token_id", Meta::Number(0)),
    ];
    gguf::convert(folder, path, &more);
    if gguf::has(path, "pleach.config") {
        gguf::hide(path, "pleach.config");
    }
    gguf::add_letters(path);
}

fn config(path: &Path) -> ModelConfig {
    Checkpoint::open(path).unwrap().config
}

const BUILD: &str = "--draft-kind standalone --keep-blocks 1 --prompts prompts.jsonl --eval-prompts prompts.jsonl --answers 3 \
                     --max-tokens 8 --steps 2 --draft-vocab 48";

fn prompts(folder: &Path) {
    let lines = ["a", "b", "c"].map(|text| json!({"id": text, "turns": [text]}).to_string());
    std::fs::write(folder.join("prompts.jsonl"), lines.join("\n")).unwrap();
}

/// Blocks are measured on prompts as on texts, of all tokens and of the last alone: the same where there is but one beside
/// the first.
pub(crate) fn blocks_are_measured_on_prompts() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    speaking(&folder.join("model"), "llama-tied", None);
    let distances = |turns: &[&str], out: &str| {
        let lines = turns.iter().map(|turn| json!({"turns": [turn]}).to_string());
        std::fs::write(folder.join("p.jsonl"), lines.collect::<Vec<_>>().join("\n")).unwrap();
        let told = run(folder, &format!("importance --model model --prompts p.jsonl --out {out}"));
        assert!(told.contains("at the last token"), "{told}");
        let found = read(&folder.join(out));
        let numbers = |name: &str| -> Vec<f64> {
            let runs =
                found[name].as_array().unwrap().iter().flat_map(|run| run.as_array().unwrap());
            runs.map(|number| number.as_f64().unwrap()).collect()
        };
        (found["tokens"].clone(), numbers("angular_distance"), numbers("angular_distance_last"))
    };
    // The template puts tokens around a turn: the rest of a prompt's tokens counts, but for its first.
    let (short, of_all, of_last) = distances(&["a"], "one.json");
    assert_eq!(of_all.len(), of_last.len());
    let (tokens, both, last_of_both) = distances(&["a", "a"], "two.json");
    assert_eq!(tokens.as_u64(), short.as_u64().map(|tokens| 2 * tokens));
    let close = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-9);
    assert!(close(&both, &of_all) && close(&last_of_both, &of_last));
    let (_, _, others) = distances(&["abc"], "three.json");
    assert!(short == 1 || !close(&of_all, &of_last));
    assert!(others.iter().all(|distance| (0.0..=1.0).contains(distance)));
    let output = tools(folder, &["importance", "--prompts", "p.jsonl", "--text", "p.jsonl"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("--text"));
}

/// Llama 3's scaling goes through every step, from both formats, and the draft serves.
pub(crate) fn a_draft_of_llama_3() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    prompts(folder);
    speaking(&folder.join("model"), "llama3-rope", None);
    as_gguf(&folder.join("model"), &folder.join("model.gguf"));
    for (model, out) in [("model", "from-folder"), ("model.gguf", "from-file")] {
        run(folder, &format!("build --model {model} --out {out} {BUILD}"));
        let draft = folder.join(out).join("draft.gguf");
        let (target, draft_config) = (config(&folder.join(model)), config(&draft));
        assert_eq!(draft_config.rope, target.rope, "{out}");
        assert!(gguf::has(&draft, "rope_freqs.weight"), "llama.cpp reads the divisors");
        let path = |name: &str| folder.join(name).to_string_lossy().into_owned();
        let model = path(model);
        let draft = draft.to_string_lossy().into_owned();
        let server = Server::start(&["--model", &model, "--draft", &draft]);
        let body = json!({"prompt": "abc", "max_tokens": 12, "temperature": 0, "ignore_eos": true});
        let drafted = server.post("/v1/completions", &body).json();
        assert_eq!(drafted["usage"]["completion_tokens"], 12, "{drafted}");
        let page = server.get("/v1/models");
        assert!(!server.log().contains("serving without the draft"), "{page}: {}", server.log());
        let plain = json!({"prompt": "abc", "max_tokens": 12, "temperature": 0, "ignore_eos": true,
            "num_speculative_tokens": 0});
        let plain = server.post("/v1/completions", &plain).json();
        assert_eq!(plain["choices"][0]["text"], drafted["choices"][0]["text"]);
    }
    // A folder of such divisors is one that transformers reads too.
    let pruned = read(&folder.join("from-file/pruned/config.json"));
    assert_eq!(pruned["rope_scaling"]["rope_type"], "longrope");
    assert!(matches!(
        config(&folder.join("from-file/pruned")).rope.scaling,
        RopeScaling::Factors(_)
    ));
}

/// A Gemma goes through every step, and its draft, whose blocks keep their windows, serves without changing a text.
pub(crate) fn a_draft_of_gemma_3() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    prompts(folder);
    speaking(&folder.join("model"), "gemma3", None);
    for (kind, keep, out) in [("standalone", 2, "alone"), ("attached", 1, "attached")] {
        let options = BUILD
            .replace("--draft-kind standalone", &format!("--draft-kind {kind}"))
            .replace("--keep-blocks 1", &format!("--keep-blocks {keep}"));
        run(folder, &format!("build --model model --out {out} {options}"));
        let draft = folder.join(out).join("draft.gguf").to_string_lossy().into_owned();
        let model = folder.join("model").to_string_lossy().into_owned();
        let server = Server::start(&["--model", &model, "--draft", &draft]);
        assert!(!server.log().contains("serving without the draft"), "{}", server.log());
        let mut body =
            json!({"prompt": "abc", "max_tokens": 12, "temperature": 0, "ignore_eos": true});
        let drafted = server.post("/v1/completions", &body).json();
        body["num_speculative_tokens"] = json!(0);
        let plain = server.post("/v1/completions", &body).json();
        assert_eq!(plain["choices"][0]["text"], drafted["choices"][0]["text"], "{kind}");
    }
}

/// The other scalings and windows, from folder to pruned folder to packed draft.
pub(crate) fn every_scaling_is_pruned_and_packed() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let yarn = json!({"rope_type": "yarn", "factor": 3.0, "original_max_position_embeddings": 64,
        "beta_fast": 4.0, "attention_factor": 1.37});
    let dynamic = json!({"rope_type": "dynamic", "factor": 4.0});
    let linear = json!({"rope_type": "linear", "factor": 4.0});
    for (name, model, scaling) in [
        ("yarn", "llama3-rope", Some(yarn)),
        ("dynamic", "llama3-rope", Some(dynamic)),
        ("linear", "llama3-rope", Some(linear)),
        ("window", "qwen2-window", None),
        ("mistral", "mistral-window", None),
        ("phi3", "phi3", None),
        ("smollm3", "smollm3", None),
        ("gemma2", "gemma2", None),
        ("gemma3", "gemma3", None),
    ] {
        speaking(&folder.join(name), model, scaling);
        // Other programs' files of these say less than the goldens have: their patterns are known by the family.
        let less = ["phi3", "smollm3", "gemma2", "gemma3"].contains(&name);
        let file = (!less).then(|| format!("{name}.gguf"));
        if let Some(file) = &file {
            as_gguf(&folder.join(name), &folder.join(file));
        }
        for source in [name.to_owned()].into_iter().chain(file) {
            let whole = config(&folder.join(&source));
            run(folder, &format!("prune --model {source} --list 0 --out {source}-cut"));
            run(folder, &format!("pack --model {source}-cut --out {source}-draft.gguf"));
            let cut = config(&folder.join(format!("{source}-cut")));
            let draft = config(&folder.join(format!("{source}-draft.gguf")));
            assert_eq!(draft.rope, cut.rope, "{source}");
            let kept: Vec<usize> = (1..whole.num_hidden_layers).collect();
            assert_eq!(cut.design, whole.with_blocks(&kept).design, "{source}");
            assert_eq!(draft.design, cut.design, "{source}");
            for (block, of_whole) in kept.into_iter().enumerate() {
                assert_eq!(draft.window(block), whole.window(of_whole), "{source}, block {block}");
            }
            assert_eq!(cut.max_position_embeddings, whole.max_position_embeddings, "{source}");
            assert_eq!(draft.max_position_embeddings, whole.max_position_embeddings, "{source}");
            assert_eq!((cut.window(0), draft.window(0)), (whole.window(1), whole.window(1)));
            if !source.ends_with(".gguf") {
                assert_eq!(cut.rope, whole.rope, "{source}");
            }
        }
    }
    // The kept block is the one with a window, and transformers is told so.
    let cut = read(&folder.join("window-cut/config.json"));
    assert_eq!(cut["layer_types"], json!(["sliding_attention"]));
}

/// A pruned folder is used as the original is.
pub(crate) fn a_pruned_folder_keeps_the_settings() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    speaking(&folder.join("model"), "qwen2-window", None);
    run(folder, "prune --model model --list 0 --out cut");
    for name in ["tokenizer_config.json", "generation_config.json", "tokenizer.json"] {
        assert_eq!(read(&folder.join("cut").join(name)), read(&folder.join("model").join(name)));
    }
    let [before, after] =
        ["model", "cut"].map(|name| Checkpoint::open(&folder.join(name)).unwrap());
    assert_eq!(before.special_tokens, after.special_tokens);
    assert_eq!(after.special_tokens.get("eos_token").map(String::as_str), Some("<|end|>"));
    assert_eq!(
        (&after.config.eos_token_ids[..], after.special_tokens.get("bos_token")),
        (&[2, 0][..], None)
    );
}

/// What the end of a build needs is looked at before its first step.
pub(crate) fn a_build_that_cannot_end_does_not_begin() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    prompts(folder);
    speaking(&folder.join("model"), "llama3-rope", None);
    let line = format!("build --model model --out out {BUILD}");
    let line = line.replace("--eval-prompts prompts.jsonl", "--eval-prompts none.jsonl");
    let output = tools(folder, &line.split_whitespace().collect::<Vec<_>>());
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.contains("none.jsonl"), "{error}");
    assert!(!folder.join("out/importance.json").exists());
}

/// A prompt that the model's positions do not hold is left out, and ends that the vocabulary does not have are no tokens of
/// a draft's head.
pub(crate) fn what_a_model_cannot_hold_is_left_out() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    speaking(&folder.join("model"), "llama3-rope", None);
    let generation = json!({"eos_token_id": [2, 0, 5000]}).to_string();
    std::fs::write(folder.join("model/generation_config.json"), generation).unwrap();
    let positions = config(&folder.join("model")).max_position_embeddings;
    let turns = [["a".to_owned(), "b".into()], ["c".repeat(positions), "d".into()]];
    let lines = turns.map(|turns| json!({"turns": turns}).to_string());
    std::fs::write(folder.join("p.jsonl"), lines.join("\n")).unwrap();
    let said = run(
        folder,
        "generate --model model --prompts p.jsonl --out a.jsonl --max-tokens 8 --max-prompt-tokens 9999",
    );
    assert!(said.contains("2 answers") && said.contains("1 prompts too long"), "{said}");
    run(folder, "prune --model model --list 0 --out cut");
    run(
        folder,
        "train --model cut --data a.jsonl --out t --steps 2 --draft-vocab 8 --validation 0",
    );
    let draft = Checkpoint::open(&folder.join("t/model")).unwrap();
    assert_eq!(draft.draft_vocab.unwrap().len(), 8);
}

/// Files of one run are no beginning of another.
pub(crate) fn nothing_goes_on_from_another_run() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    prompts(folder);
    speaking(&folder.join("model"), "llama3-rope", None);
    speaking(&folder.join("other"), "llama-linear", None);
    let refused = |line: &str, expected: &[&str]| {
        let output = tools(folder, &line.split_whitespace().collect::<Vec<_>>());
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{line} went on");
        for text in expected.iter().chain(&["another --out"]) {
            assert!(error.contains(text), "{line}: {error}");
        }
    };
    let generate = "generate --model model --prompts prompts.jsonl --out a.jsonl --max-tokens 8 --limit 2 \
                    --top-logprobs 4";
    run(folder, generate);
    refused(&format!("{generate} --temperature 0.5"), &["--temperature [0.5] (was [0.0])"]);
    refused(
        &generate.replace("--model model", "--model other"),
        &["model other (was model model)"],
    );
    refused(&generate.replace("max-tokens 8", "max-tokens 9"), &["--max-tokens 9 (was 8)"]);
    refused(&format!("{generate} --seed 4"), &["--seed 4 (was 0)"]);
    // More of the same, faster or slower, is the same run.
    run(folder, &generate.replace("--limit 2", "--limit 3 --batch 1"));
    let answers = std::fs::read_to_string(folder.join("a.jsonl")).unwrap();
    assert_eq!(answers.lines().count(), 3);
    std::fs::write(folder.join("prompts.jsonl"), r#"{"id": "a", "turns": ["z"]}"#).unwrap();
    refused(generate, &["prompts.jsonl (was another)"]);
    prompts(folder);
    std::fs::write(folder.join("b.jsonl"), &answers).unwrap();
    refused(&generate.replace("a.jsonl", "b.jsonl"), &["no note tells what made it"]);

    run(folder, "prune --model model --list 0 --out cut");
    let train = "train --model cut --data a.jsonl --out t --steps 400000 --draft-vocab 48 \
                 --batch-tokens 64 --checkpoint-seconds 0";
    super::kill_when(folder, train, "t/history.jsonl", 2);
    assert!(folder.join("t/state.safetensors").exists());
    refused(&format!("{train} --learning-rate 1e-4"), &["--learning-rate"]);
    refused(&format!("{train} --loss tv"), &["--loss"]);
    refused(&format!("{train} --seed 1"), &["--seed 1 (was 0)"]);
    std::fs::write(folder.join("a.jsonl"), answers.lines().next().unwrap().to_owned() + "\n")
        .unwrap();
    refused(train, &["a.jsonl (was another)"]);
    std::fs::write(folder.join("a.jsonl"), &answers).unwrap();
    let said = run(folder, &train.replace("400000", "9"));
    assert!(said.contains("going on at step"), "{said}");

    let build = format!("build --model model --out out {BUILD}");
    run(folder, &build);
    refused(&build.replace("--model model", "--model other"), &["model other (was model model)"]);
    refused(&format!("{build} --seed 2"), &["--seed 2 (was 0)"]);
    refused(&build.replace("draft-vocab 48", "draft-vocab 40"), &["--draft-vocab 40 (was 48)"]);
    assert!(run(folder, &build).contains("done already"));
}
