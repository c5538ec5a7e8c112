//! Frozen matrices with low-rank additions: `y = x W^T + s (x A^T) B^T`, without the sum of the matrices or its gradient
//! ever being there.

use std::sync::{Arc, Mutex};

use candle_core::{CpuStorage, CustomOp3, Error, Layout, Result, Shape, Tensor};

use super::frozen::Frozen;
use super::gemm::product;
use super::graph_ops::{dense, result, values, with_values};
use pleach_kernels::{MatRef, scale};

/// Frozen matrices of one input, side by side, and the strength of what is added to each.
#[derive(Clone)]
pub(super) struct Adapted {
    pub(super) frozen: Arc<Frozen>,
    /// Rows of each matrix.
    pub(super) parts: Arc<[usize]>,
    pub(super) rank: usize,
    pub(super) scale: f32,
}

impl Adapted {
    /// Columns of all A's together.
    fn ranks(&self) -> usize {
        self.parts.len() * self.rank
    }

    /// Of every matrix the first row and the first of its columns among [`ranks`](Self::ranks).
    fn corners(&self) -> impl Iterator<Item = (std::ops::Range<usize>, usize)> {
        let mut end = 0;
        self.parts.iter().enumerate().map(move |(part, rows)| {
            let start = end;
            end += rows;
            (start..end, part * self.rank)
        })
    }

    /// B, `[out, rank]`, times the strength, each matrix's rows in columns of its own: `[out, ranks]`.
    fn spread(&self, b: &[f32]) -> Vec<f32> {
        let (rank, ranks) = (self.rank, self.ranks());
        let mut wide = vec![0.0; self.frozen.shape()[0] * ranks];
        for (rows, column) in self.corners() {
            for row in rows {
                wide[row * ranks + column..][..rank].copy_from_slice(&b[row * rank..][..rank]);
            }
        }
        scale(&mut wide, self.scale);
        wide
    }

    /// The gradient of [`spread`](Self::spread).
    fn gathered(&self, dwide: &[f32]) -> Vec<f32> {
        let ranks = self.ranks();
        let mut db = Vec::with_capacity(self.frozen.shape()[0] * self.rank);
        for (rows, column) in self.corners() {
            for row in rows {
                db.extend_from_slice(&dwide[row * ranks + column..][..self.rank]);
            }
        }
        scale(&mut db, self.scale);
        db
    }
}

/// The product of rows with adapted matrices.
pub(super) struct AdaptedLinear {
    matrices: Adapted,
    /// `x A^T`, left by the forward pass.
    low: Mutex<Vec<f32>>,
}

impl AdaptedLinear {
    pub(super) fn new(matrices: &Adapted) -> Self {
        Self { matrices: matrices.clone(), low: Mutex::default() }
    }
}

fn poisoned<T>(_: T) -> Error {
    Error::Msg("another thread panicked".into())
}

impl CustomOp3 for AdaptedLinear {
    fn name(&self) -> &'static str {
        "adapted"
    }

    /// x `[rows, in]`, A's below each other `[ranks, in]`, B's below each other `[out, rank]`.
    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (rows, inner) = x_layout.shape().dims2()?;
        let matrices = &self.matrices;
        let ([out, _], ranks) = (matrices.frozen.shape(), matrices.ranks());
        let x = MatRef::new(values(x, x_layout)?, rows, inner, inner);
        let a = MatRef::new(values(a, a_layout)?, ranks, inner, inner);
        let b = matrices.spread(values(b, b_layout)?);
        let mut low = vec![0.0; rows * ranks];
        let mut y = vec![0.0; rows * out];
        let b = MatRef::new(&b, out, ranks, ranks);
        matrices.frozen.adapted_forward(x, [a.t(), b.t()], &mut low, &mut y)?;
        *self.low.lock().map_err(poisoned)? = low;
        result(y, (rows, out))
    }

    fn bwd(
        &self,
        x: &Tensor,
        a: &Tensor,
        b: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let matrices = &self.matrices;
        let ((rows, inner), [out, _]) = (x.dims2()?, matrices.frozen.shape());
        let (ranks, wants_dx) = (matrices.ranks(), x.track_op());
        let low = self.low.lock().map_err(poisoned)?;
        with_values([x, a, b, &dy.contiguous()?], |[xs, a, b, dy]| {
            let x = MatRef::new(xs, rows, inner, inner);
            let a = MatRef::new(a, ranks, inner, inner);
            let dy = MatRef::new(dy, rows, out, out);
            let b = matrices.spread(b);
            let b = MatRef::new(&b, out, ranks, ranks);
            let mut dlow = vec![0.0; rows * ranks];
            let dx = if wants_dx {
                let mut dx = vec![0.0; rows * inner];
                matrices.frozen.adapted_backward(dy, [b, a], &mut dlow, &mut dx)?;
                Some(dense(dx, (rows, inner))?)
            } else {
                product(dy, b, &mut dlow)?;
                None
            };
            let dlow = MatRef::new(&dlow, rows, ranks, ranks);
            let mut da = vec![0.0; ranks * inner];
            product(dlow.t(), x, &mut da)?;
            let mut dwide = vec![0.0; out * ranks];
            product(dy.t(), MatRef::new(&low, rows, ranks, ranks), &mut dwide)?;
            let db = dense(matrices.gathered(&dwide), (out, matrices.rank))?;
            Ok((dx, Some(dense(da, (ranks, inner))?), Some(db)))
        })
    }
}
