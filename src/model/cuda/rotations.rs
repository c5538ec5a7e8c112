//! The rotary embeddings of a model in a device's memory.

use std::sync::Arc;

use crate::checkpoint::architecture::RopeTables;
use crate::model::ModelConfig;
use pleach_kernels::DType;
use pleach_kernels::cuda::{CudaError, Device, Tensor};

/// Cosines and sines of all positions, for every block that rotates.
pub(super) struct Rotations {
    /// f32 `[positions, n]`, where the first n values of a head turn.
    tables: Vec<Tensor>,
    /// The table of each block.
    of_block: Vec<Option<usize>>,
    positions: usize,
}

impl Rotations {
    pub(super) fn new(
        device: &Arc<Device>,
        config: &ModelConfig,
        positions: usize,
    ) -> Result<Self, CudaError> {
        let ropes = RopeTables::new(config);
        let tables = ropes.tables().iter().map(|table| {
            let values = table.rotations(positions);
            let shape = [positions, values.len() / positions];
            Tensor::from_f32(device, DType::F32, shape, &values)
        });
        Ok(Self {
            tables: tables.collect::<Result<_, _>>()?,
            of_block: (0..config.num_hidden_layers).map(|block| ropes.place(block)).collect(),
            positions,
        })
    }

    /// What a block turns queries and keys by, where it does.
    pub(super) fn of(&self, block: usize) -> Option<&Tensor> {
        self.of_block[block].map(|table| &self.tables[table])
    }

    /// Positions that the tables have.
    pub(super) fn positions(&self) -> usize {
        self.positions
    }
}
