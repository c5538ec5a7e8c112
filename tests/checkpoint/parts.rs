//! GGUF files in parts.

use std::path::{Path, PathBuf};

use pleach::checkpoint::Checkpoint;

use super::support::gguf::{self, Foreign, ForeignTensor};
use super::{load, logits};

const VOCAB: u32 = 96;
const HIDDEN: u32 = 32;

/// All tensors of a model with 2 blocks.
fn tensors() -> Vec<ForeignTensor> {
    let mut random = fastrand::Rng::with_seed(11);
    let mut tensor = |name: String, shape: &[u32]| -> ForeignTensor {
        let count = shape.iter().product();
        let data = (0..count).flat_map(|_| (random.f32() - 0.5).to_le_bytes()).collect();
        (name, 0, shape.iter().map(|size| *size as usize).collect(), data)
    };
    let mut tensors = vec![tensor("token_embd.weight".into(), &[VOCAB, HIDDEN])];
    for block in 0..2 {
        for part in ["attn_norm", "ffn_norm"] {
            tensors.push(tensor(format!("blk.{block}.{part}.weight"), &[HIDDEN]));
        }
        for part in ["attn_q", "attn_output", "ffn_gate", "ffn_up", "ffn_down"] {
            tensors.push(tensor(format!("blk.{block}.{part}.weight"), &[HIDDEN, HIDDEN]));
        }
        for part in ["attn_k", "attn_v"] {
            tensors.push(tensor(format!("blk.{block}.{part}.weight"), &[HIDDEN / 2, HIDDEN]));
        }
    }
    tensors.push(tensor("output_norm.weight".into(), &[HIDDEN]));
    tensors
}

/// What every part says of itself.
fn split(number: u32, count: u32, tensors: usize) -> Vec<(&'static str, Foreign<'static>)> {
    vec![
        ("split.no", Foreign::Number(number)),
        ("split.count", Foreign::Number(count)),
        ("split.tensors.count", Foreign::Number(tensors as u32)),
    ]
}

fn place(folder: &Path, number: u32) -> PathBuf {
    folder.join(format!("tiny-{number:05}-of-00003.gguf"))
}

/// Writes the model in three parts, the first of which has the metadata and no tensors.
pub(crate) fn write_parts(folder: &Path) {
    let tensors = tensors();
    let mut keys = gguf::llama(VOCAB, HIDDEN, HIDDEN, 2);
    keys.extend(split(0, 3, tensors.len()));
    gguf::write(&place(folder, 1), &keys, &[]);
    let (a, b) = tensors.split_at(tensors.len() / 2);
    gguf::write(&place(folder, 2), &split(1, 3, tensors.len()), a);
    gguf::write(&place(folder, 3), &split(2, 3, tensors.len()), b);
}

#[test]
fn any_part_opens_the_model() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    write_parts(folder);
    let whole = folder.join("whole.gguf");
    gguf::write(&whole, &gguf::llama(VOCAB, HIDDEN, HIDDEN, 2), &tensors());
    let expected = logits(&load(&whole).unwrap());
    let mut fingerprints = Vec::new();
    for number in 1..=3 {
        let path = place(folder, number);
        let checkpoint = Checkpoint::open(&path).unwrap();
        assert_eq!(checkpoint.name, "tiny");
        fingerprints.push(checkpoint.fingerprint().unwrap());
        assert!(logits(&load(&path).unwrap()) == expected, "part {number}");
    }
    assert!(fingerprints.iter().all(|other| *other == fingerprints[0]));
    // Every part counts.
    for number in 1..=3 {
        let path = place(folder, number);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, [&bytes[..], b"."].concat()).unwrap();
        let changed = Checkpoint::open(&place(folder, 1)).unwrap().fingerprint().unwrap();
        assert_ne!(changed, fingerprints[0], "part {number}");
        std::fs::write(&path, bytes).unwrap();
    }
}

#[test]
fn all_parts_are_summed_up() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    write_parts(folder);
    let summary = Checkpoint::open(&place(folder, 3)).unwrap().summary();
    let parameters: usize =
        tensors().iter().map(|(_, _, shape, _)| shape.iter().product::<usize>()).sum();
    assert_eq!((summary.parameters, summary.bytes), (parameters as u64, 4 * parameters as u64));
    assert_eq!((summary.hidden_size, summary.vocab_size), (HIDDEN as usize, VOCAB as usize));
    assert_eq!(summary.quantization, "F32");
    // What a file calls its mixture comes before what most weights have.
    let whole = folder.join("whole.gguf");
    let mut keys = gguf::llama(VOCAB, HIDDEN, HIDDEN, 2);
    keys.push(("general.file_type", Foreign::Number(15)));
    gguf::write(&whole, &keys, &tensors());
    assert_eq!(Checkpoint::open(&whole).unwrap().summary().quantization, "Q4_K_M");
    let folder = Checkpoint::open(&super::golden("llama-bf16")).unwrap().summary();
    assert_eq!((folder.bytes, &*folder.quantization), (2 * folder.parameters, "BF16"));
}

#[test]
fn parts_that_do_not_fit_are_named() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let error = |number: u32| Checkpoint::open(&place(folder, number)).unwrap_err().to_string();
    write_parts(folder);
    std::fs::remove_file(place(folder, 2)).unwrap();
    for opened in [1, 3] {
        let error = error(opened);
        let missing = "the model has 3 parts, and ";
        assert!(error.contains(missing) && error.contains("tiny-00002-of-00003.gguf is missing"));
    }
    std::fs::copy(place(folder, 3), place(folder, 2)).unwrap();
    let wrong = error(1);
    assert!(wrong.contains("tiny-00002-of-00003.gguf: split.no"), "{wrong}");
    // A part of another name does not say where the others lie.
    let other = folder.join("model.gguf");
    std::fs::copy(place(folder, 3), &other).unwrap();
    let unnamed = Checkpoint::open(&other).unwrap_err().to_string();
    assert!(unnamed.contains("part 3 of 3") && unnamed.contains("-00003-of-00003.gguf"));
    let tensors = tensors();
    let middle = tensors.len() / 2;
    gguf::write(&place(folder, 2), &split(1, 3, tensors.len()), &tensors[..middle - 1]);
    let fewer = error(1);
    assert!(fewer.contains("split.tensors.count: 20, but the 3 parts have 19"), "{fewer}");
    gguf::write(&place(folder, 2), &split(1, 3, tensors.len()), &tensors[..=middle]);
    let twice = error(1);
    assert!(twice.contains("occurs in") && twice.contains("tiny-00003-of-00003.gguf"), "{twice}");
    gguf::write(&place(folder, 2), &[("split.count", Foreign::Number(u32::MAX))], &[]);
    let many = error(2);
    assert!(many.contains("split.count: this is part 1 of 4294967295"), "{many}");
}
