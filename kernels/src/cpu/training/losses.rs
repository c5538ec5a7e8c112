//! How far a draft's distribution is from its target's, and the gradient of it.

use crate::cpu::isa::{Isa, per_isa};
use crate::cpu::lanes::{exp, sum_lanes};

/// How the loss of a row is made of divergences.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Divergence {
    /// With the same weights for every row.
    Mixture(Mixture),
    /// `w KL(target || draft) + (1 - w) TV` with `w = exp(-3 a)`, where `a` is the chance that a token drawn from the
    /// draft is accepted: KL where the draft is far from its target and total variation has hardly a slope, and total
    /// variation, which is what counts, where it is near. `w` is a constant of the gradient. After the hybrid loss of
    /// Samarin et al., arXiv 2602.23881; here each row has a weight of its own.
    Adaptive,
}

/// Weights of the divergences that make a loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mixture {
    /// Forward KL, `KL(target || draft)`, up to the target's own entropy: a cross-entropy.
    pub forward_kl: f32,
    /// Reverse KL, `KL(draft || target)`.
    pub reverse_kl: f32,
    /// Total variation: the chance that a token drawn from the draft is rejected.
    pub total_variation: f32,
}

impl Divergence {
    /// Forward KL alone.
    pub const FORWARD_KL: Self =
        Self::Mixture(Mixture { forward_kl: 1.0, reverse_kl: 0.0, total_variation: 0.0 });

    /// The weights of a row of which a share of `accepted` is accepted.
    fn of_row(self, accepted: f32) -> Mixture {
        match self {
            Self::Mixture(mixture) => mixture,
            Self::Adaptive => {
                let forward_kl = (-ADAPTIVE_RATE * accepted).exp();
                Mixture { forward_kl, reverse_kl: 0.0, total_variation: 1.0 - forward_kl }
            }
        }
    }
}

/// How fast [`Divergence::Adaptive`] turns from KL to total variation.
pub const ADAPTIVE_RATE: f32 = 3.0;

/// Least probability that reverse KL grants the target on a column without a weight.
const UNSEEN: f32 = 1e-8;

/// Logarithm of the probability that reverse KL grants the target on each column without a weight, where `listed` of
/// all columns have a sum of `weight`.
#[must_use]
pub fn log_unseen(weight: f32, listed: usize, columns: usize) -> f32 {
    let others = columns.saturating_sub(listed).max(1) as f32;
    ((1.0 - weight) / others).max(UNSEEN).ln()
}

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
    let mut max = f32::NEG_INFINITY;
    let mut best = 0;
    for (column, &logit) in logits.iter().enumerate() {
        if logit > max {
            (max, best) = (logit, column);
        }
    }
    let weight: f32 = targets.iter().map(|target| target.1).sum();
    let dot: f32 = targets.iter().map(|&(column, p)| p * logits[column as usize]).sum();
    let reverses = matches!(divergence, Divergence::Mixture(mixture) if mixture.reverse_kl > 0.0);
    let raw = if reverses { logits.to_vec() } else { Vec::new() };
    let mut sum = 0.0;
    exp_row(Isa::best(), max, logits, &mut sum);
    let log_sum = max + sum.ln();
    // What each listed column adds to the gradient beside its share of all columns' factor.
    let listed: Vec<(usize, f32, f32)> = targets
        .iter()
        .map(|&(column, p)| (column as usize, p, logits[column as usize] / sum))
        .collect();

    let accepted: f32 = listed.iter().map(|(_, p, q)| p.min(*q)).sum();
    let Mixture { forward_kl, reverse_kl, total_variation } = divergence.of_row(accepted);
    let below = listed.iter().filter(|(_, p, q)| q < p).map(|(_, _, q)| q).sum::<f32>();
    let mut loss = forward_kl * (weight * log_sum - dot) + total_variation * (1.0 - accepted);
    let factor = forward_kl * weight + total_variation * below;
    scale_row(Isa::best(), 1.0 / sum, logits);
    if reverses {
        let unseen = log_unseen(weight, targets.len(), logits.len());
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

per_isa! {
    fn exp_row(max: f32, row: &mut [f32], sum: &mut f32) {
        for v in row.iter_mut() {
            *v = exp(*v - max);
        }
        *sum = sum_lanes(row.len(), |i| row[i]);
    }
}

per_isa! {
    fn scale_row(by: f32, row: &mut [f32]) {
        for v in row.iter_mut() {
            *v *= by;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::{Random, check_gradient};

    fn mixture(forward_kl: f32, reverse_kl: f32, total_variation: f32) -> Divergence {
        Divergence::Mixture(Mixture { forward_kl, reverse_kl, total_variation })
    }

    #[test]
    fn gradients_are_the_slopes() {
        let mut random = Random::new();
        let x = random.vec(50);
        // One of them below the row's own probability, and none so near to it that a step crosses the kink of the
        // total variation there.
        let own = x[40].exp() / x.iter().map(|v| v.exp()).sum::<f32>();
        let targets = [(3, 0.5), (17, 0.25), (40, own / 2.0)];
        for divergence in [
            Divergence::FORWARD_KL,
            mixture(0.0, 1.0, 0.0),
            mixture(0.0, 0.0, 1.0),
            mixture(0.5, 0.7, 2.0),
        ] {
            let mut dx = x.clone();
            let (loss, best) = distill_row(&mut dx, &targets, divergence);
            assert!(x.iter().all(|v| *v <= x[best as usize]));
            assert!(loss > 0.0, "{divergence:?}");
            check_gradient(&x, &dx, |x| {
                f64::from(distill_row(&mut x.to_vec(), &targets, divergence).0)
            });
        }
    }

    /// An adaptive loss is the mixture of the weights that the row's acceptance gives.
    #[test]
    fn weights_follow_the_acceptance_of_a_row() {
        let mut random = Random::new();
        let x = random.vec(50);
        let own = x[40].exp() / x.iter().map(|v| v.exp()).sum::<f32>();
        for weight in [own / 2.0, own * 3.0] {
            let targets = [(3, 0.3), (17, 0.2), (40, weight)];
            let (rejected, _) = distill_row(&mut x.clone(), &targets, mixture(0.0, 0.0, 1.0));
            let share = (-3.0 * (1.0 - rejected)).exp();
            let [mut adaptive, mut mixed] = [x.clone(), x.clone()];
            let (loss, _) = distill_row(&mut adaptive, &targets, Divergence::Adaptive);
            let wanted = distill_row(&mut mixed, &targets, mixture(share, 0.0, 1.0 - share)).0;
            assert!((loss - wanted).abs() < 1e-5 * wanted, "{loss} {wanted}");
            for (a, b) in adaptive.iter().zip(&mixed) {
                assert!((a - b).abs() < 1e-6, "{a} {b}");
            }
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
            let divergence = mixture(0.0, reverse_kl, total_variation);
            let (loss, _) = distill_row(&mut gradient, &targets, divergence);
            assert!(loss.abs() < 1e-5, "{divergence:?}: {loss}");
            if reverse_kl > 0.0 {
                assert!(gradient.iter().all(|g| g.abs() < 1e-5), "{gradient:?}");
            }
        }
    }
}
