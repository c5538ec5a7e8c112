//! LoRA adapters in the format of Hugging Face's `peft`: a folder with `adapter_config.json` and
//! `adapter_model.safetensors`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use safetensors::tensor::TensorView;
use serde_json::{Value, json};

use super::TrainError;
use pleach::checkpoint::write;
use pleach_kernels::DType;

/// Low-rank additions to matrices: `W + scale * B A` (Hu et al., arXiv 2106.09685).
#[derive(Debug, Clone, PartialEq)]
pub struct Adapter {
    rank: usize,
    alpha: f32,
    /// `alpha / rank`, or `alpha / sqrt(rank)` where the file says rsLoRA.
    scale: f32,
    /// By the name of the matrix they are added to.
    factors: BTreeMap<String, Factors>,
}

#[derive(Debug, Clone, PartialEq)]
struct Factors {
    /// `[rank, in]`
    a: Matrix,
    /// `[out, rank]`
    b: Matrix,
}

#[derive(Debug, Clone, PartialEq)]
struct Matrix {
    rows: usize,
    cols: usize,
    values: Vec<f32>,
}

const CONFIG: &str = "adapter_config.json";
const TENSORS: &str = "adapter_model.safetensors";
/// What `peft` puts before the names of a causal language model.
const PREFIX: &str = "base_model.model.";

impl Adapter {
    /// An adapter without factors.
    pub(super) fn new(rank: usize, alpha: f32) -> Self {
        Self { rank, alpha, scale: alpha / rank as f32, factors: BTreeMap::new() }
    }

    /// Adds the factors of the matrix `name`, `[out, in]`: A, `[rank, in]`, and B, `[out, rank]`.
    pub(super) fn insert(
        &mut self,
        name: &str,
        [out, inner]: [usize; 2],
        a: Vec<f32>,
        b: Vec<f32>,
    ) {
        let factors = Factors {
            a: Matrix { rows: self.rank, cols: inner, values: a },
            b: Matrix { rows: out, cols: self.rank, values: b },
        };
        self.factors.insert(name.into(), factors);
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
        let path = folder.join(TENSORS);
        let mut tensors = BTreeMap::new();
        for (name, factors) in &self.factors {
            let module = module(name).unwrap_or(name);
            for (kind, matrix) in [("lora_A", &factors.a), ("lora_B", &factors.b)] {
                let view = TensorView::new(
                    safetensors::Dtype::F32,
                    vec![matrix.rows, matrix.cols],
                    bytemuck::cast_slice(&matrix.values),
                );
                let view = view.map_err(|e| TrainError::file(&path, e))?;
                tensors.insert(format!("{PREFIX}{module}.{kind}.weight"), view);
            }
        }
        let about = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let bytes =
            safetensors::serialize(tensors, Some(about)).map_err(|e| TrainError::file(&path, e))?;
        Ok(write::atomically(&path, |file| std::io::Write::write_all(file, &bytes))?)
    }

    /// Reads a folder that `peft` or [`write`](Self::write) wrote.
    ///
    /// # Errors
    /// [`TrainError::File`] naming what is wrong or what kind of adapter is not understood.
    pub fn read(folder: &Path) -> Result<Self, TrainError> {
        let mut adapter = Self::read_config(&folder.join(CONFIG))?;
        let path = folder.join(TENSORS);
        let error = |reason: String| TrainError::file(&path, reason);
        let bytes = std::fs::read(&path).map_err(|e| error(e.to_string()))?;
        let tensors =
            safetensors::SafeTensors::deserialize(&bytes).map_err(|e| error(e.to_string()))?;
        let mut halves: BTreeMap<String, [Option<Matrix>; 2]> = BTreeMap::new();
        for (name, view) in tensors.iter() {
            let unknown = || error(format!("{name} is no factor of a LoRA adapter"));
            let inner = name.strip_prefix(PREFIX).ok_or_else(unknown)?;
            let (module, half) = match inner.strip_suffix(".lora_A.weight") {
                Some(module) => (module, 0),
                None => (inner.strip_suffix(".lora_B.weight").ok_or_else(unknown)?, 1),
            };
            let &[rows, cols] = view.shape() else {
                return Err(error(format!("{name} is no matrix")));
            };
            let dtype = match view.dtype() {
                safetensors::Dtype::F32 => DType::F32,
                safetensors::Dtype::F16 => DType::F16,
                safetensors::Dtype::BF16 => DType::BF16,
                other => return Err(error(format!("{name}: {other:?} is not understood"))),
            };
            let mut values = vec![0.0; rows * cols];
            dtype.dequantize(view.data(), &mut values);
            halves.entry(format!("{module}.weight")).or_default()[half] =
                Some(Matrix { rows, cols, values });
        }
        for (name, halves) in halves {
            let [Some(a), Some(b)] = halves else {
                return Err(error(format!("{name} has one of its two factors alone")));
            };
            if a.rows != adapter.rank || b.cols != adapter.rank {
                return Err(error(format!(
                    "{name}: factors of rank {} and {}, where {CONFIG} says {}",
                    a.rows, b.cols, adapter.rank
                )));
            }
            adapter.factors.insert(name, Factors { a, b });
        }
        if adapter.factors.is_empty() {
            return Err(error("has no factors".into()));
        }
        Ok(adapter)
    }

    fn read_config(path: &Path) -> Result<Self, TrainError> {
        let error = |reason: String| TrainError::file(path, reason);
        let bytes = std::fs::read(path).map_err(|e| error(e.to_string()))?;
        let config: Value = serde_json::from_slice(&bytes).map_err(|e| error(e.to_string()))?;
        if config["peft_type"] != "LORA" {
            return Err(error(format!("peft_type: {} is not LORA", config["peft_type"])));
        }
        let set = |field: &str| match &config[field] {
            Value::Null | Value::Bool(false) => false,
            Value::Object(map) => !map.is_empty(),
            Value::Array(list) => !list.is_empty(),
            Value::String(text) => text != "none",
            _ => true,
        };
        let foreign = [
            "use_dora",
            "fan_in_fan_out",
            "bias",
            "modules_to_save",
            "rank_pattern",
            "alpha_pattern",
        ];
        if let Some(field) = foreign.into_iter().find(|field| set(field)) {
            return Err(error(format!("{field}: {} is not understood", config[field])));
        }
        let rank = config["r"].as_u64().filter(|rank| *rank > 0);
        let rank = rank.ok_or_else(|| error("r: a rank above 0 is needed".into()))? as usize;
        let alpha = config["lora_alpha"].as_f64().filter(|alpha| alpha.is_finite());
        let alpha = alpha.ok_or_else(|| error("lora_alpha: a number is needed".into()))? as f32;
        let mut adapter = Self::new(rank, alpha);
        if set("use_rslora") {
            adapter.scale = alpha / (rank as f32).sqrt();
        }
        Ok(adapter)
    }

    /// Matrices that are added to, with their shapes, `[out, in]`.
    pub fn shapes(&self) -> impl Iterator<Item = (&str, [usize; 2])> {
        self.factors.iter().map(|(name, f)| (name.as_str(), [f.b.rows, f.a.cols]))
    }

    /// Adds what belongs to the matrix `name`, if anything does: `values` are `[out, in]`.
    ///
    /// # Panics
    /// If the matrix has another size than [`shapes`](Self::shapes) says.
    pub fn fold(&self, name: &str, values: &mut [f32]) {
        let Some(Factors { a, b }) = self.factors.get(name) else { return };
        assert_eq!(values.len(), b.rows * a.cols, "{name}: size");
        let rows = values.chunks_exact_mut(a.cols).zip(b.values.chunks_exact(b.cols));
        for (row, b) in rows {
            let mut added = vec![0.0; a.cols];
            for (b, a) in b.iter().zip(a.values.chunks_exact(a.cols)) {
                added.iter_mut().zip(a).for_each(|(added, a)| *added += b * a);
            }
            row.iter_mut().zip(added).for_each(|(value, added)| *value += self.scale * added);
        }
    }
}

/// The module a weight belongs to.
fn module(weight: &str) -> Option<&str> {
    weight.strip_suffix(".weight")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Adapter {
        let mut adapter = Adapter::new(2, 3.0);
        let name = "model.layers.0.mlp.up_proj.weight";
        adapter.insert(name, [2, 3], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0], vec![1.0, 0.0, 0.5, 2.0]);
        adapter
    }

    #[test]
    fn comes_back_from_disk_and_folds() {
        let folder = tempfile::tempdir().unwrap();
        example().write(folder.path(), "base").unwrap();
        let adapter = Adapter::read(folder.path()).unwrap();
        assert_eq!(adapter, example());
        let name = "model.layers.0.mlp.up_proj.weight";
        assert_eq!(adapter.shapes().collect::<Vec<_>>(), [(name, [2, 3])]);
        let mut values = [10.0; 6];
        adapter.fold(name, &mut values);
        // 10 + 3 / 2 * [[1, 0], [0.5, 2]] [[1, 2, 3], [4, 5, 6]]
        assert_eq!(values, [11.5, 13.0, 14.5, 22.75, 26.5, 30.25]);
        adapter.fold("model.norm.weight", &mut values);
        assert_eq!(values[0], 11.5);
    }

    #[test]
    fn what_is_not_understood_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(CONFIG);
        example().write(folder.path(), "base").unwrap();
        let good: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        for (field, value) in [
            ("peft_type", json!("IA3")),
            ("r", json!(0)),
            ("r", json!(3)),
            ("lora_alpha", json!("x")),
            ("use_dora", json!(true)),
            ("bias", json!("all")),
            ("rank_pattern", json!({"q_proj": 4})),
            ("modules_to_save", json!(["lm_head"])),
        ] {
            let mut config = good.clone();
            config[field] = value.clone();
            write::json_file(&path, &config).unwrap();
            let error = Adapter::read(folder.path()).unwrap_err().to_string();
            let named = if value == json!(3) { "rank 2" } else { field };
            assert!(error.contains(named), "{field}: {error}");
        }
        let mut config = good;
        config["use_rslora"] = json!(true);
        write::json_file(&path, &config).unwrap();
        assert_eq!(Adapter::read(folder.path()).unwrap().scale, 3.0 / 2f32.sqrt());
    }
}
