//! Norms, residuals and the gated activation.

use crate::cpu::activations::Activations;
use crate::cpu::gate::{Activation, gate_row};
use crate::cpu::isa::{Isa, per_isa};
use crate::cpu::lanes::fold_lanes;
use crate::cpu::pool::ThreadPool;
use crate::cpu::shared_mut::SharedMut;

/// `out = x / rms(x) * weight` for every row of `weight.len()` values.
///
/// # Panics
/// If `x` and `out` differ in length or do not hold whole rows.
pub fn rms_norm(pool: &ThreadPool, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let isa = Isa::best();
    each_row(pool, x, weight.len(), out, &|x, out| norm_row(isa, x, weight, eps, out));
}

/// Has `make` write every row of `out` with that of `x`.
fn each_row(
    pool: &ThreadPool,
    x: &[f32],
    width: usize,
    out: &mut [f32],
    make: &(dyn Fn(&[f32], &mut [f32]) + Sync),
) {
    assert!(x.len() == out.len() && x.len().is_multiple_of(width), "rows of {width}");
    let parts = SharedMut::new(out);
    pool.run(x.len() / width, &|row| {
        // SAFETY: each task has its own row.
        let out = unsafe { parts.slice(row * width, width) };
        make(&x[row * width..][..width], out);
    });
}

/// As [`rms_norm`], into the operand of a product: `out` takes the norms of `count` rows of `x`, row i of
/// them at index `row(i)`.
///
/// # Panics
/// If a row does not exist.
pub fn rms_norm_quantized(
    pool: &ThreadPool,
    x: &[f32],
    count: usize,
    row: impl Fn(usize) -> usize + Sync,
    weight: &[f32],
    eps: f32,
    out: &mut Activations,
) {
    let (isa, width) = (Isa::best(), weight.len());
    out.fill(pool, count, width, &|i, out| {
        norm_row(isa, &x[row(i) * width..][..width], weight, eps, out);
    });
}

/// `out += x / rms(x) * weight` for every row of `weight.len()` values (the norms of Gemma's outputs).
///
/// # Panics
/// If `x` and `out` differ in length or do not hold whole rows.
pub fn add_rms_norm(pool: &ThreadPool, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let isa = Isa::best();
    each_row(pool, x, weight.len(), out, &|x, out| add_norm_row(isa, x, weight, eps, out));
}

/// RMS norm of every head in place: `x` holds rows of `stride` values, in which `heads` heads of
/// `weight.len()` values start at `offset` (Qwen3's query and key norm).
pub fn rms_norm_heads(
    pool: &ThreadPool,
    x: &mut [f32],
    weight: &[f32],
    eps: f32,
    heads: usize,
    stride: usize,
    offset: usize,
) {
    let isa = Isa::best();
    let width = weight.len();
    let rows = x.len() / stride;
    let parts = SharedMut::new(x);
    pool.run(rows, &|row| {
        // SAFETY: each task has its own row.
        let heads = unsafe { parts.slice(row * stride + offset, heads * width) };
        let mut copy = [0f32; 512];
        for head in heads.chunks_exact_mut(width) {
            let copy = &mut copy[..width];
            copy.copy_from_slice(head);
            norm_row(isa, copy, weight, eps, head);
        }
    });
}

/// `x += y`.
///
/// # Panics
/// If the lengths differ.
pub fn add_assign(x: &mut [f32], y: &[f32]) {
    assert_eq!(x.len(), y.len(), "lengths");
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

/// `x += bias` for rows of `stride` values, at `offset`.
pub fn add_bias(x: &mut [f32], bias: &[f32], stride: usize, offset: usize) {
    for row in x.chunks_exact_mut(stride) {
        add_assign(&mut row[offset..offset + bias.len()], bias);
    }
}

/// `out = activation(gate) * up` for rows `[gate | up]` of `2 n` values; `out` has rows of `n`.
///
/// # Panics
/// If the lengths do not fit.
pub fn gate_mul(
    pool: &ThreadPool,
    activation: Activation,
    gate_up: &[f32],
    n: usize,
    out: &mut [f32],
) {
    assert!(gate_up.len() == 2 * out.len() && out.len().is_multiple_of(n), "rows of {n}");
    let isa = Isa::best();
    let parts = SharedMut::new(out);
    let rows = gate_up.len() / (2 * n);
    pool.run(rows, &|row| {
        let (gate, up) = gate_up[row * 2 * n..][..2 * n].split_at(n);
        // SAFETY: each task has its own row.
        gate_row(isa, activation, gate, up, unsafe { parts.slice(row * n, n) });
    });
}

/// Partial sums of the squares of a row: several registers of them, of which none waits for another.
const SUMS: usize = 64;

/// `1 / rms(x)`; partial sums are added in a fixed order.
#[inline(always)]
fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    let mut parts = [0f32; SUMS];
    let (chunks, rest) = x.as_chunks::<SUMS>();
    for chunk in chunks {
        for (part, v) in parts.iter_mut().zip(chunk) {
            *part = v.mul_add(*v, *part);
        }
    }
    for (part, v) in parts.iter_mut().zip(rest) {
        *part = v.mul_add(*v, *part);
    }
    let lanes =
        std::array::from_fn(|i| (parts[i] + parts[i + 16]) + (parts[i + 32] + parts[i + 48]));
    let mean = fold_lanes(lanes, |a, b| a + b) / x.len() as f32;
    1.0 / (mean + eps).sqrt()
}

per_isa! {
    fn norm_row(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        let scale = inverse_rms(x, eps);
        for ((out, x), w) in out.iter_mut().zip(x).zip(weight) {
            *out = x * scale * w;
        }
    }
}

per_isa! {
    fn add_norm_row(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        let scale = inverse_rms(x, eps);
        for ((out, x), w) in out.iter_mut().zip(x).zip(weight) {
            *out += x * scale * w;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::Random;

    #[test]
    fn norm_agrees_with_f64_and_paths_agree() {
        let mut random = Random::new();
        for width in [1, 31, 64, 576] {
            let (x, w) = (random.vec(3 * width), random.vec(width));
            let mut out = vec![f32::NAN; x.len()];
            rms_norm(&ThreadPool::new(2), &x, &w, 1e-5, &mut out);
            for (x, out) in x.chunks(width).zip(out.chunks(width)) {
                let mean = x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / width as f64;
                for i in 0..width {
                    let want = f64::from(x[i]) / (mean + 1e-5).sqrt() * f64::from(w[i]);
                    assert!((f64::from(out[i]) - want).abs() <= 1e-6 * want.abs() + 1e-9);
                }
                for isa in Isa::supported() {
                    let mut other = vec![f32::NAN; width];
                    norm_row(isa, x, &w, 1e-5, &mut other);
                    assert_eq!(other, out, "{isa:?}");
                    let (mut sum, norm) = (w.clone(), other);
                    add_norm_row(isa, x, &w, 1e-5, &mut sum);
                    let added = norm.iter().zip(&w).map(|(norm, w)| w + norm);
                    assert!(added.eq(sum.iter().copied()), "{isa:?}, added");
                }
            }
        }
    }
}
