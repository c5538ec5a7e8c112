//! Hugging Face folders whose weights are quantised.

use std::path::Path;
use std::process::Command;

use pleach::checkpoint::Checkpoint;
use pleach_kernels::DType;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

use super::support::program;
use super::{convert, golden, load, logits, variant};

/// The module that is quantised, in a model of 32 inputs and 48 outputs.
const MODULE: &str = "model.layers.1.mlp.up_proj";
const WEIGHT: &str = "model.layers.1.mlp.up_proj.weight";

/// What `config.json` says, for the cases of `tests/python/make_quantized.py`.
fn cases() -> Vec<(&'static str, Value)> {
    let gptq = |group: i32| json!({"quant_method": "gptq", "bits": 4, "group_size": group});
    let second = json!({"quant_method": "gptq", "bits": 4, "group_size": -1, "checkpoint_format": "gptq_v2"});
    let awq = json!({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "GEMM"});
    let tensors = json!({"quant_method": "compressed-tensors", "format": "float-quantized"});
    vec![
        ("fp8-block", json!({"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [32, 16]})),
        ("fp8-row", json!({"quant_method": "fbgemm_fp8"})),
        ("fp8-tensor", tensors),
        ("gptq", gptq(32)),
        ("gptq-v2", second),
        ("gptq-order", gptq(32)),
        ("gptq-small", gptq(32)),
        ("awq", awq.clone()),
        ("awq-small", awq),
    ]
}

/// A folder whose module is that of a case, without what `but` names; gives the weights it stands for.
fn write(
    folder: &Path,
    case: &str,
    quantization: Value,
    but: &[&str],
) -> (std::path::PathBuf, Vec<f32>) {
    let folder =
        variant(folder, "llama-tied", |config| config["quantization_config"] = quantization);
    let goldens = std::fs::read(golden("quantized.safetensors")).unwrap();
    let goldens = SafeTensors::deserialize(&goldens).unwrap();
    let plain = std::fs::read(golden("llama-tied").join("model.safetensors")).unwrap();
    let plain = SafeTensors::deserialize(&plain).unwrap();
    let mut tensors: Vec<(String, TensorView)> =
        plain.tensors().into_iter().filter(|(name, _)| name != WEIGHT).collect();
    let mut expected = Vec::new();
    for (name, tensor) in goldens.tensors() {
        let Some((_, kind)) = name.split_once('.').filter(|(own, _)| *own == case) else {
            continue;
        };
        if kind == "expected" {
            let floats = tensor.data().as_chunks().0.iter();
            expected = floats.map(|bytes| f32::from_le_bytes(*bytes)).collect();
        } else if !but.contains(&kind) {
            tensors.push((format!("{MODULE}.{kind}"), tensor));
        }
    }
    let path = folder.join("model.safetensors");
    safetensors::serialize_to_file(tensors, None, &path).unwrap();
    (folder, expected)
}

#[test]
fn quantised_weights_are_what_they_stand_for() {
    let temporary = tempfile::tempdir().unwrap();
    for (case, quantization) in cases() {
        let (folder, expected) = write(temporary.path(), case, quantization, &[]);
        let mut checkpoint = Checkpoint::open(&folder).unwrap();
        let dtype = if case.starts_with("fp8") { DType::BF16 } else { DType::Q8_0 };
        let info = checkpoint.info(WEIGHT).unwrap();
        assert_eq!((info.dtype, info.shape[0]), (dtype, 48), "{case}");
        let tensor = checkpoint.tensor(WEIGHT).unwrap();
        assert_eq!((tensor.dtype, &tensor.shape), (dtype, &info.shape), "{case}");
        let read = tensor.to_f32();
        assert_eq!(read.len(), expected.len(), "{case}");
        for (read, expected) in read.chunks(32).zip(expected.chunks(32)) {
            let largest = expected.iter().fold(0f32, |largest, v| largest.max(v.abs()));
            // Where groups are mixed, blocks are quantised anew.
            let allowed = if case == "gptq-order" { largest * 0.0045 } else { 0.0 };
            for (read, expected) in read.iter().zip(expected) {
                assert!((read - expected).abs() <= allowed, "{case}: {read}, not {expected}");
            }
        }
    }
}

/// A folder loads, and computes what a file of its tensors does; the tools prune it to one that is not quantised.
#[test]
fn quantised_folders_compute() {
    let temporary = tempfile::tempdir().unwrap();
    let (path, pruned) = (temporary.path().join("model.gguf"), temporary.path().join("pruned"));
    for (case, quantization) in cases() {
        if !["fp8-tensor", "gptq-small", "awq-small"].contains(&case) {
            continue;
        }
        let (folder, expected) = write(temporary.path(), case, quantization, &[]);
        let computed = logits(&load(&folder).unwrap());
        assert!(computed.iter().all(|value| value.is_finite()), "{case}");
        assert!(computed != logits(&load(&golden("llama-tied")).unwrap()), "{case}");
        convert(&folder, &path);
        assert!(computed == logits(&load(&path).unwrap()), "{case}");
        let mut command = Command::new(program("pleach-tools"));
        command.args(["prune", "--list", "0", "--model"]).arg(&folder).arg("--out").arg(&pruned);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{case}: {}", String::from_utf8_lossy(&output.stderr));
        let config = std::fs::read_to_string(pruned.join("config.json")).unwrap();
        assert!(!config.contains("quantization_config"), "{config}");
        let kept = WEIGHT.replace(".1.", ".0.");
        let left = Checkpoint::open(&pruned).unwrap().tensor(&kept).unwrap().to_f32();
        assert_eq!(left, expected, "{case}");
        std::fs::remove_dir_all(&pruned).unwrap();
    }
}

/// What is not read is refused by name.
#[test]
fn other_quantisations_are_named() {
    let temporary = tempfile::tempdir().unwrap();
    let refused = |case: &str, quantization: Value, but: &[&str], expected: &[&str]| {
        let (folder, _) = write(temporary.path(), case, quantization, but);
        let error = load(&folder).err().unwrap().to_string();
        expected.iter().for_each(|text| assert!(error.contains(text), "{error}"));
    };
    for (quantization, expected) in [
        (json!({"quant_method": "bitsandbytes"}), "`bitsandbytes`"),
        (json!({"quant_method": "gptq", "bits": 3}), "bits: `3` of quant_method `gptq`"),
        (json!({"quant_method": "awq", "bits": 4, "version": "gemv"}), "version: `gemv`"),
        (
            json!({"quant_method": "compressed-tensors", "format": "pack-quantized"}),
            "`pack-quantized`",
        ),
        (json!({"quant_method": "fp8", "fmt": "e5m2"}), "fmt: `e5m2`"),
        (json!({"quant_method": "fp8", "weight_block_size": [0, 1]}), "weight_block_size"),
        (json!({"quant_method": "gptq", "group_size": 0}), "group_size: is 0"),
    ] {
        refused("gptq-small", quantization, &[], &["config.json: quantization_config: ", expected]);
    }
    let gptq = |group: i32| json!({"quant_method": "gptq", "bits": 4, "group_size": group});
    let fp8 = || json!({"quant_method": "fp8"});
    let named = |kind: &str| format!("{MODULE}.{kind}");
    let weights = &*named("qweight");
    refused("gptq-small", gptq(32), &["qzeros"], &[weights, &named("qzeros")]);
    refused("gptq-small", gptq(32), &["scales"], &[weights, &named("scales")]);
    refused("gptq-small", gptq(16), &["g_idx"], &[weights, "groups of 16 do not fit 1 scales"]);
    refused("fp8-tensor", fp8(), &["weight_scale"], &[WEIGHT, "no weight_scale beside it"]);
    refused("fp8-row", json!({"quant_method": "awq"}), &[], &[WEIGHT, "F8_E4M3"]);
    refused("fp8-block", fp8(), &[], &[&named("weight_scale_inv"), "[2, 4]", "[48, 64]"]);
}
