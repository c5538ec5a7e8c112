//! The operations of training, each by our own kernels or as candle composes it.

#[cfg(test)]
mod tests;

use candle_core::{Result, Tensor};

use super::adapted::{Adapted, AdaptedLinear};
use super::attention::Attention;
use super::backend::Backend;
use super::chain_attention::ChainAttention;
use super::composed;
use super::distill_loss::{DistillLoss, Head, Tally, Targets};
use super::graph_ops::{GateMul, Linear, RmsNorm};
use pleach_kernels::Activation;
use pleach_kernels::training::Divergence;

/// `y = x w^T`: x `[rows, in]`, w `[out, in]`, y `[rows, out]`.
pub(super) fn linear(backend: &Backend, x: &Tensor, w: &Tensor) -> Result<Tensor> {
    if backend.is_fused() { x.apply_op2(w, Linear) } else { x.matmul(&w.t()?) }
}

/// Rows times frozen matrices with low-rank additions: x `[rows, in]`, A's below each other `[ranks, in]`, B's below each
/// other `[out, rank]`.
pub(super) fn adapted(
    backend: &Backend,
    matrices: &Adapted,
    x: &Tensor,
    [a, b]: [&Tensor; 2],
) -> Result<Tensor> {
    if backend.is_fused() {
        x.apply_op3(a, b, AdaptedLinear::new(matrices))
    } else {
        composed::adapted(matrices, x, [a, b])
    }
}

/// RMS norm of rows as long as the weight; `x` may have more dimensions.
pub(super) fn rms_norm(backend: &Backend, x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    if backend.is_fused() {
        x.apply_op2(weight, RmsNorm { eps })
    } else {
        composed::rms_norm(x, weight, eps)
    }
}

/// `activation(gate) * up` of rows `[gate | up]`: `[rows, 2 n]` to `[rows, n]`.
pub(super) fn gate_mul(backend: &Backend, x: &Tensor, activation: Activation) -> Result<Tensor> {
    if backend.is_fused() {
        x.apply_op1(GateMul { activation })
    } else {
        composed::gate_mul(x, activation)
    }
}

/// Queries, keys and values of packed sequences to the heads' outputs.
pub(super) fn attention(backend: &Backend, op: Attention, qkv: &Tensor) -> Result<Tensor> {
    if backend.is_fused() { qkv.apply_op1(op) } else { composed::attention(&op, qkv) }
}

/// Queries, keys and values of the steps of chains to the heads' outputs in the last step.
pub(super) fn chain_attention(
    backend: &Backend,
    op: ChainAttention,
    qkv: &Tensor,
) -> Result<Tensor> {
    if backend.is_fused() { qkv.apply_op1(op) } else { composed::chain_attention(&op, qkv) }
}

/// Sum of the losses of `hidden`, `[rows, hidden]`, as a tensor to differentiate where it is for `training`, and what it is
/// made of.
pub(super) fn distill_loss(
    backend: &Backend,
    hidden: &Tensor,
    head: Head<'_>,
    targets: Targets,
    divergence: Divergence,
    training: bool,
) -> Result<(Tensor, Tally)> {
    if backend.is_fused() {
        DistillLoss::apply(hidden, head, targets, divergence, training)
    } else {
        composed::distill_loss(hidden, head, &targets, divergence, training)
    }
}
