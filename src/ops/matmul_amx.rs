//! The integer path of [`super::matmul`] for many rows: dot products of 16 rows with 16 outputs in AMX
//! tiles. The sums of a block are exact integers, and they are scaled and added in the order of the
//! other paths, so the bits are theirs.

use std::arch::asm;
use std::arch::x86_64::*;

use super::activations::{Activations, BLOCK};
use super::amx::TileConfig;
use super::matmul::vnni::lanes;
use super::packed::{IntPanels, PANEL};

/// Rows of a tile of activations.
pub(super) const ROWS: usize = 16;

/// Tile 0: sums of 16 rows and 16 outputs; tile 1: 16 rows of 32 codes; tile 2: the codes of 16 weight
/// rows, four to a lane.
pub(super) static TILES: TileConfig =
    TileConfig::new([(16, 64), (16, 32), (8, 64), (0, 0), (0, 0), (0, 0), (0, 0), (0, 0)]);

#[repr(C, align(64))]
struct Lines([__m512i; 8]);

#[repr(C, align(64))]
struct Dots([__m512i; ROWS]);

/// Sums of one panel of outputs for rows `first .. first + 16` of `x`.
///
/// # Safety
/// Needs AVX-512 F and BW and AMX int8, with [`TILES`] loaded; `panel` must be one of `w`'s, without half
/// blocks, and `x` quantised, as wide as `w`, and padded to `first + 16` rows.
#[target_feature(enable = "avx512f,avx512bw,fma")]
pub(super) unsafe fn panel<const EIGHT: bool>(
    w: &IntPanels,
    panel: usize,
    x: &Activations,
    first: usize,
    sums: &mut [[f32; PANEL]; ROWS],
) {
    let blocks = x.cols / BLOCK;
    let low = _mm512_set1_epi8(15);
    let mut unpacked = Lines([_mm512_setzero_si512(); 8]);
    let mut dots = Dots([_mm512_setzero_si512(); ROWS]);
    let mut acc = [_mm512_setzero_ps(); ROWS];
    for b in 0..blocks {
        let block = panel * blocks + b;
        // SAFETY: a block has 8 or 4 lines of 64 bytes.
        let codes = unsafe {
            let lines = w.codes.as_ptr().add(block * w.lines()).cast::<__m512i>();
            if EIGHT {
                lines
            } else {
                for g in 0..4 {
                    let line = _mm512_load_si512(lines.add(g));
                    unpacked.0[g] = _mm512_and_si512(line, low);
                    unpacked.0[g + 4] = _mm512_and_si512(_mm512_srli_epi16::<4>(line), low);
                }
                unpacked.0.as_ptr()
            }
        };
        // SAFETY: 16 rows of 32 codes exist `x.cols` apart, 8 lines lie at `codes`, `dots` takes 16 rows
        // of 64 bytes, and the tile registers are clobbered.
        unsafe {
            let rows = x.codes.as_ptr().add(first * x.cols + b * BLOCK);
            asm!(
                "tilezero tmm0",
                "tileloadd tmm1, [{x} + {x_stride}*1]",
                "tileloadd tmm2, [{w} + {line}*1]",
                "tdpbsud tmm0, tmm1, tmm2",
                "tilestored [{dots} + {line}*1], tmm0",
                x = in(reg) rows,
                x_stride = in(reg) x.cols,
                w = in(reg) codes,
                dots = in(reg) dots.0.as_mut_ptr(),
                line = in(reg) 64usize,
                out("tmm0") _, out("tmm1") _, out("tmm2") _,
                options(nostack),
            );
        }
        // SAFETY: 16 scales and as many minima per block.
        let (scale, min) = unsafe {
            let at = block * PANEL;
            (lanes(&w.scales, at), w.mins.as_ref().map(|mins| lanes(mins, at)))
        };
        for (r, acc) in acc.iter_mut().enumerate() {
            let at = (first + r) * blocks + b;
            // SAFETY: block `b` of row `first + r` exists, padding included.
            let (x_scale, x_sums, scaled_sum) = unsafe {
                (
                    *x.scales.get_unchecked(at),
                    *x.sums.get_unchecked(at),
                    *x.scaled_sums.get_unchecked(at),
                )
            };
            let start = _mm512_set1_epi32(-w.offset * (x_sums[0] + x_sums[1]));
            let dot = _mm512_cvtepi32_ps(_mm512_add_epi32(dots.0[r], start));
            *acc = _mm512_fmadd_ps(_mm512_mul_ps(scale, _mm512_set1_ps(x_scale)), dot, *acc);
            if let Some(min) = min {
                *acc = _mm512_fmadd_ps(min, _mm512_set1_ps(scaled_sum), *acc);
            }
        }
    }
    for (sums, acc) in sums.iter_mut().zip(acc) {
        // SAFETY: 16 floats.
        unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), acc) };
    }
}
