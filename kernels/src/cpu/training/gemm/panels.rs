//! One panel of the right operand, 32 columns, by all rows of a left one.

use std::arch::x86_64::*;

use super::pack::Tile;
use crate::cpu::amx::{self, TileConfig};

/// A panel of both operands' tiles to sum over.
#[derive(Clone, Copy)]
pub(super) struct Panel<'a> {
    /// Tiles of all rows, `k_tiles` for every 16.
    pub(super) left: &'a [Tile],
    /// Two times `k_tiles` tiles.
    pub(super) right: &'a [Tile],
    pub(super) k_tiles: usize,
}

/// The panel's columns of a result `n` columns wide.
pub(super) struct Columns<'a> {
    pub(super) c: &'a mut [f32],
    pub(super) n: usize,
    pub(super) first: usize,
    /// Whether sums are added to what is there.
    pub(super) accumulate: bool,
}

/// Eight tiles of 16 rows of 64 bytes.
static FULL_TILES: TileConfig = TileConfig::new([(16, 64); 8]);

/// Sets the tile registers up for [`amx`].
///
/// # Safety
/// Needs AMX with its permission granted.
pub(super) unsafe fn begin_amx() {
    // SAFETY: by the caller's promise.
    unsafe { FULL_TILES.load() };
}

/// Gives the tile registers back.
///
/// # Safety
/// As [`begin_amx`].
pub(super) unsafe fn end_amx() {
    // SAFETY: by the caller's promise.
    unsafe { amx::release() };
}

/// Multiplies by AMX tiles.
///
/// # Safety
/// Needs AMX bf16 between [`begin_amx`] and [`end_amx`], and tiles for every row of `c`.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn amx(panel: Panel, columns: &mut Columns) {
    /// Sums of one 32 x 32 block of the result.
    #[repr(C, align(64))]
    struct Sums([[f32; 32]; 32]);
    let mut sums = Sums([[0.0; 32]; 32]);
    let Panel { left, right, k_tiles } = panel;
    assert!(right.len() == 2 * k_tiles && k_tiles > 0, "a panel of 32 columns");
    let (n, first) = (columns.n, columns.first);
    let width = (n - first).min(32);
    for (block, left) in left.chunks_exact(2 * k_tiles).enumerate() {
        // SAFETY: each panel pointer has `k_tiles` tiles of 1,024 bytes behind it (the chunks
        // hold two panels), `sums` is 32 rows of 128 bytes, and the tile registers are clobbered.
        unsafe {
            std::arch::asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "2:",
                "tileloadd tmm4, [{a0} + {row}*1]",
                "tileloadd tmm6, [{b0} + {row}*1]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{b1} + {row}*1]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{a1} + {row}*1]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {a0}, 1024",
                "add {a1}, 1024",
                "add {b0}, 1024",
                "add {b1}, 1024",
                "dec {k}",
                "jnz 2b",
                "tilestored [{c} + {row}*2], tmm0",
                "tilestored [{c} + {row}*2 + 64], tmm1",
                "tilestored [{c} + {row}*2 + 2048], tmm2",
                "tilestored [{c} + {row}*2 + 2112], tmm3",
                a0 = inout(reg) left.as_ptr() => _,
                a1 = inout(reg) left.as_ptr().add(k_tiles) => _,
                b0 = inout(reg) right.as_ptr() => _,
                b1 = inout(reg) right.as_ptr().add(k_tiles) => _,
                k = inout(reg) k_tiles => _,
                c = in(reg) sums.0.as_mut_ptr(),
                row = in(reg) 64usize,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
        let rows = columns.c.chunks_exact_mut(n).skip(block * 32);
        for (out, sums) in rows.zip(&sums.0) {
            let out = &mut out[first..][..width];
            if columns.accumulate {
                out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum);
            } else {
                out.copy_from_slice(&sums[..width]);
            }
        }
    }
}

/// Rows of sums in registers.
const ROWS: usize = 8;

/// Multiplies by the dot products of AVX-512 BF16.
///
/// # Safety
/// Needs AVX-512 F and BF16, and tiles for every row of `c`.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) unsafe fn avx512(panel: Panel, columns: &mut Columns) {
    // SAFETY: by the caller's promise.
    unsafe {
        if columns.n - columns.first > 16 {
            avx512_halves::<2>(panel, columns);
        } else {
            avx512_halves::<1>(panel, columns);
        }
    }
}

/// [`avx512`] of the first `HALVES` times 16 columns of the panel.
///
/// # Safety
/// As [`avx512`].
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn avx512_halves<const HALVES: usize>(panel: Panel, columns: &mut Columns) {
    let Panel { left, right, k_tiles } = panel;
    let (n, first, accumulate) = (columns.n, columns.first, columns.accumulate);
    let masks: [u16; HALVES] = std::array::from_fn(|half| {
        let width = (n - first).saturating_sub(16 * half).min(16);
        ((1u32 << width) - 1) as u16
    });
    let right: [&[Tile]; HALVES] = std::array::from_fn(|half| &right[half * k_tiles..][..k_tiles]);
    for (block, c) in columns.c.chunks_mut(ROWS * n).enumerate() {
        let tiles = &left[block / 2 * k_tiles..][..k_tiles];
        let sums = block_sums(tiles, block % 2 * ROWS, right);
        for (c, sums) in c.chunks_exact_mut(n).zip(&sums) {
            for ((half, mask), sum) in masks.into_iter().enumerate().zip(sums) {
                let at = c.as_mut_ptr().wrapping_add(first + half * 16);
                // SAFETY: the mask has as many lanes as the row has columns from `at` on.
                unsafe {
                    let before = _mm512_maskz_loadu_ps(if accumulate { mask } else { 0 }, at);
                    _mm512_mask_storeu_ps(at, mask, _mm512_add_ps(before, *sum));
                }
            }
        }
    }
}

/// Sums of 8 rows, from `first` on in their tiles, by panels of 16 columns.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn block_sums<const HALVES: usize>(
    left: &[Tile],
    first: usize,
    right: [&[Tile]; HALVES],
) -> [[__m512; HALVES]; ROWS] {
    // SAFETY: both types are 512 plain bits.
    let bf16 = |bits: __m512i| unsafe { std::mem::transmute::<__m512i, __m512bh>(bits) };
    let mut sums = [[_mm512_setzero_ps(); HALVES]; ROWS];
    let right = right.map(|panel| &panel[..left.len()]);
    for (tile, left) in left.iter().enumerate() {
        // SAFETY: a tile is 16 rows of 16 pairs, and any bits are an i32.
        let rows = unsafe { &*left.0.as_ptr().cast::<[[i32; 16]; 16]>() };
        let rows: &[[i32; 16]] = &rows[first..first + ROWS];
        for pair in 0..16 {
            let b = right.map(|panel| bf16(panel[tile].0[pair]));
            for (row, sums) in rows.iter().zip(&mut sums) {
                let a = bf16(_mm512_set1_epi32(row[pair]));
                for (sum, b) in sums.iter_mut().zip(b) {
                    *sum = _mm512_dpbf16_ps(*sum, a, b);
                }
            }
        }
    }
    sums
}
