//! LoRA adapters (arXiv 2106.09685) in the format of Hugging Face's `peft`: a folder with `adapter_config.json` and
//! `adapter_model.safetensors`.

mod config;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use pleach_kernels::DType;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::CheckpointError;
use config::AdapterConfig;

/// The file that describes an adapter.
pub const CONFIG: &str = "adapter_config.json";
/// The file that holds its factors.
pub const TENSORS: &str = "adapter_model.safetensors";
/// What `peft` puts before the names of a causal language model.
pub const PREFIX: &str = "base_model.model.";

/// Low-rank additions to matrices: `W + scale * B A`.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapter {
    /// The file of the factors.
    path: PathBuf,
    /// By the name of the matrix they are added to.
    factors: BTreeMap<String, Factors>,
}

/// What is added to one matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct Factors {
    /// Rows of A and columns of B; at least 1.
    pub rank: usize,
    /// What their product is multiplied by.
    pub scale: f32,
    /// `[rank, in]`
    pub a: Vec<f32>,
    /// `[out, rank]`
    pub b: Vec<f32>,
}

impl Factors {
    /// Shape of the matrix they are added to, `[out, in]`.
    #[must_use]
    pub fn shape(&self) -> [usize; 2] {
        [self.b.len() / self.rank, self.a.len() / self.rank]
    }
}

/// A factor as the file has it.
struct Factor {
    rows: usize,
    cols: usize,
    values: Vec<f32>,
}

impl Adapter {
    /// Reads a folder that `peft` or `pleach-tools train` wrote.
    ///
    /// # Errors
    /// [`CheckpointError`] naming the file, the field or tensor, and what to do.
    pub fn read(folder: &Path) -> Result<Self, CheckpointError> {
        let config = AdapterConfig::read(&folder.join(CONFIG))?;
        let path = folder.join(TENSORS);
        let io = |error| CheckpointError::Io { path: path.clone(), error };
        // A pipe or a device might never end.
        if !path.metadata().map_err(io)?.is_file() {
            return Err(CheckpointError::corrupt(&path, "is not a regular file"));
        }
        let bytes = std::fs::read(&path).map_err(io)?;
        let tensors = SafeTensors::deserialize(&bytes)
            .map_err(|error| CheckpointError::corrupt(&path, error.to_string()))?;
        let mut halves: BTreeMap<&str, [Option<Factor>; 2]> = BTreeMap::new();
        let tensors = tensors.iter().collect::<Vec<_>>();
        for (name, view) in &tensors {
            let error = |reason: String| CheckpointError::field(&path, name, reason);
            let (module, half) = module(name).ok_or_else(|| {
                error(
                    "is no factor of a LoRA adapter (lora_A.weight or lora_B.weight): train without it, or merge \
                     the adapter into its model with `peft`"
                        .into(),
                )
            })?;
            halves.entry(module).or_default()[half] = Some(factor(view).map_err(error)?);
        }
        let mut factors = BTreeMap::new();
        for (module, halves) in halves {
            let error = |reason: String| CheckpointError::field(&path, module, reason);
            let [Some(a), Some(b)] = halves else {
                return Err(error(
                    "has one of its two factors alone; save the adapter again".into(),
                ));
            };
            let (rank, scale) = config.of(module)?;
            if a.rows != rank || b.cols != rank {
                return Err(error(format!(
                    "has factors of rank {} and {}, where {CONFIG} says {rank}; take the file of this adapter",
                    a.rows, b.cols
                )));
            }
            if a.cols == 0 || b.rows == 0 {
                return Err(error("has an empty factor; save the adapter again".into()));
            }
            let own = Factors { rank, scale, a: a.values, b: b.values };
            factors.insert(format!("{module}.weight"), own);
        }
        if factors.is_empty() {
            return Err(CheckpointError::corrupt(&path, "has no factors; save the adapter again"));
        }
        Ok(Self { path, factors })
    }

    /// The file of the factors.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is added to which matrices, by their names.
    pub fn factors(&self) -> impl Iterator<Item = (&str, &Factors)> {
        self.factors.iter().map(|(name, factors)| (name.as_str(), factors))
    }

    /// What is added to the matrix `name`, if anything is.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Factors> {
        self.factors.get(name)
    }

    /// Adds what belongs to the matrix `name`, if anything does: `values` are `[out, in]`.
    ///
    /// # Panics
    /// If the matrix has another size than its [`shape`](Factors::shape) says.
    pub fn fold(&self, name: &str, values: &mut [f32]) {
        let Some(factors) = self.get(name) else { return };
        let [out, inner] = factors.shape();
        assert_eq!(values.len(), out * inner, "{name}: size");
        let Factors { rank, scale, a, b } = factors;
        for (row, b) in values.chunks_exact_mut(inner).zip(b.chunks_exact(*rank)) {
            let mut added = vec![0.0; inner];
            for (b, a) in b.iter().zip(a.chunks_exact(inner)) {
                added.iter_mut().zip(a).for_each(|(added, a)| *added += b * a);
            }
            row.iter_mut().zip(added).for_each(|(value, added)| *value += scale * added);
        }
    }
}

/// The module that a tensor belongs to, and which of its factors it is: 0 for A, 1 for B.
fn module(name: &str) -> Option<(&str, usize)> {
    let name = name.strip_prefix(PREFIX)?;
    let half = |end: &str, half| Some((name.strip_suffix(end)?, half));
    half(".lora_A.weight", 0).or_else(|| half(".lora_B.weight", 1))
}

fn factor(view: &TensorView) -> Result<Factor, String> {
    let &[rows, cols] = view.shape() else {
        return Err(format!("has shape {:?}; a factor is a matrix", view.shape()));
    };
    let dtype = match view.dtype() {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        other => {
            return Err(format!("its format is {other:?}; save the adapter as F32, F16 or BF16"));
        }
    };
    let mut values = vec![0.0; rows * cols];
    dtype.dequantize(view.data(), &mut values);
    Ok(Factor { rows, cols, values })
}
