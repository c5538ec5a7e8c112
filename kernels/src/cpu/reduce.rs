//! Reductions over one row of logits, in 16 lanes and a fixed order.

use crate::cpu::isa::{Isa, per_isa};
use crate::cpu::lanes::exp;

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
    Ok(x.iter().position(|v| *v == top).map(|index| (index, top)))
}

/// `Σ exp(x - shift)`.
#[must_use]
pub fn sum_exp(x: &[f32], shift: f32) -> f32 {
    let mut sum = 0.0;
    exp_sum(Isa::best(), x, shift, &mut sum);
    sum
}

/// `out = exp((x - shift) * scale)`.
///
/// # Panics
/// If the lengths differ.
pub fn scaled_exp(x: &[f32], shift: f32, scale: f32, out: &mut [f32]) {
    assert_eq!(x.len(), out.len(), "lengths");
    exps(Isa::best(), x, shift, scale, out);
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
    fn exps(x: &[f32], shift: f32, scale: f32, out: &mut [f32]) {
        for (out, v) in out.iter_mut().zip(x) {
            *out = exp((*v - shift) * scale);
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
        for len in [1, 15, 16, 17, 100, 1001] {
            let x = random.vec(len);
            let top = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let place = x.iter().position(|v| *v == top).unwrap();
            assert_eq!(argmax(&x), Ok(Some((place, top))));
            let expected: f64 = x.iter().map(|v| f64::from(v - top).exp()).sum();
            assert!((f64::from(sum_exp(&x, top)) / expected - 1.0).abs() < 1e-5);
            let mut out = vec![f32::NAN; len];
            scaled_exp(&x, top, 0.5, &mut out);
            for (out, v) in out.iter().zip(&x) {
                assert!((f64::from(*out) - (f64::from(v - top) * 0.5).exp()).abs() < 1e-6);
            }
            for isa in Isa::supported() {
                let (mut a, mut b) = (0.0, 0.0);
                exp_sum(isa, &x, top, &mut a);
                exp_sum(Isa::Plain, &x, top, &mut b);
                assert_eq!(a, b, "{isa:?}");
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
    }
}
