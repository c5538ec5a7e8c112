//! Types of GGUF files that are decoded as they are read.

use std::path::Path;
use std::process::Command;

use pleach::checkpoint::write::gguf_file;
use pleach::checkpoint::{Checkpoint, RawTensor};
use pleach::model::tensor_names;
use pleach_kernels::DType;
use safetensors::SafeTensors;

use super::support::gguf::{self, ForeignTensor};
use super::support::program;
use super::{golden, load, logits};

/// Their names, numbers, weights and bytes of a block, and what they are decoded to.
const TYPES: [(&str, u32, [usize; 2], DType); 5] = [
    ("Q2_K", 10, [256, 84], DType::Q8_0),
    ("Q3_K", 11, [256, 110], DType::Q6_K),
    ("IQ4_NL", 20, [32, 18], DType::Q8_0),
    ("IQ4_XS", 23, [256, 136], DType::Q8_0),
    ("MXFP4", 39, [32, 17], DType::Q8_0),
];

/// The widths and rows of the models here.
const HIDDEN: usize = 256;
const VOCAB: usize = 96;

fn floats(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}

/// The vectors of a model with 2 blocks.
fn norms() -> Vec<ForeignTensor> {
    let names =
        ["blk.0.attn_norm", "blk.0.ffn_norm", "blk.1.attn_norm", "blk.1.ffn_norm", "output_norm"];
    let ones = || floats((0..HIDDEN).map(|i| 1.0 + i as f32 / 1024.0));
    names.iter().map(|name| (format!("{name}.weight"), 0, vec![HIDDEN], ones())).collect()
}

/// Weights of the size of a model's, at random.
fn random_blocks(random: &mut fastrand::Rng, name: &str, size: usize, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; size * count];
    random.fill(&mut bytes);
    for block in bytes.chunks_exact_mut(size) {
        let mut put = |at: usize, scale: f32| {
            block[at..at + 2].copy_from_slice(&half::f16::from_f32(scale).to_le_bytes());
        };
        match name {
            "Q2_K" => (put(80, 0.005), put(82, 0.0075)).0,
            "Q3_K" => put(108, 0.001),
            "IQ4_NL" => put(0, 0.001),
            "IQ4_XS" => put(0, 0.0001),
            _ => block[0] = random.u8(119..122),
        }
    }
    bytes
}

/// Writes a model whose matrices are of one type.
fn write_model(path: &Path, (name, id, [weights, size], _): (&str, u32, [usize; 2], DType)) {
    let mut random = fastrand::Rng::with_seed(3);
    let mut tensors = norms();
    let mut matrix = |name_of: String, rows: usize| {
        let blocks = random_blocks(&mut random, name, size, rows * HIDDEN / weights);
        tensors.push((name_of, id, vec![rows, HIDDEN], blocks));
    };
    matrix("token_embd.weight".into(), VOCAB);
    for block in 0..2 {
        for (part, rows) in [("attn_q", 1), ("attn_k", 2), ("attn_v", 2), ("attn_output", 1)] {
            matrix(format!("blk.{block}.{part}.weight"), HIDDEN / rows);
        }
        for part in ["ffn_gate", "ffn_up", "ffn_down"] {
            matrix(format!("blk.{block}.{part}.weight"), HIDDEN);
        }
    }
    gguf::write(path, &gguf::llama(VOCAB as u32, HIDDEN as u32, HIDDEN as u32, 2), &tensors);
}

fn all_tensors(checkpoint: &mut Checkpoint) -> Vec<(String, RawTensor)> {
    let mut names = tensor_names(&checkpoint.config, |name| checkpoint.has(name));
    names.push("model.embed_tokens.weight".into());
    let tensor = |name: String| (name.clone(), checkpoint.tensor(&name).unwrap());
    names.into_iter().map(tensor).collect()
}

/// The weights that the `gguf` package finds (`tests/python/make_gguf_types.py`).
#[test]
fn weights_are_those_of_another_reader() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("model.gguf");
    let bytes = std::fs::read(golden("gguf-types.safetensors")).unwrap();
    let goldens = SafeTensors::deserialize(&bytes).unwrap();
    for (name, id, _, dtype) in TYPES {
        let tensor =
            |part: &str| goldens.tensor(&format!("{name}.{part}")).unwrap().data().to_vec();
        let expected = tensor("weights");
        let expected: Vec<f32> =
            expected.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        let embedding = ("token_embd.weight".to_owned(), id, vec![4, HIDDEN], tensor("bytes"));
        gguf::write(&path, &gguf::llama(4, HIDDEN as u32, 32, 1), &[embedding]);
        let mut checkpoint = Checkpoint::open(&path).unwrap();
        let embedding = "model.embed_tokens.weight";
        assert_eq!(checkpoint.info(embedding).unwrap().dtype, dtype, "{name}");
        let tensor = checkpoint.tensor(embedding).unwrap();
        assert_eq!((tensor.dtype, &tensor.shape[..]), (dtype, &[4, HIDDEN][..]), "{name}");
        for (read, expected) in tensor.to_f32().chunks(32).zip(expected.chunks(32)) {
            let largest = expected.iter().fold(0f32, |largest, v| largest.max(v.abs()));
            for (read, expected) in read.iter().zip(expected) {
                let allowed = match name {
                    // Half a step of 8 bits, and of the scale's 11.
                    "Q2_K" => largest * (0.5 / 127.0 + 0.5 / 1024.0),
                    "IQ4_XS" => expected.abs() / 2048.0,
                    "MXFP4" => f32::exp2(-25.0),
                    _ => 0.0,
                };
                assert!((read - expected).abs() <= allowed, "{name}: {read}, not {expected}");
            }
        }
    }
}

/// A file computes what one in the type that it is decoded to does.
#[test]
fn models_compute_as_in_the_decoded_type() {
    let temporary = tempfile::tempdir().unwrap();
    let (path, copy) = (temporary.path().join("model.gguf"), temporary.path().join("copy.gguf"));
    for kind in TYPES {
        write_model(&path, kind);
        let mut checkpoint = Checkpoint::open(&path).unwrap();
        let tensors = all_tensors(&mut checkpoint);
        let matrices = tensors.iter().filter(|(_, tensor)| tensor.shape.len() == 2);
        matrices.for_each(|(name, tensor)| assert_eq!(tensor.dtype, kind.3, "{name}"));
        gguf_file(&copy, "copy", &checkpoint.config, &[], &tensors).unwrap();
        let computed = logits(&load(&path).unwrap());
        assert!(computed.iter().all(|value| value.is_finite()), "{}", kind.0);
        assert!(computed == logits(&load(&copy).unwrap()), "{}", kind.0);
    }
}

/// The tools prune, pack and export such a file.
#[test]
fn tools_take_files_of_decoded_types() {
    let temporary = tempfile::tempdir().unwrap();
    let place = |name: &str| temporary.path().join(name).to_str().unwrap().to_owned();
    let (model, pruned, packed, exported) =
        (place("model.gguf"), place("pruned"), place("draft.gguf"), place("exported.gguf"));
    for kind in TYPES {
        write_model(Path::new(&model), kind);
        let tool = |arguments: &[&str]| {
            let output = Command::new(program("pleach-tools")).args(arguments).output().unwrap();
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{} {arguments:?}: {error}", kind.0);
        };
        tool(&["prune", "--model", &model, "--list", "0", "--out", &pruned]);
        tool(&["pack", "--model", &model, "--dtype", "q8_0", "--out", &packed]);
        tool(&["export", "--model", &model, "--draft", &pruned, "--out", &exported]);
        let mut whole = Checkpoint::open(Path::new(&model)).unwrap();
        let mut tensor = |name: &str| whole.tensor(name).unwrap();
        let of = |path: &str, name: &str| {
            Checkpoint::open(Path::new(path)).unwrap().tensor(name).unwrap()
        };
        let (kept, left) =
            ("model.layers.1.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight");
        assert_eq!(of(&pruned, left).to_f32(), tensor(kept).to_f32(), "{}", kind.0);
        assert_eq!(of(&packed, kept).dtype, DType::Q8_0, "{}", kind.0);
        let embedding = "model.embed_tokens.weight";
        assert_eq!(of(&exported, embedding).data, tensor(embedding).data, "{}", kind.0);
        std::fs::remove_dir_all(&pruned).unwrap();
    }
}

/// What cannot be read is refused, and says what it is.
#[test]
fn types_that_are_not_read_are_named() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("model.gguf");
    let keys = gguf::llama(4, HIDDEN as u32, 32, 1);
    let refused = |id: u32, shape: &[usize], bytes: Vec<u8>, expected: &[&str]| {
        let name = "token_embd.weight";
        gguf::write(&path, &keys, &[(name.to_owned(), id, shape.to_vec(), bytes)]);
        let tensor = |mut checkpoint: Checkpoint| checkpoint.tensor("model.embed_tokens.weight");
        let error = Checkpoint::open(&path).and_then(tensor).unwrap_err().to_string();
        expected.iter().for_each(|text| assert!(error.contains(text), "{error}"));
        assert!(error.contains(name) && error.contains("model.gguf"), "{error}");
    };
    refused(
        22,
        &[1, 256],
        vec![0; 82],
        &["ggml type 22 (IQ2_S); supported are", "IQ4_XS and MXFP4"],
    );
    refused(99, &[1, 256], vec![0; 82], &["ggml type 99; supported are"]);
    refused(23, &[2, 128], vec![0; 136], &["IQ4_XS of shape [2, 128]"]);
    // 2^19 in the second block, and infinity.
    let mut bytes = vec![0; 34];
    bytes[17] = 147;
    refused(39, &[2, 32], bytes, &["MXFP4 weights from 32 on"]);
    let mut bytes = vec![0; 136];
    bytes[..2].copy_from_slice(&half::f16::MAX.to_le_bytes());
    refused(23, &[1, 256], bytes.clone(), &["IQ4_XS weights from 0 on"]);
    bytes[..2].copy_from_slice(&half::f16::NAN.to_le_bytes());
    refused(23, &[1, 256], bytes, &["or no number"]);
}
