//! `out = x w^T` for a few to a few thousand rows, weights unpacked once for several of them.
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
mod gated;
mod plain;
mod shortlist;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod vnni;

use std::ops::Range;

use crate::cpu::activations::{Activations, TILE};
use crate::cpu::isa::Isa;
use crate::cpu::pool::ThreadPool;
use crate::cpu::shared_mut::SharedMut;
use crate::cpu::weights::{IntPanels, PANEL, PackedMatrix, Panels};
pub use gated::{Gated, gated_product};
pub use shortlist::Shortlist;

/// Most rows computed side by side, for which weights are unpacked once.
const ROWS: usize = 8;
/// Most rows of two panels: there are so many registers.
const PAIR_ROWS: usize = 6;
/// Most panels computed side by side, for which a row's codes are loaded once.
const PAIR: usize = 2;
/// Rows that stay in the cache nearest to the core while all panels of a task pass by.
const CHUNK: usize = 64;

/// The outputs of a panel for some rows.
type RowSums = [[f32; PANEL]; ROWS];

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
        && x.rows >= TILE_ROWS
        && !w.half_blocks
    {
        // SAFETY: `Isa::AmxInt8` was detected; the panels are `w`'s, without half blocks, and `x` is as
        // wide as `w`, asserted by the caller, and padded to whole tiles.
        unsafe { amx::panels(w, panels, x, store) };
        return;
    }
    for chunk in (0..x.rows).step_by(CHUNK) {
        let chunk = chunk..x.rows.min(chunk + CHUNK);
        for panel in panels.clone().step_by(PAIR) {
            for rows in row_groups(chunk.clone()) {
                let mut sums = [[[0f32; PANEL]; ROWS]; PAIR];
                let sums = &mut sums[..PAIR.min(panels.end - panel)];
                rows_of(isa, w, panel, x, rows.clone(), sums);
                for (panel, sums) in (panel..).zip(&*sums) {
                    store(panel, rows.start, &sums[..rows.len()]);
                }
            }
        }
    }
}

/// Neighbouring panels from `panel` on, one for each of `sums`, for some rows of one tile, [`ROWS`] at most.
fn rows_of(
    isa: Isa,
    w: &PackedMatrix,
    panel: usize,
    x: &Activations,
    rows: Range<usize>,
    sums: &mut [RowSums],
) {
    match &w.panels {
        Panels::Int(w) => int_panels(isa, w, panel, x, rows, sums),
        Panels::Float(w) => {
            for (panel, sums) in (panel..).zip(sums) {
                float::rows(isa, w, panel, x, rows.start, &mut sums[..rows.len()]);
            }
        }
    }
}

/// Rows, the first of which begins a tile, in groups that are computed side by side: each of one tile, and as even as
/// can be.
fn row_groups(rows: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    rows.clone().step_by(TILE).flat_map(move |tile| {
        let count = TILE.min(rows.end - tile);
        let groups = if count <= ROWS { 1 } else { count.div_ceil(PAIR_ROWS) };
        let at = move |group: usize| tile + count * group / groups;
        (0..groups).map(move |group| at(group)..at(group + 1))
    })
}

/// Rows from which tiles pay.
#[cfg(target_arch = "x86_64")]
const TILE_ROWS: usize = 9;

/// As [`rows_of`].
fn int_panels(
    isa: Isa,
    w: &IntPanels,
    panel: usize,
    x: &Activations,
    rows: Range<usize>,
    sums: &mut [RowSums],
) {
    #[cfg(target_arch = "x86_64")]
    if matches!(isa, Isa::AmxInt8 | Isa::Avx512Vnni) {
        // The first rows wait for the weights, which had better come in one stream; those that are used for few rows
        // had better stay in registers.
        let pairs = rows.start > 0 && (3..=PAIR_ROWS).contains(&rows.len());
        let at_once = if pairs { PAIR } else { 1 };
        for (panel, sums) in (panel..).step_by(at_once).zip(sums.chunks_mut(at_once)) {
            macro_rules! kernels {
                ($(($rows:literal, $panels:literal))*) => {
                    match (rows.len(), sums.len()) {
                        $(($rows, $panels) => {
                            // SAFETY: the set was detected; the panels are `w`'s and the rows are `x`'s, of one tile;
                            // its width is that of `w`, as `matmul_on` asserts.
                            unsafe { vnni::panels::<$rows, $panels>(w, panel, x, rows.start, sums) }
                        })*
                        (rows, panels) => unreachable!("{rows} rows and {panels} panels"),
                    }
                };
            }
            kernels!((1, 1)(2, 1)(3, 1)(4, 1)(5, 1)(6, 1)(7, 1)(8, 1)(3, 2)(4, 2)(5, 2)(6, 2));
        }
        return;
    }
    for (panel, sums) in (panel..).zip(sums) {
        let sums = &mut sums[..rows.len()];
        for (first, sums) in rows.clone().step_by(NARROW_ROWS).zip(sums.chunks_mut(NARROW_ROWS)) {
            narrow_rows(isa, w, panel, x, first, sums);
        }
    }
}

/// Most rows side by side where vectors are narrow.
const NARROW_ROWS: usize = 4;

/// A panel for some rows from `first` on, [`NARROW_ROWS`] at most.
fn narrow_rows(
    isa: Isa,
    w: &IntPanels,
    panel: usize,
    x: &Activations,
    first: usize,
    sums: &mut [[f32; PANEL]],
) {
    macro_rules! rows {
        ($($n:literal)*) => {
            match sums.len() {
                $($n => {
                    let sums: &mut [_; $n] = sums.try_into().expect("the length just matched");
                    // SAFETY: the set was detected; the panel is one of `w`'s and the rows are `x`'s, of one tile; its
                    // width is that of `w`, as `matmul_on` asserts.
                    unsafe {
                        match isa {
                            #[cfg(target_arch = "x86_64")]
                            Isa::AvxVnni => avx2::panel_vnni(w, panel, x, first, sums),
                            #[cfg(target_arch = "x86_64")]
                            Isa::Avx2 => avx2::panel(w, panel, x, first, sums),
                            _ => plain::panel(w, panel, x, first, sums),
                        }
                    }
                })*
                n => unreachable!("{n} rows"),
            }
        };
    }
    rows!(1 2 3 4);
}
