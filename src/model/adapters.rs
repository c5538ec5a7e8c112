//! LoRA adapters in memory: each adds to the matrices that it has factors for, in the rows that go through it. They are
//! no part of the decoder: whoever asks for rows brings the adapter, and the last who holds it frees its memory.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::checkpoint::CheckpointError;
use crate::checkpoint::adapter::{Adapter, Factors};
use crate::checkpoint::architecture::MATRICES;
use pleach_kernels::LowRank;

/// The matrices of a model that adapters add to: their shapes, `[out, in]`, by block, in the order of [`MATRICES`].
#[derive(Debug, PartialEq, Eq)]
pub struct AdapterShapes {
    blocks: Vec<[[usize; 2]; MATRICES.len()]>,
}

/// An adapter in memory, for a model of these shapes.
pub struct AdapterWeights {
    id: u64,
    shapes: Arc<AdapterShapes>,
    /// What is added to each matrix, where anything is.
    blocks: Vec<[Option<LowRank>; MATRICES.len()]>,
}

impl AdapterShapes {
    pub(super) fn new(blocks: Vec<[[usize; 2]; MATRICES.len()]>) -> Self {
        Self { blocks }
    }

    /// Makes an adapter ready to compute, on the thread that asks. Its own factors are copied.
    ///
    /// # Errors
    /// [`CheckpointError`] naming the matrix that the model does not have, or has in another shape.
    pub fn load(self: &Arc<Self>, adapter: &Adapter) -> Result<AdapterWeights, CheckpointError> {
        for (name, factors) in adapter.factors() {
            self.check(name, factors)
                .map_err(|reason| CheckpointError::field(adapter.path(), name, reason))?;
        }
        let low_rank = |it: &Factors| LowRank::new(it.rank, it.scale, &it.a, &it.b);
        let block = |block: usize| {
            MATRICES.map(|module| {
                adapter.get(&format!("model.layers.{block}.{module}.weight")).map(low_rank)
            })
        };
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Ok(AdapterWeights {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            shapes: Arc::clone(self),
            blocks: (0..self.blocks.len()).map(block).collect(),
        })
    }

    /// Whether there is such a matrix and the factors have its shape.
    fn check(&self, name: &str, factors: &Factors) -> Result<(), String> {
        let foreign = || {
            format!(
                "is no matrix that adapters are served for, which are those of attention and of the feed-forward \
                 layer ({}): train without it, or merge the adapter into its model",
                MATRICES.join(", ")
            )
        };
        let place = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
        let (block, rest) = place.ok_or_else(foreign)?;
        let block: usize = block.parse().map_err(|_| foreign())?;
        let module = rest
            .strip_suffix(".weight")
            .and_then(|name| MATRICES.iter().position(|module| *module == name));
        let module = module.ok_or_else(foreign)?;
        let shapes = self.blocks.get(block).ok_or_else(|| {
            format!(
                "the model has {} blocks; take an adapter that was trained on this model",
                self.blocks.len()
            )
        })?;
        let (found, expected) = (factors.shape(), shapes[module]);
        if found == expected {
            return Ok(());
        }
        Err(format!(
            "the factors are for a matrix of shape {found:?}, the model's is {expected:?}; take an adapter that was \
             trained on this model"
        ))
    }
}

impl AdapterWeights {
    /// Tells it from every other adapter that this process has loaded, also from those of its name.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The shapes of the model that it was loaded for.
    #[must_use]
    pub fn shapes(&self) -> &Arc<AdapterShapes> {
        &self.shapes
    }

    /// Memory of its factors.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.blocks.iter().flatten().flatten().map(LowRank::bytes).sum()
    }

    /// What it adds to the matrix of a block that has this place in [`MATRICES`], where it adds anything.
    pub(super) fn low_rank(&self, block: usize, module: usize) -> Option<&LowRank> {
        self.blocks[block][module].as_ref()
    }
}

impl fmt::Debug for AdapterWeights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdapterWeights").field("id", &self.id).finish_non_exhaustive()
    }
}
