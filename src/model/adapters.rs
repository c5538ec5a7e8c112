//! LoRA adapters in memory: each adds to the matrices that it has factors for, in the rows that go through it. They are
//! no part of the decoder: whoever asks for rows brings the adapter, and the last who holds it frees its memory.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::cuda::{CudaAdapter, CudaAdapters};
use crate::checkpoint::CheckpointError;
use crate::checkpoint::adapter::{Adapter, Factors};
use crate::checkpoint::architecture::MATRICES;
use pleach_kernels::LowRank;
use pleach_kernels::cuda::{CudaError, LowRankFactors, LowRankLayout};

/// The matrices of a model that adapters add to: their shapes, `[out, in]`, by block, in the order of [`MATRICES`].
#[derive(Debug, PartialEq, Eq)]
pub struct AdapterShapes {
    blocks: Vec<[[usize; 2]; MATRICES.len()]>,
}

/// An adapter in memory, for a model of these shapes.
pub struct AdapterWeights {
    id: u64,
    shapes: Arc<AdapterShapes>,
    place: Place,
}

/// Where an adapter's factors are.
enum Place {
    /// In the processor's memory: what is added to each matrix of each block, where anything is.
    Cpu(Vec<[Option<LowRank>; MATRICES.len()]>),
    /// In that of a CUDA device.
    Cuda(CudaAdapter),
}

/// An adapter that fits a model of these shapes, laid out for a CUDA device.
pub struct AdapterLayout {
    shapes: Arc<AdapterShapes>,
    layout: LowRankLayout,
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
        self.check(adapter)?;
        let low_rank = |it: &Factors| LowRank::new(it.rank, it.scale, &it.a, &it.b);
        let blocks = (0..self.blocks.len()).map(|block| factors(adapter, block));
        let blocks = blocks.map(|factors| factors.map(|it| it.map(low_rank))).collect();
        Ok(AdapterWeights::new(self, Place::Cpu(blocks)))
    }

    /// Makes an adapter ready to be copied to a CUDA device, on the thread that asks and without the device.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn lay_out(self: &Arc<Self>, adapter: &Adapter) -> Result<AdapterLayout, CheckpointError> {
        self.check(adapter)?;
        let factors = (0..self.blocks.len()).flat_map(|block| factors(adapter, block));
        let factors = factors.map(|it| {
            let Factors { rank, scale, a, b } = it?;
            Some(LowRankFactors { rank: *rank, scale: *scale, a, b })
        });
        let factors: Vec<_> = factors.collect();
        let shapes = self.blocks.iter().flatten().copied().collect();
        Ok(AdapterLayout { shapes: Arc::clone(self), layout: LowRankLayout::new(shapes, &factors) })
    }

    /// Whether the model has all matrices that an adapter adds to, in the same shapes.
    fn check(&self, adapter: &Adapter) -> Result<(), CheckpointError> {
        adapter.factors().try_for_each(|(name, factors)| {
            self.check_matrix(name, factors)
                .map_err(|reason| CheckpointError::field(adapter.path(), name, reason))
        })
    }

    /// Whether there is such a matrix and the factors have its shape.
    fn check_matrix(&self, name: &str, factors: &Factors) -> Result<(), String> {
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

/// What an adapter adds to the matrices of a block, in the order of [`MATRICES`].
fn factors(adapter: &Adapter, block: usize) -> [Option<&Factors>; MATRICES.len()] {
    MATRICES.map(|module| adapter.get(&format!("model.layers.{block}.{module}.weight")))
}

impl AdapterLayout {
    /// Memory of a device that the adapter will take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.layout.bytes()
    }

    /// Copies the adapter to its model's device, on which work must not be recorded meanwhile.
    ///
    /// # Errors
    /// If there is no memory left, or the device fails.
    pub fn load(&self, adapters: &CudaAdapters) -> Result<AdapterWeights, CudaError> {
        Ok(AdapterWeights::new(&self.shapes, Place::Cuda(adapters.load(&self.layout)?)))
    }
}

impl AdapterWeights {
    fn new(shapes: &Arc<AdapterShapes>, place: Place) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self { id: NEXT.fetch_add(1, Ordering::Relaxed), shapes: Arc::clone(shapes), place }
    }

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
        match &self.place {
            Place::Cpu(blocks) => blocks.iter().flatten().flatten().map(LowRank::bytes).sum(),
            Place::Cuda(adapter) => adapter.bytes(),
        }
    }

    /// What it adds to the matrix of a block that has this place in [`MATRICES`], where it adds anything.
    ///
    /// # Panics
    /// If it is on a CUDA device.
    pub(super) fn low_rank(&self, block: usize, module: usize) -> Option<&LowRank> {
        match &self.place {
            Place::Cpu(blocks) => blocks[block][module].as_ref(),
            Place::Cuda(_) => panic!("the adapter is on a CUDA device, the model is not"),
        }
    }

    /// The adapter on its model's device.
    ///
    /// # Panics
    /// If it is not on a device.
    pub(super) fn on_cuda(&self) -> &CudaAdapter {
        match &self.place {
            Place::Cuda(adapter) => adapter,
            Place::Cpu(_) => panic!("the adapter is not on the model's device"),
        }
    }
}

impl fmt::Debug for AdapterWeights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdapterWeights").field("id", &self.id).finish_non_exhaustive()
    }
}
