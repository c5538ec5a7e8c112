//! A small model of random weights that knows single letters alone.

use std::path::Path;

use pleach::model::{Design, Family, ModelConfig, RopeConfig, RopeScaling};
use pleach_kernels::DType;

use super::{gguf, random_model};

/// Writes it as a GGUF file, of a context of so many tokens.
pub fn write(path: &Path, positions: usize) {
    random_model::write_model(path, &config(positions), 11, &|_| DType::Q8_0, &|_| 1.0);
    gguf::add_letters(path);
}

/// Its shape.
pub fn config(positions: usize) -> ModelConfig {
    ModelConfig {
        family: Family::Llama,
        vocab_size: 96,
        hidden_size: 64,
        intermediate_size: 96,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 16,
        max_position_embeddings: positions,
        rms_norm_eps: 1e-5,
        rope: RopeConfig { theta: 10_000.0, scaling: RopeScaling::None },
        sliding_window: None,
        design: Design::default(),
        tie_word_embeddings: true,
        bos_token_id: Some(1),
        eos_token_ids: vec![2],
    }
}
