//! Model files: what is written is read back, what is damaged is refused, and the hub's protocol.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use pleach::checkpoint::Checkpoint;
use pleach::checkpoint::write::{Meta, gguf_file};
use pleach::kv_cache::{BlockPool, BlockTable};
use pleach::model::{Decoder, RopeScaling, Rows, Workspace, tensor_names};
use pleach_kernels::{DType, ThreadPool};
use serde_json::{Value, json};

#[path = "../support/mod.rs"]
mod support;
mod tokenizers;

use support::gguf::{self, Foreign};
use support::program;

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

/// What a family always has must be there; what changes the computation must be known.
#[test]
fn what_a_file_lacks_or_has_too_much_of_is_named() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("model.gguf");
    for (model, hidden, missing) in [
        ("qwen2-window", "blk.0.attn_q.bias", "model.layers.0.self_attn.q_proj.bias"),
        ("qwen2-window", "blk.1.attn_v.bias", "model.layers.1.self_attn.v_proj.bias"),
        ("qwen3", "blk.0.attn_q_norm.weight", "model.layers.0.self_attn.q_norm.weight"),
        ("qwen3", "blk.1.attn_k_norm.weight", "model.layers.1.self_attn.k_norm.weight"),
        ("llama-tied", "blk.1.ffn_down.weight", "model.layers.1.mlp.down_proj.weight"),
    ] {
        convert(&golden(model), &path);
        gguf::hide(&path, hidden);
        let error = load(&path).err().unwrap().to_string();
        assert!(error.contains(&format!("no tensor {missing}")), "{error}");
    }
    let refused = |model: &str, field: &str, value: Value, expected: &[&str]| {
        let folder = variant(temporary.path(), model, |config| config[field] = value);
        let error = load(&folder).err().unwrap().to_string();
        expected.iter().for_each(|text| assert!(error.contains(text), "{error}"));
    };
    refused("llama-tied", "tie_word_embeddings", json!(false), &["no tensor lm_head.weight"]);
    refused("llama-tied", "partial_rotary_factor", json!(0.5), &["partial_rotary_factor: 0.5"]);
    refused("llama-tied", "quantization_config", json!({"quant_method": "fp8"}), &["`fp8`"]);
    refused(
        "qwen3",
        "layer_types",
        json!(["sliding_attention", "full_attention"]),
        &["layer_types"],
    );
    refused("qwen2-window", "layer_types", json!(["full_attention"]), &["layer_types: 1 entries"]);
    refused("qwen2-window", "layer_types", json!(["full_attention", "x"]), &["layer_types"]);
    let nested = json!({"full_attention": {"rope_type": "default"}});
    refused("qwen3", "rope_parameters", nested, &["rope_parameters: `full_attention`"]);
    for (key, value, expected) in [
        (
            "llama.rope.dimension_count",
            Foreign::Number(4),
            "rope.dimension_count: 4 beside heads of 8",
        ),
        ("llama.attention.value_length", Foreign::Number(4), "attention.value_length"),
        ("split.count", Foreign::Number(2), "part 1 of 2"),
        ("llama.attention.causal", Foreign::Bool(false), "attention.causal"),
    ] {
        convert(&golden("llama3-rope"), &path);
        if gguf::has(&path, key) {
            gguf::hide(&path, key);
        }
        gguf::add(&path, &[(key, value)]);
        let error = load(&path).err().unwrap().to_string();
        assert!(error.contains(expected), "{error}");
    }
    // Another format in place of one that is read.
    let folder = variant(temporary.path(), "llama-tied", |_| {});
    let weights = folder.join("model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    let length = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header = String::from_utf8(bytes[8..length].to_vec()).unwrap();
    let mut entries: serde_json::Map<String, Value> = serde_json::from_str(&header).unwrap();
    let put = |entries: serde_json::Map<String, Value>| {
        let mut header = Value::Object(entries).to_string().into_bytes();
        header.resize(header.len().next_multiple_of(8), b' ');
        let whole = [&(header.len() as u64).to_le_bytes()[..], &header, &bytes[length..]].concat();
        std::fs::write(&weights, whole).unwrap();
    };
    let name = "model.layers.1.mlp.up_proj.weight";
    let [start, end] = [0, 1].map(|at| entries[name]["data_offsets"][at].as_u64().unwrap());
    let mut renamed = entries.clone();
    let tensor = renamed.remove(name).unwrap();
    renamed.insert(name.replace(".weight", ".qweight"), tensor);
    put(renamed);
    let error = load(&folder).err().unwrap().to_string();
    assert!(error.contains("up_proj.weight: is missing; there is") && error.contains(".qweight"));
    entries[name]["dtype"] = json!("F8_E4M3");
    entries[name]["shape"] = json!([end - start]);
    put(entries);
    let error = load(&folder).err().unwrap().to_string();
    assert!(error.contains(name) && error.contains("F8_E4M3"), "{error}");
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

/// An index that names other files is of no use beside the whole file; what is missing is said once.
#[test]
fn a_stale_index_is_left_aside() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = variant(temporary.path(), "llama-tied", |_| {});
    let index = json!({"weight_map": {"x": "model-00001-of-00002.safetensors"}});
    std::fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
    load(&folder).unwrap();
    std::fs::remove_file(folder.join("model.safetensors")).unwrap();
    let error = Checkpoint::open(&folder).unwrap_err();
    let chain = format!("{:#}", anyhow::Error::from(error));
    assert_eq!(chain.matches("No such file").count(), 1, "{chain}");
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

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A hub with one model: its listing, and its files by range.
async fn hub(request: Request) -> Response {
    let path = request.uri().path().to_owned();
    if path == "/api/models/pleach/tiny/revision/main" {
        let files = ["README.md", "config.json", "model.safetensors", "pytorch_model.bin"];
        let siblings: Vec<_> = files.iter().map(|f| serde_json::json!({"rfilename": f})).collect();
        let body = serde_json::json!({"id": "pleach/tiny", "sha": COMMIT, "siblings": siblings});
        return axum::Json(body).into_response();
    }
    let Some(name) = path.strip_prefix("/pleach/tiny/resolve/main/") else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let Ok(bytes) = std::fs::read(golden("llama-tied").join(name)) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let range = request.headers().get(header::RANGE).and_then(|range| {
        let (start, end) = range.to_str().ok()?.strip_prefix("bytes=")?.split_once('-')?;
        let end = end.parse::<usize>().map_or(bytes.len(), |end| bytes.len().min(end + 1));
        Some(start.parse::<usize>().ok()?..end)
    });
    let range = range.unwrap_or(0..bytes.len());
    let content = format!("bytes {}-{}/{}", range.start, range.end - 1, bytes.len());
    let headers = [
        ("etag", format!("\"{name}\"")),
        ("x-repo-commit", COMMIT.to_owned()),
        ("accept-ranges", "bytes".to_owned()),
        ("content-range", content),
    ];
    (StatusCode::PARTIAL_CONTENT, headers, bytes[range].to_vec()).into_response()
}

/// `hf:` sources, against a server that speaks the hub's protocol.
#[tokio::test(flavor = "multi_thread")]
async fn models_come_from_a_hub() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(hub)).await });
    let temporary = tempfile::tempdir().unwrap();
    let prune = |source: &str, out: &str| {
        let mut command = Command::new(program("pleach-tools"));
        command
            .args(["prune", "--list", "1", "--model", source, "--out"])
            .arg(temporary.path().join(out))
            .env("HF_ENDPOINT", &endpoint)
            .env("PLEACH_CACHE_DIR", temporary.path().join("cache"));
        tokio::task::spawn_blocking(move || command.output().unwrap())
    };
    let output = prune("hf:pleach/tiny", "pruned").await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let pruned = load(&temporary.path().join("pruned")).unwrap();
    assert_eq!(pruned.config().num_hidden_layers, 1);
    assert!(logits(&pruned).iter().all(|v| v.is_finite()));
    assert!(
        !temporary.path().join("cache").join("pytorch_model.bin").exists(),
        "only what serving needs is fetched"
    );
    let output = prune("hf:pleach/huge", "other").await.unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && error.contains("pleach/huge"), "{error}");
}
