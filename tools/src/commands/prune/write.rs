//! Writes what is left of a model.

use std::cell::RefCell;
use std::path::Path;

use anyhow::Result;
use pleach::checkpoint::Checkpoint;
use pleach::checkpoint::write::{LazyTensor, model_folder};
use pleach::model::{ModelConfig, layer_tensor_names};
use pleach_kernels::DType;
use pleach_train::Weight;

/// What is left of a model.
pub(super) struct Left {
    /// Its blocks, rising.
    pub(super) blocks: Vec<usize>,
    /// Of each, the neurons of its feed-forward part, rising; all where `None`.
    pub(super) neurons: Option<Vec<Vec<usize>>>,
}

impl Left {
    /// The shape of what is left of a model of this shape.
    fn config(&self, whole: &ModelConfig) -> ModelConfig {
        let mut config = whole.with_blocks(&self.blocks);
        if let Some(neurons) = self.neurons.as_ref().and_then(|blocks| blocks.first()) {
            config.intermediate_size = neurons.len();
        }
        config
    }
}

/// Writes what is left of a model as a Hugging Face folder, and `more` weights. Returns its shape.
pub(super) fn folder(
    folder: &Path,
    checkpoint: &mut Checkpoint,
    left: &Left,
    dtype: DType,
    more: Vec<Weight>,
) -> Result<ModelConfig> {
    let config = left.config(&checkpoint.config);
    let mut tensors = vec![("model.embed_tokens.weight".to_owned(), None)];
    for (new, old) in left.blocks.iter().enumerate() {
        for name in layer_tensor_names(&checkpoint.config, *old, |name| checkpoint.has(name)) {
            tensors.push((name, Some((*old, new))));
        }
    }
    tensors.push(("model.norm.weight".to_owned(), None));
    if !config.tie_word_embeddings {
        tensors.push(("lm_head.weight".to_owned(), None));
    }
    let like = Checkpoint::open(checkpoint.path())?;
    let cell = RefCell::new(checkpoint);
    let mut lazy = Vec::new();
    for (name, block) in tensors {
        let mut shape = cell.borrow().info(&name)?.shape;
        let mut written = name.clone();
        let mut kept = None;
        if let Some((old, new)) = block {
            written = name.replacen(&format!(".{old}."), &format!(".{new}."), 1);
            kept = left.neurons.as_ref().and_then(|blocks| Kept::of(&name, &blocks[new]));
        }
        if let Some(kept) = &kept {
            kept.shape(&mut shape);
        }
        let cell = &cell;
        let values = move || {
            let tensor = cell.borrow_mut().tensor(&name)?;
            let values = tensor.to_f32();
            Ok(match &kept {
                Some(kept) => kept.values(&tensor.shape, &values),
                None => values,
            })
        };
        lazy.push(LazyTensor { name: written, dtype, shape, values: Box::new(values) });
    }
    lazy.extend(more.iter().map(|(name, shape, values)| LazyTensor {
        name: name.clone(),
        dtype,
        shape: shape.clone(),
        values: Box::new(|| Ok(values.clone())),
    }));
    model_folder(folder, &config, dtype, &like, lazy)?;
    Ok(config)
}

/// What stays of a tensor of which neurons are rows or columns.
enum Kept<'a> {
    Rows(&'a [usize]),
    Columns(&'a [usize]),
}

impl<'a> Kept<'a> {
    fn of(name: &str, neurons: &'a [usize]) -> Option<Self> {
        if name.ends_with("mlp.down_proj.weight") {
            return Some(Self::Columns(neurons));
        }
        let rows = name.contains(".mlp.gate_proj.") || name.contains(".mlp.up_proj.");
        rows.then_some(Self::Rows(neurons))
    }

    fn shape(&self, shape: &mut [usize]) {
        match self {
            Self::Rows(rows) => shape[0] = rows.len(),
            Self::Columns(columns) => shape[1] = columns.len(),
        }
    }

    /// Of the values of a tensor of this shape.
    fn values(&self, shape: &[usize], values: &[f32]) -> Vec<f32> {
        let width = shape.get(1).copied().unwrap_or(1);
        match self {
            Self::Rows(rows) => {
                rows.iter().flat_map(|row| &values[row * width..][..width]).copied().collect()
            }
            Self::Columns(columns) => values
                .chunks_exact(width)
                .flat_map(|row| columns.iter().map(|column| row[*column]))
                .collect(),
        }
    }
}
