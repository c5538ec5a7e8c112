//! Model files: what is written is read back, what is damaged is refused, and the hub's protocol.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use pleach::checkpoint::Checkpoint;
use pleach::checkpoint::write::{Meta, gguf_file};
use pleach::kv_cache::{BlockPool, BlockTable};
use pleach::model::{Decoder, RopeScaling, Rows, Workspace, tensor_names};
use pleach_kernels::{DType, ThreadPool};
use serde_json::{Value, json};

mod hub;
mod missing;
mod parts;
mod phi3;
mod quantized;
mod stored_types;
#[path = "../support/mod.rs"]
mod support;
mod templates;
mod tokenizers;

use support::gguf::{self, Foreign};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(name)
}

fn load(path: &Path) -> Result<Decoder, Box<dyn std::error::Error>> {
    Ok(Decoder::load(&mut Checkpoint::open(path)?, &Arc::new(ThreadPool::new(1)))?)
}

fn logits(decoder: &Decoder) -> Vec<f32> {
    let (mut pool, mut table) = (BlockPool::new(1), BlockTable::default());
    assert!(table.reserve(9, &mut pool));
    let mut rows = Rows::default();
    rows.push(&table, 0, [3, 1, 4, 1, 5, 9, 2, 6, 5], 9);
    decoder.forward(&rows, &mut decoder.new_kv_cache(1), &mut Workspace::new()).to_vec()
}

/// Writes all tensors of a folder as a GGUF file.
fn convert(folder: &Path, path: &Path) {
    gguf::convert(folder, path, &[("tokenizer.ggml.eos_token_id", Meta::Number(2))]);
}

/// Copies a golden's weights with another `config.json`.
fn variant(folder: &Path, name: &str, change: impl FnOnce(&mut Value)) -> PathBuf {
    let out = folder.join("variant");
    std::fs::create_dir_all(&out).unwrap();
    for file in ["config.json", "model.safetensors", "generation_config.json"] {
        std::fs::copy(golden(name).join(file), out.join(file)).unwrap();
    }
    let path = out.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut config);
    std::fs::write(&path, config.to_string()).unwrap();
    out
}

/// Rotary settings of every kind.
fn scalings() -> Vec<(&'static str, Value)> {
    vec![
        (
            "dynamic",
            json!({"rope_type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 100}),
        ),
        (
            "yarn",
            json!({"rope_type": "yarn", "factor": 3.0, "original_max_position_embeddings": 64}),
        ),
        (
            "yarn with betas",
            json!({"rope_type": "yarn", "factor": 3.0, "original_max_position_embeddings": 64,
                "beta_fast": 4.0, "beta_slow": 0.5, "attention_factor": 1.37}),
        ),
        (
            "yarn with mscale",
            json!({"rope_type": "yarn", "factor": 3.0, "original_max_position_embeddings": 64,
                "mscale": 0.7, "mscale_all_dim": 1.3}),
        ),
        ("linear", json!({"type": "linear", "factor": 2.5})),
        (
            "llama3",
            json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 32}),
        ),
        (
            "longrope",
            json!({"rope_type": "longrope", "short_factor": [1.0, 1.5, 2.25, 7.0],
                "long_factor": [1.0, 1.5, 2.25, 7.0], "attention_factor": 1.0}),
        ),
    ]
}

/// A folder and the GGUF file made of it compute the same bits, in every family and with every scaling and
/// window.
#[test]
fn gguf_files_hold_what_folders_hold() {
    let temporary = tempfile::tempdir().unwrap();
    let mut folders: Vec<(String, PathBuf)> = [
        "llama-tied",
        "llama-linear",
        "llama-yarn",
        "llama3-rope",
        "qwen2-sharded",
        "qwen3",
        "qwen2-window",
        "mistral-window",
        "gemma2",
        "gemma3",
        "smollm3",
        "phi3",
        "llama-biases",
    ]
    .iter()
    .map(|name| ((*name).to_owned(), golden(name)))
    .collect();
    for (name, scaling) in scalings() {
        let own = temporary.path().join(name);
        std::fs::create_dir(&own).unwrap();
        let change = |config: &mut Value| {
            config.as_object_mut().unwrap().remove("rope_parameters");
            config["rope_scaling"] = scaling;
        };
        folders.push((name.to_owned(), variant(&own, "llama3-rope", change)));
    }
    let mixed = variant(temporary.path(), "qwen2-window", |config| {
        config["layer_types"] = json!(["sliding_attention", "full_attention"]);
    });
    folders.push(("a window before a block without".into(), mixed));
    let mut seen: Vec<Vec<f32>> = Vec::new();
    for (name, folder) in folders {
        let path = temporary.path().join("model.gguf");
        convert(&folder, &path);
        let (from_folder, from_file) = (load(&folder).unwrap(), load(&path).unwrap());
        let (a, b) = (from_folder.config(), from_file.config());
        assert_eq!((&a.rope, &a.sliding_window), (&b.rope, &b.sliding_window), "{name}");
        assert_eq!(a.design, b.design, "{name}");
        assert_eq!(a.max_position_embeddings, b.max_position_embeddings, "{name}");
        let computed = logits(&from_folder);
        assert!(computed == logits(&from_file), "{name}");
        assert!(!seen.contains(&computed), "{name} changes nothing");
        seen.push(computed);
    }
}

/// What other programs write: llama.cpp's keys and tensors alone.
#[test]
fn keys_of_other_programs_scale_positions() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("model.gguf");
    let distance = |a: &[f32], b: &[f32]| {
        let square = |v: f32| f64::from(v) * f64::from(v);
        let distance: f64 = a.iter().zip(b).map(|(a, b)| square(a - b)).sum();
        (distance / b.iter().map(|v| square(*v)).sum::<f64>()).sqrt()
    };
    for (name, scaling) in scalings() {
        let folder = variant(temporary.path(), "llama3-rope", |config| {
            config.as_object_mut().unwrap().remove("rope_parameters");
            config["rope_scaling"] = scaling;
        });
        convert(&folder, &path);
        if name != "linear" || gguf::has(&path, "pleach.config") {
            gguf::hide(&path, "pleach.config");
        }
        let error = distance(&logits(&load(&path).unwrap()), &logits(&load(&folder).unwrap()));
        assert!(error < 1e-5, "{name}: {error}");
    }
    // Linear scaling as files of 2023 have it, and beside a tensor of divisors.
    let plain = golden("llama-tied");
    convert(&plain, &path);
    gguf::hide(&path, "llama.rope.scaling.type");
    gguf::add(&path, &[("llama.rope.scale_linear", Foreign::Float(4.0))]);
    let scaled = load(&path).unwrap();
    assert_eq!(scaled.config().rope.scaling, RopeScaling::Linear { factor: 4.0 });
    convert(&golden("llama3-rope"), &path);
    gguf::hide(&path, "pleach.config");
    let RopeScaling::Factors(before) = load(&path).unwrap().config().rope.scaling.clone() else {
        panic!("no divisors");
    };
    gguf::hide(&path, "llama.rope.scaling.type");
    gguf::add(&path, &[("llama.rope.scale_linear", Foreign::Float(4.0))]);
    let RopeScaling::Factors(after) = load(&path).unwrap().config().rope.scaling.clone() else {
        panic!("no divisors");
    };
    assert_eq!(after, before.iter().map(|by| by * 4.0).collect::<Vec<_>>());
}

/// A scaled context is as long as the scaling makes it.
#[test]
fn scaling_lengthens_the_context() {
    let temporary = tempfile::tempdir().unwrap();
    let yarn = json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256});
    let linear = json!({"rope_type": "linear", "factor": 4.0});
    let dynamic = json!({"rope_type": "dynamic", "factor": 4.0});
    for (scaling, positions) in [(yarn, 1024), (linear, 1024), (dynamic, 256)] {
        let folder = variant(temporary.path(), "llama3-rope", |config| {
            config.as_object_mut().unwrap().remove("rope_parameters");
            config["rope_scaling"] = scaling.clone();
        });
        let mut config = Checkpoint::open(&folder).unwrap().config;
        assert_eq!(config.max_position_embeddings, positions, "{scaling}");
        config.stretch_positions(4096);
        assert_eq!(config.max_position_embeddings, 1024, "{scaling}");
    }
}

/// Special tokens are those of the tokenizer's files, and generation ends at all that any file names.
#[test]
fn special_tokens_come_from_the_tokenizer() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = variant(temporary.path(), "llama-tied", |config| {
        config["bos_token_id"] = json!(5);
        config["eos_token_id"] = json!([7, 5]);
    });
    let write = |name: &str, text: String| std::fs::write(folder.join(name), text).unwrap();
    write("tokenizer.json", gguf::letters_json());
    write("generation_config.json", json!({"eos_token_id": [9, 7]}).to_string());
    let shown = "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{{ unk_token is defined }}";
    write("chat_template.jinja", shown.to_owned());
    let check = |settings: Value, expected: &str, ends: &[u32]| {
        write("tokenizer_config.json", settings.to_string());
        let checkpoint = Checkpoint::open(&folder).unwrap();
        let template = checkpoint.compile_template().unwrap().unwrap();
        assert_eq!(template.render(&[], &[]).unwrap(), expected, "{settings}");
        assert_eq!(checkpoint.config.eos_token_ids, ends, "{settings}");
    };
    let object = json!({"content": "<|end|>", "special": true});
    let own = json!({"bos_token": "<|start|>", "eos_token": object, "pad_token": "!"});
    check(own.clone(), "<|start|>|<|end|>|!|False", &[9, 7, 5, 2]);
    check(json!({"bos_token": null, "eos_token": null}), "|||False", &[9, 7, 5]);
    check(json!({}), "&|*||False", &[9, 7, 5]);
    write("special_tokens_map.json", json!({"eos_token": "<|end|>", "unk_token": "?"}).to_string());
    check(json!({"bos_token": "<|start|>"}), "<|start|>|<|end|>||True", &[9, 7, 5, 2]);
    let known = json!({"eos_token": "<|start|>", "added_tokens_decoder": {}});
    check(known, "&|<|start|>||False", &[9, 7, 5, 1]);

    // A file's own end comes before those of turns and messages, whatever their ids.
    let path = temporary.path().join("model.gguf");
    convert(&golden("llama-tied"), &path);
    gguf::add_letters(&path);
    gguf::add(
        &path,
        &[
            ("tokenizer.ggml.eot_token_id", Foreign::Number(0)),
            ("tokenizer.ggml.bos_token_id", Foreign::Number(1)),
        ],
    );
    let mut checkpoint = Checkpoint::open(&path).unwrap();
    assert_eq!(checkpoint.config.eos_token_ids, [2, 0]);
    assert_eq!(checkpoint.special_tokens["eos_token"], "<|end|>");
    assert_eq!(checkpoint.special_tokens["bos_token"], "<|start|>");
    // The template ends turns with a token that no key names.
    checkpoint.config.eos_token_ids = vec![0];
    let template = checkpoint.compile_template().unwrap();
    checkpoint.end_at_turns(template.as_ref());
    assert_eq!(checkpoint.config.eos_token_ids, [0, 2]);
}

/// Cut off anywhere, or with any byte changed, a file is refused or read, and never more than that.
#[test]
fn damaged_files_never_panic() {
    let temporary = tempfile::tempdir().unwrap();
    let gguf = temporary.path().join("model.gguf");
    convert(&golden("llama-tied"), &gguf);
    let folder = temporary.path().join("folder");
    std::fs::create_dir(&folder).unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(golden("llama-tied").join(file), folder.join(file)).unwrap();
    }
    let seed = std::time::UNIX_EPOCH.elapsed().map_or(1, |t| t.as_nanos() as u64);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for (file, model) in [
        (gguf.clone(), gguf),
        (folder.join("config.json"), folder.clone()),
        (folder.join("model.safetensors"), folder.clone()),
    ] {
        let whole = std::fs::read(&file).unwrap();
        let header = whole.len().min(6000);
        // Nothing is missing where only the last line's end is.
        let needed = whole.trim_ascii_end().len().min(header);
        for _ in 0..60 {
            std::fs::write(&file, &whole[..random.usize(..needed)]).unwrap();
            assert!(load(&model).is_err(), "a cut file was taken for a whole one");
        }
        for _ in 0..400 {
            let mut bytes = whole.clone();
            for _ in 0..random.usize(1..4) {
                bytes[random.usize(..header)] = random.u8(..);
            }
            std::fs::write(&file, &bytes).unwrap();
            if let Err(error) = load(&model) {
                assert!(!error.to_string().is_empty());
            }
        }
        std::fs::write(&file, &whole).unwrap();
        load(&model).unwrap();
    }
}

#[test]
fn errors_name_the_file_and_the_field() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    std::fs::copy(golden("qwen3").join("model.safetensors"), folder.join("model.safetensors"))
        .unwrap();
    let text = std::fs::read_to_string(golden("qwen3").join("config.json")).unwrap();
    for (from, to, expected) in [
        ("\"qwen3\"", "\"gpt9\"", "model_type"),
        ("\"num_key_value_heads\": 2", "\"num_key_value_heads\": 3", "num_key_value_heads"),
        ("\"hidden_size\": 32", "\"hidden_size\": -1", "hidden_size"),
        ("\"hidden_size\": 32", "\"hidden_size\": 64", "model.embed_tokens.weight"),
        ("\"silu\"", "\"relu\"", "hidden_act"),
    ] {
        assert!(text.contains(from), "{from}");
        std::fs::write(folder.join("config.json"), text.replace(from, to)).unwrap();
        let error = load(folder).err().unwrap().to_string();
        assert!(error.contains(expected), "{to}: {error}");
    }
    let missing = load(&folder.join("nothing")).err().unwrap().to_string();
    assert!(missing.contains("nothing"), "{missing}");
}

/// A draft of another model is refused with a reason.
#[test]
fn a_draft_must_fit_its_target() {
    let pool = Arc::new(ThreadPool::new(1));
    let target = load(&golden("llama-tied")).unwrap();
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("draft.gguf");
    let mut checkpoint = Checkpoint::open(&golden("llama-tied")).unwrap();
    let config = checkpoint.config.clone();
    let tensors: Vec<_> = tensor_names(&config, |name| checkpoint.has(name))
        .into_iter()
        .map(|name| {
            let mut tensor = checkpoint.tensor(&name).unwrap();
            if tensor.shape.len() == 2 && tensor.shape[1].is_multiple_of(32) {
                tensor.data = DType::Q4_0.quantize(&tensor.to_f32()).unwrap();
                tensor.dtype = DType::Q4_0;
            }
            (name, tensor)
        })
        .collect();
    let write = |vocab: &[u32], config: &pleach::model::ModelConfig| {
        let more = [("pleach.draft_vocab", Meta::Numbers(vocab))];
        gguf_file(&path, "draft", config, &more, &tensors).unwrap();
        Decoder::load_draft(&mut Checkpoint::open(&path).unwrap(), &target, &pool)
    };
    let draft = write(&[1, 5, 9], &config).unwrap();
    assert_eq!((draft.head_rows(), draft.draft_vocab().unwrap()[..].to_vec()), (3, vec![1, 5, 9]));
    for vocab in [&[5, 1][..], &[1, 1], &[1, 96], &[]] {
        let error = write(vocab, &config).err().unwrap().to_string();
        assert!(error.contains("vocabulary"), "{error}");
    }
    let mut other = config.clone();
    other.vocab_size = 97;
    let error = write(&[1], &other).err().unwrap().to_string();
    assert!(error.contains("vocab_size is 97, the target's is 96"), "{error}");
}
