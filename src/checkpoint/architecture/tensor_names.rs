//! Hugging Face names of a model's tensors.

use super::{Family, ModelConfig, PROJECTIONS};

/// The matrices of a block.
pub const MATRICES: [&str; 7] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];
const NORMS: [&str; 2] = ["input_layernorm", "post_attention_layernorm"];
/// Those of a block whose outputs are normed too: before and behind attention, before and behind the feed-forward
/// layer.
const OUTPUT_NORMS: [&str; 4] = [
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
];
/// Projections that have a bias in every Qwen2 model.
const BIASED: [&str; 3] = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"];
const HEAD_NORMS: [&str; 2] = ["self_attn.q_norm", "self_attn.k_norm"];

/// Names of the tensors of one block: those that every model of the family has, and of the other biases and
/// head norms those that `has` knows.
pub fn layer_tensor_names(
    config: &ModelConfig,
    index: usize,
    has: impl Fn(&str) -> bool,
) -> Vec<String> {
    let family = config.family;
    let norms: &[&str] = if config.design.output_norms { &OUTPUT_NORMS } else { &NORMS };
    let name = |module: &str, kind: &str| format!("model.layers.{index}.{module}.{kind}");
    let needed = MATRICES.iter().chain(norms).map(|module| name(module, "weight"));
    let optional = MATRICES.iter().map(|module| (name(module, "bias"), BIASED.contains(module)));
    let optional = optional.map(|(name, qwen2)| (name, qwen2 && family == Family::Qwen2));
    let head_norms = HEAD_NORMS.iter().map(|module| name(module, "weight"));
    let optional = optional
        .chain(head_norms.map(|name| (name, matches!(family, Family::Qwen3 | Family::Gemma3))));
    let there = optional.filter(|(name, always)| *always || has(name)).map(|(name, _)| name);
    needed.chain(there).collect()
}

/// Names of the tensors of all blocks, of the last norm and, where `has` knows them, of an attached drafter's
/// projections: everything but embedding and head.
pub fn tensor_names(config: &ModelConfig, has: impl Fn(&str) -> bool) -> Vec<String> {
    let layers = 0..config.num_hidden_layers;
    let layers = layers.flat_map(|index| layer_tensor_names(config, index, &has));
    let projections = PROJECTIONS.into_iter().filter(|name| has(name));
    let others = ["model.norm.weight"].into_iter().chain(projections);
    layers.chain(others.map(str::to_owned)).collect()
}
