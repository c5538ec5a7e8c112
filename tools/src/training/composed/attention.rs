//! Attention of packed sequences and of chains.

use candle_core::{D, Device, Result, Tensor};

use super::super::attention::{Attention, HeadShape};
use super::super::chain_attention::{ChainAttention, Chains};
use super::rows::{bounded, mask, numbers, softmax};
use pleach_kernels::RopeTable;

/// Queries, keys and values of rows: `[rows, heads, head_dim]`, `[rows, kv_heads, head_dim]` twice.
struct Heads {
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
}

impl Heads {
    /// Of rows of `[query | key | value]` heads, rotated to the positions that `rope` is set to.
    fn of(shape: &HeadShape, rope: Option<&RopeTable>, qkv: &Tensor) -> Result<Self> {
        let (rows, dim) = (qkv.dim(0)?, shape.head_dim);
        let turning = shape.heads + shape.kv_heads;
        let heads = qkv.reshape((rows, turning + shape.kv_heads, dim))?;
        let turned = heads.narrow(1, 0, turning)?;
        let turned = match rope {
            Some(rope) => rotated(&turned, rope)?,
            None => turned,
        };
        Ok(Self {
            queries: turned.narrow(1, 0, shape.heads)?,
            keys: turned.narrow(1, shape.heads, shape.kv_heads)?,
            values: heads.narrow(1, turning, shape.kv_heads)?,
        })
    }
}

/// Heads, `[rows, heads, head_dim]`, whose first values turn: the first half of them with the second.
fn rotated(heads: &Tensor, rope: &RopeTable) -> Result<Tensor> {
    let (rows, _, dim) = heads.dims3()?;
    let rotations = rope.rotations_of_rows();
    let half = rotations.len() / rows.max(1) / 2;
    let rotations = Tensor::from_slice(rotations, (rows, 1, 2 * half), heads.device())?;
    let (cos, sin) = (rotations.narrow(2, 0, half)?, rotations.narrow(2, half, half)?);
    let (low, high) = (heads.narrow(2, 0, half)?, heads.narrow(2, half, half)?);
    let first = (low.broadcast_mul(&cos)? - high.broadcast_mul(&sin)?)?;
    let second = (high.broadcast_mul(&cos)? + low.broadcast_mul(&sin)?)?;
    let rest = dim - 2 * half;
    if rest == 0 {
        return Tensor::cat(&[first, second], 2);
    }
    Tensor::cat(&[first, second, heads.narrow(2, 2 * half, rest)?], 2)
}

/// `[rows, heads, head_dim]` as `[kv_heads, group * rows, head_dim]`: the rows of all heads that share keys and values.
fn grouped(heads: &Tensor, kv_heads: usize) -> Result<Tensor> {
    let (rows, count, dim) = heads.dims3()?;
    heads.transpose(0, 1)?.contiguous()?.reshape((kv_heads, count / kv_heads * rows, dim))
}

/// Rows of query heads, `[rows, heads * head_dim]`, of what [`grouped`] makes.
fn ungrouped(heads: &Tensor, rows: usize) -> Result<Tensor> {
    let dim = heads.dim(2)?;
    heads.reshape(((), rows, dim))?.transpose(0, 1)?.contiguous()?.reshape((rows, ()))
}

/// Rotary embedding and causal attention of packed sequences, as [`Attention`] has them.
pub(in super::super) fn attention(op: &Attention, qkv: &Tensor) -> Result<Tensor> {
    let shape = &op.shape;
    let heads = Heads::of(shape, op.ropes.of(op.block), qkv)?;
    let of_sequence = |rows: &std::ops::Range<usize>| {
        let of = |heads: &Tensor| heads.narrow(0, rows.start, rows.len());
        let queries = grouped(&of(&heads.queries)?, shape.kv_heads)?;
        let keys = grouped(&of(&heads.keys)?, shape.kv_heads)?;
        let values = grouped(&of(&heads.values)?, shape.kv_heads)?;
        let scores = bounded((queries.matmul(&keys.t()?)? * f64::from(shape.scale))?, shape.cap)?;
        let mask = causal(rows.len(), shape.window, qkv.device())?;
        let by_head = scores.reshape((shape.heads, rows.len(), rows.len()))?;
        let weights = softmax(&by_head.broadcast_add(&mask)?)?.reshape(scores.shape())?;
        ungrouped(&weights.matmul(&values)?, rows.len())
    };
    let parts: Vec<Tensor> = op.sequences.iter().map(of_sequence).collect::<Result<_>>()?;
    Tensor::cat(&parts, 0)
}

/// What a row of a sequence sees of it, as a [`mask`]: `[rows, rows]`.
fn causal(rows: usize, window: Option<usize>, device: &Device) -> Result<Tensor> {
    let at = numbers(0..rows, device)?;
    let (row, position) = (at.unsqueeze(1)?, at.unsqueeze(0)?);
    let before = position.broadcast_le(&row)?;
    let Some(window) = window else { return mask(&before) };
    mask(&(before * within(&row, &position, window)?)?)
}

/// Whether a row's window holds a position.
fn within(row: &Tensor, position: &Tensor, window: usize) -> Result<Tensor> {
    position.broadcast_gt(&(row - window as f64)?)
}

/// The last of the steps of all chains, as [`ChainAttention`] has it.
pub(in super::super) fn chain_attention(op: &ChainAttention, qkv: &Tensor) -> Result<Tensor> {
    let heads = Heads::of(&op.shape, op.ropes.of(op.block), qkv)?;
    let parts: Vec<Tensor> = op
        .chains
        .iter()
        .map(|chains| of_chains(op, &heads, chains, qkv.device()))
        .collect::<Result<_>>()?;
    Tensor::cat(&parts, 0)
}

fn of_chains(
    op: &ChainAttention,
    heads: &Heads,
    chains: &Chains,
    device: &Device,
) -> Result<Tensor> {
    let HeadShape { heads: num_heads, kv_heads, head_dim: dim, .. } = op.shape;
    let (steps, count) = (op.steps, chains.rows.len());
    let rows = heads.queries.dim(0)? / steps;
    let of_step = |heads: &Tensor, step: usize| {
        grouped(&heads.narrow(0, step * rows + chains.rows.start, count)?, kv_heads)
    };
    let queries = of_step(&heads.queries, steps - 1)?;
    // Keys and values of the chains' own steps, `[kv_heads, 1, chains, head_dim]`, for all heads that share them.
    let own = |cells: &Tensor, step| of_step(cells, step)?.unsqueeze(1);
    let by_head = queries.reshape((kv_heads, (), count, dim))?;

    let positions = chains.keys.len() / (kv_heads * dim);
    let target = |cells: &[f32]| {
        grouped(&Tensor::from_slice(cells, (positions, kv_heads, dim), device)?, kv_heads)
    };
    let scores = queries.matmul(&target(&chains.keys)?.t()?)?;
    let mut scores = vec![scores.reshape((num_heads, count, positions))?];
    for step in 0..steps {
        let products = by_head.broadcast_mul(&own(&heads.keys, step)?)?;
        scores.push(products.sum_keepdim(D::Minus1)?.reshape((num_heads, count, 1))?);
    }
    let scores = (Tensor::cat(&scores, 2)? * f64::from(op.shape.scale))?;
    let scores = bounded(scores, op.shape.cap)?;
    let weights = softmax(&scores.broadcast_add(&seen(op, chains, positions, device)?)?)?;

    let of_target = weights.narrow(2, 0, positions)?.contiguous()?;
    let of_target = of_target.reshape((kv_heads, (), positions))?;
    let mut out = of_target.matmul(&target(&chains.values)?)?.reshape(by_head.shape())?;
    for step in 0..steps {
        let weight = weights.narrow(2, positions + step, 1)?;
        let weight = weight.reshape((kv_heads, (), count, 1))?;
        out = (out + weight.broadcast_mul(&own(&heads.values, step)?)?)?;
    }
    ungrouped(&out.reshape((num_heads, count, dim))?, count)
}

/// What each chain's row sees of the target's positions and its own steps, as a [`mask`]: `[chains, positions + steps]`.
fn seen(op: &ChainAttention, chains: &Chains, positions: usize, device: &Device) -> Result<Tensor> {
    let count = chains.rows.len();
    let last = numbers(chains.first..chains.first + count, device)?.unsqueeze(1)?;
    let position = numbers(0..positions, device)?.unsqueeze(0)?;
    let mut target = position.broadcast_le(&last)?;
    if let Some(window) = op.shape.window {
        target = (target * within(&(last + op.steps as f64)?, &position, window)?)?;
    }
    let own = Tensor::ones((count, op.steps), target.dtype(), device)?;
    mask(&Tensor::cat(&[target, own], 1)?)
}
