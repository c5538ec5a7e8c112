//! Contexts that are longer than memory.

use std::path::Path;
use std::process::Command;

use pleach::memory;
use pleach::model::{Family, ModelConfig, RopeConfig, RopeScaling};
use pleach_kernels::DType;
use serde_json::json;

use super::support::Server;
use super::support::{gguf, random_model};

/// Bytes of the keys and values of one position of the model below.
const POSITION: u64 = 2 * 4 * 8 * 128 * 2;

fn write_model(path: &Path, positions: u64) {
    let config = ModelConfig {
        family: Family::Llama,
        vocab_size: 96,
        hidden_size: 64,
        intermediate_size: 64,
        num_hidden_layers: 4,
        num_attention_heads: 8,
        num_key_value_heads: 8,
        head_dim: 128,
        max_position_embeddings: positions as usize,
        rms_norm_eps: 1e-5,
        rope: RopeConfig { theta: 10_000.0, scaling: RopeScaling::None },
        sliding_window: None,
        tie_word_embeddings: true,
        bos_token_id: Some(1),
        eos_token_ids: vec![2],
    };
    random_model::write_model(path, &config, 5, &|_| DType::F16, &|_| 1.0);
    gguf::add_letters(path);
}

/// The cache takes what is left; where that holds no sequence, the program ends and says what would.
#[test]
fn a_cache_beyond_memory() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("long.gguf");
    let model = path.to_string_lossy().into_owned();
    let free = memory::available().unwrap();
    let answer = |server: &Server| {
        let body = json!({"prompt": "abc", "max_tokens": 3, "ignore_eos": true});
        assert_eq!(server.post("/v1/completions", &body).status, 200, "{}", server.log());
    };
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
    let mut program = Command::new(env!("CARGO_BIN_EXE_pleach"));
    let output =
        program.args(["--port", "0", "--threads", "1", "--model", &model]).output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{log}");
    let (_, most) = log.split_once("set --max-model-len to ").unwrap_or_else(|| panic!("{log}"));
    let most: u64 = most.split(' ').next().unwrap().parse().unwrap();
    let server = Server::start(&["--model", &model, "--max-model-len", &(most / 2).to_string()]);
    answer(&server);
}
