//! Attention, differentiable: candle keeps the graph, our kernels do both directions.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::gemm::product_alone;
use super::graph_ops::{dense, result, values, with_values};
use super::row_pieces::{ROWS, alone};
use pleach::model::{ModelConfig, RopeTables};
use pleach_kernels::training::{causal_softmax, soft_cap_backward, softmax_gradient};
use pleach_kernels::{AttentionShape, MatRef, RopeTable, soft_cap};

/// The heads of an attention layer, and how far they see.
#[derive(Debug, Clone, Copy)]
pub(super) struct HeadShape {
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    /// Positions that a row attends to, itself included; all where `None`.
    pub(super) window: Option<usize>,
    /// Multiplier of scores.
    pub(super) scale: f32,
    /// Bound of scores.
    pub(super) cap: Option<f32>,
}

impl HeadShape {
    /// That of block `index`.
    pub(super) fn of(config: &ModelConfig, index: usize) -> Self {
        let AttentionShape { heads, kv_heads, head_dim, window, scale, cap } =
            config.attention(index);
        Self { heads, kv_heads, head_dim, window, scale, cap }
    }

    /// Values in a row of `[query | key | value]` heads.
    pub(super) fn stride(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Bounds scores, in place, where there is a bound, and gives what the softmax has to multiply them by.
    pub(super) fn bound(&self, scores: &mut [f32]) -> f32 {
        let Some(cap) = self.cap else { return self.scale };
        soft_cap(alone(), scores, self.scale, cap);
        1.0
    }

    /// In place: the gradient of attention weights becomes that of the scores before [`bound`](Self::bound), which
    /// made `bounded` of them.
    pub(super) fn scores_gradient(&self, weights: &[f32], bounded: &[f32], gradient: &mut [f32]) {
        let Some(cap) = self.cap else {
            return softmax_gradient(weights, gradient, self.scale);
        };
        softmax_gradient(weights, gradient, 1.0);
        soft_cap_backward(bounded, self.scale, cap, gradient);
    }

    /// Where in a row the query, key and value of a query head begin.
    pub(super) fn columns(&self, head: usize) -> [usize; 3] {
        let group = self.heads / self.kv_heads;
        [head, self.heads + head / group, self.heads + self.kv_heads + head / group]
            .map(|head| head * self.head_dim)
    }

    /// `qkv` with its queries and keys rotated to the positions that `rope` is set to.
    pub(super) fn rotated(&self, rope: Option<&RopeTable>, qkv: &[f32]) -> Vec<f32> {
        let mut qkv = qkv.to_vec();
        self.turn(rope, &mut qkv, 1.0);
        qkv
    }

    /// In place: the gradient of [`rotated`](Self::rotated).
    pub(super) fn rotated_backward(&self, rope: Option<&RopeTable>, dqkv: &mut [f32]) {
        self.turn(rope, dqkv, -1.0);
    }

    fn turn(&self, rope: Option<&RopeTable>, qkv: &mut [f32], direction: f32) {
        let Some(rope) = rope else { return };
        let (stride, width) = (self.stride(), (self.heads + self.kv_heads) * self.head_dim);
        qkv.par_chunks_mut(stride).with_min_len(ROWS).enumerate().for_each(|(row, qkv)| {
            rope.turn_row(row, &mut qkv[..width], direction);
        });
    }
}

/// Rotary embedding and causal attention of packed sequences: rows of `[query | key | value]` heads
/// to rows of query heads.
pub(super) struct Attention {
    pub(super) shape: HeadShape,
    /// Rows of each sequence.
    pub(super) sequences: Arc<[Range<usize>]>,
    /// Set to the rows' positions.
    pub(super) ropes: Arc<RopeTables>,
    /// Which block of the model it is.
    pub(super) block: usize,
}

/// One sequence and query head: where its query and its key (value) lie in a row.
struct Head {
    rows: Range<usize>,
    query: usize,
    key: usize,
    value: usize,
}

impl Attention {
    fn heads(&self) -> Vec<Head> {
        let of_sequence = |rows: &Range<usize>| {
            let rows = rows.clone();
            (0..self.shape.heads).map(move |head| {
                let [query, key, value] = self.shape.columns(head);
                Head { rows: rows.clone(), query, key, value }
            })
        };
        self.sequences.iter().flat_map(of_sequence).collect()
    }

    /// Attention weights of one head, `[n, n]`, and the bounded scores they are made of.
    fn weights(
        &self,
        qkv: &[f32],
        head: &Head,
        weights: &mut Vec<f32>,
        bounded: &mut Vec<f32>,
    ) -> Result<()> {
        let n = head.rows.len();
        weights.resize(n * n, 0.0);
        let (q, k) = (self.part(qkv, head, head.query), self.part(qkv, head, head.key));
        product_alone(q, k.t(), weights)?;
        let scale = self.shape.bound(weights);
        bounded.clone_from(weights);
        causal_softmax(weights, n, scale, self.shape.window);
        Ok(())
    }

    /// One head's columns of the rows of a sequence.
    fn part<'a>(&self, qkv: &'a [f32], head: &Head, column: usize) -> MatRef<'a> {
        let stride = self.shape.stride();
        let start = head.rows.start * stride + column;
        MatRef::new(&qkv[start..], head.rows.len(), self.shape.head_dim, stride)
    }
}

/// Adds the rows of a dense matrix to columns of wider rows.
fn scatter(
    part: &[f32],
    width: usize,
    out: &mut [f32],
    stride: usize,
    rows: &Range<usize>,
    column: usize,
) {
    for (row, part) in rows.clone().zip(part.chunks_exact(width)) {
        let out = &mut out[row * stride + column..][..width];
        out.iter_mut().zip(part).for_each(|(out, v)| *out += v);
    }
}

impl CustomOp1 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(&self, qkv: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, _) = layout.shape().dims2()?;
        let HeadShape { heads, head_dim: dim, .. } = self.shape;
        let qkv = self.shape.rotated(self.ropes.of(self.block), values(qkv, layout)?);
        let width = heads * dim;
        let mut out = vec![0.0; rows * width];
        let forward = |(weights, bounded): &mut (Vec<f32>, Vec<f32>), head: &Head| {
            let n = head.rows.len();
            self.weights(&qkv, head, weights, bounded)?;
            let mut part = vec![0.0; n * dim];
            let value = self.part(&qkv, head, head.value);
            product_alone(MatRef::new(weights, n, n, n), value, &mut part)?;
            Ok(part)
        };
        let heads = self.heads();
        let parts: Vec<Vec<f32>> =
            heads.par_iter().map_init(Default::default, forward).collect::<Result<_>>()?;
        for (head, part) in heads.iter().zip(parts) {
            scatter(&part, dim, &mut out, width, &head.rows, head.query);
        }
        result(out, (rows, width))
    }

    fn bwd(&self, qkv: &Tensor, _: &Tensor, dout: &Tensor) -> Result<Option<Tensor>> {
        let HeadShape { heads, head_dim: dim, .. } = self.shape;
        let rope = self.ropes.of(self.block);
        let (width, stride) = (heads * dim, self.shape.stride());
        with_values([qkv, &dout.contiguous()?], |[x, dout]| {
            let x = self.shape.rotated(rope, x);
            let backward = |[weights, bounded, dweights]: &mut [Vec<f32>; 3], head: &Head| {
                let n = head.rows.len();
                self.weights(&x, head, weights, bounded)?;
                dweights.resize(n * n, 0.0);
                let [mut dq, mut dk, mut dv] = [(); 3].map(|()| vec![0.0; n * dim]);
                let start = head.rows.start * width + head.query;
                let dout = MatRef::new(&dout[start..], n, dim, width);
                product_alone(dout, self.part(&x, head, head.value).t(), dweights)?;
                product_alone(MatRef::new(weights, n, n, n).t(), dout, &mut dv)?;
                let rows = weights.chunks_exact(n).zip(bounded.chunks_exact(n));
                for ((weights, bounded), gradient) in rows.zip(dweights.chunks_exact_mut(n)) {
                    self.shape.scores_gradient(weights, bounded, gradient);
                }
                let dscores = MatRef::new(dweights, n, n, n);
                product_alone(dscores, self.part(&x, head, head.key), &mut dq)?;
                product_alone(dscores.t(), self.part(&x, head, head.query), &mut dk)?;
                Ok([dq, dk, dv])
            };
            let heads = self.heads();
            let parts: Vec<[Vec<f32>; 3]> =
                heads.par_iter().map_init(Default::default, backward).collect::<Result<_>>()?;
            let mut dx = vec![0.0; x.len()];
            for (head, parts) in heads.iter().zip(parts) {
                for (part, column) in parts.iter().zip([head.query, head.key, head.value]) {
                    scatter(part, dim, &mut dx, stride, &head.rows, column);
                }
            }
            self.shape.rotated_backward(rope, &mut dx);
            dense(dx, qkv.shape()).map(Some)
        })
    }
}
