//! The optimiser.

use crate::cpu::isa::{Isa, per_isa};

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

#[cfg(test)]
mod tests {
    use super::*;

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
