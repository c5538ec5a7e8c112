//! GGUF files of Phi-3 as llama.cpp writes them and reads them, with projections side by side and LongRoPE's divisors as tensors.

use std::path::Path;
use std::sync::Arc;

use pleach::checkpoint::write::{LazyTensor, gguf_file, model_folder};
use pleach::checkpoint::{Checkpoint, NOTE, RawTensor};
use pleach::model::{Decoder, ModelConfig, RopeScaling, tensor_names};
use pleach_kernels::{DType, ThreadPool};
use safetensors::SafeTensors;
use serde_json::json;

use super::support::gguf::{self, Foreign, ForeignTensor};
use super::{golden, load, logits, variant};

const F32: u32 = 0;

/// The tensors of the golden folder by llama.cpp's names.
fn tensors() -> Vec<ForeignTensor> {
    let bytes = std::fs::read(golden("phi3").join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let renamed = |name: &str| {
        let pairs = [
            ("model.embed_tokens", "token_embd"),
            ("model.norm", "output_norm"),
            ("lm_head", "output"),
            ("model.layers", "blk"),
            ("input_layernorm", "attn_norm"),
            ("post_attention_layernorm", "ffn_norm"),
            ("self_attn.qkv_proj", "attn_qkv"),
            ("self_attn.o_proj", "attn_output"),
            ("mlp.gate_up_proj", "ffn_up"),
            ("mlp.down_proj", "ffn_down"),
        ];
        pairs.into_iter().fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
    };
    let tensor = |(name, it): (&str, safetensors::tensor::TensorView)| {
        assert_eq!(it.dtype(), safetensors::Dtype::F32);
        (renamed(name), F32, it.shape().to_vec(), it.data().to_vec())
    };
    let tensors = tensors.iter().map(tensor).collect::<Vec<_>>();
    assert!(tensors.iter().any(|(name, ..)| name == "blk.1.ffn_up.weight"));
    tensors
}

fn divisors(name: &str, values: &[f32]) -> ForeignTensor {
    let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    (name.to_owned(), F32, vec![values.len()], bytes)
}

/// The golden folder's LongRoPE: the divisors, and what cosine and sine are multiplied by.
fn factors() -> ([ForeignTensor; 2], Foreign<'static>) {
    let long = divisors("rope_factors_long.weight", &[1.5, 3.0]);
    let short = divisors("rope_factors_short.weight", &[1.0, 1.1]);
    ([long, short], Foreign::Float((1.0 + 2f64.ln() / 32f64.ln()).sqrt() as f32))
}

/// Writes a file of these tensors with what llama.cpp says of the golden folder's model, trained on `original` positions.
fn write(path: &Path, tensors: &[ForeignTensor], original: u32, more: Vec<(&str, Foreign)>) {
    let mut values = vec![
        ("general.architecture", Foreign::Text("phi3")),
        ("phi3.context_length", Foreign::Number(64)),
        ("phi3.rope.scaling.original_context_length", Foreign::Number(original)),
        ("phi3.embedding_length", Foreign::Number(32)),
        ("phi3.feed_forward_length", Foreign::Number(48)),
        ("phi3.block_count", Foreign::Number(2)),
        ("phi3.attention.head_count", Foreign::Number(4)),
        ("phi3.attention.head_count_kv", Foreign::Number(2)),
        ("phi3.attention.layer_norm_rms_epsilon", Foreign::Float(1e-5)),
        ("phi3.rope.dimension_count", Foreign::Number(4)),
        ("phi3.rope.freq_base", Foreign::Float(10_000.0)),
        ("phi3.attention.sliding_window", Foreign::Number(30)),
        ("tokenizer.ggml.bos_token_id", Foreign::Number(1)),
        ("tokenizer.ggml.eos_token_id", Foreign::Number(2)),
    ];
    values.extend(more);
    gguf::write(path, &values, tensors);
}

/// A model for contexts of so many tokens.
fn load_for(path: &Path, positions: usize) -> Decoder {
    let mut checkpoint = Checkpoint::open(path).unwrap();
    checkpoint.config.stretch_positions(positions);
    Decoder::load(&mut checkpoint, &Arc::new(ThreadPool::new(1))).unwrap()
}

fn same(file: &Decoder, folder: &Decoder) -> Vec<f32> {
    let (a, b) = (file.config(), folder.config());
    assert_eq!((&a.design, &a.sliding_window), (&b.design, &b.sliding_window));
    assert_eq!(a.max_position_embeddings, b.max_position_embeddings);
    let computed = logits(file);
    assert!(computed == logits(folder));
    computed
}

/// The file computes the bits of the folder, in contexts longer than the trained one and in others.
#[test]
fn files_of_phi3_hold_what_folders_hold() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("model.gguf");
    let ([long, short], attention) = factors();
    let scaled = [tensors(), vec![long, short]].concat();
    write(&path, &scaled, 32, vec![("phi3.rope.scaling.attn_factor", attention)]);
    let RopeScaling::LongRope { long, original_max_position_embeddings: original, .. } =
        load(&path).unwrap().config().rope.scaling.clone()
    else {
        panic!("another scaling")
    };
    assert_eq!((long, original), (vec![1.5, 3.0], 32));
    let [long, short] = [64, 32]
        .map(|positions| same(&load_for(&path, positions), &load_for(&golden("phi3"), positions)));
    assert!(long != short);

    // Without those tensors nothing is scaled.
    write(&path, &tensors(), 64, Vec::new());
    let folder = variant(temporary.path(), "phi3", |config| {
        config["original_max_position_embeddings"] = json!(64);
        config["rope_parameters"] =
            json!({"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5});
    });
    let plain = same(&load(&path).unwrap(), &load(&folder).unwrap());
    assert!(plain != long && plain != short);
}

/// A folder that is written of a folder or a file is one of Phi-3, with its projections side by side whatever the order
/// they come in, and computes the same bits.
#[test]
fn folders_are_written_as_phi3_has_them() {
    let temporary = tempfile::tempdir().unwrap();
    let file = temporary.path().join("model.gguf");
    let ([long, short], attention) = factors();
    let scaled = [tensors(), vec![long, short]].concat();
    write(&file, &scaled, 32, vec![("phi3.rope.scaling.attn_factor", attention)]);
    let names = |path: &Path| {
        let bytes = std::fs::read(path.join("model.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let mut names: Vec<String> = tensors.names().iter().map(|&name| name.to_owned()).collect();
        names.sort_unstable();
        names
    };
    for (number, source) in [golden("phi3"), file].iter().enumerate() {
        let (config, mut tensors) = all_tensors(source, DType::F32);
        tensors.sort_by(|(a, _), (b, _)| a.cmp(b));
        let lazy = tensors.iter().map(|(name, tensor)| LazyTensor {
            name: name.clone(),
            dtype: DType::F32,
            shape: tensor.shape.clone(),
            values: Box::new(|| Ok(tensor.to_f32())),
        });
        let folder = temporary.path().join(number.to_string());
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join(NOTE), "of what was there before").unwrap();
        let like = Checkpoint::open(source).unwrap();
        model_folder(&folder, &config, DType::F32, &like, lazy.collect()).unwrap();
        assert_eq!(names(&folder), names(&golden("phi3")));
        assert!(!folder.join(NOTE).exists());
        let [long, short] = [64, 32]
            .map(|positions| same(&load_for(&folder, positions), &load_for(source, positions)));
        assert!(long != short);
    }
}

/// All tensors of a model, by their Hugging Face names.
fn all_tensors(folder: &Path, format: DType) -> (ModelConfig, Vec<(String, RawTensor)>) {
    let mut checkpoint = Checkpoint::open(folder).unwrap();
    let mut names = tensor_names(&checkpoint.config, |name| checkpoint.has(name));
    names.extend(["model.embed_tokens.weight".into(), "lm_head.weight".into()]);
    let mut tensor = |name: String| {
        let tensor = checkpoint.tensor(&name).unwrap();
        let fits = |row: &usize| row.is_multiple_of(format.block_size());
        let dtype = if tensor.shape.get(1).is_some_and(fits) { format } else { DType::F32 };
        let data = dtype.quantize(&tensor.to_f32()).unwrap();
        (name, RawTensor { dtype, shape: tensor.shape, data })
    };
    let tensors = names.into_iter().map(&mut tensor).collect();
    (checkpoint.config, tensors)
}

/// What is written of a folder is a file as llama.cpp has it, which computes the bits of the folder; also by llama.cpp's
/// own keys alone.
#[test]
fn what_is_written_computes_what_the_folder_computes() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("written.gguf");
    let (config, tensors) = all_tensors(&golden("phi3"), DType::F32);
    gguf_file(&path, "written", &config, &[], &tensors).unwrap();
    let whole = std::fs::read(&path).unwrap();
    let has = |text: &str| whole.windows(text.len()).any(|bytes| bytes == text.as_bytes());
    for text in [
        "phi3.rope.scaling.attn_factor",
        "phi3.rope.scaling.original_context_length",
        "phi3.attention.sliding_window",
        "rope_factors_long.weight",
        "rope_factors_short.weight",
        "blk.1.attn_qkv.weight",
        "blk.1.ffn_up.weight",
    ] {
        assert!(has(text), "{text}");
    }
    for text in ["llama.", "attn_q.", "ffn_gate", "rope_freqs", "partial_rotary_factor"] {
        assert!(!has(text), "{text}");
    }
    let key = "pleach.config";
    let at = whole.windows(key.len()).position(|bytes| bytes == key.as_bytes()).unwrap();
    for own in [true, false] {
        let mut bytes = whole.clone();
        if !own {
            bytes[at..at + 6].copy_from_slice(b"nobody");
        }
        std::fs::write(&path, bytes).unwrap();
        let [long, short] = [64, 32].map(|positions| {
            same(&load_for(&path, positions), &load_for(&golden("phi3"), positions))
        });
        assert!(long != short);
    }

    // Heads that turn in part, without scaling.
    let unscaled = variant(temporary.path(), "phi3", |config| {
        config["original_max_position_embeddings"] = json!(64);
        config["rope_parameters"] =
            json!({"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5});
    });
    let (config, tensors) = all_tensors(&unscaled, DType::F32);
    gguf_file(&path, "unscaled", &config, &[], &tensors).unwrap();
    same(&load(&path).unwrap(), &load(&unscaled).unwrap());
    // Blocks of other formats are rows of one matrix too.
    let (config, tensors) = all_tensors(&golden("phi3"), DType::Q8_0);
    gguf_file(&path, "quantised", &config, &[], &tensors).unwrap();
    let mut written = Checkpoint::open(&path).unwrap();
    for (name, tensor) in &tensors {
        let found = written.tensor(name).unwrap();
        assert_eq!((found.dtype, found.shape), (tensor.dtype, tensor.shape.clone()), "{name}");
        assert!(found.data == tensor.data, "{name}");
    }
}

/// Tensors that have no place in one matrix are refused, and nothing is written.
#[test]
fn what_cannot_stand_side_by_side_is_named() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("written.gguf");
    let (config, tensors) = all_tensors(&golden("phi3"), DType::F32);
    let at = |end: &str| tensors.iter().position(|(name, _)| name.ends_with(end)).unwrap();
    let refused = |tensors: &[(String, RawTensor)], expected: &str| {
        let error = gguf_file(&path, "x", &config, &[], tensors).unwrap_err().to_string();
        assert!(error.contains(expected) && !path.exists(), "{error}");
    };
    let mut without = tensors.clone();
    without.remove(at("k_proj.weight"));
    refused(&without, "v_proj.weight does not follow");
    let mut without = tensors.clone();
    without.remove(at("gate_proj.weight"));
    refused(&without, "up_proj.weight does not follow");
    for (last, whole) in [("v_proj.weight", "qkv_proj"), ("up_proj.weight", "gate_up_proj")] {
        let mut without = tensors.clone();
        without.remove(at(last));
        refused(&without, &format!("{whole}.weight lacks some"));
    }
    let mut mixed = tensors.clone();
    let tensor = &mut mixed[at("v_proj.weight")].1;
    tensor.data = DType::F16.quantize(&tensor.to_f32()).unwrap();
    tensor.dtype = DType::F16;
    refused(&mixed, "v_proj.weight is F16");
}

#[test]
fn what_long_rope_lacks_is_named() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("model.gguf");
    let refused = |more: &[&ForeignTensor], values: Vec<(&str, Foreign)>, expected: &str| {
        let all: Vec<_> = tensors().into_iter().chain(more.iter().copied().cloned()).collect();
        write(&path, &all, 32, values);
        let error = load(&path).err().unwrap().to_string();
        assert!(error.contains(expected), "{error}");
    };
    let ([long, short], _) = factors();
    refused(&[&long], Vec::new(), "rope_factors_short.weight");
    refused(&[&short], Vec::new(), "rope_factors_long.weight");
    let kind = |kind| vec![("phi3.rope.scaling.type", Foreign::Text(kind))];
    refused(&[], kind("longrope"), "rope_factors_short.weight");
    refused(&[&long, &short], kind("yarn"), "phi3.rope.scaling.type: `yarn`");
    let cut = divisors("rope_factors_short.weight", &[1.0]);
    refused(&[&long, &cut], Vec::new(), "factor");
    let none = vec![("phi3.rope.scaling.attn_factor", Foreign::Float(0.0))];
    refused(&[&long, &short], none, "attention_factor");
    let mut cut = tensors();
    for (_, _, shape, data) in cut.iter_mut().filter(|it| it.0 == "blk.1.attn_qkv.weight") {
        shape[0] -= 1;
        data.truncate(shape[0] * shape[1] * 4);
    }
    write(&path, &cut, 64, Vec::new());
    let error = load(&path).err().unwrap().to_string();
    assert!(error.contains("blk.1.attn_qkv.weight") && error.contains("rows"), "{error}");
}
