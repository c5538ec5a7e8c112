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
use pleach::model::{Decoder, Rows, Workspace, tensor_names};
use pleach::ops::{DType, ThreadPool};

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
    let mut checkpoint = Checkpoint::open(folder).unwrap();
    let config = checkpoint.config.clone();
    let mut names = vec!["model.embed_tokens.weight".to_owned()];
    names.extend(tensor_names(&config, |name| checkpoint.has(name)));
    if checkpoint.has("lm_head.weight") {
        names.push("lm_head.weight".into());
    }
    let tensors: Vec<_> = names
        .into_iter()
        .map(|name| {
            let tensor = checkpoint.tensor(&name).unwrap();
            (name, tensor)
        })
        .collect();
    let more = [("tokenizer.ggml.eos_token_id", Meta::Number(2))];
    gguf_file(path, "tiny", &config, &more, &tensors).unwrap();
}

/// A folder and the GGUF file made of it compute the same bits, in every family GGUF can hold.
#[test]
fn gguf_files_hold_what_folders_hold() {
    let temporary = tempfile::tempdir().unwrap();
    for name in ["llama-tied", "llama-linear", "llama-yarn", "qwen2-sharded", "qwen3"] {
        let path = temporary.path().join(format!("{name}.gguf"));
        convert(&golden(name), &path);
        let (folder, file) = (load(&golden(name)).unwrap(), load(&path).unwrap());
        assert_eq!(file.config().rope.theta, folder.config().rope.theta);
        assert!(logits(&folder) == logits(&file), "{name}");
    }
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
        let mut command = Command::new(env!("CARGO_BIN_EXE_pleach-tools"));
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

/// The same for a tokenizer and a chat template: an error or a working one, within a time.
#[test]
fn damaged_tokenizers_and_templates_never_panic() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(golden("llama-tied").join(file), folder.join(file)).unwrap();
    }
    // Byte-level BPE, as the models served have it, of 96 tokens.
    let letters = ('!'..='~').chain(['Ġ', 'Ċ']);
    let vocab: serde_json::Map<_, _> =
        letters.enumerate().map(|(id, letter)| (letter.to_string(), id.into())).collect();
    let tokenizer = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [
            {"id": 96, "content": "<|end|>", "special": true, "single_word": false, "lstrip": false,
             "rstrip": false, "normalized": false}],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                          "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                    "use_regex": true},
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    });
    let template = "{{ bos_token }}{% for m in messages %}<{{ m['role'] | trim }}>{% if loop.last and \
                    m.content.startswith('x') %}{{ raise_exception('no') }}{% endif %}\
                    {{ m.content }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}";
    let files = [
        (folder.join("tokenizer.json"), tokenizer.to_string()),
        (folder.join("chat_template.jinja"), template.to_owned()),
        (
            folder.join("tokenizer_config.json"),
            serde_json::json!({"chat_template": template, "bos_token": "!"}).to_string(),
        ),
    ];
    let write_all = || files.iter().for_each(|(path, text)| std::fs::write(path, text).unwrap());
    write_all();
    let messages = [serde_json::json!({"role": "user", "content": "hello, wörld"})];
    let try_out = || -> Result<(), Box<dyn std::error::Error>> {
        let checkpoint = Checkpoint::open(folder)?;
        if let Some(template) = pleach::text::ChatTemplate::of(&checkpoint)? {
            let text = template.render(&messages, &[])?;
            assert!(text.len() < 1 << 20, "a short template writes a short text");
        }
        if let Some(tokenizer) = &checkpoint.tokenizer {
            let ids = tokenizer.encode("hello, wörld <|end|>", true).map_err(|e| e.to_string())?;
            tokenizer.decode(ids.get_ids(), false).map_err(|e| e.to_string())?;
        }
        Ok(())
    };
    try_out().unwrap();
    let seed = std::time::UNIX_EPOCH.elapsed().map_or(1, |t| t.as_nanos() as u64);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for (index, (path, text)) in files.iter().enumerate() {
        if index == 2 {
            std::fs::remove_file(&files[1].0).unwrap(); // it would come before the one in JSON
        }
        let whole = text.as_bytes();
        for _ in 0..300 {
            let mut bytes = whole.to_vec();
            if random.u8(..4) == 0 {
                bytes.truncate(random.usize(..whole.len()));
            } else {
                for _ in 0..random.usize(1..4) {
                    // One bit, which keeps more files readable than any byte would.
                    bytes[random.usize(..whole.len())] ^= 1 << random.u8(..8);
                }
            }
            std::fs::write(path, &bytes).unwrap();
            if let Err(error) = try_out() {
                assert!(!error.to_string().is_empty());
            }
        }
        write_all();
    }
}
