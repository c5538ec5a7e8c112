//! Float weights.

use crate::cpu::activations::Activations;
use crate::cpu::isa::{Isa, per_isa};
use crate::cpu::weights::{FloatPanels, PANEL};

/// Float weights: four interleaved partial sums over k, added in a fixed order at the end.
pub(super) fn rows(
    isa: Isa,
    w: &FloatPanels,
    panel: usize,
    x: &Activations,
    first: usize,
    sums: &mut [[f32; PANEL]],
) {
    let cols = x.cols;
    for (r, sums) in sums.iter_mut().enumerate() {
        let x = &x.values[(first + r) * cols..][..cols];
        match w {
            FloatPanels::F32(w) => panel_f32(isa, &w[panel * cols..][..cols], x, sums),
            FloatPanels::F16(w) => panel_f16(isa, &w[panel * cols..][..cols], x, sums),
            FloatPanels::BF16(w) => panel_bf16(isa, &w[panel * cols..][..cols], x, sums),
        }
    }
}

macro_rules! float_panel {
    ($name:ident, $ty:ty, $widen:expr) => {
        per_isa! {
            fn $name(w: &[[$ty; PANEL]], x: &[f32], sums: &mut [f32; PANEL]) {
                let mut parts = [[0f32; PANEL]; 4];
                for (w, x) in w.chunks(4).zip(x.chunks(4)) {
                    for ((w, x), part) in w.iter().zip(x).zip(&mut parts) {
                        for (part, w) in part.iter_mut().zip(w) {
                            *part = x.mul_add($widen(*w), *part);
                        }
                    }
                }
                for (lane, sum) in sums.iter_mut().enumerate() {
                    *sum = (parts[0][lane] + parts[1][lane]) + (parts[2][lane] + parts[3][lane]);
                }
            }
        }
    };
}

float_panel!(panel_f32, f32, |w: f32| w);
float_panel!(panel_f16, half::f16, |w: half::f16| w.to_f32());
float_panel!(panel_bf16, half::bf16, |w: half::bf16| w.to_f32());
