//! Reductions over one row of logits, and the weights of its tokens, in 16 lanes and a fixed order.

use crate::cpu::isa::{Isa, per_isa};
use crate::cpu::lanes::{exp, fold_lanes};

/// Index and value of the largest entry, the first among equals, or the index of the first NaN or
/// positive infinity as an error. `None` for an empty row.
///
/// # Errors
/// The index of an entry that is not finite (negative infinity is fine).
pub fn argmax(x: &[f32]) -> Result<Option<(usize, f32)>, usize> {
    let (mut top, mut finite) = (f32::NEG_INFINITY, true);
    max(Isa::best(), x, &mut top, &mut finite);
    if !finite {
        let bad = x.iter().position(|v| v.is_nan() || *v == f32::INFINITY);
        return Err(bad.expect("invariant: the scan has seen one"));
    }
    let mut place = x.len();
    first(Isa::best(), x, top, &mut place);
    Ok((place < x.len()).then_some((place, top)))
}

/// `Σ exp(x - shift)`.
#[must_use]
pub fn sum_exp(x: &[f32], shift: f32) -> f32 {
    let mut sum = 0.0;
    exp_sum(Isa::best(), x, shift, &mut sum);
    sum
}

/// Weights that are summed together.
pub const SUMMED: usize = 512;

/// Weights `out = exp((x - shift) * scale)`, or 0 where that is less than `least`, and the sums of each [`SUMMED`] of them.
///
/// # Panics
/// If the lengths differ.
pub fn weigh(x: &[f32], shift: f32, scale: f32, least: f32, out: &mut [f32], sums: &mut [f64]) {
    assert_eq!((x.len(), x.len().div_ceil(SUMMED)), (out.len(), sums.len()), "lengths");
    weights(Isa::best(), x, shift, scale, least, out, sums);
}

/// The sums of each [`SUMMED`] weights.
///
/// # Panics
/// If the lengths differ.
pub fn sum_weights(weights: &[f32], sums: &mut [f64]) {
    assert_eq!(weights.len().div_ceil(SUMMED), sums.len(), "lengths");
    block_sums(Isa::best(), weights, sums);
}

per_isa! {
    fn max(x: &[f32], top: &mut f32, finite: &mut bool) {
        let mut tops = [f32::NEG_INFINITY; 16];
        let mut bad = [false; 16];
        let (chunks, rest) = x.as_chunks::<16>();
        for chunk in chunks {
            for ((top, bad), v) in tops.iter_mut().zip(&mut bad).zip(chunk) {
                *bad |= v.is_nan() | (*v == f32::INFINITY);
                *top = if *v > *top { *v } else { *top };
            }
        }
        *finite = !bad.contains(&true) && rest.iter().all(|v| *v < f32::INFINITY);
        *top = tops.iter().chain(rest).fold(f32::NEG_INFINITY, |top, v| top.max(*v));
    }
}

per_isa! {
    fn exp_sum(x: &[f32], shift: f32, sum: &mut f32) {
        let mut parts = [0f32; 16];
        let (chunks, rest) = x.as_chunks::<16>();
        for chunk in chunks {
            for (part, v) in parts.iter_mut().zip(chunk) {
                *part += exp(*v - shift);
            }
        }
        for (part, v) in parts.iter_mut().zip(rest) {
            *part += exp(*v - shift);
        }
        *sum = parts.iter().sum();
    }
}

per_isa! {
    fn first(x: &[f32], value: f32, place: &mut usize) {
        // A block at a time, without a branch for each entry.
        let found = x.chunks(64).position(|block| block.iter().fold(false, |any, v| any | (*v == value)));
        if let Some(block) = found {
            let within = x[block * 64..].iter().position(|v| *v == value);
            *place = block * 64 + within.expect("invariant: the block has it");
        }
    }
}

/// Sum of some weights.
#[inline(always)]
fn block_sum(weights: &[f32]) -> f64 {
    let mut parts = [0f64; 16];
    let (chunks, rest) = weights.as_chunks::<16>();
    for chunk in chunks {
        for (part, weight) in parts.iter_mut().zip(chunk) {
            *part += f64::from(*weight);
        }
    }
    for (part, weight) in parts.iter_mut().zip(rest) {
        *part += f64::from(*weight);
    }
    fold_lanes(parts, |a, b| a + b)
}

per_isa! {
    fn weights(x: &[f32], shift: f32, scale: f32, least: f32, out: &mut [f32], sums: &mut [f64]) {
        for ((x, out), sum) in x.chunks(SUMMED).zip(out.chunks_mut(SUMMED)).zip(sums) {
            for (out, v) in out.iter_mut().zip(x) {
                let weight = exp((*v - shift) * scale);
                *out = if weight < least { 0.0 } else { weight };
            }
            *sum = block_sum(out);
        }
    }
}

per_isa! {
    fn block_sums(weights: &[f32], sums: &mut [f64]) {
        for (weights, sum) in weights.chunks(SUMMED).zip(sums) {
            *sum = block_sum(weights);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::Random;

    #[test]
    fn rows_of_any_length_agree_with_f64() {
        let mut random = Random::new();
        for len in [1, 15, 16, 17, 100, 1001, 3000] {
            let x = random.vec(len);
            let top = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let place = x.iter().position(|v| *v == top).unwrap();
            assert_eq!(argmax(&x), Ok(Some((place, top))));
            let expected: f64 = x.iter().map(|v| f64::from(v - top).exp()).sum();
            assert!((f64::from(sum_exp(&x, top)) / expected - 1.0).abs() < 1e-5);
            let least = 0.3;
            let weigh_by = |isa| {
                let (mut out, mut sums) =
                    (vec![f32::NAN; len], vec![f64::NAN; len.div_ceil(SUMMED)]);
                weights(isa, &x, top, 0.5, least, &mut out, &mut sums);
                (out, sums)
            };
            let (out, sums) = weigh_by(Isa::best());
            for (out, v) in out.iter().zip(&x) {
                let weight = (f64::from(v - top) * 0.5).exp();
                let kept = weight >= f64::from(least);
                let near = (weight - f64::from(least)).abs() < 1e-6;
                let wanted = if kept { weight } else { 0.0 };
                assert!(near || (f64::from(*out) - wanted).abs() < 1e-6, "{out} {wanted}");
            }
            for (weights, sum) in out.chunks(SUMMED).zip(&sums) {
                let exact: f64 = weights.iter().map(|w| f64::from(*w)).sum();
                assert!((sum - exact).abs() < 1e-9 * exact, "{sum} {exact}");
            }
            let mut again = vec![f64::NAN; sums.len()];
            sum_weights(&out, &mut again);
            assert_eq!(again, sums);
            for isa in Isa::supported() {
                let (mut a, mut b) = (0.0, 0.0);
                exp_sum(isa, &x, top, &mut a);
                exp_sum(Isa::Plain, &x, top, &mut b);
                assert_eq!(a, b, "{isa:?}");
                assert_eq!(weigh_by(isa), (out.clone(), sums.clone()), "{isa:?}");
            }
            let mut bad = x.clone();
            bad[len / 2] = f32::NAN;
            assert_eq!(argmax(&bad), Err(len / 2));
            bad[len / 2] = f32::INFINITY;
            assert_eq!(argmax(&bad), Err(len / 2));
            assert!(sum_exp(&bad, f32::NAN).is_nan());
        }
        assert_eq!(argmax(&[]), Ok(None));
        assert_eq!(argmax(&[2.0, 5.0, 5.0]), Ok(Some((1, 5.0))));
        assert_eq!(argmax(&[f32::NEG_INFINITY; 70]), Ok(Some((0, f32::NEG_INFINITY))));
    }
}
