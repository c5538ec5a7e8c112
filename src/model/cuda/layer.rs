//! Blocks of a decoder on a device, and a pass through them.

use std::ops::Range;

use super::workspace::Buffers;
use crate::checkpoint::architecture::MATRICES;
use pleach_kernels::cuda::{
    AdaptedRows, AttentionInputs, CudaError, Delta, Device, KvLayer, QkvInputs, Tensor, Weights,
};
use pleach_kernels::{Activation, AttentionShape};

/// Matrices whose outputs stand side by side; neighbours in one format are one matrix.
pub(super) struct Stack {
    /// First output column of each, and the matrix.
    pub(super) parts: Vec<(usize, Weights)>,
    pub(super) outputs: usize,
    /// `[1, outputs]`, where the product adds it.
    pub(super) bias: Option<Tensor>,
}

impl Stack {
    pub(super) fn project(
        &self,
        device: &Device,
        x: &Tensor,
        out: &mut Tensor,
    ) -> Result<(), CudaError> {
        self.multiply(device, x, out)?;
        self.add_bias(device, out)
    }

    /// The same of `matrices` of the model, with what rows' adapters add to them.
    fn project_adapted(
        &self,
        pass: &Pass<'_>,
        matrices: Range<usize>,
        x: &Tensor,
        out: &mut Tensor,
    ) -> Result<(), CudaError> {
        self.multiply(pass.device, x, out)?;
        if let Some(rows) = pass.adapted {
            pass.device.add_low_rank(rows, matrices, x, out)?;
        }
        self.add_bias(pass.device, out)
    }

    fn multiply(&self, device: &Device, x: &Tensor, out: &mut Tensor) -> Result<(), CudaError> {
        let mut parts = self.parts.iter();
        parts.try_for_each(|(column, weights)| device.matmul(weights, x, out, *column))
    }

    fn add_bias(&self, device: &Device, out: &mut Tensor) -> Result<(), CudaError> {
        self.bias.as_ref().map_or(Ok(()), |bias| device.add_bias(out, bias))
    }

    /// Memory of its matrices.
    pub(super) fn bytes(&self) -> usize {
        self.parts.iter().map(|(_, weights)| weights.bytes()).sum()
    }
}

pub(super) struct Layer {
    pub(super) input_norm: Tensor,
    pub(super) qkv: Stack,
    pub(super) qkv_bias: Option<Tensor>,
    pub(super) qk_norm: Option<[Tensor; 2]>,
    pub(super) output: Stack,
    /// Norm of what attention adds to the residual stream.
    pub(super) attention_norm: Option<Tensor>,
    /// Norm of what the feed-forward layer reads.
    pub(super) post_norm: Tensor,
    pub(super) gate_up: Stack,
    pub(super) activation: Activation,
    pub(super) down: Stack,
    /// Norm of what the feed-forward layer adds to the residual stream.
    pub(super) feed_forward_norm: Option<Tensor>,
    pub(super) attention: AttentionShape,
}

/// What all blocks of a pass read.
pub(super) struct Pass<'a> {
    pub(super) device: &'a Device,
    pub(super) eps: f32,
    /// Rows that go through adapters, where any does.
    pub(super) adapted: Option<&'a AdaptedRows>,
}

/// A block of a pass, over its keys and values.
pub(super) struct Block<'a> {
    pub(super) layer: &'a Layer,
    pub(super) cache: &'a mut KvLayer,
    /// What it turns queries and keys by, where it does.
    pub(super) rotations: Option<&'a Tensor>,
}

impl Layer {
    /// Memory of its matrices.
    pub(super) fn bytes(&self) -> usize {
        [&self.qkv, &self.output, &self.gate_up, &self.down].map(Stack::bytes).iter().sum()
    }

    /// What the block leaves to be added, with its norm.
    pub(super) fn rest<'a>(&'a self, delta: &'a Tensor) -> Delta<'a> {
        Delta { values: delta, norm: self.feed_forward_norm.as_ref() }
    }

    /// Computes the rows of `normed`, which are those of `hidden` behind the input norm, adds what attention adds to
    /// `hidden`, and leaves in `delta` what is to be added next. `block` is its place in its model.
    fn forward(
        &self,
        pass: &Pass<'_>,
        block: usize,
        cache: &mut KvLayer,
        rotations: Option<&Tensor>,
        buffers: &mut Buffers,
    ) -> Result<(), CudaError> {
        let &Pass { device, eps, .. } = pass;
        // Of the matrices that adapters know, in their order.
        let matrices = |own: Range<usize>| {
            let first = block * MATRICES.len();
            first + own.start..first + own.end
        };
        let Buffers { batch, hidden, normed, qkv, q, attended, delta, gate_up, inner, partial } =
            buffers;
        self.qkv.project_adapted(pass, matrices(0..3), normed, qkv)?;
        let inputs = QkvInputs {
            bias: self.qkv_bias.as_ref(),
            qk_norm: self.qk_norm.as_ref(),
            rotations,
            eps,
        };
        device.qkv_rope_write(qkv, &inputs, batch, q, cache)?;
        device.paged_attention(&AttentionInputs { q, cache }, batch, partial, attended)?;
        self.output.project_adapted(pass, matrices(3..4), attended, delta)?;
        let attention = Delta { values: delta, norm: self.attention_norm.as_ref() };
        device.add_rms_norm(hidden, Some(attention), &self.post_norm, None, normed, eps)?;
        self.gate_up.project_adapted(pass, matrices(4..6), normed, gate_up)?;
        device.gate_mul(self.activation, gate_up, inner)?;
        self.down.project_adapted(pass, matrices(6..7), inner, delta)
    }
}

/// Runs blocks on the rows in `hidden`, and on `delta` beside them where that is to be `added` before the first. What the
/// last block adds is left in `delta`: its [`rest`](Layer::rest). `observe` is called with the number of blocks
/// behind which the rows stand in `hidden`, before each block.
pub(super) fn run_blocks<'a>(
    pass: &Pass<'_>,
    blocks: impl Iterator<Item = Block<'a>>,
    buffers: &mut Buffers,
    added: bool,
    observe: &mut dyn FnMut(usize, &mut Buffers) -> Result<(), CudaError>,
) -> Result<(), CudaError> {
    let mut before: Option<&Layer> = None;
    for (index, Block { layer, cache, rotations }) in blocks.enumerate() {
        let Buffers { hidden, normed, delta, .. } = buffers;
        let delta = match before {
            Some(before) => Some(before.rest(delta)),
            None => added.then_some(Delta { values: delta, norm: None }),
        };
        pass.device.add_rms_norm(hidden, delta, &layer.input_norm, None, normed, pass.eps)?;
        observe(index, buffers)?;
        layer.forward(pass, index, cache, rotations, buffers)?;
        before = Some(layer);
    }
    Ok(())
}
