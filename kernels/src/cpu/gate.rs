//! What the gate of a feed-forward layer passes through.

use crate::cpu::isa::{Isa, per_isa};
use crate::cpu::lanes::exp;

/// The function that a gate passes through before it multiplies the values beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Activation {
    /// `x / (1 + exp(-x))`: SiLU, or Swish.
    #[default]
    Silu,
    /// GELU (Hendrycks and Gimpel, arXiv 1606.08415) by its approximation with a hyperbolic tangent.
    GeluTanh,
}

/// `2 sqrt(2 / pi)`: the approximation of GELU is `x / (1 + exp(-SLOPE (x + CUBE x^3)))`.
pub(crate) const SLOPE: f32 = 1.595_769;
pub(crate) const CUBE: f32 = 0.044_715;

/// `out = activation(gate) * up`.
pub(crate) fn gate_row(
    isa: Isa,
    activation: Activation,
    gate: &[f32],
    up: &[f32],
    out: &mut [f32],
) {
    match activation {
        Activation::Silu => silu_row(isa, gate, up, out),
        Activation::GeluTanh => gelu_row(isa, gate, up, out),
    }
}

per_isa! {
    fn silu_row(gate: &[f32], up: &[f32], out: &mut [f32]) {
        for ((out, g), u) in out.iter_mut().zip(gate).zip(up) {
            *out = g / (1.0 + exp(-g)) * u;
        }
    }
}

per_isa! {
    fn gelu_row(gate: &[f32], up: &[f32], out: &mut [f32]) {
        for ((out, g), u) in out.iter_mut().zip(gate).zip(up) {
            let inner = SLOPE * (CUBE * g * g).mul_add(*g, *g);
            *out = g / (1.0 + exp(-inner)) * u;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::Random;
    use crate::{ThreadPool, gate_mul};

    fn exact(activation: Activation, g: f64) -> f64 {
        match activation {
            Activation::Silu => g / (1.0 + (-g).exp()),
            Activation::GeluTanh => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (g + 0.044715 * g.powi(3));
                0.5 * g * (1.0 + inner.tanh())
            }
        }
    }

    #[test]
    fn gates_agree_with_f64_and_paths_agree() {
        let mut random = Random::new();
        let n = 777;
        for activation in [Activation::Silu, Activation::GeluTanh] {
            let mut x = random.vec(2 * n);
            x.iter_mut().for_each(|v| *v *= 10.0);
            x[5] = f32::NAN;
            let mut out = vec![1.0; n];
            gate_mul(&ThreadPool::new(1), activation, &x, n, &mut out);
            assert!(out[5].is_nan());
            for i in (0..n).filter(|i| *i != 5) {
                let want = exact(activation, f64::from(x[i])) * f64::from(x[n + i]);
                // The argument of exp is rounded, so a value of size e^-a is off by a times as much.
                let error = (f64::from(out[i]) - want).abs();
                assert!(error <= 2e-5 * want.abs() + 1e-7, "{activation:?} of {}", x[i]);
            }
            for isa in Isa::supported() {
                let mut other = vec![0.0; n];
                gate_row(isa, activation, &x[..n], &x[n..], &mut other);
                let same =
                    |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
                assert!(other.iter().zip(&out).all(same), "{isa:?}");
            }
        }
    }
}
