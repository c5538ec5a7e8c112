//! The integer path in plain Rust: the reference of the others.

use crate::cpu::activations::Activations;
use crate::cpu::quantize::BLOCK;
use crate::cpu::weights::{IntPanels, PANEL, Scales};

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
            let lines = &w.codes[block * w.lines()..][..w.lines()];
            for (lane, sum) in sums.iter_mut().enumerate() {
                let sums = x.sums_of(at).map(|sum| -w.offset * sum);
                let mut dots = if w.half_blocks { sums } else { [sums[0] + sums[1], 0] };
                for k in 0..BLOCK {
                    let (group, byte) = (k / 4, lane * 4 + k % 4);
                    let code = if w.eight_bit {
                        lines[group].0[byte]
                    } else {
                        lines[group % 4].0[byte] >> (4 * (group / 4)) & 15
                    };
                    dots[k * halves / BLOCK] += i32::from(code) * x.steps(row, b * BLOCK + k);
                }
                for (half, dot) in dots[..halves].iter().enumerate() {
                    let scale = lane_of(&w.scales, (block * halves + half) * PANEL + lane);
                    *sum = (scale * x.scales[at]).mul_add(*dot as f32, *sum);
                }
                if let Some(mins) = &w.mins {
                    *sum = lane_of(mins, block * PANEL + lane).mul_add(x.scaled_sums[at], *sum);
                }
            }
        }
    }
}

fn lane_of(scales: &Scales, index: usize) -> f32 {
    match scales {
        Scales::F16(v) => half::f16::from_bits(v[index]).to_f32(),
        Scales::F32(v) => v[index],
    }
}
