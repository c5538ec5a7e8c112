//! The integer path for AVX-512 VNNI.

use std::arch::x86_64::*;

use super::{ROWS, SIDE};
use crate::cpu::activations::{Activations, BLOCK, REST_BITS, TILE, half_sums};
use crate::cpu::weights::{IntPanels, PANEL, Scales};

/// Lines fetched ahead of the one in use.
const AHEAD: usize = 32;

/// `R` rows from `first` on and `P` panels from `panel` on.
///
/// # Safety
/// Needs AVX-512 F, BW, VL and VNNI; the panels must be `w`'s and the rows `x`'s, of one tile, quantised and
/// as wide as `w`.
pub(super) unsafe fn panels<const R: usize, const P: usize>(
    w: &IntPanels,
    panel: usize,
    x: &Activations,
    first: usize,
    sums: &mut [[[f32; PANEL]; ROWS]; SIDE],
) {
    // SAFETY: by the caller's promise.
    unsafe {
        match (w.eight_bit, w.half_blocks, x.precise) {
            (false, _, false) => kernel::<R, P, false, false, false>(w, panel, x, first, sums),
            (false, _, true) => kernel::<R, P, false, false, true>(w, panel, x, first, sums),
            (true, false, false) => kernel::<R, P, true, false, false>(w, panel, x, first, sums),
            (true, false, true) => kernel::<R, P, true, false, true>(w, panel, x, first, sums),
            (true, true, false) => kernel::<R, P, true, true, false>(w, panel, x, first, sums),
            (true, true, true) => kernel::<R, P, true, true, true>(w, panel, x, first, sums),
        }
    }
}

/// # Safety
/// As [`panels`], and the constants must be those of `w` and `x`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,fma")]
unsafe fn kernel<
    const R: usize,
    const P: usize,
    const EIGHT: bool,
    const HALVES: bool,
    const PRECISE: bool,
>(
    w: &IntPanels,
    panel: usize,
    x: &Activations,
    first: usize,
    out: &mut [[[f32; PANEL]; ROWS]; SIDE],
) {
    let blocks = x.cols / BLOCK;
    let halves = 1 + usize::from(HALVES);
    let lines = if EIGHT { 8 } else { 4 };
    let low = _mm512_set1_epi8(15);
    // SAFETY, for all pointers: a panel has `blocks` blocks of `lines` lines, 16 scales (twice 16 with
    // half blocks) and 16 minima each; a row has `blocks` blocks of 32 codes, a scale and two sums.
    // The rows lie in one tile.
    let at = x.place(first, 0);
    let codes: *const i32 = x.block_codes(at).as_ptr().cast();
    // Groups of four codes, from a row to the next; those of a block are `TILE` rows'.
    let groups = (1 + usize::from(PRECISE)) * BLOCK / 4;
    let sums = half_sums(at);
    let mut acc = [[_mm512_setzero_ps(); P]; R];
    for b in 0..blocks {
        let block: [usize; P] = std::array::from_fn(|p| (panel + p) * blocks + b);
        let line: [*const __m512i; P] =
            std::array::from_fn(|p| w.codes.as_ptr().wrapping_add(block[p] * lines).cast());
        if first == 0 {
            // The processor's own prefetch ends at every page. Behind these panels come the next P.
            let next = if (b * lines + AHEAD) < blocks * lines { 0 } else { (P - 1) * blocks };
            for p in 0..P {
                for g in 0..lines {
                    let line = line[p].wrapping_add(next * lines + AHEAD + g);
                    _mm_prefetch::<_MM_HINT_T0>(line.cast());
                }
                let at = (block[p] + next + AHEAD / lines) * PANEL;
                fetch(&w.scales, at * halves);
                if let Some(mins) = &w.mins {
                    fetch(mins, at);
                }
            }
        }
        for half in 0..halves {
            // Sums of the two planes; the second one carries the offset.
            let mut dots = [[_mm512_setzero_si512(); P]; R];
            let mut rests = [[_mm512_setzero_si512(); P]; R];
            if w.offset != 0 {
                for (r, rest) in rests.iter_mut().enumerate() {
                    // SAFETY: see above.
                    let sums =
                        sums.map(|at| unsafe { *x.half_sums.get_unchecked(at + b * 2 * TILE + r) });
                    let sum = if HALVES { sums[half] } else { sums[0] + sums[1] };
                    *rest = [_mm512_set1_epi32(-w.offset * sum); P];
                }
            }
            for g in half * 8 / halves..(half + 1) * 8 / halves {
                // SAFETY: see above.
                unsafe {
                    let weights: [__m512i; P] = std::array::from_fn(|p| {
                        if EIGHT {
                            _mm512_load_si512(line[p].add(g))
                        } else {
                            let line = _mm512_load_si512(line[p].add(g % 4));
                            let line = if g < 4 { line } else { _mm512_srli_epi16::<4>(line) };
                            _mm512_and_si512(line, low)
                        }
                    });
                    for r in 0..R {
                        let x = codes.add((b * TILE + r) * groups + g);
                        let rest = x.wrapping_add(BLOCK / 4);
                        let x = _mm512_set1_epi32(*x);
                        for p in 0..P {
                            dots[r][p] = _mm512_dpbusd_epi32(dots[r][p], weights[p], x);
                        }
                        if PRECISE {
                            let x = _mm512_set1_epi32(*rest);
                            for p in 0..P {
                                rests[r][p] = _mm512_dpbusd_epi32(rests[r][p], weights[p], x);
                            }
                        }
                    }
                }
            }
            // SAFETY: see above.
            unsafe {
                let scale: [__m512; P] =
                    std::array::from_fn(|p| lanes(&w.scales, (block[p] * halves + half) * PANEL));
                for r in 0..R {
                    let x_scale = *x.scales.get_unchecked(at + b * TILE + r);
                    let x_scale = _mm512_set1_ps(x_scale);
                    for p in 0..P {
                        let dot = dots[r][p];
                        let dot = if PRECISE { _mm512_slli_epi32::<REST_BITS>(dot) } else { dot };
                        let dot = _mm512_cvtepi32_ps(_mm512_add_epi32(dot, rests[r][p]));
                        let scale = _mm512_mul_ps(scale[p], x_scale);
                        acc[r][p] = _mm512_fmadd_ps(scale, dot, acc[r][p]);
                    }
                }
            }
        }
        if let Some(mins) = &w.mins {
            // SAFETY: see above.
            unsafe {
                let min: [__m512; P] = std::array::from_fn(|p| lanes(mins, block[p] * PANEL));
                for (r, acc) in acc.iter_mut().enumerate() {
                    let sum = *x.scaled_sums.get_unchecked(at + b * TILE + r);
                    let sum = _mm512_set1_ps(sum);
                    for p in 0..P {
                        acc[p] = _mm512_fmadd_ps(min[p], sum, acc[p]);
                    }
                }
            }
        }
    }
    for p in 0..P {
        for r in 0..R {
            // SAFETY: 16 floats.
            unsafe { _mm512_storeu_ps(out[p][r].as_mut_ptr(), acc[r][p]) };
        }
    }
}

/// Fetches 16 scales, which need not exist.
#[inline]
pub(super) fn fetch(scales: &Scales, at: usize) {
    let line = match scales {
        Scales::F16(v) => v.as_ptr().wrapping_add(at).cast(),
        Scales::F32(v) => v.as_ptr().wrapping_add(at).cast(),
    };
    // SAFETY: every x86-64 has SSE, and a prefetch touches nothing.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(line) };
}

/// # Safety
/// Needs AVX-512 F; `at .. at + 16` must exist.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn lanes(scales: &Scales, at: usize) -> __m512 {
    // SAFETY: by the caller's promise.
    unsafe {
        match scales {
            Scales::F16(v) => _mm512_cvtph_ps(_mm256_loadu_si256(v.as_ptr().add(at).cast())),
            Scales::F32(v) => _mm512_loadu_ps(v.as_ptr().add(at)),
        }
    }
}
