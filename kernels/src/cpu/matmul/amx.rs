//! The integer path for many rows: dot products of 16 rows with 16 outputs in AMX
//! tiles. The sums of a block are exact integers, and they are scaled and added in the order of the
//! other paths, so the bits are theirs.
//!
//! Tiles and vector registers speak through memory, and neither can read what the other has only just
//! written. So the work goes in stages over many blocks: unpack the codes, multiply the tiles, then
//! scale and add.

use std::arch::asm;
use std::arch::x86_64::*;
use std::cell::RefCell;
use std::ops::Range;

use super::vnni::lanes;
use crate::cpu::activations::{Activations, BLOCK};
use crate::cpu::amx::{self, TileConfig};
use crate::cpu::weights::{IntPanels, Line, PANEL};

/// Rows of a tile of activations.
const ROWS: usize = 16;
/// Blocks whose dot products lie in memory at a time.
const CHUNK: usize = 16;
/// Rows that are scaled side by side.
const SIDE: usize = 4;

/// Tiles 0 and 3: sums of 16 rows and 16 outputs; 1 and 4: 16 rows of 32 codes; 2 and 5: the codes of
/// 16 weight rows, four to a lane.
static TILES: TileConfig =
    TileConfig::new([(16, 64), (16, 32), (8, 64), (16, 64), (16, 32), (8, 64), (0, 0), (0, 0)]);

#[repr(C, align(64))]
struct Dots([[[i32; PANEL]; ROWS]; CHUNK]);

/// Computes panels of outputs for all rows of `x`, and hands them to `store`: panel, first row, sums.
///
/// # Safety
/// Needs AMX int8 and AVX-512 VNNI; the panels must be `w`'s, without half blocks, and `x` quantised, as
/// wide as `w`, and padded to whole tiles.
pub(super) unsafe fn panels(
    w: &IntPanels,
    panels: Range<usize>,
    x: &Activations,
    store: impl Fn(usize, usize, &[[f32; PANEL]]),
) {
    thread_local!(static UNPACKED: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) });
    let blocks = x.cols / BLOCK;
    let mut dots = [const { Dots([[[0; PANEL]; ROWS]; CHUNK]) }; 2];
    // SAFETY: AMX is there.
    unsafe { TILES.load() };
    UNPACKED.with_borrow_mut(|unpacked| {
        for panel in panels {
            let lines = &w.codes[panel * blocks * w.lines()..][..blocks * w.lines()];
            let lines = if w.eight_bit {
                lines
            } else {
                unpacked.resize(blocks * 8, Line([0; 64]));
                // SAFETY: AVX-512 is there.
                unsafe { unpack(lines, unpacked) };
                &unpacked[..]
            };
            for first in (0..x.rows).step_by(ROWS) {
                let mut sums = [[0f32; PANEL]; ROWS];
                let rows = (x.rows - first).min(ROWS);
                // SAFETY: by the caller's promise; the tiles are configured, and there are 8 lines for
                // every block.
                unsafe { tile(w, panel, lines, x, first..first + rows, &mut dots, &mut sums) };
                store(panel, first, &sums[..rows]);
            }
        }
    });
    // SAFETY: as above.
    unsafe { amx::release() };
}

/// One byte a code.
///
/// # Safety
/// Needs AVX-512 F and BW.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn unpack(packed: &[Line], codes: &mut [Line]) {
    let low = _mm512_set1_epi8(15);
    for (packed, codes) in packed.as_chunks::<4>().0.iter().zip(codes.as_chunks_mut::<8>().0) {
        for g in 0..4 {
            // SAFETY: lines are 64 bytes, aligned.
            unsafe {
                let line = _mm512_load_si512(packed[g].0.as_ptr().cast());
                let high = _mm512_and_si512(_mm512_srli_epi16::<4>(line), low);
                _mm512_store_si512(codes[g].0.as_mut_ptr().cast(), _mm512_and_si512(line, low));
                _mm512_store_si512(codes[g + 4].0.as_mut_ptr().cast(), high);
            }
        }
    }
}

/// Sums of one panel for up to 16 rows.
///
/// # Safety
/// As [`panels`], with [`TILES`] loaded; `lines` holds 8 for every block.
#[target_feature(enable = "avx512f,avx512bw,fma")]
unsafe fn tile(
    w: &IntPanels,
    panel: usize,
    lines: &[Line],
    x: &Activations,
    rows: Range<usize>,
    dots: &mut [Dots; 2],
    sums: &mut [[f32; PANEL]; ROWS],
) {
    let (blocks, first) = (x.cols / BLOCK, rows.start);
    for chunk in (0..blocks).step_by(CHUNK) {
        let count = (blocks - chunk).min(CHUNK);
        // Two tiles at a time: two blocks, or the two planes of one.
        for pair in (0..count).step_by(if x.precise { 1 } else { 2 }) {
            let second = if x.precise { pair } else { (pair + 1).min(count - 1) };
            let plane = if x.precise { &x.low } else { &x.codes };
            let codes = |block: usize| first * x.cols + (chunk + block) * BLOCK;
            let (x0, x1) = (x.codes[codes(pair)..].as_ptr(), plane[codes(second)..].as_ptr());
            let w0 = lines[(chunk + pair) * 8..].as_ptr();
            let w1 = lines[(chunk + second) * 8..].as_ptr();
            let d0 = dots[0].0[pair].as_mut_ptr();
            let d1 = dots[usize::from(x.precise)].0[second].as_mut_ptr();
            // SAFETY: 16 rows of 32 codes lie `x.cols` apart at `x0` and `x1`, padding included, 8 lines
            // at `w0` and `w1`, and `d0` and `d1` take 16 rows of 64 bytes; tiles are clobbered.
            unsafe {
                asm!(
                    "tilezero tmm0",
                    "tilezero tmm3",
                    "tileloadd tmm1, [{x0} + {cols}*1]",
                    "tileloadd tmm2, [{w0} + {line}*1]",
                    "tileloadd tmm4, [{x1} + {cols}*1]",
                    "tileloadd tmm5, [{w1} + {line}*1]",
                    "tdpbsud tmm0, tmm1, tmm2",
                    "tdpbsud tmm3, tmm4, tmm5",
                    "tilestored [{d0} + {line}*1], tmm0",
                    "tilestored [{d1} + {line}*1], tmm3",
                    x0 = in(reg) x0,
                    x1 = in(reg) x1,
                    w0 = in(reg) w0,
                    w1 = in(reg) w1,
                    d0 = in(reg) d0,
                    d1 = in(reg) d1,
                    cols = in(reg) x.cols,
                    line = in(reg) 64usize,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _,
                    out("tmm3") _, out("tmm4") _, out("tmm5") _,
                    options(nostack),
                );
            }
        }
        for side in (0..rows.len()).step_by(SIDE) {
            // SAFETY: the features are there; `side + 4` rows exist in `x`, `dots` and `sums`.
            unsafe { scale(w, panel, chunk..chunk + count, x, first, side, dots, sums) };
        }
    }
}

/// Adds the scaled dot products of a chunk of blocks to the sums of four rows.
///
/// # Safety
/// As [`tile`]; rows `first + side .. first + side + 4` must exist, padding included.
#[expect(clippy::too_many_arguments, reason = "the operands of one stage")]
#[target_feature(enable = "avx512f,avx512bw,fma")]
unsafe fn scale(
    w: &IntPanels,
    panel: usize,
    chunk: Range<usize>,
    x: &Activations,
    first: usize,
    side: usize,
    dots: &[Dots; 2],
    sums: &mut [[f32; PANEL]; ROWS],
) {
    let blocks = x.cols / BLOCK;
    // SAFETY: 16 floats a row, 16 scales and minima and 16 x 16 dot products a block; the row's block
    // exists, padding included.
    unsafe {
        let mut acc = [_mm512_setzero_ps(); SIDE];
        for (r, acc) in acc.iter_mut().enumerate() {
            *acc = _mm512_loadu_ps(sums[side + r].as_ptr());
        }
        for (i, b) in chunk.enumerate() {
            let at = (panel * blocks + b) * PANEL;
            let w_scale = lanes(&w.scales, at);
            let min = w.mins.as_ref().map(|mins| lanes(mins, at));
            for (r, acc) in acc.iter_mut().enumerate() {
                let at = (first + side + r) * blocks + b;
                let x_sums = x.sums.get_unchecked(at);
                let mut dot = _mm512_load_si512(dots[0].0[i][side + r].as_ptr().cast());
                if x.precise {
                    let rest = _mm512_load_si512(dots[1].0[i][side + r].as_ptr().cast());
                    dot = _mm512_add_epi32(_mm512_slli_epi32::<8>(dot), rest);
                }
                if w.offset != 0 {
                    let start = _mm512_set1_epi32(-w.offset * (x_sums[0] + x_sums[1]));
                    dot = _mm512_add_epi32(dot, start);
                }
                let scale = _mm512_mul_ps(w_scale, _mm512_set1_ps(*x.scales.get_unchecked(at)));
                *acc = _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(dot), *acc);
                if let Some(min) = min {
                    let sum = _mm512_set1_ps(*x.scaled_sums.get_unchecked(at));
                    *acc = _mm512_fmadd_ps(min, sum, *acc);
                }
            }
        }
        for (r, acc) in acc.iter().enumerate() {
            _mm512_storeu_ps(sums[side + r].as_mut_ptr(), *acc);
        }
    }
}
