//! Hugging Face names of a model's tensors.

use super::{ModelConfig, PROJECTIONS};

const MATRICES: [&str; 7] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];
const NORMS: [&str; 2] = ["input_layernorm", "post_attention_layernorm"];
const HEAD_NORMS: [&str; 2] = ["self_attn.q_norm", "self_attn.k_norm"];

/// Names of the tensors of one block. Biases and head norms are listed where `has` knows them.
pub fn layer_tensor_names(index: usize, has: impl Fn(&str) -> bool) -> Vec<String> {
    let name = |module: &str, kind: &str| format!("model.layers.{index}.{module}.{kind}");
    let needed = MATRICES.iter().chain(&NORMS).map(|module| name(module, "weight"));
    let biases = MATRICES.iter().map(|module| name(module, "bias"));
    let optional = biases.chain(HEAD_NORMS.iter().map(|module| name(module, "weight")));
    needed.chain(optional.filter(|name| has(name))).collect()
}

/// Names of the tensors of all blocks, of the last norm and, where `has` knows them, of an attached drafter's
/// projections: everything but embedding and head.
pub fn tensor_names(config: &ModelConfig, has: impl Fn(&str) -> bool) -> Vec<String> {
    let layers = (0..config.num_hidden_layers).flat_map(|i| layer_tensor_names(i, &has));
    let projections = PROJECTIONS.into_iter().filter(|name| has(name));
    let others = ["model.norm.weight"].into_iter().chain(projections);
    layers.chain(others.map(str::to_owned)).collect()
}
