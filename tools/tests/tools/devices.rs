//! Commands that run the model, on a CUDA device: the emulated one, or none.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use pleach::checkpoint::Checkpoint;
use pleach::model::ModelConfig;
use pleach_kernels::DType;
use serde_json::{Value, json};

use super::support::{emulator, gguf, letters, pair, random_model};
use super::{json as read, run, tools};

/// Bytes that the device has.
const MEMORY: &str = "67108864";

/// Where the emulator lies, once it is built.
fn driver() -> &'static Path {
    static DRIVER: OnceLock<PathBuf> = OnceLock::new();
    DRIVER.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("emulator-of-tools");
        emulator::build(&folder, &[]);
        folder
    })
}

/// A command where a device is.
fn with_device(folder: &Path, line: &str) -> Output {
    with_memory(folder, line, MEMORY)
}

/// A command where a device has so many bytes.
fn with_memory(folder: &Path, line: &str, bytes: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pleach-tools"))
        .args(line.split_whitespace())
        .current_dir(folder)
        .env("LD_LIBRARY_PATH", driver())
        .env("EMULATOR_MEMORY", bytes)
        .output()
        .unwrap()
}

/// Both streams of a command that succeeds on the device, which it names.
fn on_device(folder: &Path, line: &str) -> String {
    let output = with_device(folder, line);
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{line}: {text}");
    assert!(text.contains("computing on") && text.contains("emulator"), "{line}: {text}");
    text
}

/// What a command says that fails.
fn refused(output: &Output) -> String {
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{error}");
    error
}

/// A shape that devices compute.
fn shape() -> ModelConfig {
    ModelConfig {
        hidden_size: 128,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 64,
        ..letters::config(640)
    }
}

/// A model that devices compute, `model.gguf`, a drafter that says much the same, `attached.gguf`, and prompts.
fn write(folder: &Path) {
    pair::write_pair(folder, &shape(), 1.0);
    gguf::add_letters(&folder.join("model.gguf"));
    let prompts = ["abcabc", "hello", "xyz"]
        .map(|text| json!({"id": text, "category": text, "turns": [text]}).to_string());
    std::fs::write(folder.join("prompts.jsonl"), prompts.join("\n")).unwrap();
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The model writes the same answers on a device each time, as many at a time as may be, and with a draft too; not the
/// processor's numbers.
pub(crate) fn answers_are_written_on_a_device() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    write(folder);
    let generate = "generate --model model.gguf --prompts prompts.jsonl --max-tokens 12 --top-logprobs 4 --out";
    let said = on_device(folder, &format!("{generate} a.jsonl"));
    assert!(said.contains("the CUDA device that is there"), "{said}");
    on_device(folder, &format!("{generate} b.jsonl --device cuda:0 --batch 2"));
    run(folder, &format!("{generate} cpu.jsonl --device cpu"));
    let bytes = |name: &str| std::fs::read(folder.join(name)).unwrap();
    assert_eq!(bytes("a.jsonl"), bytes("b.jsonl"));
    assert_eq!(bytes("a.jsonl.topk"), bytes("b.jsonl.topk"));
    assert_ne!(bytes("a.jsonl.topk"), bytes("cpu.jsonl.topk"), "the device rounds otherwise");

    let evaluate = "evaluate --model model.gguf --draft attached.gguf --prompts prompts.jsonl --max-tokens 12 \
                    --num-speculative-tokens 3 --samples 9 --json e.json";
    on_device(folder, evaluate);
    let found = read(&folder.join("e.json"));
    assert!(found["device"].as_str().unwrap().contains("emulator"), "{found}");
    assert!(found["accepted_tokens"].as_u64() > Some(0), "{found}");
    for field in ["mean_acceptance_length", "alpha", "draft_step_cost", "draft_flop_share"] {
        assert!(found[field].as_f64() > Some(0.0), "{field}: {found}");
    }
    let answers = lines(&folder.join("a.jsonl"));
    for answer in &answers {
        let samples = found["samples"].as_array().unwrap();
        let sample = samples.iter().find(|sample| sample["category"] == answer["category"]);
        let pieces = sample.unwrap()["answer"].as_array().unwrap();
        let text: String = pieces.iter().map(|piece| piece["text"].as_str().unwrap()).collect();
        assert_eq!(answer["response"], text, "{answer}");
    }
    assert_eq!(answers.len(), 3);
    // What was measured on one device is measured anew on another.
    assert!(on_device(folder, evaluate).contains("done already"));
    let told = run(folder, &format!("{evaluate} --device cpu"));
    assert!(!told.contains("done already"), "{told}");
    assert!(read(&folder.join("e.json"))["device"].is_null());
}

/// What is timed on a device, over a cache of 8 bits, has the same names, but for what a device has not.
pub(crate) fn a_device_is_benched() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    write(folder);
    let told = on_device(
        folder,
        "bench --model model.gguf --draft attached.gguf --repeats 1 --prompts prompts.jsonl --limit 1 --max-tokens 8 \
         --streams 1,2 --kv-cache-dtype int8 --json bench.json",
    );
    assert!(told.contains("answers identical"), "{told}");
    let bench = read(&folder.join("bench.json"));
    assert!(bench["device"].as_str().unwrap().contains("emulator") && bench["threads"].is_null());
    assert_eq!(bench["verify_cost"]["1"].as_f64(), Some(1.0));
    assert_eq!(bench["verify_cost"].as_object().unwrap().len(), 6, "{bench}");
    for field in [
        "decode_tokens_per_s",
        "prefill_tokens_per_s",
        "draft_step_cost",
        "draft_further_step_cost",
    ] {
        assert!(bench[field].as_f64() > Some(0.0), "{field}: {bench}");
    }
    let streams = bench["streams_tokens_per_s"].as_object().unwrap();
    assert!(["1", "2"].iter().all(|n| streams[*n].as_f64() > Some(0.0)), "{bench}");
    assert!(bench["speculation"]["both"]["geometric_mean"].as_f64() > Some(0.0), "{bench}");
}

/// Texts are scored and answers written on a device; likelihoods are about the processor's.
pub(crate) fn a_model_is_scored_on_a_device() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    write(folder);
    let put = |name: &str, lines: &[Value]| {
        let text: Vec<String> = lines.iter().map(Value::to_string).collect();
        std::fs::create_dir_all(folder.join("data")).unwrap();
        std::fs::write(folder.join("data").join(name), text.join("\n")).unwrap();
    };
    let long = "a text of some length, of which a few pieces are read ".repeat(3);
    let query = json!({"query": long, "choices": ["x", "yz", "abc"], "gold": 1});
    put("arc_easy.jsonl", &[query, json!({"query": "ab", "choices": ["c", "d"], "gold": 0})]);
    put("perplexity.jsonl", &[json!({"text": long})]);
    put("gsm8k.jsonl", &[json!({"turns": ["1 + 1?"], "reference": "#### 2"})]);
    let score = "score --model model.gguf --data data --max-length 64 --max-tokens 8 --json";
    on_device(folder, &format!("{score} device.json"));
    run(folder, &format!("{score} cpu.json --device cpu"));
    let [device, cpu] = ["device.json", "cpu.json"].map(|name| read(&folder.join(name)));
    let tasks = |scores: &Value| -> Vec<String> {
        scores["tasks"].as_object().unwrap().keys().cloned().collect()
    };
    assert_eq!(tasks(&device), ["arc_easy", "gsm8k", "perplexity"]);
    assert_eq!(tasks(&cpu), tasks(&device));
    let of = |scores: &Value| {
        scores["tasks"]["perplexity"]["byte_perplexity"]["value"].as_f64().unwrap()
    };
    let (there, here) = (of(&device), of(&cpu));
    assert!(there != here, "the device rounds otherwise");
    assert!((there / here - 1.0).abs() < 0.02, "{there} and {here}");
    assert!(device["device"].as_str().unwrap().contains("emulator") && cpu["device"].is_null());
    assert!(on_device(folder, &format!("{score} device.json")).contains("done already"));
    // Weights of another precision are the processor's alone.
    let other = format!("{score} other.json --precision q8_0");
    let error = refused(&with_device(folder, &format!("{other} --device cuda")));
    assert!(error.contains("--precision") && error.contains("--device cpu"), "{error}");
    let told = with_device(folder, &other);
    assert!(told.status.success() && !String::from_utf8_lossy(&told.stderr).contains("emulator"));
}

/// Blocks are measured and projections begun on a device, and are about what the processor has.
pub(crate) fn blocks_are_measured_on_a_device() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    write(folder);
    let importance = "importance --model model.gguf --tokens 512 --out";
    on_device(folder, &format!("{importance} device.json"));
    run(folder, &format!("{importance} cpu.json --device cpu"));
    let [there, here] = ["device.json", "cpu.json"].map(|name| {
        let found = read(&folder.join(name));
        let rows = found["angular_distance"].as_array().unwrap().clone();
        let cells = rows.iter().flat_map(|row| row.as_array().unwrap());
        cells.map(|cell| cell.as_f64().unwrap()).collect::<Vec<_>>()
    });
    assert_eq!((there.len(), here.len()), (6, 6));
    assert_ne!(there, here, "the device rounds otherwise");
    for (there, here) in there.iter().zip(&here) {
        assert!((there - here).abs() < 0.01, "{there} and {here}");
    }
    let prune = "prune --model model.gguf --draft-kind attached --blocks 2 --states 1 --out";
    on_device(folder, &format!("{prune} device"));
    run(folder, &format!("{prune} cpu --device cpu"));
    let [there, here] = ["device", "cpu"].map(|name| {
        let mut drafter = Checkpoint::open(&folder.join(name)).unwrap();
        drafter.tensor("attached.first.weight").unwrap().to_f32()
    });
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    let cosine = dot(&there, &here) / (dot(&there, &there) * dot(&here, &here)).sqrt();
    assert!(there != here && cosine > 0.99, "{cosine}");
}

/// What a device does not compute or hold is computed on the processor where the choice is left, with the processor's
/// numbers, and refused where the device is named.
pub(crate) fn the_processor_computes_what_a_device_does_not() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    write(folder);
    letters::write(&folder.join("other.gguf"), 128);
    let none = "weights do not fit onto the device";
    for (case, (model, memory, reason)) in [
        ("other.gguf", MEMORY, "head_dim"),
        ("model.gguf", "200000", none),
        ("model.gguf", "1500000", "--gpu-memory-utilization"),
    ]
    .into_iter()
    .enumerate()
    {
        let generate = |out: &str| {
            format!(
                "generate --model {model} --prompts prompts.jsonl --max-prompt-tokens 64 --max-tokens 8 \
                 --top-logprobs 2 --out {case}-{out}.jsonl"
            )
        };
        let output = with_memory(folder, &generate("auto"), memory);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{case}: {told}");
        assert!(told.contains("computing on the CPU") && told.contains(reason), "{case}: {told}");
        run(folder, &generate("cpu"));
        let bytes = |out: &str| std::fs::read(folder.join(format!("{case}-{out}.jsonl.topk")));
        assert_eq!(bytes("auto").unwrap(), bytes("cpu").unwrap());
        let named = format!("{} --device cuda", generate("cuda"));
        let error = refused(&with_memory(folder, &named, memory));
        assert!(error.contains(reason), "{case}: {error}");
    }
    // What was measured on the processor in the place of a device is not measured again.
    let q5_1 = |name: &str| if name.contains("v_proj") { DType::Q5_1 } else { DType::Q8_0 };
    random_model::write_model(&folder.join("q5_1.gguf"), &shape(), 7, &q5_1, &|_| 1.0);
    gguf::add_letters(&folder.join("q5_1.gguf"));
    for (model, memory, reason) in [("q5_1.gguf", MEMORY, "Q5_1"), ("model.gguf", "200000", none)] {
        let importance = format!("importance --model {model} --tokens 512 --out {model}.json");
        let [first, again] = [(); 2].map(|()| with_memory(folder, &importance, memory));
        let told = [&first, &again].map(|it| String::from_utf8_lossy(&it.stderr).into_owned());
        assert!(first.status.success() && again.status.success(), "{told:?}");
        assert!(told[0].contains("computing on the CPU") && told[0].contains(reason), "{told:?}");
        assert!(!told[0].contains("done already") && told[1].contains("done already"), "{told:?}");
        let error = refused(&with_memory(folder, &format!("{importance} --device cuda"), memory));
        assert!(error.contains(reason), "{model}: {error}");
    }
    // A draft that does not fit is missed, not left out.
    let evaluate = "evaluate --model model.gguf --draft attached.gguf --prompts prompts.jsonl --max-tokens 4 --json e.json";
    for memory in (1..20).map(|step| (step * 400_000).to_string()) {
        let output = with_memory(folder, evaluate, &memory);
        assert!(output.status.success(), "{memory}: {}", String::from_utf8_lossy(&output.stderr));
        let found = read(&folder.join("e.json"));
        assert!(found["draft_tokens"].as_u64() > Some(0), "{memory}: {found}");
    }
}

/// Without a driver, without a device, or without so many, a device that is named is missed, and what helps is said.
pub(crate) fn a_device_that_is_not_there_is_missed() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    letters::write(&folder.join("model.gguf"), 64);
    std::fs::write(folder.join("p.jsonl"), r#"{"turns": ["a"]}"#).unwrap();
    std::fs::write(folder.join("perplexity.jsonl"), r#"{"text": "abc"}"#).unwrap();
    for line in [
        "generate --prompts p.jsonl --out a.jsonl",
        "evaluate --draft model.gguf --prompts p.jsonl",
        "bench",
        "score --data .",
    ] {
        let line = format!("{line} --model model.gguf --device cuda:99");
        let error = refused(&tools(folder, &line.split_whitespace().collect::<Vec<_>>()));
        for part in ["--device cuda:99", "no CUDA device", "`--device cpu`"] {
            assert!(error.contains(part), "{line}: {error}");
        }
    }
    let error = refused(&tools(folder, &["bench", "--device", "gpu"]));
    assert!(error.contains("`auto`, `cpu`, `cuda` or `cuda:N`"), "{error}");
}
