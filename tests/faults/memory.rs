//! Contexts that are longer than memory.

use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use pleach::memory;
use pleach::model::{Design, Family, ModelConfig, RopeConfig, RopeScaling};
use pleach_kernels::DType;
use serde_json::json;

use super::support::Server;
use super::support::{gguf, random_model};

/// Held by a test that reckons with what is free, so that no other one of them takes it.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes of the keys and values of one position of the model below.
const POSITION: u64 = 2 * 4 * 8 * 128 * 2;

fn write_model(path: &Path, positions: u64) {
    write_blocks(path, positions, 4);
}

/// The same with another number of decoder blocks.
fn write_blocks(path: &Path, positions: u64, blocks: usize) {
    let config = ModelConfig {
        family: Family::Llama,
        vocab_size: 96,
        hidden_size: 64,
        intermediate_size: 64,
        num_hidden_layers: blocks,
        num_attention_heads: 8,
        num_key_value_heads: 8,
        head_dim: 128,
        max_position_embeddings: positions as usize,
        rms_norm_eps: 1e-5,
        rope: RopeConfig { theta: 10_000.0, scaling: RopeScaling::None },
        sliding_window: None,
        design: Design::default(),
        tie_word_embeddings: true,
        bos_token_id: Some(1),
        eos_token_ids: vec![2],
    };
    random_model::write_model(path, &config, 5, &|_| DType::F16, &|_| 1.0);
    gguf::add_letters(path);
}

fn answer(server: &Server) {
    let body = json!({"prompt": "abc", "max_tokens": 3, "ignore_eos": true});
    assert_eq!(server.post("/v1/completions", &body).status, 200, "{}", server.log());
}

/// What a server says that does not start.
fn refusal(arguments: &[&str]) -> String {
    let mut program = Command::new(env!("CARGO_BIN_EXE_pleach"));
    let output = program.args(["--port", "0", "--threads", "1"]).args(arguments).output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{log}");
    log
}

/// The number behind a text.
fn number(log: &str, before: &str) -> u64 {
    let (_, rest) = log.split_once(before).unwrap_or_else(|| panic!("{log}"));
    rest.split(' ').next().unwrap().parse().unwrap()
}

/// The cache takes what is left; where that holds no sequence, the program ends and says what would.
#[test]
fn a_cache_beyond_memory() {
    let _alone = alone();
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("long.gguf");
    let model = path.to_string_lossy().into_owned();
    let free = memory::available().unwrap();
    // One sequence fits, four do not.
    write_model(&path, free / POSITION * 2 / 5);
    let server = Server::start(&["--model", &model]);
    assert!(
        server.log().contains("the K/V cache is as large as memory allows"),
        "{}",
        server.log()
    );
    answer(&server);
    drop(server);
    write_model(&path, free / POSITION * 3 / 2);
    let most = number(&refusal(&["--model", &model]), "set --max-model-len to ");
    let server = Server::start(&["--model", &model, "--max-model-len", &(most / 2).to_string()]);
    answer(&server);
}

/// Keys and values of 8 bits take about half as much: a sequence fits that does not otherwise.
#[test]
fn an_int8_cache_has_room_for_twice_as_much() {
    let _alone = alone();
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("long.gguf");
    let model = path.to_string_lossy().into_owned();
    write_model(&path, memory::available().unwrap() / POSITION * 5 / 4);
    let f16 = number(&refusal(&["--model", &model]), "set --max-model-len to ");
    let int8 = ["--model", &model, "--kv-cache-dtype", "int8"];
    let server = Server::start(&int8);
    answer(&server);
    let positions = 16.0 * server.metric("pleach_kv_cache_blocks{model=\"long\"}");
    drop(server);
    // 128 codes and a scale of 4 bytes in place of 128 cells of 2 bytes, where as much memory is left as before.
    let ratio = positions / f16 as f64;
    assert!((1.5..2.6).contains(&ratio), "{positions} and {f16}");
}

/// Blocks that are asked for and do not fit are not cut down: the program ends and says how many would.
#[test]
fn more_blocks_than_memory() {
    let _alone = alone();
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("short.gguf");
    let model = path.to_string_lossy().into_owned();
    write_model(&path, 64);
    let free = memory::available().unwrap() / POSITION / 16;
    let blocks = (free * 3 / 2).to_string();
    let log = refusal(&["--model", &model, "--kv-blocks", &blocks]);
    assert!(log.contains("lower --kv-blocks"), "{log}");
    let most = number(&log, "room for ");
    assert!((free / 2..free).contains(&most), "{most} of {free}: {log}");
    answer(&Server::start(&["--model", &model, "--kv-blocks", &(most / 2).to_string()]));
}

/// A draft that would need more than the serving caches leave is refused before it is loaded, and nothing changes.
#[test]
fn a_draft_beyond_memory_is_not_switched_in() {
    let _alone = alone();
    let temporary = tempfile::tempdir().unwrap();
    let path = |name: &str| temporary.path().join(name);
    write_blocks(&path("model.gguf"), 64, 4);
    // Its cache is as large as the target's; the other's a quarter of that.
    write_blocks(&path("large.gguf"), 64, 4);
    write_blocks(&path("small.gguf"), 64, 1);
    let free = memory::available().unwrap() / POSITION / 16;
    let (model, blocks) = (path("model.gguf"), (free * 6 / 10).to_string());
    let server = Server::start(&[
        "--model",
        model.to_str().unwrap(),
        "--kv-blocks",
        &blocks,
        "--admin-key",
        "sesame",
    ]);
    let admin = |method: &str, body: &str| {
        server.request(method, "/admin/draft", "authorization: Bearer sesame\r\n", body)
    };
    let change = |name: &str| {
        let body = json!({"draft": path(name), "tokens": 100});
        admin("POST", &body.to_string())
    };
    let refused = change("large.gguf");
    assert_eq!(refused.status, 400, "{refused:?}");
    let message = refused.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("the draft needs ") && message.contains(" MB are left"), "{message}");
    assert_eq!(admin("GET", "").json(), json!({"draft": null, "comparison": null}));
    answer(&server);
    assert_eq!(change("small.gguf").status, 202);
    assert_eq!(admin("GET", "").json()["comparison"]["state"], "comparing");
    answer(&server);
}

/// Models share what is left of memory: each has half where both want more, and where one wants little, the other has the
/// rest.
#[test]
fn caches_of_several_models_share_memory() {
    let _alone = alone();
    let temporary = tempfile::tempdir().unwrap();
    let path = |name: &str| temporary.path().join(name).to_string_lossy().into_owned();
    let free = memory::available().unwrap();
    // One sequence fits into half of it, two do not.
    write_model(Path::new(&path("long.gguf")), free / POSITION * 3 / 10);
    write_model(Path::new(&path("short.gguf")), 64);
    let all = (free / POSITION / 16) as f64;
    for (main, also, shares) in [
        ("long.gguf", "long.gguf", [0.3..0.6, 0.3..0.6]),
        ("long.gguf", "short.gguf", [0.6..1.2, 0.0..0.01]),
        ("short.gguf", "long.gguf", [0.0..0.01, 0.6..1.2]),
    ] {
        let also = format!("also={}", path(also));
        let server = Server::start(&[
            "--model",
            &path(main),
            "--served-model-name",
            "main",
            "--also",
            &also,
        ]);
        for (name, share) in ["main", "also"].into_iter().zip(shares) {
            let blocks = format!("pleach_kv_cache_blocks{{model=\"{name}\"}}");
            let body = json!({"model": name, "prompt": "abc", "max_tokens": 3, "ignore_eos": true});
            assert_eq!(server.post("/v1/completions", &body).status, 200, "{}", server.log());
            let part = server.metric(&blocks) / all;
            assert!(share.contains(&part), "{main} {also}: {name} has {part}: {}", server.log());
        }
    }
}
