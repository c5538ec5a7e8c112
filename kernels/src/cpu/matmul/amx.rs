//! The integer path for several rows: dot products of up to 16 rows with 16 outputs in AMX tiles. The sums
//! of a block are exact integers, and they are scaled and added in the order of the other paths, so the
//! bits are theirs.
//!
//! Tiles and vector registers speak through memory, and neither can read what the other has only just
//! written. So the work goes in stages of two blocks: while one is multiplied, the weights of the next are
//! unpacked and the sums of the one before are scaled and added.
//!
//! A tile of 16 rows takes 64 codes of a row at the price of 32. With 4-bit weights the upper and lower codes of a
//! block are therefore one tile: `[upper, lower]` times `[16 w, w]`.

use std::arch::asm;
use std::arch::x86_64::*;
use std::cell::RefCell;
use std::ops::Range;

use super::vnni::{self, fetch, lanes};
use crate::cpu::activations::{Activations, TILE};
use crate::cpu::amx::{self, TileConfig};
use crate::cpu::quantize::{BLOCK, WIDE_BITS};
use crate::cpu::weights::{IntPanels, Line, PANEL};

/// Blocks of a stage.
const STAGE: usize = 2;
/// Blocks whose weights are fetched ahead of those in use.
const AHEAD: usize = 16;

/// Lines of a block's weights, one byte a code: for upper and lower codes in one tile they are there twice.
const fn lines_per_block(bytes: bool) -> usize {
    if bytes { 8 } else { 16 }
}

/// Tiles 0 and 3: sums of `rows` rows and 16 outputs; 1 and 4: `rows` rows of `deep` codes; 2 and 5: the codes
/// of 16 weight rows, four to a lane.
const fn tiles(rows: u8, deep: u16) -> TileConfig {
    let (sums, x, w) = ((rows, 64), (rows, deep), (deep as u8 / 4, 64));
    TileConfig::new([sums, x, w, sums, x, w, (0, 0), (0, 0)])
}

/// Dot products of a stage: of a tile for every block, or of two, for upper and lower codes.
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
    macro_rules! rows {
        ($($most:literal)*) => {
            WORKSPACE.with_borrow_mut(|workspace| match (w.bits > 4, x.rows.min(TILE)) {
                $(
                    (false, 0..=$most) => {
                        static TILES: TileConfig = tiles($most, 64);
                        // SAFETY: by the caller's promise; the tiles are configured.
                        unsafe {
                            TILES.load();
                            stages::<$most, false>(w, panels, x, workspace, store);
                        }
                    }
                    (true, 0..=$most) => {
                        static TILES: TileConfig = tiles($most, 32);
                        // SAFETY: as above.
                        unsafe {
                            TILES.load();
                            stages::<$most, true>(w, panels, x, workspace, store);
                        }
                    }
                )*
                (_, rows) => unreachable!("{rows} rows in a tile"),
            })
        };
    }
    rows!(8 12 16);
    // SAFETY: AMX is there.
    unsafe { amx::release() };
}

/// Some blocks of one panel and one tile of rows: stages come tile after tile, panel after panel.
#[derive(Clone, Copy)]
struct Stage {
    panel: usize,
    tile: usize,
    block: usize,
}

impl Stage {
    /// The one behind, of `tiles` tiles of rows and panels of `blocks` blocks.
    #[inline(always)]
    fn next(mut self, tiles: usize, blocks: usize) -> Self {
        self.block += STAGE;
        if self.block >= blocks {
            (self.block, self.tile) = (0, self.tile + 1);
            if self.tile == tiles {
                (self.tile, self.panel) = (0, self.panel + 1);
            }
        }
        self
    }
}

/// Unpacks, multiplies and scales stage after stage, each a stage apart, so that nothing is read that has
/// only just been written. `R` rows of a tile are computed.
///
/// # Safety
/// As [`panels`], with [`tiles`] of `R` rows loaded; `BYTES` is whether codes of `w` have more than four bits.
#[target_feature(enable = "avx512f,avx512bw,fma")]
unsafe fn stages<const R: usize, const BYTES: bool>(
    w: &IntPanels,
    panels: Range<usize>,
    x: &Activations,
    Workspace { codes, dots }: &mut Workspace,
    store: impl Fn(usize, usize, &[[f32; PANEL]]),
) {
    let (blocks, tiles) = (x.cols / BLOCK, x.rows.div_ceil(TILE));
    let count = lines_per_block(BYTES);
    // Lines kept of a stage or of a panel, twice.
    let kept = if tiles > 1 { blocks.next_multiple_of(STAGE) } else { STAGE } * count;
    // Codes of eight bits are multiplied where they lie.
    let unpacks = w.bits < 8;
    if unpacks {
        codes.resize(codes.len().max(2 * kept), Line([0; 64]));
    }
    // Where the lines of a stage lie, by its number.
    let place = |stage: Stage, number: usize| match (unpacks, tiles) {
        (false, _) => (stage.panel * blocks + stage.block) * count,
        (true, 1) => number % 2 * kept,
        (true, _) => stage.panel % 2 * kept + stage.block * count,
    };
    let len = |stage: Stage| (blocks - stage.block).min(STAGE);
    let first = Stage { panel: panels.start, tile: 0, block: 0 };
    let (mut unpacked, mut multiplied, mut scaled) = (first, first, first);
    let mut sums = [_mm512_setzero_ps(); R];
    let all = panels.len() * tiles * blocks.div_ceil(STAGE);
    for i in 0..all + 2 {
        if i < all {
            if unpacked.tile == 0 {
                let block = unpacked.panel * blocks + unpacked.block;
                ahead(w, block);
                if unpacks {
                    let packed = &w.codes[block * w.bits..][..len(unpacked) * w.bits];
                    let codes = &mut codes[place(unpacked, i)..][..len(unpacked) * count];
                    // SAFETY: AVX-512 is there.
                    unsafe { unpack(w.bits, packed, codes) };
                }
            }
            unpacked = unpacked.next(tiles, blocks);
        }
        if (1..=all).contains(&i) {
            let at = place(multiplied, i - 1);
            let lines = if unpacks { &codes[at..] } else { &w.codes[at..] };
            let dots = &mut dots[(i - 1) % 2];
            // SAFETY: by the caller's promise; the lines are those of the stage.
            unsafe { multiply::<BYTES>(lines, x, multiplied, len(multiplied), dots) };
            multiplied = multiplied.next(tiles, blocks);
        }
        if i < 2 {
            continue;
        }
        let dots = &dots[i % 2];
        for b in 0..len(scaled) {
            // SAFETY: the features are there, and the rows and blocks exist, padding included.
            unsafe { scale::<R, BYTES>(w, x, scaled, b, dots, &mut sums) };
        }
        if scaled.block + STAGE >= blocks {
            let mut out = [[0f32; PANEL]; R];
            for (out, sums) in out.iter_mut().zip(sums) {
                // SAFETY: 16 floats.
                unsafe { _mm512_storeu_ps(out.as_mut_ptr(), sums) };
            }
            let row = scaled.tile * TILE;
            store(scaled.panel, row, &out[..(x.rows - row).min(R)]);
            sums = [_mm512_setzero_ps(); R];
        }
        scaled = scaled.next(tiles, blocks);
    }
}

/// Fetches a stage of weights some blocks ahead of `block`, which need not exist.
#[inline(always)]
fn ahead(w: &IntPanels, block: usize) {
    for block in block + AHEAD..block + AHEAD + STAGE {
        for line in 0..w.bits {
            let line = w.codes.as_ptr().wrapping_add(block * w.bits + line);
            // SAFETY: every x86-64 has SSE, and a prefetch touches nothing.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) };
        }
        fetch(&w.scales, block);
        if let Some(mins) = &w.mins {
            fetch(mins, block);
        }
    }
}

/// One byte a code. Those of four bits are there twice, first times 16 and then as they are: 16 lines a block.
///
/// # Safety
/// Needs AVX-512 F and BW; there must be as many blocks of codes as `packed` has.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn unpack(bits: usize, packed: &[Line], codes: &mut [Line]) {
    let blocks = packed.len() / bits;
    for (packed, codes) in
        packed.chunks_exact(bits).zip(codes.chunks_exact_mut(codes.len() / blocks))
    {
        let (packed, codes) = (packed.as_ptr().cast(), codes.as_mut_ptr().cast::<__m512i>());
        // SAFETY: lines are 64 bytes, aligned, and there are as many as the codes have bits, or groups once or twice.
        unsafe {
            let groups = match bits {
                4 => vnni::unpack::<4>(packed),
                5 => vnni::unpack::<5>(packed),
                _ => unreachable!("codes of {bits} bits are not unpacked"),
            };
            for (g, group) in groups.into_iter().enumerate() {
                if bits == 4 {
                    _mm512_store_si512(codes.add(g), _mm512_slli_epi16::<4>(group));
                    _mm512_store_si512(codes.add(g + 8), group);
                } else {
                    _mm512_store_si512(codes.add(g), group);
                }
            }
        }
    }
}

/// Dot products of a stage of `len` blocks, two tiles at a time: two blocks, or the upper and lower codes of one.
///
/// # Safety
/// As [`stages`]; `lines` are the codes of the stage's weights, one byte each.
#[inline(always)]
unsafe fn multiply<const BYTES: bool>(
    lines: &[Line],
    x: &Activations,
    stage: Stage,
    len: usize,
    dots: &mut Dots,
) {
    let count = lines_per_block(BYTES);
    let at = x.place(stage.tile * TILE, stage.block);
    for first in (0..len).step_by(if BYTES { 1 } else { 2 }) {
        let second = if BYTES { first } else { (first + 1).min(len - 1) };
        let codes = |b: usize| x.codes_at(at + b * TILE);
        let x0 = codes(first);
        let x1 = if BYTES { x0.wrapping_add(BLOCK) } else { codes(second) };
        let (w0, w1) = (lines[first * count..].as_ptr(), lines[second * count..].as_ptr());
        let d0 = dots.0[if BYTES { 2 * first } else { first }].as_mut_ptr();
        let d1 = dots.0[if BYTES { 2 * first + 1 } else { second }].as_mut_ptr();
        // SAFETY: 16 rows of codes lie side by side at `x0` and `x1`, padding included, `count` lines at
        // `w0` and `w1`, and `d0` and `d1` take 16 rows of 64 bytes; tiles are clobbered.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm3",
                "tileloadd tmm1, [{x0} + {line}*1]",
                "tileloadd tmm2, [{w0} + {line}*1]",
                "tileloadd tmm4, [{x1} + {line}*1]",
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
                line = in(reg) 64usize,
                out("tmm0") _, out("tmm1") _, out("tmm2") _,
                out("tmm3") _, out("tmm4") _, out("tmm5") _,
                options(nostack),
            );
        }
    }
}

/// Adds the scaled dot products of the `b`-th block of a stage to the sums of its first `R` rows.
///
/// # Safety
/// Needs the features; the block must exist in `w` and, for `R` rows, in `x`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,fma")]
unsafe fn scale<const R: usize, const BYTES: bool>(
    w: &IntPanels,
    x: &Activations,
    stage: Stage,
    b: usize,
    dots: &Dots,
    sums: &mut [__m512; R],
) {
    let block = stage.panel * (x.cols / BLOCK) + stage.block + b;
    let at = x.place(stage.tile * TILE, stage.block + b);
    let dots = &dots.0[if BYTES { 2 * b } else { b }..];
    // SAFETY: 16 scales and minima a block, 16 x 16 dot products a tile, and the rows exist in `x`.
    unsafe {
        let w_scale = lanes(&w.scales, block);
        let (scales, scaled_sums) = (x.scales.as_ptr().add(at), x.scaled_sums.as_ptr().add(at));
        let dot = |r: usize| {
            let dot = _mm512_load_si512(dots[0][r].as_ptr().cast());
            if !BYTES {
                return dot;
            }
            let lower = _mm512_load_si512(dots[1][r].as_ptr().cast());
            _mm512_add_epi32(_mm512_slli_epi32::<WIDE_BITS>(dot), lower)
        };
        if let Some(mins) = &w.mins {
            let min = lanes(mins, block);
            for (r, acc) in sums.iter_mut().enumerate() {
                let scale = _mm512_mul_ps(w_scale, _mm512_set1_ps(*scales.add(r)));
                *acc = _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(dot(r)), *acc);
                *acc = _mm512_fmadd_ps(min, _mm512_set1_ps(*scaled_sums.add(r)), *acc);
            }
            return;
        }
        // What the offset of the codes adds to each row's dot products.
        let halves = x.half_sums.as_ptr().add(2 * at);
        let sum = _mm512_add_epi32(
            _mm512_loadu_si512(halves.cast()),
            _mm512_loadu_si512(halves.add(TILE).cast()),
        );
        let mut offsets = [0i32; TILE];
        let offset = _mm512_mullo_epi32(sum, _mm512_set1_epi32(-w.offset));
        _mm512_storeu_si512(offsets.as_mut_ptr().cast(), offset);
        for (r, acc) in sums.iter_mut().enumerate() {
            let dot = _mm512_add_epi32(dot(r), _mm512_set1_epi32(offsets[r]));
            let scale = _mm512_mul_ps(w_scale, _mm512_set1_ps(*scales.add(r)));
            *acc = _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(dot), *acc);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::isa::Isa;
    use crate::cpu::testing::Random;
    use crate::cpu::weights::codes;

    /// What tiles multiply, held against the codes one by one; AMX itself is not needed.
    #[test]
    fn codes_are_unpacked_into_bytes() {
        if !Isa::supported().contains(&Isa::Avx512Vnni) {
            eprintln!("SKIPPED: no AVX-512 on this machine");
            return;
        }
        let mut random = Random::new();
        for (bits, count) in [(4, 16), (5, 8)] {
            let line = || Line(std::array::from_fn(|_| random.bits() as u8));
            let packed: Vec<Line> = std::iter::repeat_with(line).take(3 * bits).collect();
            let mut unpacked = vec![Line([0; 64]); 3 * count];
            // SAFETY: the set was detected, and there is room for three blocks.
            unsafe { unpack(bits, &packed, &mut unpacked) };
            for (packed, unpacked) in packed.chunks(bits).zip(unpacked.chunks(count)) {
                for lane in 0..PANEL {
                    for (k, code) in codes::get(packed, lane).into_iter().enumerate() {
                        let (group, byte) = (k / 4, lane * 4 + k % 4);
                        assert_eq!(unpacked[count - 8 + group].0[byte], code, "{bits} bits");
                        assert!(bits > 4 || unpacked[group].0[byte] == 16 * code);
                    }
                }
            }
        }
    }
}
