//! What files lack, or have too much of.

use pleach::checkpoint::Checkpoint;
use serde_json::{Value, json};

use super::support::gguf::{self, Foreign};
use super::{convert, golden, load, variant};

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
        ("llama.block_count", Foreign::Number(1 << 24), "num_hidden_layers: 16777216 is above"),
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
