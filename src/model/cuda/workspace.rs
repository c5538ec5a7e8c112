//! What a pass on a device needs beside weights and cache.

use std::sync::Arc;

use crate::kv_cache::BLOCK_SIZE;
use crate::model::ModelConfig;
use pleach_kernels::cuda::{Batch, CudaError, Device, Graphs, HostBuffer, Tensor, Verifier};
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
}

/// Buffers of one forward pass; they grow to the largest batch seen, or that was reserved.
pub(super) struct Workspace {
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
    /// f32 `[logit_rows, head_rows]`
    pub(super) logits: Tensor,
    pub(super) on_host: HostBuffer,
    pub(super) verifier: Verifier,
    pub(super) graphs: Graphs,
    /// The last pass's `logit_rows`: in these rows `delta` is in `hidden` already.
    pub(super) logit_rows: Vec<u32>,
}

impl Workspace {
    /// Empty buffers for a model with activations of a format and so many rows of its head.
    pub(super) fn new(
        device: &Arc<Device>,
        config: &ModelConfig,
        dtype: DType,
        head_rows: usize,
    ) -> Result<Self, CudaError> {
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
            logits: tensor(DType::F32, head_rows)?,
            on_host: HostBuffer::new(device)?,
            verifier: Verifier::new(device)?,
            graphs: Graphs::new(device, true),
            logit_rows: Vec::new(),
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
        let PassBounds { rows, sequences, logit_rows, decides, drafted } = bounds;
        let vocab = self.logits.shape()[1];
        let needs = |rows, length| device.attention_workspace(attention, rows, length);
        let sizes = [rows, sequences, positions, BLOCK_SIZE];
        let partial = self.batch.reserve(sizes, &needs)?;
        self.partial.set_rows(partial.div_ceil(size_of::<f32>()))?;
        let Self { hidden, normed, qkv, q, attended, delta, gate_up, inner, .. } = self;
        for tensor in [hidden, normed, qkv, q, attended, delta, gate_up, inner] {
            tensor.set_rows(rows)?;
        }
        self.logits.set_rows(logit_rows)?;
        self.on_host.reserve(device, logit_rows * vocab * size_of::<f32>())?;
        if decides {
            self.verifier.reserve(sequences, logit_rows, vocab, drafted)?;
        }
        Ok(())
    }
}
