//! Attention, differentiable: candle keeps the graph, our kernels do both directions.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::gemm::product;
use super::graph_ops::{dense, result, values, with_values};
use pleach::model::ModelConfig;
use pleach_kernels::training::{causal_softmax, softmax_backward};
use pleach_kernels::{MatRef, RopeTable, ThreadPool};

/// The heads of an attention layer, and how far they see.
#[derive(Debug, Clone, Copy)]
pub(super) struct HeadShape {
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    /// Positions that a row attends to, itself included; all where `None`.
    pub(super) window: Option<usize>,
}

impl HeadShape {
    /// That of block `index`.
    pub(super) fn of(config: &ModelConfig, index: usize) -> Self {
        Self {
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            window: config.window(index),
        }
    }

    /// Values in a row of `[query | key | value]` heads.
    pub(super) fn stride(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    pub(super) fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    /// Where in a row the query, key and value of a query head begin.
    pub(super) fn columns(&self, head: usize) -> [usize; 3] {
        let group = self.heads / self.kv_heads;
        [head, self.heads + head / group, self.heads + self.kv_heads + head / group]
            .map(|head| head * self.head_dim)
    }

    /// `qkv` with its queries and keys rotated to the positions that `rope` is set to.
    pub(super) fn rotated(&self, rope: &RopeTable, pool: &ThreadPool, qkv: &[f32]) -> Vec<f32> {
        let mut qkv = qkv.to_vec();
        rope.apply(pool, &mut qkv, self.heads + self.kv_heads, self.stride(), 0);
        qkv
    }
}

/// Rotary embedding and causal attention of packed sequences: rows of `[query | key | value]` heads
/// to rows of query heads.
pub(super) struct Attention {
    pub(super) shape: HeadShape,
    /// Rows of each sequence.
    pub(super) sequences: Arc<[Range<usize>]>,
    /// Set to the rows' positions.
    pub(super) rope: Arc<RopeTable>,
    pub(super) pool: Arc<ThreadPool>,
}

/// One sequence and query head: where its query and its key (value) lie in a row.
struct Head {
    rows: Range<usize>,
    query: usize,
    key: usize,
    value: usize,
}

impl Attention {
    fn heads(&self) -> impl Iterator<Item = Head> {
        self.sequences.iter().flat_map(move |rows| {
            (0..self.shape.heads).map(move |head| {
                let [query, key, value] = self.shape.columns(head);
                Head { rows: rows.clone(), query, key, value }
            })
        })
    }

    /// Attention weights of one head, `[n, n]`.
    fn weights(&self, qkv: &[f32], head: &Head, weights: &mut Vec<f32>) -> Result<()> {
        let n = head.rows.len();
        weights.resize(n * n, 0.0);
        let (q, k) = (self.part(qkv, head, head.query), self.part(qkv, head, head.key));
        product(q, k.t(), weights, false)?;
        causal_softmax(weights, n, self.shape.scale(), self.shape.window);
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
        let qkv = self.shape.rotated(&self.rope, &self.pool, values(qkv, layout)?);
        let width = heads * dim;
        let mut out = vec![0.0; rows * width];
        let (mut weights, mut part) = (Vec::new(), Vec::new());
        for head in self.heads() {
            let n = head.rows.len();
            self.weights(&qkv, &head, &mut weights)?;
            part.resize(n * dim, 0.0);
            let value = self.part(&qkv, &head, head.value);
            product(MatRef::new(&weights, n, n, n), value, &mut part, false)?;
            scatter(&part, dim, &mut out, width, &head.rows, head.query);
        }
        result(out, (rows, width))
    }

    fn bwd(&self, qkv: &Tensor, _: &Tensor, dout: &Tensor) -> Result<Option<Tensor>> {
        let HeadShape { heads, kv_heads, head_dim: dim, .. } = self.shape;
        let (width, stride) = (heads * dim, self.shape.stride());
        with_values([qkv, &dout.contiguous()?], |[x, dout]| {
            let x = self.shape.rotated(&self.rope, &self.pool, x);
            let mut dx = vec![0.0; x.len()];
            let (mut weights, mut dweights, mut part) = (Vec::new(), Vec::new(), Vec::new());
            for head in self.heads() {
                let n = head.rows.len();
                self.weights(&x, &head, &mut weights)?;
                dweights.resize(n * n, 0.0);
                part.resize(n * dim, 0.0);
                let start = head.rows.start * width + head.query;
                let dout = MatRef::new(&dout[start..], n, dim, width);
                product(dout, self.part(&x, &head, head.value).t(), &mut dweights, false)?;
                product(MatRef::new(&weights, n, n, n).t(), dout, &mut part, false)?;
                scatter(&part, dim, &mut dx, stride, &head.rows, head.value);
                softmax_backward(&weights, &mut dweights, n, self.shape.scale());
                let dscores = MatRef::new(&dweights, n, n, n);
                product(dscores, self.part(&x, &head, head.key), &mut part, false)?;
                scatter(&part, dim, &mut dx, stride, &head.rows, head.query);
                product(dscores.t(), self.part(&x, &head, head.query), &mut part, false)?;
                scatter(&part, dim, &mut dx, stride, &head.rows, head.key);
            }
            self.rope.apply_transposed(&self.pool, &mut dx, heads + kv_heads, stride, 0);
            dense(dx, qkv.shape()).map(Some)
        })
    }
}
