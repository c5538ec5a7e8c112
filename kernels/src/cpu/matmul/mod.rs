//! `out = x w^T` for a few to a few thousand rows, weights unpacked once for up to eight of them.
//!
//! Integer path: for each block of 32 inputs the codes are multiplied and summed exactly in integers,
//! then `sum += scale_w * scale_x * dot (+ min_w * scaled_sum_x)` in f32, block after block. That order
//! is the same for every number of rows, thread count and instruction set, so a row's bits depend on
//! that row alone.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
mod float;
mod plain;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod vnni;

use std::ops::Range;

use crate::cpu::activations::Activations;
use crate::cpu::isa::Isa;
use crate::cpu::pool::ThreadPool;
use crate::cpu::shared_mut::SharedMut;
use crate::cpu::weights::{IntPanels, PANEL, PackedMatrix, Panels};

/// Most rows and panels computed side by side. Sums of 4 rows and 2 panels, in two planes, fill the vector
/// registers, and so do those of 8 rows and one panel, which read the weights in one pass.
const ROWS: usize = 8;
const SIDE: usize = 2;
/// Rows that stay in the cache nearest to the core while all panels of a task pass by.
const CHUNK: usize = 64;

/// Multiplies rows with one or several matrices, whose outputs stand side by side: for every row of `x`,
/// `out[r * out_stride + n] = sum over k of x[r, k] w[n, k]`, where n counts the outputs of all of `ws`.
/// One job of the pool, whatever the number of matrices. The rest of `out` stays.
///
/// # Panics
/// If the widths differ or `out` is too short.
pub fn matmul(
    pool: &ThreadPool,
    ws: &[&PackedMatrix],
    x: &Activations,
    out: &mut [f32],
    out_stride: usize,
) {
    matmul_on(Isa::best(), pool, ws, x, out, out_stride, false);
}

/// As [`matmul`] with one matrix, adding to `out`: a residual.
///
/// # Panics
/// As [`matmul`].
pub fn matmul_add(
    pool: &ThreadPool,
    w: &PackedMatrix,
    x: &Activations,
    out: &mut [f32],
    out_stride: usize,
) {
    matmul_on(Isa::best(), pool, &[w], x, out, out_stride, true);
}

fn matmul_on(
    isa: Isa,
    pool: &ThreadPool,
    ws: &[&PackedMatrix],
    x: &Activations,
    out: &mut [f32],
    out_stride: usize,
    add: bool,
) {
    let outputs: usize = ws.iter().map(|w| w.out_features).sum();
    assert!(ws.iter().all(|w| w.in_features == x.cols), "width of weights and activations");
    assert!(outputs <= out_stride, "{outputs} outputs do not fit a row of {out_stride}");
    assert!(out.len() >= x.rows * out_stride, "output for {} rows of {out_stride}", x.rows);
    let panels = |w: &PackedMatrix| w.out_features.div_ceil(PANEL);
    let total: usize = ws.iter().map(|w| panels(w)).sum();
    let tasks = total.div_ceil(2).min(pool.threads() * 6);
    let out = SharedMut::new(out);
    pool.run(tasks, &|task| {
        let wanted = total * task / tasks..total * (task + 1) / tasks;
        let (mut before, mut out_offset) = (0, 0);
        for w in ws {
            let count = panels(w);
            let local = |at: usize| at.clamp(before, before + count) - before;
            let store = |panel: usize, first: usize, sums: &[[f32; PANEL]]| {
                let width = (w.out_features - panel * PANEL).min(PANEL);
                for (r, sums) in sums.iter().enumerate() {
                    let at = (first + r) * out_stride + out_offset + panel * PANEL;
                    // SAFETY: no other task has this panel, and no other row of it is alive.
                    let out = unsafe { out.slice(at, width) };
                    if add {
                        out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum);
                    } else if width == PANEL {
                        // One store, where the length is known.
                        out[..PANEL].copy_from_slice(sums);
                    } else {
                        out.copy_from_slice(&sums[..width]);
                    }
                }
            };
            panels_of(isa, w, local(wanted.start)..local(wanted.end), x, store);
            before += count;
            out_offset += w.out_features;
        }
    });
}

/// Computes some panels for all rows and hands them to `store`: panel, first row, sums.
fn panels_of(
    isa: Isa,
    w: &PackedMatrix,
    panels: Range<usize>,
    x: &Activations,
    store: impl Fn(usize, usize, &[[f32; PANEL]]),
) {
    if panels.is_empty() {
        return;
    }
    #[cfg(target_arch = "x86_64")]
    if let (Isa::AmxInt8, Panels::Int(w)) = (isa, &w.panels)
        && x.rows >= if x.precise && !w.eight_bit { DEEP_TILE_ROWS } else { TILE_ROWS }
        && !w.half_blocks
    {
        // SAFETY: `Isa::AmxInt8` was detected; the panels are `w`'s, without half blocks, and `x` is as
        // wide as `w`, asserted by the caller, and padded to whole tiles.
        unsafe { amx::panels(w, panels, x, store) };
        return;
    }
    let (most_rows, most_panels) = if (5..=8).contains(&x.rows) { (8, 1) } else { (4, SIDE) };
    for start in (0..x.rows).step_by(CHUNK) {
        let end = x.rows.min(start + CHUNK);
        for panel in panels.clone().step_by(most_panels) {
            let side = (panels.end - panel).min(most_panels);
            for first in (start..end).step_by(most_rows) {
                let rows = (end - first).min(most_rows);
                let mut sums = [[[0f32; PANEL]; ROWS]; SIDE];
                match &w.panels {
                    Panels::Int(w) => int_rows(isa, w, panel, side, x, first, rows, &mut sums),
                    Panels::Float(w) => {
                        for (i, sums) in sums[..side].iter_mut().enumerate() {
                            float::rows(isa, w, panel + i, x, first, &mut sums[..rows]);
                        }
                    }
                }
                for (i, sums) in sums[..side].iter().enumerate() {
                    store(panel + i, first, &sums[..rows]);
                }
            }
        }
    }
}

/// Rows from which tiles pay, and those from which they do where one tile takes both planes.
#[cfg(target_arch = "x86_64")]
const TILE_ROWS: usize = 9;
#[cfg(target_arch = "x86_64")]
const DEEP_TILE_ROWS: usize = 7;

/// `side` panels from `panel` on for `rows` rows from `first` on.
#[expect(clippy::too_many_arguments, reason = "the operands of one kernel")]
fn int_rows(
    isa: Isa,
    w: &IntPanels,
    panel: usize,
    side: usize,
    x: &Activations,
    first: usize,
    rows: usize,
    sums: &mut [[[f32; PANEL]; ROWS]; SIDE],
) {
    macro_rules! rows {
        ($($n:literal x $side:literal)*) => {
            match rows {
                $($n => match isa {
                    #[cfg(target_arch = "x86_64")]
                    Isa::AmxInt8 | Isa::Avx512Vnni => {
                        // SAFETY: the set was detected; the panels are `w`'s and the rows are `x`'s, of one
                        // tile, as groups begin at multiples of their size; its width is that of `w`, as
                        // `matmul_on` asserts.
                        unsafe {
                            if side == 1 {
                                vnni::panels::<$n, 1>(w, panel, x, first, sums);
                            } else {
                                vnni::panels::<$n, $side>(w, panel, x, first, sums);
                            }
                        }
                    }
                    #[cfg(target_arch = "x86_64")]
                    Isa::AvxVnni | Isa::Avx2 => {
                        for (i, sums) in sums[..side].iter_mut().enumerate() {
                            let sums: &mut [_; $n] =
                                (&mut sums[..$n]).try_into().expect("the length just matched");
                            // SAFETY: as above.
                            unsafe {
                                if isa == Isa::AvxVnni {
                                    avx2::panel_vnni::<$n>(w, panel + i, x, first, sums);
                                } else {
                                    avx2::panel::<$n>(w, panel + i, x, first, sums);
                                }
                            }
                        }
                    }
                    _ => {
                        for (i, sums) in sums[..side].iter_mut().enumerate() {
                            plain::panel(w, panel + i, x, first, &mut sums[..$n]);
                        }
                    }
                },)*
                n => unreachable!("{n} rows"),
            }
        };
    }
    rows!(1 x 2 2 x 2 3 x 2 4 x 2 5 x 1 6 x 1 7 x 1 8 x 1);
}
