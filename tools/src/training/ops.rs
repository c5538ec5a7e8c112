//! The differentiable operations: candle keeps the graph, our kernels do both directions.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, Error, Layout, Result, Shape, Storage, Tensor, bail,
};

use super::gemm::product;
use pleach::model::ModelConfig;
use pleach_kernels::training::{
    Divergence, causal_softmax, distill_row, rms_norm_backward, silu_mul_backward, softmax_backward,
};
use pleach_kernels::{MatRef, RopeTable, ThreadPool, rms_norm, silu_mul};

/// The values of a dense f32 tensor in storage.
pub(super) fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => bail!("a dense tensor was expected"),
    }
}

/// Calls `f` with the values of dense f32 tensors on the CPU.
pub(super) fn with_values<const N: usize, R>(
    tensors: [&Tensor; N],
    f: impl FnOnce([&[f32]; N]) -> Result<R>,
) -> Result<R> {
    let held = tensors.map(Tensor::storage_and_layout);
    let mut slices = [&[][..]; N];
    for (slice, (storage, layout)) in slices.iter_mut().zip(&held) {
        *slice = match &**storage {
            Storage::Cpu(storage) => values(storage, layout)?,
            _ => bail!("training runs on the CPU"),
        };
    }
    f(slices)
}

pub(super) fn dense(values: Vec<f32>, shape: impl Into<Shape>) -> Result<Tensor> {
    Tensor::from_vec(values, shape, &candle_core::Device::Cpu)
}

pub(super) fn result(values: Vec<f32>, shape: impl Into<Shape>) -> Result<(CpuStorage, Shape)> {
    Ok((CpuStorage::F32(values), shape.into()))
}

/// `y = x w^T`: x `[rows, in]`, w `[out, in]`, y `[rows, out]`.
pub(super) struct Linear;

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        w: &CpuStorage,
        w_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let ((rows, inner), (out, _)) = (x_layout.shape().dims2()?, w_layout.shape().dims2()?);
        let mut y = vec![0.0; rows * out];
        let x = MatRef::new(values(x, x_layout)?, rows, inner, inner);
        let w = MatRef::new(values(w, w_layout)?, out, inner, inner);
        product(x, w.t(), &mut y, false)?;
        result(y, (rows, out))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let ((rows, inner), (out, _)) = (x.dims2()?, w.dims2()?);
        let (wants_dx, wants_dw) = (x.track_op(), w.track_op());
        with_values([x, w, &dy.contiguous()?], |[x, w, dy]| {
            let dy = MatRef::new(dy, rows, out, out);
            let grad = |wanted: bool, a, b, shape: (usize, usize)| -> Result<Option<Tensor>> {
                if !wanted {
                    return Ok(None);
                }
                let mut d = vec![0.0; shape.0 * shape.1];
                product(a, b, &mut d, false)?;
                dense(d, shape).map(Some)
            };
            let w = MatRef::new(w, out, inner, inner);
            let x = MatRef::new(x, rows, inner, inner);
            Ok((grad(wants_dx, dy, w, (rows, inner))?, grad(wants_dw, dy.t(), x, (out, inner))?))
        })
    }
}

/// RMS norm of rows as long as the weight; `x` may have more dimensions.
pub(super) struct RmsNorm {
    pub(super) eps: f32,
    pub(super) pool: Arc<ThreadPool>,
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        w: &CpuStorage,
        w_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, w) = (values(x, x_layout)?, values(w, w_layout)?);
        let mut y = vec![0.0; x.len()];
        rms_norm(&self.pool, x, w, self.eps, &mut y);
        result(y, x_layout.shape())
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let trained = w.track_op();
        with_values([x, w, &dy.contiguous()?], |[xs, ws, dy]| {
            let (mut dx, mut dw) = (vec![0.0; xs.len()], vec![0.0; ws.len()]);
            rms_norm_backward(xs, ws, self.eps, dy, &mut dx, &mut dw);
            let dw = trained.then(|| dense(dw, w.shape())).transpose()?;
            Ok((Some(dense(dx, x.shape())?), dw))
        })
    }
}

/// `silu(gate) * up` of rows `[gate | up]`: `[rows, 2 n]` to `[rows, n]`.
pub(super) struct SiluMul {
    pub(super) pool: Arc<ThreadPool>,
}

impl CustomOp1 for SiluMul {
    fn name(&self) -> &'static str {
        "silu-mul"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, width) = layout.shape().dims2()?;
        let mut y = vec![0.0; rows * width / 2];
        silu_mul(&self.pool, values(x, layout)?, width / 2, &mut y);
        result(y, (rows, width / 2))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let (_, width) = x.dims2()?;
        with_values([x, &dy.contiguous()?], |[xs, dy]| {
            let mut dx = vec![0.0; xs.len()];
            silu_mul_backward(xs, width / 2, dy, &mut dx);
            dense(dx, x.shape()).map(Some)
        })
    }
}

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

/// Target weights on columns of the head for every row that has a loss.
#[derive(Debug, Default, Clone)]
pub(super) struct Targets {
    /// Row of the hidden states, rising.
    pub(super) rows: Vec<u32>,
    /// End of each row's entries.
    pub(super) ends: Vec<usize>,
    /// Column of the head and weight.
    pub(super) entries: Vec<(u32, f32)>,
}

impl Targets {
    pub(super) fn of(&self, index: usize) -> &[(u32, f32)] {
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.entries[start..self.ends[index]]
    }
}

/// What a loss was made of.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub struct Tally {
    /// Sum of the losses.
    pub loss: f64,
    /// Rows.
    pub rows: u64,
    /// Rows whose most likely column is the target's.
    pub agree: u64,
}

/// Sum over rows of the divergence of `softmax(hidden head^T)` from the target's probabilities.
///
/// The logits of a chunk of rows live only inside the forward pass, which computes the gradient along
/// with the loss; the head is frozen.
pub(super) struct DistillLoss {
    divergence: Divergence,
    targets: Arc<Targets>,
    /// `[columns, hidden]`
    head: Tensor,
    tally: Arc<Mutex<Tally>>,
    /// `[rows, hidden]`, left by the forward pass.
    gradient: Mutex<Option<Vec<f32>>>,
    /// Whether a backward pass follows.
    training: bool,
}

impl DistillLoss {
    /// Sum of the losses of `hidden`, as a tensor to differentiate, and what it is made of.
    pub(super) fn apply(
        hidden: &Tensor,
        head: &Tensor,
        targets: Targets,
        divergence: Divergence,
        training: bool,
    ) -> Result<(Tensor, Tally)> {
        let tally = Arc::new(Mutex::new(Tally::default()));
        let loss = hidden.apply_op1(Self {
            divergence,
            targets: Arc::new(targets),
            head: head.clone(),
            tally: Arc::clone(&tally),
            gradient: Mutex::new(None),
            training,
        })?;
        let tally = *tally.lock().map_err(|_| Error::Msg("another thread panicked".into()))?;
        Ok((loss, tally))
    }
}

/// Rows whose logits are in memory at a time.
const CHUNK: usize = 1024;

impl CustomOp1 for DistillLoss {
    fn name(&self) -> &'static str {
        "distill-loss"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, hidden) = layout.shape().dims2()?;
        let (columns, _) = self.head.dims2()?;
        let x = values(x, layout)?;
        let targets = &self.targets;
        let mut gradient = vec![0.0; if self.training { rows * hidden } else { 0 }];
        let mut tally = Tally::default();
        with_values([&self.head], |[head]| {
            let head = MatRef::new(head, columns, hidden, hidden);
            let (mut input, mut logits, mut back) = (Vec::new(), Vec::new(), Vec::new());
            for first in (0..targets.rows.len()).step_by(CHUNK) {
                let chunk = &targets.rows[first..targets.rows.len().min(first + CHUNK)];
                input.clear();
                for row in chunk {
                    input.extend_from_slice(&x[*row as usize * hidden..][..hidden]);
                }
                logits.resize(chunk.len() * columns, 0.0);
                let input = MatRef::new(&input, chunk.len(), hidden, hidden);
                product(input, head.t(), &mut logits, false)?;
                for (i, logits) in logits.chunks_exact_mut(columns).enumerate() {
                    let wanted = targets.of(first + i);
                    let (loss, best) = distill_row(logits, wanted, self.divergence);
                    let top = wanted.iter().max_by(|a, b| a.1.total_cmp(&b.1));
                    tally.loss += f64::from(loss);
                    tally.agree += u64::from(top.is_some_and(|top| top.0 == best));
                }
                if self.training {
                    back.resize(chunk.len() * hidden, 0.0);
                    let logits = MatRef::new(&logits, chunk.len(), columns, columns);
                    product(logits, head, &mut back, false)?;
                    for (row, back) in chunk.iter().zip(back.chunks_exact(hidden)) {
                        gradient[*row as usize * hidden..][..hidden].copy_from_slice(back);
                    }
                }
            }
            Ok(())
        })?;
        tally.rows = targets.rows.len() as u64;
        let poisoned = |_| Error::Msg("another thread panicked".into());
        *self.tally.lock().map_err(poisoned)? = tally;
        *self.gradient.lock().map_err(|_| Error::Msg("another thread panicked".into()))? =
            Some(gradient);
        result(vec![tally.loss as f32], ())
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dloss: &Tensor) -> Result<Option<Tensor>> {
        let poisoned = |_| Error::Msg("another thread panicked".into());
        let gradient = self.gradient.lock().map_err(poisoned)?.take();
        let gradient = gradient.ok_or_else(|| Error::Msg("one backward pass only".into()))?;
        let factor = f64::from(dloss.to_scalar::<f32>()?);
        let gradient = dense(gradient, x.shape())?;
        Ok(Some(if factor == 1.0 { gradient } else { (gradient * factor)? }))
    }
}
