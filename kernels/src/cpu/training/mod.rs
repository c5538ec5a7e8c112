//! Training on plain slices: backward passes here, products, losses and the optimiser beside. One thread each: training
//! shares rows among its own.

mod adamw;
#[cfg(target_arch = "x86_64")]
pub mod gemm;
mod losses;

pub use adamw::AdamW;
pub use losses::{ADAPTIVE_RATE, Divergence, Mixture, distill_row, log_unseen};

use crate::cpu::gate::{Activation, CUBE, SLOPE};
use crate::cpu::isa::{Isa, per_isa};
use crate::cpu::lanes::{exp, sum_lanes};

/// Gradients of `y = x / rms(x) * weight`, rows of `weight.len()` values: writes `dx`, adds to
/// `dweight`.
///
/// # Panics
/// If the lengths do not fit.
pub fn rms_norm_backward(
    x: &[f32],
    weight: &[f32],
    eps: f32,
    dy: &[f32],
    dx: &mut [f32],
    dweight: &mut [f32],
) {
    let width = weight.len();
    assert!(x.len() == dy.len() && x.len() == dx.len() && dweight.len() == width, "lengths");
    let rows = x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(dx.chunks_exact_mut(width));
    for ((x, dy), dx) in rows {
        norm_row_backward(Isa::best(), x, weight, eps, dy, dx, dweight);
    }
}

/// Gradient of `y = activation(gate) * up` for rows `[gate | up]` of `2 n` values.
///
/// # Panics
/// If the lengths do not fit.
pub fn gate_mul_backward(
    activation: Activation,
    gate_up: &[f32],
    n: usize,
    dy: &[f32],
    dgate_up: &mut [f32],
) {
    let gradient = match activation {
        Activation::Silu => silu_row_backward,
        Activation::GeluTanh => gelu_row_backward,
    };
    assert!(gate_up.len() == 2 * dy.len() && gate_up.len() == dgate_up.len(), "lengths");
    let rows = gate_up.chunks_exact(2 * n).zip(dy.chunks_exact(n));
    for ((x, dy), dx) in rows.zip(dgate_up.chunks_exact_mut(2 * n)) {
        let ((gate, up), (dgate, dup)) = (x.split_at(n), dx.split_at_mut(n));
        gradient(Isa::best(), gate, up, dy, dgate, dup);
    }
}

/// In place: the gradient of `y = cap * tanh(factor * x / cap)` becomes that of x.
///
/// # Panics
/// If the lengths differ.
pub fn soft_cap_backward(y: &[f32], factor: f32, cap: f32, dy: &mut [f32]) {
    assert_eq!(y.len(), dy.len(), "a gradient for every value");
    cap_row_backward(Isa::best(), y, factor, 1.0 / cap, dy);
}

/// In place: `scores`, `[n, n]`, become attention weights. Row i sees columns `first(i) ..= i`, where
/// a `window` keeps the last so many; the rest become 0.
///
/// # Panics
/// If `scores` is not `n * n` long.
pub fn causal_softmax(scores: &mut [f32], n: usize, scale: f32, window: Option<usize>) {
    assert_eq!(scores.len(), n * n, "a square of {n}");
    for (i, row) in scores.chunks_exact_mut(n).enumerate() {
        let first = window.map_or(0, |window| (i + 1).saturating_sub(window));
        row[..first].fill(0.0);
        row[i + 1..].fill(0.0);
        softmax(&mut row[first..=i], scale);
    }
}

/// In place: scores become attention weights, those of `scale` times as much.
pub fn softmax(scores: &mut [f32], scale: f32) {
    softmax_row(Isa::best(), scale, scores);
}

/// In place: the gradient of attention weights becomes that of the unscaled scores.
///
/// # Panics
/// If the lengths differ.
pub fn softmax_gradient(weights: &[f32], dweights: &mut [f32], scale: f32) {
    assert_eq!(weights.len(), dweights.len(), "a gradient for every weight");
    softmax_row_backward(Isa::best(), weights, scale, dweights);
}

/// In place: the gradient `dweights` of attention weights `[n, n]` becomes that of the unscaled
/// scores.
///
/// # Panics
/// If the lengths do not fit.
pub fn softmax_backward(weights: &[f32], dweights: &mut [f32], n: usize, scale: f32) {
    assert!(weights.len() == n * n && dweights.len() == n * n, "squares of {n}");
    for (p, dp) in weights.chunks_exact(n).zip(dweights.chunks_exact_mut(n)) {
        softmax_gradient(p, dp, scale);
    }
}

per_isa! {
    fn norm_row_backward(
        x: &[f32],
        weight: &[f32],
        eps: f32,
        dy: &[f32],
        dx: &mut [f32],
        dweight: &mut [f32],
    ) {
        let square = sum_lanes(x.len(), |i| x[i] * x[i]);
        let inverse = 1.0 / (square / x.len() as f32 + eps).sqrt();
        let dot = sum_lanes(x.len(), |i| x[i] * dy[i] * weight[i]);
        let along = inverse * inverse * inverse * dot / x.len() as f32;
        for i in 0..x.len() {
            dx[i] = inverse * weight[i] * dy[i] - along * x[i];
            dweight[i] += dy[i] * x[i] * inverse;
        }
    }
}

/// The gradients of a gate `g / (1 + exp(-a))` times what stands beside it, where `argument` gives `-a` and the slope
/// of `a` for a `g`.
#[inline(always)]
fn gate_gradients(
    gate: &[f32],
    up: &[f32],
    dy: &[f32],
    dgate: &mut [f32],
    dup: &mut [f32],
    argument: impl Fn(f32) -> (f32, f32),
) {
    let n = dy.len();
    let (gate, up, dgate, dup) = (&gate[..n], &up[..n], &mut dgate[..n], &mut dup[..n]);
    for i in 0..n {
        let (argument, slope) = argument(gate[i]);
        let s = 1.0 / (1.0 + exp(argument));
        dup[i] = dy[i] * gate[i] * s;
        dgate[i] = dy[i] * up[i] * s * (1.0 + gate[i] * slope * (1.0 - s));
    }
}

per_isa! {
    fn silu_row_backward(
        gate: &[f32],
        up: &[f32],
        dy: &[f32],
        dgate: &mut [f32],
        dup: &mut [f32],
    ) {
        gate_gradients(gate, up, dy, dgate, dup, |g| (-g, 1.0));
    }
}

per_isa! {
    fn gelu_row_backward(
        gate: &[f32],
        up: &[f32],
        dy: &[f32],
        dgate: &mut [f32],
        dup: &mut [f32],
    ) {
        gate_gradients(gate, up, dy, dgate, dup, |g| {
            let square = g * g;
            (-SLOPE * g * (1.0 + CUBE * square), SLOPE * (1.0 + 3.0 * CUBE * square))
        });
    }
}

per_isa! {
    fn cap_row_backward(y: &[f32], factor: f32, inverse: f32, dy: &mut [f32]) {
        for (dy, y) in dy.iter_mut().zip(y) {
            let part = y * inverse;
            *dy *= factor * (1.0 - part * part);
        }
    }
}

per_isa! {
    fn softmax_row(scale: f32, row: &mut [f32]) {
        let mut max = [f32::NEG_INFINITY; 16];
        let (chunks, rest) = row.as_chunks::<16>();
        for chunk in chunks {
            for (m, v) in max.iter_mut().zip(chunk) {
                *m = m.max(*v);
            }
        }
        let max = max.iter().chain(rest).fold(f32::NEG_INFINITY, |m, v| m.max(*v));
        for v in row.iter_mut() {
            *v = exp((*v - max) * scale);
        }
        let inverse = 1.0 / sum_lanes(row.len(), |i| row[i]);
        for v in row.iter_mut() {
            *v *= inverse;
        }
    }
}

per_isa! {
    fn softmax_row_backward(p: &[f32], scale: f32, dp: &mut [f32]) {
        let dot = sum_lanes(p.len(), |i| p[i] * dp[i]);
        for (dp, p) in dp.iter_mut().zip(p) {
            *dp = p * (*dp - dot) * scale;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::{Random, check_gradient};
    use crate::{ThreadPool, gate_mul, rms_norm, soft_cap};

    fn dot(a: &[f32], b: &[f32]) -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    }

    #[test]
    fn gradients_are_the_slopes() {
        let (mut random, pool) = (Random::new(), ThreadPool::new(1));
        let (x, w, dy) = (random.vec(3 * 37), random.vec(37), random.vec(3 * 37));
        let norm = |x: &[f32], w: &[f32]| {
            let mut y = vec![0.0; x.len()];
            rms_norm(&pool, x, w, 1e-5, &mut y);
            dot(&y, &dy)
        };
        let (mut dx, mut dw) = (vec![f32::NAN; x.len()], vec![0.0; 37]);
        rms_norm_backward(&x, &w, 1e-5, &dy, &mut dx, &mut dw);
        check_gradient(&x, &dx, |x| norm(x, &w));
        check_gradient(&w, &dw, |w| norm(&x, w));

        let (x, dy) = (random.vec(2 * 2 * 19), random.vec(2 * 19));
        for activation in [Activation::Silu, Activation::GeluTanh] {
            let mut dx = vec![f32::NAN; x.len()];
            gate_mul_backward(activation, &x, 19, &dy, &mut dx);
            check_gradient(&x, &dx, |x| {
                let mut y = vec![0.0; dy.len()];
                gate_mul(&pool, activation, x, 19, &mut y);
                dot(&y, &dy)
            });
        }

        let capped = |x: &[f32]| {
            let mut y = x.to_vec();
            soft_cap(&pool, &mut y, 0.7, 1.3);
            y
        };
        let (x, mut dx) = (random.vec(50), random.vec(50));
        let dy = dx.clone();
        soft_cap_backward(&capped(&x), 0.7, 1.3, &mut dx);
        check_gradient(&x, &dx, |x| dot(&capped(x), &dy));

        for window in [None, Some(5)] {
            let n = 21;
            let (x, dy) = (random.vec(n * n), random.vec(n * n));
            let softmax = |x: &[f32]| {
                let mut y = x.to_vec();
                causal_softmax(&mut y, n, 0.7, window);
                y
            };
            let p = softmax(&x);
            for (i, row) in p.chunks(n).enumerate() {
                assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-5);
                let seen = row.iter().filter(|v| **v > 0.0).count();
                assert_eq!(seen, (i + 1).min(window.unwrap_or(n)));
            }
            let mut dx = dy.clone();
            softmax_backward(&p, &mut dx, n, 0.7);
            check_gradient(&x, &dx, |x| dot(&softmax(x), &dy));
        }
    }
}
