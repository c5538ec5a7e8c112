//! The integer path for several rows: dot products of up to 16 rows with 16 outputs in AMX tiles. The sums
//! of a block are exact integers, and they are scaled and added in the order of the other paths, so the
//! bits are theirs.
//!
//! Tiles and vector registers speak through memory, and neither can read what the other has only just
//! written. So the work goes in stages of some blocks: while one is multiplied, the weights of the next are
//! unpacked and the sums of the one before are scaled and added.
//!
//! A tile of 16 rows takes 64 codes of a row at the price of 32. With 4-bit weights both planes of a precise
//! block are therefore one tile: `[code, rest]` times `[16 w, w]`.

use std::arch::asm;
use std::arch::x86_64::*;
use std::cell::RefCell;
use std::ops::Range;

use super::vnni::{fetch, lanes};
use crate::cpu::activations::{Activations, TILE};
use crate::cpu::amx::{self, TileConfig};
use crate::cpu::quantize::{BLOCK, WIDE_BITS};
use crate::cpu::weights::{IntPanels, Line, PANEL};

/// Blocks of a stage.
const STAGE: usize = 4;
/// Blocks whose weights are fetched ahead of those in use.
const AHEAD: usize = 16;

/// Lines of a block's weights, one byte a code: for upper and lower codes in one tile they are there twice.
const fn lines_per_block(eight: bool) -> usize {
    if eight { 8 } else { 16 }
}

/// Tiles 0 and 3: sums of `rows` rows and 16 outputs; 1 and 4: `rows` rows of `deep` codes; 2 and 5: the codes
/// of 16 weight rows, four to a lane.
const fn tiles(rows: u8, deep: u16) -> TileConfig {
    let (sums, x, w) = ((rows, 64), (rows, deep), (deep as u8 / 4, 64));
    TileConfig::new([sums, x, w, sums, x, w, (0, 0), (0, 0)])
}

/// By whether blocks are 64 codes deep, and whether there are more than 8 rows.
static TILES: [[TileConfig; 2]; 2] = [[tiles(8, 32), tiles(16, 32)], [tiles(8, 64), tiles(16, 64)]];

/// Dot products of a stage: of a tile for every block, or of two, one for each plane.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Dots([[[i32; PANEL]; TILE]; 2 * STAGE]);

/// What a thread keeps between two calls.
struct Workspace {
    /// Codes of two stages, or of two panels where several tiles of rows take them; one byte each.
    codes: Vec<Line>,
    dots: [Dots; 2],
}

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
    thread_local! {
        static WORKSPACE: RefCell<Workspace> = const {
            let dots = Dots([[[0; PANEL]; TILE]; 2 * STAGE]);
            RefCell::new(Workspace { codes: Vec::new(), dots: [dots; 2] })
        };
    }
    let deep = !w.eight_bit;
    // SAFETY: AMX is there.
    unsafe { TILES[usize::from(deep)][usize::from(x.rows > 8)].load() };
    WORKSPACE.with_borrow_mut(|workspace| {
        // SAFETY: by the caller's promise; the tiles are configured.
        unsafe {
            if w.eight_bit {
                stages::<true>(w, panels, x, workspace, store);
            } else {
                stages::<false>(w, panels, x, workspace, store);
            }
        }
    });
    // SAFETY: as above.
    unsafe { amx::release() };
}

/// Some blocks of one panel and one tile of rows.
struct Stage {
    panel: usize,
    first: usize,
    blocks: Range<usize>,
    /// Where the codes of its weights lie.
    lines: usize,
}

/// Unpacks, multiplies and scales stage after stage, each a stage apart, so that nothing is read that has
/// only just been written.
///
/// # Safety
/// As [`panels`], with [`TILES`] loaded for `x`; `EIGHT` and `PRECISE` are those of `w` and `x`.
#[target_feature(enable = "avx512f,avx512bw,fma")]
unsafe fn stages<const EIGHT: bool>(
    w: &IntPanels,
    panels: Range<usize>,
    x: &Activations,
    Workspace { codes, dots }: &mut Workspace,
    store: impl Fn(usize, usize, &[[f32; PANEL]]),
) {
    let blocks = x.cols / BLOCK;
    let (of_panel, of_rows) = (blocks.div_ceil(STAGE), x.rows.div_ceil(TILE));
    // Lines of a block's codes, and those of a panel or of a stage, two of which are kept.
    let count = lines_per_block(EIGHT);
    let kept = if of_rows > 1 { of_panel } else { 1 } * STAGE * count;
    let stage = |i: usize| {
        let (panel, rest) = (i / (of_rows * of_panel), i % (of_rows * of_panel));
        let (tile, stage) = (rest / of_panel, rest % of_panel);
        let start = stage * STAGE;
        let lines = match (EIGHT, of_rows) {
            (true, _) => ((panels.start + panel) * blocks + start) * count,
            (false, 1) => i % 2 * kept,
            (false, _) => panel % 2 * kept + start * count,
        };
        let blocks = start..blocks.min(start + STAGE);
        Stage { panel: panels.start + panel, first: tile * TILE, blocks, lines }
    };
    let unpack = |stage: Stage, codes: &mut [Line]| {
        if stage.first == 0 && !EIGHT {
            let at = stage.panel * blocks + stage.blocks.start;
            let packed = &w.codes[at * 4..][..stage.blocks.len() * 4];
            let codes = &mut codes[stage.lines..][..stage.blocks.len() * count];
            // SAFETY: AVX-512 is there.
            unsafe { unpack(packed, codes) };
        }
    };
    if !EIGHT {
        codes.resize(codes.len().max(2 * kept), Line([0; 64]));
    }
    let mut sums = [[0f32; PANEL]; TILE];
    let all = panels.len() * of_rows * of_panel;
    unpack(stage(0), codes);
    for i in 0..=all {
        if i + 1 < all {
            unpack(stage(i + 1), codes);
        }
        if i < all {
            let stage = stage(i);
            if stage.first == 0 {
                ahead(w, stage.panel * blocks + stage.blocks.start);
            }
            let lines = if EIGHT { &w.codes[stage.lines..] } else { &codes[stage.lines..] };
            // SAFETY: by the caller's promise; the lines are those of the stage.
            unsafe { multiply::<EIGHT>(lines, x, &stage, &mut dots[i % 2]) };
        }
        if i > 0 {
            let stage = stage(i - 1);
            let rows = (x.rows - stage.first).min(TILE);
            if stage.blocks.start == 0 {
                sums = [[0.0; PANEL]; TILE];
            }
            let dots = &dots[(i - 1) % 2];
            let scale = match (w.mins.is_some(), rows) {
                (false, 0..=8) => scale::<8, false>,
                (false, _) => scale::<16, false>,
                (true, 0..=8) => scale::<8, true>,
                (true, _) => scale::<16, true>,
            };
            // SAFETY: the features are there, and the rows and blocks exist, padding included.
            unsafe { scale(w, x, &stage, EIGHT, dots, &mut sums) };
            if stage.blocks.end == blocks {
                store(stage.panel, stage.first, &sums[..rows]);
            }
        }
    }
}

/// Fetches a stage of weights some blocks ahead of `block`, which need not exist.
fn ahead(w: &IntPanels, block: usize) {
    for block in block + AHEAD..block + AHEAD + STAGE {
        for line in 0..w.lines() {
            let line = w.codes.as_ptr().wrapping_add(block * w.lines() + line);
            // SAFETY: every x86-64 has SSE, and a prefetch touches nothing.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) };
        }
        fetch(&w.scales, block * PANEL);
        if let Some(mins) = &w.mins {
            fetch(mins, block * PANEL);
        }
    }
}

/// One byte a code, first times 16 and then as it is: 16 lines a block.
///
/// # Safety
/// Needs AVX-512 F and BW.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn unpack(packed: &[Line], codes: &mut [Line]) {
    let (low, high) = (_mm512_set1_epi8(15), _mm512_set1_epi8(-16));
    for (packed, codes) in packed.as_chunks::<4>().0.iter().zip(codes.as_chunks_mut::<16>().0) {
        let mut store = |at: usize, line: __m512i| {
            // SAFETY: lines are 64 bytes, aligned.
            unsafe { _mm512_store_si512(codes[at].0.as_mut_ptr().cast(), line) };
        };
        for (g, line) in packed.iter().enumerate() {
            // SAFETY: as above.
            let line = unsafe { _mm512_load_si512(line.0.as_ptr().cast()) };
            store(g, _mm512_and_si512(_mm512_slli_epi16::<4>(line), high));
            store(g + 4, _mm512_and_si512(line, high));
            store(g + 8, _mm512_and_si512(line, low));
            store(g + 12, _mm512_and_si512(_mm512_srli_epi16::<4>(line), low));
        }
    }
}

/// Dot products of a stage, two tiles at a time: two blocks, or the two planes of one.
///
/// # Safety
/// As [`stages`]; `lines` are the codes of the stage's weights, one byte each.
unsafe fn multiply<const EIGHT: bool>(
    lines: &[Line],
    x: &Activations,
    stage: &Stage,
    dots: &mut Dots,
) {
    let split = EIGHT;
    let count = lines_per_block(EIGHT);
    let len = stage.blocks.len();
    for first in (0..len).step_by(if split { 1 } else { 2 }) {
        let second = if split { first } else { (first + 1).min(len - 1) };
        let codes = |b: usize| {
            x.codes_of(x.place(stage.first, stage.blocks.start + b)).as_ptr().cast::<i8>()
        };
        let x0 = codes(first);
        let x1 = if split { x0.wrapping_add(BLOCK) } else { codes(second) };
        let (w0, w1) = (lines[first * count..].as_ptr(), lines[second * count..].as_ptr());
        let d0 = dots.0[if split { 2 * first } else { first }].as_mut_ptr();
        let d1 = dots.0[if split { 2 * first + 1 } else { second }].as_mut_ptr();
        // SAFETY: 16 rows of codes lie side by side at `x0` and `x1`, padding included, `count` lines at
        // `w0` and `w1`, and `d0` and `d1` take 16 rows of 64 bytes; tiles are clobbered.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm3",
                "tileloadd tmm1, [{x0} + {codes}*1]",
                "tileloadd tmm2, [{w0} + {line}*1]",
                "tileloadd tmm4, [{x1} + {codes}*1]",
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
                codes = in(reg) 2 * BLOCK,
                line = in(reg) 64usize,
                out("tmm0") _, out("tmm1") _, out("tmm2") _,
                out("tmm3") _, out("tmm4") _, out("tmm5") _,
                options(nostack),
            );
        }
    }
}

/// Adds the scaled dot products of a stage to the sums of its first `R` rows.
///
/// # Safety
/// Needs the features; the blocks of `stage` must exist in `w` and, for `R` rows, in `x`.
#[target_feature(enable = "avx512f,avx512bw,fma")]
unsafe fn scale<const R: usize, const MINS: bool>(
    w: &IntPanels,
    x: &Activations,
    stage: &Stage,
    split: bool,
    dots: &Dots,
    sums: &mut [[f32; PANEL]; TILE],
) {
    let blocks = x.cols / BLOCK;
    // SAFETY: 16 floats a row, 16 scales and minima a block, 16 x 16 dot products a tile.
    unsafe {
        let mut acc: [__m512; R] = std::array::from_fn(|r| _mm512_loadu_ps(sums[r].as_ptr()));
        for (b, dots) in stage.blocks.clone().zip(dots.0.chunks_exact(1 + usize::from(split))) {
            let (block, at) = ((stage.panel * blocks + b) * PANEL, x.place(stage.first, b));
            let w_scale = lanes(&w.scales, block);
            let min = match &w.mins {
                Some(mins) if MINS => lanes(mins, block),
                _ => _mm512_setzero_ps(),
            };
            // What the offset of the codes adds to each row's sums.
            let mut starts = [0i32; TILE];
            if !MINS {
                let halves = x.half_sums.as_ptr().add(2 * at);
                let sum = _mm512_add_epi32(
                    _mm512_loadu_si512(halves.cast()),
                    _mm512_loadu_si512(halves.add(TILE).cast()),
                );
                let start = _mm512_mullo_epi32(sum, _mm512_set1_epi32(-w.offset));
                _mm512_storeu_si512(starts.as_mut_ptr().cast(), start);
            }
            let (scales, scaled_sums) = (x.scales.as_ptr().add(at), x.scaled_sums.as_ptr().add(at));
            for (r, acc) in acc.iter_mut().enumerate() {
                let mut sum = _mm512_load_si512(dots[0][r].as_ptr().cast());
                if split {
                    let rest = _mm512_load_si512(dots[1][r].as_ptr().cast());
                    sum = _mm512_add_epi32(_mm512_slli_epi32::<WIDE_BITS>(sum), rest);
                }
                if !MINS {
                    sum = _mm512_add_epi32(sum, _mm512_set1_epi32(starts[r]));
                }
                let scale = _mm512_mul_ps(w_scale, _mm512_set1_ps(*scales.add(r)));
                *acc = _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(sum), *acc);
                if MINS {
                    *acc = _mm512_fmadd_ps(min, _mm512_set1_ps(*scaled_sums.add(r)), *acc);
                }
            }
        }
        for (sums, acc) in sums.iter_mut().zip(acc) {
            _mm512_storeu_ps(sums.as_mut_ptr(), acc);
        }
    }
}
