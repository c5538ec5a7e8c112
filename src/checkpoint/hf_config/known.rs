//! Which fields of `config.json` are known.

use super::{CheckpointError, Fields};

/// Fields that are read, or that change nothing in a forward pass without training.
const KNOWN: [&str; 66] = [
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_name_or_path",
    "_sliding_window_pattern",
    "architectures",
    "attention_bias",
    "attention_dropout",
    "attn_implementation",
    "attn_logit_softcapping",
    "auto_map",
    "bos_token_id",
    "cache_implementation",
    "dtype",
    "embd_pdrop",
    "embedding_multiplier",
    "eos_token_id",
    "final_logit_softcapping",
    "head_dim",
    "hidden_act",
    "hidden_activation",
    "hidden_size",
    "id2label",
    "initializer_range",
    "intermediate_size",
    "is_llama_config",
    "label2id",
    "layer_types",
    "max_position_embeddings",
    "max_window_layers",
    "mlp_bias",
    "model_type",
    "no_rope_layer_interval",
    "no_rope_layers",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "original_max_position_embeddings",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "partial_rotary_factor",
    "pretraining_tp",
    "quantization_config",
    "query_pre_attn_scalar",
    "resid_pdrop",
    "return_dict",
    "rms_norm_eps",
    "rope_interleaved",
    "rope_local_base_freq",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "sliding_window",
    "sliding_window_pattern",
    "tie_word_embeddings",
    "tokenizer_class",
    "torch_dtype",
    "transformers.js_config",
    "transformers_version",
    "unk_token_id",
    "unsloth_fixed",
    "unsloth_version",
    "use_bidirectional_attention",
    "use_cache",
    "use_sliding_window",
    "vocab_size",
];

/// Fields that would change the computation of a model that does not read them, and the value at which they do not.
const NEUTRAL: [(&str, f64); 9] = [
    ("partial_rotary_factor", 1.0),
    ("rotary_pct", 1.0),
    ("embedding_multiplier", 1.0),
    ("residual_multiplier", 1.0),
    ("logits_scaling", 1.0),
    ("final_logit_softcapping", 0.0),
    ("attn_logit_softcapping", 0.0),
    ("num_experts", 0.0),
    ("num_local_experts", 0.0),
];

/// Refuses fields that would change the computation and are not among those that are `read`.
pub(super) fn refuse_unsupported(fields: &Fields, read: &[&str]) -> Result<(), CheckpointError> {
    for (field, neutral) in NEUTRAL.into_iter().filter(|(field, _)| !read.contains(field)) {
        if let Some(value) = fields.optional_f64(field)?.filter(|value| *value != neutral) {
            return Err(fields.error(field, format!("{value} is not supported")));
        }
    }
    Ok(())
}

/// Says which fields are not read.
pub(super) fn warn_of_unknown(fields: &Fields) {
    let neutral = |name: &str| NEUTRAL.iter().any(|(field, _)| *field == name);
    let unknown: Vec<&str> = fields
        .map
        .iter()
        .filter(|(name, value)| !value.is_null() && !neutral(name))
        .map(|(name, _)| name.as_str())
        .filter(|name| !KNOWN.contains(name))
        .collect();
    if !unknown.is_empty() {
        let file = fields.path.display();
        tracing::warn!(%file, fields = unknown.join(", "), "fields that are not known are ignored");
    }
}
