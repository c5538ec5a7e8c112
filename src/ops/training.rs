//! Backward passes and losses for training, on plain slices; one thread each, since training runs a
//! micro-batch per thread.

use super::elementwise::exp;
use super::isa::{Isa, per_isa};

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

/// Gradient of `y = silu(gate) * up` for rows `[gate | up]` of `2 n` values.
///
/// # Panics
/// If the lengths do not fit.
pub fn silu_mul_backward(gate_up: &[f32], n: usize, dy: &[f32], dgate_up: &mut [f32]) {
    assert!(gate_up.len() == 2 * dy.len() && gate_up.len() == dgate_up.len(), "lengths");
    let rows = gate_up.chunks_exact(2 * n).zip(dy.chunks_exact(n));
    for ((x, dy), dx) in rows.zip(dgate_up.chunks_exact_mut(2 * n)) {
        let ((gate, up), (dgate, dup)) = (x.split_at(n), dx.split_at_mut(n));
        silu_row_backward(Isa::best(), gate, up, dy, dgate, dup);
    }
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

/// Weights of the divergences that make a loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Divergence {
    /// Forward KL, `KL(target || draft)`, up to the target's own entropy: a cross-entropy.
    pub forward_kl: f32,
    /// Reverse KL, `KL(draft || target)`.
    pub reverse_kl: f32,
    /// Total variation: the chance that a token drawn from the draft is rejected.
    pub total_variation: f32,
}

impl Divergence {
    /// Forward KL alone.
    pub const FORWARD_KL: Self = Self { forward_kl: 1.0, reverse_kl: 0.0, total_variation: 0.0 };
}

/// Least probability that reverse KL grants the target on a column without a weight.
const UNSEEN: f32 = 1e-8;

/// Divergence of `softmax(logits)` from target probabilities that are known on a few columns; each
/// column stands there once. Total variation takes the others to be 0, reverse KL spreads what is left
/// of the target evenly over them. Returns the loss and the most likely column; `logits` become the
/// gradient.
#[must_use]
pub fn distill_row(
    logits: &mut [f32],
    targets: &[(u32, f32)],
    divergence: Divergence,
) -> (f32, u32) {
    let Divergence { forward_kl, reverse_kl, total_variation } = divergence;
    let mut max = f32::NEG_INFINITY;
    let mut best = 0;
    for (column, &logit) in logits.iter().enumerate() {
        if logit > max {
            (max, best) = (logit, column);
        }
    }
    let weight: f32 = targets.iter().map(|target| target.1).sum();
    let dot: f32 = targets.iter().map(|&(column, p)| p * logits[column as usize]).sum();
    let raw = if reverse_kl > 0.0 { logits.to_vec() } else { Vec::new() };
    let mut sum = 0.0;
    exp_row(Isa::best(), max, logits, &mut sum);
    let log_sum = max + sum.ln();
    // What each listed column adds to the gradient beside its share of all columns' factor.
    let listed: Vec<(usize, f32, f32)> = targets
        .iter()
        .map(|&(column, p)| (column as usize, p, logits[column as usize] / sum))
        .collect();

    let mut loss = forward_kl * (weight * log_sum - dot);
    let mut factor = forward_kl * weight;
    if total_variation > 0.0 {
        let below = listed.iter().filter(|(_, p, q)| q < p).map(|(_, _, q)| q).sum::<f32>();
        let overlap: f32 = listed.iter().map(|(_, p, q)| p.min(*q)).sum();
        loss += total_variation * (1.0 - overlap);
        factor += total_variation * below;
    }
    scale_row(Isa::best(), 1.0 / sum, logits);
    if reverse_kl > 0.0 {
        let others = (logits.len() - targets.len()).max(1) as f32;
        let unseen = ((1.0 - weight) / others).max(UNSEEN).ln();
        let ratio = |(q, logit): (&f32, &f32)| q * (logit - log_sum - unseen);
        let mut divergence: f32 = logits.iter().zip(&raw).map(ratio).sum();
        divergence += listed.iter().map(|(_, p, q)| q * (unseen - p.ln())).sum::<f32>();
        loss += reverse_kl * divergence;
        for (q, logit) in logits.iter_mut().zip(&raw) {
            *q *= factor + reverse_kl * (logit - log_sum - unseen - divergence);
        }
        for &(column, p, q) in &listed {
            logits[column] += reverse_kl * q * (unseen - p.ln());
        }
    } else {
        scale_row(Isa::best(), factor, logits);
    }
    for &(column, p, q) in &listed {
        let below = if q < p { q } else { 0.0 };
        logits[column] -= forward_kl * p + total_variation * below;
    }
    (loss, best as u32)
}

/// Constants of AdamW (Loshchilov and Hutter, arXiv 1711.05101).
#[derive(Debug, Clone, Copy)]
pub struct AdamW {
    /// Step size.
    pub learning_rate: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled weight decay.
    pub weight_decay: f32,
    /// Steps taken, this one included.
    pub step: u32,
    /// Multiplier of the gradient (clipping).
    pub gradient_scale: f32,
}

impl AdamW {
    /// One update of `value` and its moments.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn update(&self, value: &mut [f32], moments: [&mut [f32]; 2], gradient: &[f32]) {
        let [first, second] = moments;
        let len = value.len();
        assert!(first.len() == len && second.len() == len && gradient.len() == len, "lengths");
        adamw(Isa::best(), self, value, first, second, gradient);
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
        let square = lanes(x.len(), |i| x[i] * x[i]);
        let inverse = 1.0 / (square / x.len() as f32 + eps).sqrt();
        let dot = lanes(x.len(), |i| x[i] * dy[i] * weight[i]);
        let along = inverse * inverse * inverse * dot / x.len() as f32;
        for i in 0..x.len() {
            dx[i] = inverse * weight[i] * dy[i] - along * x[i];
            dweight[i] += dy[i] * x[i] * inverse;
        }
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
        let n = dy.len();
        let (gate, up, dgate, dup) = (&gate[..n], &up[..n], &mut dgate[..n], &mut dup[..n]);
        for i in 0..n {
            let s = 1.0 / (1.0 + exp(-gate[i]));
            dup[i] = dy[i] * gate[i] * s;
            dgate[i] = dy[i] * up[i] * s * (1.0 + gate[i] * (1.0 - s));
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
        let inverse = 1.0 / lanes(row.len(), |i| row[i]);
        for v in row.iter_mut() {
            *v *= inverse;
        }
    }
}

per_isa! {
    fn softmax_row_backward(p: &[f32], scale: f32, dp: &mut [f32]) {
        let dot = lanes(p.len(), |i| p[i] * dp[i]);
        for (dp, p) in dp.iter_mut().zip(p) {
            *dp = p * (*dp - dot) * scale;
        }
    }
}

per_isa! {
    fn exp_row(max: f32, row: &mut [f32], sum: &mut f32) {
        for v in row.iter_mut() {
            *v = exp(*v - max);
        }
        *sum = lanes(row.len(), |i| row[i]);
    }
}

per_isa! {
    fn scale_row(by: f32, row: &mut [f32]) {
        for v in row.iter_mut() {
            *v *= by;
        }
    }
}

per_isa! {
    fn adamw(c: &AdamW, value: &mut [f32], first: &mut [f32], second: &mut [f32], g: &[f32]) {
        let correct1 = 1.0 / (1.0 - c.beta1.powi(c.step as i32));
        let correct2 = 1.0 / (1.0 - c.beta2.powi(c.step as i32));
        let decay = 1.0 - c.learning_rate * c.weight_decay;
        let n = value.len();
        let (first, second, g) = (&mut first[..n], &mut second[..n], &g[..n]);
        for i in 0..n {
            let g = g[i] * c.gradient_scale;
            first[i] = c.beta1 * first[i] + (1.0 - c.beta1) * g;
            second[i] = c.beta2 * second[i] + (1.0 - c.beta2) * g * g;
            let step = first[i] * correct1 / ((second[i] * correct2).sqrt() + c.eps);
            value[i] = value[i] * decay - c.learning_rate * step;
        }
    }
}

/// Sum of `f(0) .. f(n - 1)` in 16 partial sums.
#[inline(always)]
fn lanes(n: usize, f: impl Fn(usize) -> f32) -> f32 {
    let mut parts = [0f32; 16];
    let whole = n / 16 * 16;
    for at in (0..whole).step_by(16) {
        for (lane, part) in parts.iter_mut().enumerate() {
            *part += f(at + lane);
        }
    }
    parts.iter().sum::<f32>() + (whole..n).map(f).sum::<f32>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::Random;
    use crate::ops::{ThreadPool, rms_norm, silu_mul};

    /// `loss(x) = Σ dy · f(x)`: its slope along each input must be the gradient.
    fn check(x: &[f32], dx: &[f32], loss: impl Fn(&[f32]) -> f64) {
        let step = 1e-2f32;
        for i in 0..x.len() {
            let mut moved = x.to_vec();
            moved[i] = x[i] + step;
            let up = loss(&moved);
            moved[i] = x[i] - step;
            let slope = (up - loss(&moved)) / f64::from(2.0 * step);
            let error = (slope - f64::from(dx[i])).abs();
            assert!(error < 2e-3 * (1.0 + slope.abs()), "{i}: slope {slope}, gradient {}", dx[i]);
        }
    }

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
        check(&x, &dx, |x| norm(x, &w));
        check(&w, &dw, |w| norm(&x, w));

        let (x, dy) = (random.vec(2 * 2 * 19), random.vec(2 * 19));
        let mut dx = vec![f32::NAN; x.len()];
        silu_mul_backward(&x, 19, &dy, &mut dx);
        check(&x, &dx, |x| {
            let mut y = vec![0.0; dy.len()];
            silu_mul(&pool, x, 19, &mut y);
            dot(&y, &dy)
        });

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
            check(&x, &dx, |x| dot(&softmax(x), &dy));
        }

        let x = random.vec(50);
        let targets = [(3, 0.5), (17, 0.25), (40, 0.01)];
        for divergence in [
            Divergence::FORWARD_KL,
            Divergence { forward_kl: 0.0, reverse_kl: 1.0, total_variation: 0.0 },
            Divergence { forward_kl: 0.0, reverse_kl: 0.0, total_variation: 1.0 },
            Divergence { forward_kl: 0.5, reverse_kl: 0.7, total_variation: 2.0 },
        ] {
            let mut dx = x.clone();
            let (loss, best) = distill_row(&mut dx, &targets, divergence);
            assert!(x.iter().all(|v| *v <= x[best as usize]));
            assert!(loss > 0.0, "{divergence:?}");
            check(&x, &dx, |x| f64::from(distill_row(&mut x.to_vec(), &targets, divergence).0));
        }
    }

    /// A draft that is the target has no divergence from it, and no gradient.
    #[test]
    fn the_target_itself_loses_nothing() {
        let mut random = Random::new();
        let logits: Vec<f32> = random.vec(9).iter().map(|v| v * 3.0).collect();
        let sum: f32 = logits.iter().map(|v| v.exp()).sum();
        let targets: Vec<_> = (0..9).map(|i| (i as u32, logits[i].exp() / sum)).collect();
        for (reverse_kl, total_variation) in [(1.0, 0.0), (0.0, 1.0)] {
            let mut gradient = logits.clone();
            let divergence = Divergence { forward_kl: 0.0, reverse_kl, total_variation };
            let (loss, _) = distill_row(&mut gradient, &targets, divergence);
            assert!(loss.abs() < 1e-5, "{divergence:?}: {loss}");
            if reverse_kl > 0.0 {
                assert!(gradient.iter().all(|g| g.abs() < 1e-5), "{gradient:?}");
            }
        }
    }

    /// One step from zero moments moves by the learning rate against the sign of the gradient.
    #[test]
    fn first_adamw_step_has_unit_size() {
        let adamw = AdamW {
            learning_rate: 0.1,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.5,
            step: 1,
            gradient_scale: 0.5,
        };
        let (mut value, mut m, mut v) = ([1.0, -2.0, 3.0], [0.0; 3], [0.0; 3]);
        adamw.update(&mut value, [&mut m, &mut v], &[4.0, -0.2, 0.0]);
        for (got, expected) in value.iter().zip([0.95 - 0.1, -1.9 + 0.1, 2.85]) {
            assert!((got - expected).abs() < 1e-5, "{value:?}");
        }
    }
}
