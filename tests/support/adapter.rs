//! Random LoRA adapters, written as `peft` writes them.

use std::collections::BTreeMap;
use std::path::Path;

use super::random_model::matrices;
use pleach::checkpoint::adapter::{CONFIG, PREFIX, TENSORS};
use pleach::model::ModelConfig;
use safetensors::Dtype;
use safetensors::tensor::TensorView;

/// Writes an adapter of all modules of a model, of random factors. What it adds is about `size` times as large as a
/// matrix whose products keep the size of their inputs.
pub fn write_adapter(folder: &Path, config: &ModelConfig, seed: u64, rank: usize, size: f32) {
    write_adapter_of(folder, config, seed, rank, size, &|_| true);
}

/// The same of some modules alone, by their names within a block.
pub fn write_adapter_of(
    folder: &Path,
    config: &ModelConfig,
    seed: u64,
    rank: usize,
    size: f32,
    adapts: &dyn Fn(&str) -> bool,
) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut tensors = BTreeMap::new();
    for layer in 0..config.num_hidden_layers {
        for (module, [out, inner]) in matrices(config).into_iter().filter(|it| adapts(it.0)) {
            for (half, shape, size) in [("A", [rank, inner], 1.0), ("B", [out, rank], size)] {
                // Uniform numbers whose squares add up to the size along a row.
                let most = size * (3.0 / shape[1] as f32).sqrt();
                let values = (0..shape[0] * shape[1]).map(|_| (random.f32() * 2.0 - 1.0) * most);
                let data: Vec<u8> = values.flat_map(f32::to_le_bytes).collect();
                let name = format!("{PREFIX}model.layers.{layer}.{module}.lora_{half}.weight");
                tensors.insert(name, (shape.to_vec(), data));
            }
        }
    }
    let views = tensors.iter().map(|(name, (shape, data))| {
        (name, TensorView::new(Dtype::F32, shape.clone(), data).unwrap())
    });
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join(TENSORS), safetensors::serialize(views, None).unwrap()).unwrap();
    let about = serde_json::json!({
        "peft_type": "LORA", "r": rank, "lora_alpha": rank, "bias": "none", "modules_to_save": null,
    });
    std::fs::write(folder.join(CONFIG), about.to_string()).unwrap();
}
