//! What a pass on a device needs beside weights and cache.

use std::sync::Arc;

use crate::kv_cache::{BLOCK_SIZE, BlockPool, BlockTable};
use crate::model::{ModelConfig, Rows};
use pleach_kernels::cuda::{Batch, BatchRows, CudaError, Device, Graphs, HostBuffer, Tensor};
use pleach_kernels::{AttentionShape, DType};

/// The largest pass of a runner.
#[derive(Debug, Clone, Copy)]
pub struct PassBounds {
    /// Rows of all sequences together.
    pub rows: usize,
    /// Sequences.
    pub sequences: usize,
    /// Rows whose logits are wanted.
    pub logit_rows: usize,
    /// Whether rounds are decided on the device.
    pub decides: bool,
    /// Whether a draft model drafts for these rounds.
    pub drafted: bool,
    /// Whether rows may go through adapters.
    pub adapted: bool,
}

impl PassBounds {
    /// Passes of one sequence that are computed before an engine serves, over the blocks that a cache has: the largest, and
    /// of few rows, for which products have kernels of their own.
    pub(super) fn first_passes(self, num_blocks: usize, positions: usize) -> Vec<Rows> {
        let positions = positions.min(num_blocks * BLOCK_SIZE);
        let (mut pool, mut table) = (BlockPool::new(num_blocks), BlockTable::new());
        assert!(table.reserve(positions, &mut pool), "invariant: as many blocks as are there");
        let pass = |count: usize| {
            let count = count.min(self.rows).min(positions);
            let (tokens, wanted) = (std::iter::repeat_n(0, count), count.min(self.logit_rows));
            let mut rows = Rows::default();
            rows.push(&table, positions - count, tokens, wanted);
            rows
        };
        [self.rows, 16, 1].map(pass).into()
    }
}

/// Rows of a pass and what its blocks compute of them.
pub(super) struct Buffers {
    pub(super) batch: Batch,
    /// f32 `[rows, hidden]`: the residual stream.
    pub(super) hidden: Tensor,
    /// `[rows, hidden]`
    pub(super) normed: Tensor,
    /// `[rows, q + k + v]`
    pub(super) qkv: Tensor,
    /// `[rows, heads * head_dim]`
    pub(super) q: Tensor,
    pub(super) attended: Tensor,
    /// `[rows, hidden]`: what a block adds to the residual stream.
    pub(super) delta: Tensor,
    /// `[rows, gate | up]`
    pub(super) gate_up: Tensor,
    /// `[rows, intermediate]`
    pub(super) inner: Tensor,
    /// f32 `[_, 1]`
    pub(super) partial: Tensor,
}

impl Buffers {
    fn new(device: &Arc<Device>, config: &ModelConfig, dtype: DType) -> Result<Self, CudaError> {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        let q = config.num_attention_heads * config.head_dim;
        let kv = config.num_key_value_heads * config.head_dim;
        let tensor = |dtype, cols| Tensor::new(device, dtype, 0, cols);
        Ok(Self {
            batch: Batch::new(device)?,
            hidden: tensor(DType::F32, width)?,
            normed: tensor(dtype, width)?,
            qkv: tensor(dtype, q + 2 * kv)?,
            q: tensor(dtype, q)?,
            attended: tensor(dtype, q)?,
            delta: tensor(dtype, width)?,
            gate_up: tensor(dtype, 2 * inner)?,
            inner: tensor(dtype, inner)?,
            partial: tensor(DType::F32, 1)?,
        })
    }

    /// Takes on the rows of a pass over a cache of so many blocks, with rotations for so many positions.
    pub(super) fn set(
        &mut self,
        device: &Device,
        rows: &Rows,
        attention: &AttentionShape,
        [num_blocks, positions]: [usize; 2],
    ) -> Result<(), CudaError> {
        let on_host = BatchRows {
            tokens: &rows.tokens,
            positions: &rows.positions,
            slots: &rows.slots,
            cu_seqlens_q: &rows.cu_seqlens_q,
            logit_rows: &rows.logit_rows,
            block_table: &|sequence| rows.block_table(sequence),
        };
        let needs = |rows, length| device.attention_workspace(attention, rows, length);
        self.batch.set(&on_host, [num_blocks, BLOCK_SIZE, positions], &needs)?;
        self.set_rows(self.batch.rows())
    }

    fn set_rows(&mut self, rows: usize) -> Result<(), CudaError> {
        let Self { hidden, normed, qkv, q, attended, delta, gate_up, inner, .. } = self;
        let mut tensors = [hidden, normed, qkv, q, attended, delta, gate_up, inner].into_iter();
        tensors.try_for_each(|tensor| tensor.set_rows(rows))
    }

    /// Where everything lies but the rows.
    pub(super) fn tensors(&self) -> [&Tensor; 9] {
        let Self { hidden, normed, qkv, q, attended, delta, gate_up, inner, partial, .. } = self;
        [hidden, normed, qkv, q, attended, delta, gate_up, inner, partial]
    }
}

/// Buffers of one forward pass; they grow to the largest batch seen, or that was reserved.
pub(super) struct Workspace {
    pub(super) buffers: Buffers,
    /// f32 `[logit_rows, head_rows]`
    pub(super) logits: Tensor,
    pub(super) on_host: HostBuffer,
    pub(super) graphs: Graphs,
}

impl Workspace {
    /// Empty buffers for a model with activations of a format and so many rows of its head.
    pub(super) fn new(
        device: &Arc<Device>,
        config: &ModelConfig,
        dtype: DType,
        head_rows: usize,
    ) -> Result<Self, CudaError> {
        Ok(Self {
            buffers: Buffers::new(device, config, dtype)?,
            logits: Tensor::new(device, DType::F32, 0, head_rows)?,
            on_host: HostBuffer::new(device)?,
            graphs: Graphs::new(device, true),
        })
    }

    /// Takes the memory of passes within these bounds, of sequences of at most `positions`.
    pub(super) fn reserve(
        &mut self,
        device: &Arc<Device>,
        attention: &AttentionShape,
        bounds: PassBounds,
        positions: usize,
    ) -> Result<(), CudaError> {
        let PassBounds { rows, sequences, logit_rows, .. } = bounds;
        let needs = |rows, length| device.attention_workspace(attention, rows, length);
        let sizes = [rows, sequences, positions, BLOCK_SIZE];
        let partial = self.buffers.batch.reserve(sizes, &needs)?;
        self.buffers.partial.set_rows(partial.div_ceil(size_of::<f32>()))?;
        self.buffers.set_rows(Batch::rows_for(rows))?;
        self.logits.set_rows(Batch::rows_for(logit_rows))?;
        let [_, vocab] = self.logits.shape();
        self.on_host.reserve(device, logit_rows * vocab * size_of::<f32>())
    }
}
