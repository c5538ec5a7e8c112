//! The integer path in plain Rust: the reference of the others.

use crate::cpu::activations::Activations;
use crate::cpu::quantize::BLOCK;
use crate::cpu::weights::{IntPanels, PANEL, codes};

/// The reference: what every path computes, one step at a time.
pub(super) fn panel(
    w: &IntPanels,
    panel: usize,
    x: &Activations,
    first: usize,
    sums: &mut [[f32; PANEL]],
) {
    let blocks = x.cols / BLOCK;
    let halves = 1 + usize::from(w.half_blocks);
    for (r, sums) in sums.iter_mut().enumerate() {
        let row = first + r;
        for b in 0..blocks {
            let block = panel * blocks + b;
            let at = x.place(row, b);
            for (lane, sum) in sums.iter_mut().enumerate() {
                let sums = x.sums_of(at).map(|sum| -w.offset * sum);
                let mut dots = if w.half_blocks { sums } else { [sums[0] + sums[1], 0] };
                for (k, code) in codes::get(w.lines(block), lane).into_iter().enumerate() {
                    dots[k * halves / BLOCK] += i32::from(code) * x.steps(row, b * BLOCK + k);
                }
                for (half, dot) in dots[..halves].iter().enumerate() {
                    let scale = w.scales.get(block * halves + half, lane).value();
                    *sum = (scale * x.scales[at]).mul_add(*dot as f32, *sum);
                }
                if let Some(mins) = &w.mins {
                    *sum = mins.get(block, lane).value().mul_add(x.scaled_sums[at], *sum);
                }
            }
        }
    }
}
