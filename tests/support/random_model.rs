//! Models of random weights, for tests and benchmarks that need a shape and no sense.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "support of tests and benchmarks")]

use std::path::Path;

use pleach::checkpoint::write::{Meta, gguf_file};
use pleach::checkpoint::{ATTACHMENT, Checkpoint, RawTensor};
use pleach::model::{Family, ModelConfig, PROJECTIONS, layer_tensor_names};
use pleach_kernels::DType;

/// Random weights of a format whose products keep the size of their inputs.
pub fn random_tensor(
    random: &mut fastrand::Rng,
    dtype: DType,
    shape: &[usize],
    scale: f32,
) -> RawTensor {
    let count: usize = shape.iter().product();
    let scale = scale * (3.0 / *shape.last().unwrap() as f32).sqrt();
    let mut value = || (random.f32() * 2.0 - 1.0) * scale;
    let data = match dtype {
        DType::Q5_0 | DType::Q5_1 | DType::Q4_K | DType::Q5_K | DType::Q6_K => {
            let mut data = vec![0; dtype.bytes_for(count).unwrap()];
            random.fill(&mut data);
            for block in data.chunks_exact_mut(dtype.block_bytes()) {
                let mut half = |at: usize, value: f32| {
                    block[at..at + 2].copy_from_slice(&half::f16::from_f32(value).to_le_bytes());
                };
                match dtype {
                    DType::Q6_K => half(208, scale / 4096.0),
                    DType::Q5_0 => half(0, scale / 16.0),
                    DType::Q5_1 => (half(0, scale / 16.0), half(2, -scale)).0,
                    // Codes are about 8 or 16, scales 32, minima 32: their middle is 0.
                    DType::Q4_K => (half(0, scale / 512.0), half(2, scale / 64.0)).0,
                    _ => (half(0, scale / 1024.0), half(2, scale / 64.0)).0,
                }
            }
            data
        }
        _ => dtype.quantize(&(0..count).map(|_| value()).collect::<Vec<_>>()).unwrap(),
    };
    RawTensor { dtype, shape: shape.to_vec(), data }
}

/// The matrices of a block and their shapes.
pub fn matrices(config: &ModelConfig) -> [(&'static str, [usize; 2]); 7] {
    let (hidden, inner, dim) = (config.hidden_size, config.intermediate_size, config.head_dim);
    let (q, kv) = (config.num_attention_heads * dim, config.num_key_value_heads * dim);
    [
        ("self_attn.q_proj", [q, hidden]),
        ("self_attn.k_proj", [kv, hidden]),
        ("self_attn.v_proj", [kv, hidden]),
        ("self_attn.o_proj", [hidden, q]),
        ("mlp.gate_proj", [inner, hidden]),
        ("mlp.up_proj", [inner, hidden]),
        ("mlp.down_proj", [hidden, inner]),
    ]
}

/// Writes a random model as a GGUF file; a matrix's name decides its format, and a factor of its values.
pub fn write_model(
    path: &Path,
    config: &ModelConfig,
    seed: u64,
    format: &dyn Fn(&str) -> DType,
    factor: &dyn Fn(&str) -> f32,
) {
    let mut random = fastrand::Rng::with_seed(seed);
    let (hidden, inner, dim) = (config.hidden_size, config.intermediate_size, config.head_dim);
    let (q, kv) = (config.num_attention_heads * dim, config.num_key_value_heads * dim);
    let mut tensors = Vec::new();
    let mut matrix = |random: &mut fastrand::Rng, name: String, shape: [usize; 2]| {
        let tensor = random_tensor(random, format(&name), &shape, factor(&name));
        tensors.push((name, tensor));
    };
    matrix(&mut random, "model.embed_tokens.weight".into(), [config.vocab_size, hidden]);
    let mut vectors = vec![("model.norm.weight".to_owned(), hidden, 1.0)];
    for layer in 0..config.num_hidden_layers {
        let name = |rest: &str| format!("model.layers.{layer}.{rest}");
        for (module, shape) in matrices(config) {
            matrix(&mut random, name(&format!("{module}.weight")), shape);
        }
        vectors.push((name("input_layernorm.weight"), hidden, 1.0));
        vectors.push((name("post_attention_layernorm.weight"), hidden, 1.0));
        if config.design.output_norms {
            for place in ["pre", "post"] {
                vectors.push((name(&format!("{place}_feedforward_layernorm.weight")), hidden, 1.0));
            }
        }
        match config.family {
            Family::Llama | Family::Gemma2 => {}
            Family::Qwen2 => {
                // All that a model of this shape may have, not only this family's own.
                let attention = [("q", q), ("k", kv), ("v", kv), ("o", hidden)];
                let mlp = [("gate", inner), ("up", inner), ("down", hidden)];
                for (module, parts) in [("self_attn", &attention[..]), ("mlp", &mlp)] {
                    for (part, len) in parts {
                        vectors.push((name(&format!("{module}.{part}_proj.bias")), *len, 0.0));
                    }
                }
            }
            Family::Qwen3 | Family::Gemma3 => {
                for part in ["q", "k"] {
                    vectors.push((name(&format!("self_attn.{part}_norm.weight")), dim, 1.0));
                }
            }
        }
    }
    for (name, len, centre) in vectors {
        let values: Vec<f32> = (0..len).map(|_| centre + 0.3 * (random.f32() - 0.5)).collect();
        let data = DType::F32.quantize(&values).unwrap();
        tensors.push((name, RawTensor { dtype: DType::F32, shape: vec![len], data }));
    }
    let more = [("tokenizer.ggml.eos_token_id", Meta::Number(2))];
    gguf_file(path, "random", config, &more, &tensors).unwrap();
}

/// The first `kept` neurons of a tensor of a feed-forward part; any other as it is.
fn narrowed(name: &str, tensor: RawTensor, kept: usize) -> RawTensor {
    let RawTensor { dtype, mut shape, mut data } = tensor;
    let row = data.len() / shape[0];
    if name.contains("mlp.gate_proj") || name.contains("mlp.up_proj") {
        shape[0] = kept;
        data.truncate(kept * row);
    } else if name.ends_with("mlp.down_proj.weight") {
        shape[1] = kept;
        let left = dtype.bytes_for(kept).unwrap();
        data = data.chunks_exact(row).flat_map(|row| &row[..left]).copied().collect();
    }
    RawTensor { dtype, shape, data }
}

/// Writes a drafter of a model: some of its blocks, with so many neurons, behind projections of these states, and a head of
/// three of four tokens.
pub fn write_attached(
    model: &Path,
    draft: &Path,
    blocks: &[u32],
    neurons: usize,
    states: &[u32],
    projection: &mut dyn FnMut([usize; 2]) -> RawTensor,
) {
    let mut checkpoint = Checkpoint::open(model).unwrap();
    let config = checkpoint.config.clone();
    let mut tensors = Vec::new();
    for (place, &block) in blocks.iter().enumerate() {
        for name in layer_tensor_names(&config, block as usize, |name| checkpoint.has(name)) {
            let tensor = narrowed(&name, checkpoint.tensor(&name).unwrap(), neurons);
            let (old, new) = (format!("layers.{block}."), format!("layers.{place}."));
            tensors.push((name.replace(&old, &new), tensor));
        }
    }
    let norm = "model.norm.weight";
    tensors.push((norm.into(), checkpoint.tensor(norm).unwrap()));
    for (name, inputs) in PROJECTIONS.into_iter().zip([1 + states.len(), 2]) {
        let width = config.hidden_size;
        tensors.push((name.into(), projection([width, inputs * width])));
    }
    let kept: Vec<usize> = blocks.iter().map(|&block| block as usize).collect();
    let mut config = config.with_blocks(&kept);
    config.intermediate_size = neurons;
    let vocab: Vec<u32> = (0..config.vocab_size as u32).filter(|id| id % 4 != 3).collect();
    let more = [
        (ATTACHMENT[0], Meta::Numbers(blocks)),
        (ATTACHMENT[1], Meta::Numbers(states)),
        ("pleach.draft_vocab", Meta::Numbers(&vocab)),
    ];
    gguf_file(draft, "attached", &config, &more, &tensors).unwrap();
}
