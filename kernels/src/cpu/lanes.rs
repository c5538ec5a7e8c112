//! What the kernels compute lane by lane, inlined into the code of each instruction set.

/// e^x to within 2 units in the last place, the same bits on every path; NaN stays NaN, and values
/// beyond what f32 holds saturate.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    // x = n ln 2 + r with |r| <= ln 2 / 2; adding 1.5 * 2^23 rounds n to an integer.
    const ROUND: f32 = 12_582_912.0;
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-0.693_359_4, x);
    let r = n.mul_add(2.121_944_4e-4, r);
    let p = 1.987_569_1e-4f32;
    let p = p.mul_add(r, 1.398_199_9e-3);
    let p = p.mul_add(r, 8.333_452e-3);
    let p = p.mul_add(r, 4.166_579_6e-2);
    let p = p.mul_add(r, 1.666_666_5e-1);
    let p = p.mul_add(r, 0.5);
    let p = p.mul_add(r * r, r) + 1.0;
    let power = (shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127)) << 23;
    p * f32::from_bits(power)
}

/// Hyperbolic tangent to within 3e-7 of itself, the same bits on every path; NaN stays NaN.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    let size = x.abs();
    // Near 0 the quotient below loses digits; an odd polynomial does not.
    let z = x * x;
    let p = -5.704_988_7e-3f32;
    let p = p.mul_add(z, 2.063_909e-2);
    let p = p.mul_add(z, -5.373_971_6e-2);
    let p = p.mul_add(z, 1.333_144_2e-1);
    let p = p.mul_add(z, -3.333_328e-1);
    let near = (p * z).mul_add(size, size);
    let far = 1.0 - 2.0 / (exp(2.0 * size) + 1.0);
    let size = if size < 0.625 { near } else { far };
    size.copysign(x)
}

/// Combines 16 lanes, halves at a time: a fixed order that waits four times.
#[inline(always)]
pub(crate) fn fold_lanes<T: Copy>(mut lanes: [T; 16], combine: impl Fn(T, T) -> T) -> T {
    let mut width = 8;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] = combine(lanes[lane], lanes[lane + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// Sum of `f(0) .. f(n - 1)` in 16 partial sums.
#[inline(always)]
pub(crate) fn sum_lanes(n: usize, f: impl Fn(usize) -> f32) -> f32 {
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
    use super::{exp, tanh};

    #[test]
    fn tanh_is_close_everywhere() {
        for i in -30_000..30_000 {
            let x = i as f32 / 1000.0;
            let (got, want) = (f64::from(tanh(x)), f64::from(x).tanh());
            assert!((got - want).abs() <= 3e-7 * want.abs(), "tanh({x}) = {got}, not {want}");
        }
        assert!(tanh(f32::NAN).is_nan());
        assert_eq!((tanh(f32::INFINITY), tanh(f32::NEG_INFINITY), tanh(-0.0)), (1.0, -1.0, 0.0));
    }

    #[test]
    fn exp_is_close_everywhere() {
        for i in -8800..8800 {
            let x = i as f32 / 100.0;
            let (got, want) = (f64::from(exp(x)), f64::from(x.max(-87.0)).exp());
            assert!((got - want).abs() <= 3e-7 * want, "exp({x}) = {got}, not {want}");
        }
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(f32::NEG_INFINITY) < 1e-37 && exp(f32::INFINITY) > 1e38);
    }
}
