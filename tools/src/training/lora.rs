//! LoRA adapters as they are trained, written in the format of Hugging Face's `peft`, which
//! [`pleach::checkpoint::adapter`] reads.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use pleach::checkpoint::adapter::{CONFIG, PREFIX, TENSORS};
use pleach::checkpoint::write::{self, LazyTensor};
use pleach_kernels::DType;
use serde_json::json;

use super::TrainError;

/// Low-rank additions to matrices: `W + alpha / rank * B A` (Hu et al., arXiv 2106.09685).
#[derive(Debug, Clone, PartialEq)]
pub struct TrainedAdapter {
    rank: usize,
    alpha: f32,
    /// A and B by the name of the matrix they are added to.
    factors: BTreeMap<String, [Matrix; 2]>,
}

#[derive(Debug, Clone, PartialEq)]
struct Matrix {
    rows: usize,
    cols: usize,
    values: Vec<f32>,
}

impl TrainedAdapter {
    /// An adapter without factors.
    pub(super) fn new(rank: usize, alpha: f32) -> Self {
        Self { rank, alpha, factors: BTreeMap::new() }
    }

    /// Adds the factors of the matrix `name`, `[out, in]`: A, `[rank, in]`, and B, `[out, rank]`.
    pub(super) fn insert(
        &mut self,
        name: &str,
        [out, inner]: [usize; 2],
        a: Vec<f32>,
        b: Vec<f32>,
    ) {
        let a = Matrix { rows: self.rank, cols: inner, values: a };
        let b = Matrix { rows: out, cols: self.rank, values: b };
        self.factors.insert(name.into(), [a, b]);
    }

    /// Writes the folder; `base` names the model the adapter belongs to.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(&self, folder: &Path, base: &str) -> Result<(), TrainError> {
        std::fs::create_dir_all(folder).map_err(|e| TrainError::file(folder, e))?;
        let modules: BTreeSet<&str> =
            self.factors.keys().filter_map(|name| module(name)?.rsplit('.').next()).collect();
        let config = json!({
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": 0.0,
            "target_modules": modules,
            "bias": "none",
            "fan_in_fan_out": false,
            "use_rslora": false,
            "use_dora": false,
            "inference_mode": true,
            "modules_to_save": null,
        });
        write::json_file(&folder.join(CONFIG), &config)?;
        let factors = self.factors.iter().flat_map(|(name, factors)| {
            let module = module(name).unwrap_or(name);
            ["lora_A", "lora_B"].into_iter().zip(factors).map(move |(kind, matrix)| LazyTensor {
                name: format!("{PREFIX}{module}.{kind}.weight"),
                dtype: DType::F32,
                shape: vec![matrix.rows, matrix.cols],
                values: Box::new(|| Ok(matrix.values.clone())),
            })
        });
        let tensors: Vec<_> = factors.collect();
        Ok(write::safetensors_file(&folder.join(TENSORS), &tensors, &[])?)
    }
}

/// The module a weight belongs to.
fn module(weight: &str) -> Option<&str> {
    weight.strip_suffix(".weight")
}

#[cfg(test)]
mod tests {
    use super::*;
    use pleach::checkpoint::adapter::Adapter;

    #[test]
    fn what_is_written_reads_back() {
        let mut trained = TrainedAdapter::new(2, 3.0);
        let name = "model.layers.0.mlp.up_proj.weight";
        let (a, b) = (vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0], vec![1.0, 0.0, 0.5, 2.0]);
        trained.insert(name, [2, 3], a.clone(), b.clone());
        let folder = tempfile::tempdir().unwrap();
        trained.write(folder.path(), "base").unwrap();
        let adapter = Adapter::read(folder.path()).unwrap();
        let [(read, factors)] = adapter.factors().collect::<Vec<_>>()[..] else { panic!("one") };
        assert_eq!((read, factors.rank, factors.scale), (name, 2, 1.5));
        assert_eq!((&factors.a, &factors.b), (&a, &b));
        let mut values = [10.0; 6];
        adapter.fold(name, &mut values);
        // 10 + 3 / 2 * [[1, 0], [0.5, 2]] [[1, 2, 3], [4, 5, 6]]
        assert_eq!(values, [11.5, 13.0, 14.5, 22.75, 26.5, 30.25]);
    }
}
