//! Norms, gates and products of rows, and what attention and losses are made of.

use candle_core::{D, DType, Device, Result, Tensor};

use super::super::adapted::Adapted;
use super::frozen::frozen_product;
use pleach_kernels::Activation;

/// RMS norm of rows as long as the weight.
pub(in super::super) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    let mean_square = x.sqr()?.mean_keepdim(D::Minus1)?;
    let root = (mean_square + f64::from(eps))?.sqrt()?;
    x.broadcast_div(&root)?.broadcast_mul(weight)
}

/// `activation(gate) * up` of rows `[gate | up]`.
pub(in super::super) fn gate_mul(x: &Tensor, activation: Activation) -> Result<Tensor> {
    let width = x.dim(1)? / 2;
    let (gate, up) = (x.narrow(1, 0, width)?, x.narrow(1, width, width)?);
    let gate = match activation {
        Activation::Silu => gate.silu()?,
        Activation::GeluTanh => gate.gelu()?,
    };
    gate * up
}

/// Rows times frozen matrices side by side with low-rank additions, as [`Adapted`] has them.
pub(in super::super) fn adapted(
    matrices: &Adapted,
    x: &Tensor,
    [a, b]: [&Tensor; 2],
) -> Result<Tensor> {
    let low = x.matmul(&a.t()?)?;
    let (mut parts, mut first) = (Vec::with_capacity(matrices.parts.len()), 0);
    for (part, &rows) in matrices.parts.iter().enumerate() {
        // Devices take contiguous rows alone.
        let low = low.narrow(1, part * matrices.rank, matrices.rank)?.contiguous()?;
        parts.push(low.matmul(&b.narrow(0, first, rows)?.t()?)?);
        first += rows;
    }
    let added = (Tensor::cat(&parts, 1)? * f64::from(matrices.scale))?;
    frozen_product(x, matrices.frozen.tensor()?)? + added
}

/// `cap * tanh(x / cap)`, where there is a cap.
pub(in super::super) fn bounded(x: Tensor, cap: Option<f32>) -> Result<Tensor> {
    match cap.map(f64::from) {
        Some(cap) => (x / cap)?.tanh()? * cap,
        None => Ok(x),
    }
}

/// Softmax of the last dimension.
pub(super) fn softmax(x: &Tensor) -> Result<Tensor> {
    // A constant per row changes nothing, so no gradient goes through it.
    let top = x.max_keepdim(D::Minus1)?.detach();
    let weights = x.broadcast_sub(&top)?.exp()?;
    weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)
}

/// The numbers of `range`, as f32.
pub(super) fn numbers(range: std::ops::Range<usize>, device: &Device) -> Result<Tensor> {
    Tensor::arange(range.start as u32, range.end as u32, device)?.to_dtype(DType::F32)
}

/// What is added to scores: 0 where `seen` is 1, and where it is 0 so little that its weight is 0.
pub(super) fn mask(seen: &Tensor) -> Result<Tensor> {
    (seen.to_dtype(DType::F32)? - 1.0)? * 1e30
}
