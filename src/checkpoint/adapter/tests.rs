use std::collections::HashMap;

use serde_json::{Value, json};

use super::*;

const UP: &str = "model.layers.0.mlp.up_proj";
const Q: &str = "model.layers.1.self_attn.q_proj";

/// The shape and the bytes of a tensor of f32.
type Tensor = (Vec<usize>, Vec<u8>);

fn tensor(rows: usize, cols: usize) -> Tensor {
    let values = (1..=rows * cols).flat_map(|value| (value as f32).to_le_bytes());
    (vec![rows, cols], values.collect())
}

/// Writes tensors of f32, by their names.
fn write(folder: &Path, tensors: &[(String, Tensor)]) {
    let views: HashMap<&str, TensorView> = tensors
        .iter()
        .map(|(name, (shape, data))| {
            (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), data).unwrap())
        })
        .collect();
    let bytes = safetensors::serialize(views, None).unwrap();
    std::fs::write(folder.join(TENSORS), bytes).unwrap();
}

fn config(folder: &Path, change: Value) {
    let mut config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 3, "bias": "none",
        "init_lora_weights": true, "rank_pattern": {}, "modules_to_save": null, "loftq_config": {}});
    config.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
    std::fs::write(folder.join(CONFIG), config.to_string()).unwrap();
}

fn both(module: &str, [out, inner]: [usize; 2], rank: usize) -> [(String, Tensor); 2] {
    let name = |half: &str| format!("{PREFIX}{module}.lora_{half}.weight");
    [(name("A"), tensor(rank, inner)), (name("B"), tensor(out, rank))]
}

/// An adapter with factors for two matrices.
fn example() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    config(folder.path(), json!({}));
    write(folder.path(), &[both(UP, [2, 3], 2), both(Q, [4, 3], 2)].concat());
    folder
}

#[test]
fn factors_are_read_and_folded() {
    let folder = example();
    let adapter = Adapter::read(folder.path()).unwrap();
    let shapes: Vec<_> =
        adapter.factors().map(|(name, it)| (name.to_owned(), it.shape())).collect();
    let (up, q) = (format!("{UP}.weight"), format!("{Q}.weight"));
    assert_eq!(shapes, [(up.clone(), [2, 3]), (q, [4, 3])]);
    let mut values = [10.0; 6];
    adapter.fold(&up, &mut values);
    // 10 + 3 / 2 * [[1, 2], [3, 4]] [[1, 2, 3], [4, 5, 6]]
    assert_eq!(values, [23.5, 28.0, 32.5, 38.5, 49.0, 59.5]);
    adapter.fold("model.norm.weight", &mut values);
    assert_eq!(values[0], 23.5);
}

#[test]
fn ranks_and_scales_follow_the_configuration() {
    let folder = example();
    let scales = |change: Value, ranks: [usize; 2]| {
        config(folder.path(), change);
        write(folder.path(), &[both(UP, [2, 3], ranks[0]), both(Q, [4, 3], ranks[1])].concat());
        let adapter = Adapter::read(folder.path()).map_err(|error| error.to_string())?;
        Ok::<_, String>(adapter.factors().map(|(_, factors)| factors.scale).collect::<Vec<_>>())
    };
    assert_eq!(scales(json!({}), [2, 2]).unwrap(), [1.5, 1.5]);
    let root = (3.0 / 2f64.sqrt()) as f32;
    assert_eq!(scales(json!({"use_rslora": true}), [2, 2]).unwrap(), [root, root]);
    let ranks = json!({"rank_pattern": {"up_proj": 4}});
    assert_eq!(scales(ranks, [4, 2]).unwrap(), [0.75, 1.5]);
    let full = json!({"rank_pattern": {(format!("^{Q}")): 4, "^q_proj": 7, "p_proj": 9},
        "alpha_pattern": {"self_attn.q_proj": 8, "layers.0": 5}, "use_rslora": true});
    assert_eq!(scales(full, [2, 4]).unwrap(), [root, 4.0]);
    // The shapes say when a pattern is not followed.
    let error = scales(json!({"rank_pattern": {"q_proj": 4}}), [2, 2]).unwrap_err();
    assert!(
        error.contains(Q) && error.contains("rank 2 and 2") && error.contains("says 4"),
        "{error}"
    );
    for (change, field, said) in [
        (json!({"rank_pattern": {"q_proj": 4, "self_attn.q_proj": 2}}), "rank_pattern", "differ"),
        (json!({"alpha_pattern": {".*proj": 4}}), "alpha_pattern", "one by one"),
        (json!({"alpha_pattern": {"q_proj": "4"}}), "alpha_pattern", "no number"),
        (json!({"rank_pattern": {"q_proj": 0}}), "rank_pattern", "no rank"),
        (json!({"rank_pattern": [4]}), "rank_pattern", "no object"),
    ] {
        let error = scales(change, [2, 2]).unwrap_err();
        assert!(error.contains(CONFIG) && error.contains(field) && error.contains(said), "{error}");
    }
}

#[test]
fn what_is_not_followed_is_named() {
    let folder = example();
    for (field, value) in [
        ("peft_type", json!("IA3")),
        ("peft_type", Value::Null),
        ("r", json!(0)),
        ("r", json!(-1)),
        ("r", Value::Null),
        ("lora_alpha", json!("x")),
        ("use_rslora", json!("yes")),
        ("use_dora", json!(true)),
        ("lora_bias", json!(true)),
        ("bias", json!("all")),
        ("fan_in_fan_out", json!(true)),
        ("modules_to_save", json!(["lm_head"])),
        ("trainable_token_indices", json!([1])),
        ("alora_invocation_tokens", json!([1])),
        ("layer_replication", json!([[0, 2]])),
        ("init_lora_weights", json!("pissa_niter_4")),
    ] {
        config(folder.path(), json!({field: value}));
        let error = Adapter::read(folder.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("{CONFIG}: {field}: ")), "{field}: {error}");
    }
    config(folder.path(), json!({"init_lora_weights": "gaussian"}));
    Adapter::read(folder.path()).unwrap();
    std::fs::write(folder.path().join(CONFIG), "[]").unwrap();
    assert!(Adapter::read(folder.path()).unwrap_err().to_string().contains(CONFIG));
    let nowhere = Adapter::read(&folder.path().join("nowhere")).unwrap_err().to_string();
    assert!(nowhere.contains("nowhere") && nowhere.contains("name a folder"), "{nowhere}");
}

#[test]
fn wrong_tensors_are_named() {
    let folder = example();
    let name = |rest: &str| format!("{PREFIX}{rest}");
    let good = both(UP, [2, 3], 2);
    let row = (vec![3], vec![0; 12]);
    for (tensors, said) in [
        (vec![], "no factors"),
        (vec![good[0].clone()], "two factors"),
        (vec![good[0].clone(), (good[1].0.clone(), row.clone())], "a factor is a matrix"),
        (both(UP, [2, 0], 2).to_vec(), "empty factor"),
        (vec![(name("lm_head.weight"), tensor(2, 3))], "lm_head.weight"),
        (vec![(name("model.embed_tokens.lora_embedding_A"), tensor(2, 3))], "lora_embedding_A"),
        (vec![(name(&format!("{UP}.lora_magnitude_vector.weight")), row)], "magnitude_vector"),
        (vec![("up_proj.lora_A.weight".into(), tensor(2, 3))], "is no factor"),
    ] {
        write(folder.path(), &tensors);
        let error = Adapter::read(folder.path()).unwrap_err().to_string();
        assert!(error.contains(TENSORS) && error.contains(said), "{said}: {error}");
    }
    std::fs::write(folder.path().join(TENSORS), [0; 7]).unwrap();
    assert!(Adapter::read(folder.path()).unwrap_err().to_string().contains(TENSORS));
    std::fs::remove_file(folder.path().join(TENSORS)).unwrap();
    assert!(Adapter::read(folder.path()).unwrap_err().to_string().contains(TENSORS));
}
