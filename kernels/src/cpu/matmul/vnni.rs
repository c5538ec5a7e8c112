//! The integer path for AVX-512 VNNI.

use std::arch::asm;
use std::arch::x86_64::*;

use super::{ROWS, RowSums};
use crate::cpu::activations::{Activations, TILE, half_sums};
use crate::cpu::quantize::{BLOCK, GROUP, WIDE_BITS};
use crate::cpu::weights::{IntPanels, Line, Scales};

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
        match (w.bits, w.half_blocks, &w.mins) {
            (4, false, None) => kernel::<R, P, 4, false, false>(w, panel, x, first, sums),
            (4, false, Some(_)) => kernel::<R, P, 4, false, true>(w, panel, x, first, sums),
            (5, false, None) => kernel::<R, P, 5, false, false>(w, panel, x, first, sums),
            (5, false, Some(_)) => kernel::<R, P, 5, false, true>(w, panel, x, first, sums),
            (6, true, None) => kernel::<R, P, 6, true, false>(w, panel, x, first, sums),
            (8, false, None) => kernel::<R, P, 8, false, false>(w, panel, x, first, sums),
            (bits, ..) => unreachable!("no format has such codes of {bits} bits"),
        }
    }
}

/// # Safety
/// As [`panels`], and the constants must be those of `w`, which has either minima or an offset.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,fma")]
unsafe fn kernel<
    const R: usize,
    const P: usize,
    const BITS: usize,
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
    let at = x.place(first, 0);
    let half_sums = half_sums(at);
    let mut acc = [[_mm512_setzero_ps(); R]; P];
    // A byte a code.
    let mut unpacked = [[Line([0; 64]); GROUPS]; P];
    for b in 0..blocks {
        let block: [usize; P] = std::array::from_fn(|p| (panel + p) * blocks + b);
        let line = |p: usize| w.codes.as_ptr().wrapping_add(block[p] * BITS).cast::<__m512i>();
        if first == 0 {
            // The processor's own prefetch ends at every page. These rows come first, one panel at a time.
            for g in 0..BITS {
                _mm_prefetch::<_MM_HINT_T0>(line(0).wrapping_add(AHEAD + g).cast());
            }
            let ahead = block[0] + AHEAD / BITS;
            fetch(&w.scales, ahead * halves);
            if MINS && let Some(mins) = &w.mins {
                fetch(mins, ahead);
            }
        }
        // SAFETY: this goes for all pointers. A panel has `blocks` blocks of `BITS` lines, 16 scales (twice 16 with half
        // blocks) and 16 minima each; a row has `blocks` blocks of two times 32 codes, two wide groups, a scale and
        // two sums. The rows lie in one tile.
        unsafe {
            let mut weights = [[_mm512_setzero_si512(); GROUPS]; P];
            for p in 0..P {
                weights[p] = unpack::<BITS>(line(p));
                if BITS < 8 {
                    for (unpacked, weights) in unpacked[p].iter_mut().zip(weights[p]) {
                        _mm512_store_si512(unpacked.0.as_mut_ptr().cast(), weights);
                    }
                }
            }
            let bytes: [*const __m512i; P] = std::array::from_fn(|p| {
                if BITS == 8 { line(p) } else { somewhere(unpacked[p].as_ptr().cast()) }
            });
            let at = at + b * TILE;
            let codes: *const i32 = x.codes_at(at).cast();
            macro_rules! part {
                ($half:literal: $($g:literal)*) => {
                    // A product waits for the one before it: where there are few sums, each is computed in parts.
                    let few = R * P < 4 || (P == 1 && R < 7);
                    let mut dots = [[[_mm512_setzero_si512(); 3]; R]; P];
                    let mut offsets = [0i32; ROWS];
                    if !MINS {
                        let sums = half_sums.map(|sums| {
                            let sums = x.half_sums.as_ptr().add(sums + b * 2 * TILE);
                            _mm256_maskz_loadu_epi32(((1u32 << R) - 1) as u8, sums)
                        });
                        let sum = if HALVES { sums[$half] } else { _mm256_add_epi32(sums[0], sums[1]) };
                        let offset = _mm256_mullo_epi32(sum, _mm256_set1_epi32(-w.offset));
                        _mm256_storeu_si256(offsets.as_mut_ptr().cast(), offset);
                    }
                    for r in 0..R {
                        let wide = x.wide.get_unchecked(at + r);
                        for (upper, g) in wide.upper.iter().zip(wide.eightfold) {
                            let g = usize::from(g);
                            let mut upper = upper.as_ptr().cast::<i32>().read();
                            if HALVES {
                                // A mask: a branch on where the wide groups are would be mispredicted.
                                upper &= -i32::from(g / (8 * GROUPS / 2) == $half);
                            }
                            let x = _mm512_set1_epi32(upper);
                            for p in 0..P {
                                let w = _mm512_load_si512(bytes[p].cast::<u64>().add(g).cast());
                                dots[p][r][0] = _mm512_dpbusd_epi32(dots[p][r][0], w, x);
                            }
                        }
                        for dots in &mut dots {
                            dots[r][0] = _mm512_slli_epi32::<WIDE_BITS>(dots[r][0]);
                        }
                        if !MINS {
                            let offset = _mm512_set1_epi32(offsets[r]);
                            for dots in &mut dots {
                                dots[r][0] = _mm512_add_epi32(dots[r][0], offset);
                            }
                        }
                    }
                    $({
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
                    })*
                    for p in 0..P {
                        let scale = lanes(&w.scales, block[p] * halves + $half);
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
                };
            }
            if HALVES {
                part!(0: 0 1 2 3);
                part!(1: 4 5 6 7);
            } else {
                part!(0: 0 1 2 3 4 5 6 7);
            }
            if MINS && let Some(mins) = &w.mins {
                for p in 0..P {
                    let min = lanes(mins, block[p]);
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

/// The codes of a block, one byte each.
///
/// # Safety
/// Needs AVX-512 F and BW; `BITS` lines of codes must lie at `lines`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn unpack<const BITS: usize>(lines: *const __m512i) -> [__m512i; GROUPS] {
    // SAFETY: by the caller's promise.
    let line = |g: usize| unsafe { _mm512_load_si512(lines.add(g)) };
    if BITS == 8 {
        return std::array::from_fn(line);
    }
    let low = _mm512_set1_epi8(15);
    let mut groups = [_mm512_setzero_si512(); GROUPS];
    for g in 0..GROUPS / 2 {
        let line = line(g);
        groups[g] = _mm512_and_si512(line, low);
        groups[g + GROUPS / 2] = _mm512_and_si512(_mm512_srli_epi16::<4>(line), low);
    }
    // Each group's upper bits come to lie above the lower four, one after the other.
    macro_rules! upper {
        ($bits:literal) => {{
            let mask = _mm512_set1_epi8(((1 << $bits) - 1) << 4);
            let mut bits = _mm512_setzero_si512();
            for (g, group) in groups.iter_mut().enumerate() {
                bits = match g % (GROUPS / $bits) {
                    0 => _mm512_rol_epi32::<4>(line(GROUPS / 2 + g / (GROUPS / $bits))),
                    _ => _mm512_ror_epi32::<$bits>(bits),
                };
                *group = _mm512_or_si512(*group, _mm512_and_si512(bits, mask));
            }
        }};
    }
    match BITS {
        4 => {}
        5 => upper!(1),
        6 => upper!(2),
        _ => unreachable!("codes of {BITS} bits"),
    }
    groups
}

/// Fetches an entry, which need not exist.
#[inline]
pub(super) fn fetch(scales: &Scales, entry: usize) {
    let (unit, steps) = scales.place(entry);
    // SAFETY: every x86-64 has SSE, and a prefetch touches nothing.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(scales.at(steps.unwrap_or(unit)).cast()) };
}

/// The values of an entry.
///
/// # Safety
/// Needs AVX-512 F; the entry must exist.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn lanes(scales: &Scales, entry: usize) -> __m512 {
    let (unit, steps) = scales.place(entry);
    // SAFETY: a unit has two rows; by the caller's promise it exists, as the steps do.
    unsafe {
        let unit = _mm512_cvtph_ps(_mm256_loadu_si256(scales.at(unit).cast()));
        let Some(steps) = steps else { return unit };
        let steps = _mm512_cvtepi8_epi32(_mm_loadu_si128(scales.at(steps).cast()));
        _mm512_mul_ps(unit, _mm512_cvtepi32_ps(steps))
    }
}
