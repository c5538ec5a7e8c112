//! The differentiable operations: candle keeps the graph, our kernels do both directions.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Storage, Tensor, bail};
use rayon::prelude::*;

use super::gemm::product;
use super::row_pieces::{ROWS, alone};
use pleach_kernels::training::{gate_mul_backward, rms_norm_backward};
use pleach_kernels::{Activation, MatRef, add_assign, gate_mul, rms_norm};

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
            _ => bail!("the tensor is of another backend"),
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
        product(x, w.t(), &mut y)?;
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
                product(a, b, &mut d)?;
                dense(d, shape).map(Some)
            };
            let w = MatRef::new(w, out, inner, inner);
            let x = MatRef::new(x, rows, inner, inner);
            Ok((grad(wants_dx, dy, w, (rows, inner))?, grad(wants_dw, dy.t(), x, (out, inner))?))
        })
    }
}

/// RMS norms of rows as long as the weight.
pub(super) fn normed(x: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    let mut y = vec![0.0; x.len()];
    let piece = ROWS * weight.len();
    y.par_chunks_mut(piece).zip(x.par_chunks(piece)).for_each(|(y, x)| {
        rms_norm(alone(), x, weight, eps, y);
    });
    y
}

/// RMS norm of rows as long as the weight; `x` may have more dimensions.
pub(super) struct RmsNorm {
    pub(super) eps: f32,
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
        let y = normed(values(x, x_layout)?, values(w, w_layout)?, self.eps);
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
            let mut dx = vec![0.0; xs.len()];
            let piece = ROWS * ws.len();
            let pieces =
                dx.par_chunks_mut(piece).zip(xs.par_chunks(piece)).zip(dy.par_chunks(piece));
            let parts: Vec<Vec<f32>> = pieces
                .map(|((dx, x), dy)| {
                    let mut dw = vec![0.0; ws.len()];
                    rms_norm_backward(x, ws, self.eps, dy, dx, &mut dw);
                    dw
                })
                .collect();
            let sum = || {
                let mut dw = vec![0.0; ws.len()];
                parts.iter().for_each(|part| add_assign(&mut dw, part));
                dense(dw, w.shape())
            };
            let dw = trained.then(sum).transpose()?;
            Ok((Some(dense(dx, x.shape())?), dw))
        })
    }
}

/// `activation(gate) * up` of rows `[gate | up]`: `[rows, 2 n]` to `[rows, n]`.
pub(super) struct GateMul {
    pub(super) activation: Activation,
}

impl CustomOp1 for GateMul {
    fn name(&self) -> &'static str {
        "gate-mul"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, width) = layout.shape().dims2()?;
        let mut y = vec![0.0; rows * width / 2];
        let pieces = values(x, layout)?.par_chunks(ROWS * width);
        y.par_chunks_mut(ROWS * width / 2).zip(pieces).for_each(|(y, x)| {
            gate_mul(alone(), self.activation, x, width / 2, y);
        });
        result(y, (rows, width / 2))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let (_, width) = x.dims2()?;
        with_values([x, &dy.contiguous()?], |[xs, dy]| {
            let mut dx = vec![0.0; xs.len()];
            let pieces = xs.par_chunks(ROWS * width).zip(dy.par_chunks(ROWS * width / 2));
            dx.par_chunks_mut(ROWS * width).zip(pieces).for_each(|(dx, (x, dy))| {
                gate_mul_backward(self.activation, x, width / 2, dy, dx);
            });
            dense(dx, x.shape()).map(Some)
        })
    }
}
