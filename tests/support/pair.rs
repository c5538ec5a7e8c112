//! A model and a drafter that says much the same.

use std::path::Path;

use pleach::checkpoint::RawTensor;
use pleach::model::ModelConfig;
use pleach_kernels::DType;

use super::random_model::{write_attached, write_model};

/// A projection of the token's embedding back to what it was before its norm, `kept` of it, and of a little of the states.
fn of_the_token(random: &mut fastrand::Rng, [rows, cols]: [usize; 2], kept: f32) -> RawTensor {
    let rms = 1.0 / (rows as f32).sqrt();
    let mut value = |row: usize, col: usize| match col {
        _ if col == row => kept * rms,
        _ if col < rows => 0.0,
        _ => 0.002 * (random.f32() - 0.5),
    };
    let values: Vec<f32> =
        (0..rows * cols).map(|place| value(place / cols, place % cols)).collect();
    let data = DType::BF16.quantize(&values).unwrap();
    RawTensor { dtype: DType::BF16, shape: vec![rows, cols], data }
}

/// Writes a model of three blocks, of which the last alone adds anything, and a drafter that has that block and `kept` of
/// what it reads: with all of it, the two say much the same.
pub fn write_pair(folder: &Path, config: &ModelConfig, kept: f32) {
    let (model, draft) = (folder.join("model.gguf"), folder.join("attached.gguf"));
    let config = ModelConfig { num_hidden_layers: 3, ..config.clone() };
    let kept = kept * config.design.embedding_scale.unwrap_or(1.0);
    let adds_nothing = |name: &str| {
        let block = ["layers.0.", "layers.1."].iter().any(|block| name.contains(block));
        block && (name.contains("o_proj") || name.contains("down_proj"))
    };
    let factor = |name: &str| if adds_nothing(name) { 0.0 } else { 1.0 };
    write_model(&model, &config, 5, &|_| DType::BF16, &factor);
    let mut random = fastrand::Rng::with_seed(6);
    write_attached(&model, &draft, &[2], config.intermediate_size, &[1, 3], &mut |shape| {
        of_the_token(&mut random, shape, kept)
    });
}
