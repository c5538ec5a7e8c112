//! The integer path for AVX-512 VNNI.

use std::arch::asm;
use std::arch::x86_64::*;

use super::RowSums;
use crate::cpu::activations::{Activations, TILE, half_sums};
use crate::cpu::quantize::{BLOCK, GROUP, WIDE_BITS};
use crate::cpu::weights::{IntPanels, Line, PANEL, Scales};

/// Lines fetched ahead of the one in use.
const AHEAD: usize = 64;

const GROUPS: usize = BLOCK / GROUP;

/// `R` rows from `first` on and `P` neighbouring panels, for each of which there are `sums`.
///
/// # Safety
/// Needs AVX-512 F, BW, VL and VNNI; the panels must be `w`'s and the rows `x`'s, of one tile, quantised and
/// as wide as `w`.
pub(super) unsafe fn panels<const R: usize, const P: usize>(
    w: &IntPanels,
    panel: usize,
    x: &Activations,
    first: usize,
    sums: &mut [RowSums],
) {
    // SAFETY: by the caller's promise.
    unsafe {
        match (w.eight_bit, w.half_blocks, &w.mins) {
            (false, _, None) => kernel::<R, P, false, false, false>(w, panel, x, first, sums),
            (false, _, Some(_)) => kernel::<R, P, false, false, true>(w, panel, x, first, sums),
            (true, false, None) => kernel::<R, P, true, false, false>(w, panel, x, first, sums),
            (true, false, Some(_)) => kernel::<R, P, true, false, true>(w, panel, x, first, sums),
            (true, true, _) => kernel::<R, P, true, true, false>(w, panel, x, first, sums),
        }
    }
}

/// # Safety
/// As [`panels`], and the constants must be those of `w`, which has either minima or an offset.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,fma")]
unsafe fn kernel<
    const R: usize,
    const P: usize,
    const EIGHT: bool,
    const HALVES: bool,
    const MINS: bool,
>(
    w: &IntPanels,
    panel: usize,
    x: &Activations,
    first: usize,
    sums: &mut [RowSums],
) {
    let blocks = x.cols / BLOCK;
    let halves = 1 + usize::from(HALVES);
    let lines = if EIGHT { GROUPS } else { GROUPS / 2 };
    let low = _mm512_set1_epi8(15);
    let at = x.place(first, 0);
    let [first_sums, second_sums] = half_sums(at);
    let mut acc = [[_mm512_setzero_ps(); R]; P];
    // A byte a code.
    let mut unpacked = [[Line([0; 64]); GROUPS]; P];
    for b in 0..blocks {
        let block: [usize; P] = std::array::from_fn(|p| (panel + p) * blocks + b);
        let line = |p: usize| w.codes.as_ptr().wrapping_add(block[p] * lines).cast::<__m512i>();
        if first == 0 {
            // The processor's own prefetch ends at every page. These rows come first, one panel at a time.
            for g in 0..lines {
                _mm_prefetch::<_MM_HINT_T0>(line(0).wrapping_add(AHEAD + g).cast());
            }
            let at = (block[0] + AHEAD / lines) * PANEL;
            fetch(&w.scales, at * halves);
            if MINS && let Some(mins) = &w.mins {
                fetch(mins, at);
            }
        }
        // SAFETY: this goes for all pointers. A panel has `blocks` blocks of `lines` lines, 16 scales (twice 16 with half
        // blocks) and 16 minima each; a row has `blocks` blocks of two times 32 codes, two wide groups, a scale and
        // two sums. The rows lie in one tile.
        unsafe {
            let mut weights = [[_mm512_setzero_si512(); GROUPS]; P];
            for p in 0..P {
                for g in 0..lines {
                    let packed = _mm512_load_si512(line(p).add(g));
                    if EIGHT {
                        weights[p][g] = packed;
                        continue;
                    }
                    for (g, packed) in [(g, packed), (g + lines, _mm512_srli_epi16::<4>(packed))] {
                        weights[p][g] = _mm512_and_si512(packed, low);
                        _mm512_store_si512(unpacked[p][g].0.as_mut_ptr().cast(), weights[p][g]);
                    }
                }
            }
            let bytes: [*const __m512i; P] = std::array::from_fn(|p| {
                if EIGHT { line(p) } else { somewhere(unpacked[p].as_ptr().cast()) }
            });
            let at = at + b * TILE;
            let codes: *const i32 = x.codes_at(at).cast();
            for half in 0..halves {
                let groups = half * GROUPS / halves..(half + 1) * GROUPS / halves;
                // A product waits for the one before it: where there are few sums, each is computed in parts.
                let few = R * P < 4 || (P == 1 && R < 7);
                let mut dots = [[[_mm512_setzero_si512(); 3]; R]; P];
                for r in 0..R {
                    let wide = x.wide.get_unchecked(at + r);
                    for (upper, g) in wide.upper.iter().zip(wide.eightfold) {
                        let g = usize::from(g);
                        if HALVES && !groups.contains(&(g / 8)) {
                            continue;
                        }
                        let x = _mm512_set1_epi32(upper.as_ptr().cast::<i32>().read());
                        for p in 0..P {
                            let w = _mm512_load_si512(bytes[p].cast::<u64>().add(g).cast());
                            dots[p][r][0] = _mm512_dpbusd_epi32(dots[p][r][0], w, x);
                        }
                    }
                    for dots in &mut dots {
                        dots[r][0] = _mm512_slli_epi32::<WIDE_BITS>(dots[r][0]);
                    }
                    if !MINS {
                        let sums = [first_sums, second_sums]
                            .map(|sums| *x.half_sums.get_unchecked(sums + b * 2 * TILE + r));
                        let sum = if HALVES { sums[half] } else { sums[0] + sums[1] };
                        let offset = _mm512_set1_epi32(-w.offset * sum);
                        for dots in &mut dots {
                            dots[r][0] = _mm512_add_epi32(dots[r][0], offset);
                        }
                    }
                }
                macro_rules! groups {
                    ($($g:literal)*) => {$(
                        if groups.contains(&$g) {
                            // Few registers are free beside the sums of many rows and two panels.
                            let w: [__m512i; P] = std::array::from_fn(|p| {
                                if P == 1 { weights[p][$g] } else { _mm512_load_si512(bytes[p].add($g)) }
                            });
                            for r in 0..R {
                                let x = _mm512_set1_epi32(*codes.add((2 * r + 1) * GROUPS + $g));
                                for p in 0..P {
                                    let dot = &mut dots[p][r][if few { 1 + $g % 2 } else { 0 }];
                                    *dot = in_order(_mm512_dpbusd_epi32(*dot, w[p], x));
                                }
                            }
                        }
                    )*};
                }
                groups!(0 1 2 3 4 5 6 7);
                for p in 0..P {
                    let scale = lanes(&w.scales, (block[p] * halves + half) * PANEL);
                    for (r, acc) in acc[p].iter_mut().enumerate() {
                        let [mut dot, more @ ..] = dots[p][r];
                        if few {
                            dot = _mm512_add_epi32(dot, _mm512_add_epi32(more[0], more[1]));
                        }
                        let x_scale = _mm512_set1_ps(*x.scales.get_unchecked(at + r));
                        let scale = _mm512_mul_ps(scale, x_scale);
                        *acc = _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(dot), *acc);
                    }
                }
            }
            if MINS && let Some(mins) = &w.mins {
                for p in 0..P {
                    let min = lanes(mins, block[p] * PANEL);
                    for (r, acc) in acc[p].iter_mut().enumerate() {
                        let sum = _mm512_set1_ps(*x.scaled_sums.get_unchecked(at + r));
                        *acc = _mm512_fmadd_ps(min, sum, *acc);
                    }
                }
            }
        }
    }
    for (sums, acc) in sums.iter_mut().zip(acc) {
        for (sums, acc) in sums.iter_mut().zip(acc) {
            // SAFETY: 16 floats.
            unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), acc) };
        }
    }
}

/// The same address, of which the compiler does not know what lies there.
#[inline]
fn somewhere(mut lines: *const __m512i) -> *const __m512i {
    // SAFETY: a comment, and no instruction.
    unsafe { asm!("/* {0} */", inout(reg) lines, options(nostack, preserves_flags)) };
    lines
}

/// The same, computed where it stands: the compiler would let each row's products wait for each other.
#[inline]
#[target_feature(enable = "avx512f")]
fn in_order(mut sums: __m512i) -> __m512i {
    // SAFETY: a comment, and no instruction.
    unsafe {
        asm!("/* {0} */", inout(zmm_reg) sums, options(nomem, nostack, preserves_flags));
    }
    sums
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
