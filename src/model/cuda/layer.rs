//! Blocks of a decoder on a device, and a pass through them.

use super::workspace::Buffers;
use pleach_kernels::AttentionShape;
use pleach_kernels::cuda::{
    AttentionInputs, CudaError, Device, KvLayer, QkvInputs, Tensor, Weights,
};

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
        let mut parts = self.parts.iter();
        parts.try_for_each(|(column, weights)| device.matmul(weights, x, out, *column))?;
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
    pub(super) post_norm: Tensor,
    pub(super) gate_up: Stack,
    pub(super) down: Stack,
    pub(super) attention: AttentionShape,
}

/// What all blocks of a pass read.
pub(super) struct Pass<'a> {
    pub(super) device: &'a Device,
    /// f32 `[positions, head_dim]`
    pub(super) rotations: &'a Tensor,
    pub(super) eps: f32,
}

impl Layer {
    /// Memory of its matrices.
    pub(super) fn bytes(&self) -> usize {
        [&self.qkv, &self.output, &self.gate_up, &self.down].map(Stack::bytes).iter().sum()
    }

    /// Computes the rows of `normed`, which are those of `hidden` behind the input norm, adds what attention adds to
    /// `hidden`, and leaves in `delta` what is to be added next.
    fn forward(
        &self,
        pass: &Pass<'_>,
        cache: &mut KvLayer,
        buffers: &mut Buffers,
    ) -> Result<(), CudaError> {
        let &Pass { device, rotations, eps } = pass;
        let Buffers { batch, hidden, normed, qkv, q, attended, delta, gate_up, inner, partial } =
            buffers;
        self.qkv.project(device, normed, qkv)?;
        let inputs = QkvInputs {
            bias: self.qkv_bias.as_ref(),
            qk_norm: self.qk_norm.as_ref(),
            rotations,
            eps,
        };
        device.qkv_rope_write(qkv, &inputs, batch, q, cache)?;
        device.paged_attention(&AttentionInputs { q, cache }, batch, partial, attended)?;
        self.output.project(device, attended, delta)?;
        device.add_rms_norm(hidden, Some(delta), &self.post_norm, None, normed, eps)?;
        self.gate_up.project(device, normed, gate_up)?;
        device.silu_mul(gate_up, inner)?;
        self.down.project(device, inner, delta)
    }
}

/// Runs blocks, each over its keys and values, on the rows in `hidden`, and on `delta` beside them where that is to be
/// `added` before the first. What the last block adds is left in `delta`. `observe` is called with the number of blocks
/// behind which the rows stand in `hidden`, before each block.
pub(super) fn run_blocks<'a>(
    pass: &Pass<'_>,
    blocks: impl Iterator<Item = (&'a Layer, &'a mut KvLayer)>,
    buffers: &mut Buffers,
    mut added: bool,
    observe: &mut dyn FnMut(usize, &mut Buffers) -> Result<(), CudaError>,
) -> Result<(), CudaError> {
    for (index, (layer, cache)) in blocks.enumerate() {
        let Buffers { hidden, normed, delta, .. } = buffers;
        let delta = added.then_some(&*delta);
        pass.device.add_rms_norm(hidden, delta, &layer.input_norm, None, normed, pass.eps)?;
        observe(index, buffers)?;
        layer.forward(pass, cache, buffers)?;
        added = true;
    }
    Ok(())
}
