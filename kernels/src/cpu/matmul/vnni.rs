//! The integer path for AVX-512 VNNI.

use std::arch::asm;
use std::arch::x86_64::*;

use crate::cpu::activations::{Activations, TILE, half_sums};
use crate::cpu::quantize::{BLOCK, GROUP, WIDE_BITS};
use crate::cpu::weights::{IntPanels, Line, PANEL, Scales};

/// Lines fetched ahead of the one in use.
const AHEAD: usize = 64;

/// `R` rows from `first` on and one panel.
///
/// # Safety
/// Needs AVX-512 F, BW, VL and VNNI; the panel must be one of `w`'s and the rows `x`'s, of one tile, quantised and
/// as wide as `w`.
pub(super) unsafe fn panel<const R: usize>(
    w: &IntPanels,
    panel: usize,
    x: &Activations,
    first: usize,
    sums: &mut [[f32; PANEL]; R],
) {
    // SAFETY: by the caller's promise.
    unsafe {
        match (w.eight_bit, w.half_blocks) {
            (false, _) => kernel::<R, false, false>(w, panel, x, first, sums),
            (true, false) => kernel::<R, true, false>(w, panel, x, first, sums),
            (true, true) => kernel::<R, true, true>(w, panel, x, first, sums),
        }
    }
}

/// # Safety
/// As [`panel`], and the constants must be those of `w`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,fma")]
unsafe fn kernel<const R: usize, const EIGHT: bool, const HALVES: bool>(
    w: &IntPanels,
    panel: usize,
    x: &Activations,
    first: usize,
    out: &mut [[f32; PANEL]; R],
) {
    const GROUPS: usize = BLOCK / GROUP;
    let blocks = x.cols / BLOCK;
    let halves = 1 + usize::from(HALVES);
    let lines = if EIGHT { 8 } else { 4 };
    let low = _mm512_set1_epi8(15);
    let at = x.place(first, 0);
    let [first_sums, second_sums] = half_sums(at);
    let mut acc = [_mm512_setzero_ps(); R];
    // A byte a code, for the wide groups.
    let mut unpacked = [Line([0; 64]); GROUPS];
    for b in 0..blocks {
        let block = panel * blocks + b;
        let line: *const __m512i = w.codes.as_ptr().wrapping_add(block * lines).cast();
        if first == 0 {
            // The processor's own prefetch ends at every page.
            for g in 0..lines {
                _mm_prefetch::<_MM_HINT_T0>(line.wrapping_add(AHEAD + g).cast());
            }
            let at = (block + AHEAD / lines) * PANEL;
            fetch(&w.scales, at * halves);
            if let Some(mins) = &w.mins {
                fetch(mins, at);
            }
        }
        // SAFETY: this goes for all pointers. A panel has `blocks` blocks of `lines` lines, 16 scales (twice 16 with half
        // blocks) and 16 minima each; a row has `blocks` blocks of two times 32 codes, two wide groups, a scale and
        // two sums. The rows lie in one tile.
        unsafe {
            let weights: [__m512i; GROUPS] = std::array::from_fn(|g| {
                if EIGHT {
                    return _mm512_load_si512(line.add(g));
                }
                let line = _mm512_load_si512(line.add(g % 4));
                let line = if g < 4 { line } else { _mm512_srli_epi16::<4>(line) };
                let line = _mm512_and_si512(line, low);
                _mm512_store_si512(unpacked[g].0.as_mut_ptr().cast(), line);
                line
            });
            let line: *const __m512i = if EIGHT { line } else { unpacked.as_ptr().cast() };
            let scale: [__m512; 2] = std::array::from_fn(|half| {
                lanes(&w.scales, (block * halves + half.min(halves - 1)) * PANEL)
            });
            let min = w.mins.as_ref().map(|mins| lanes(mins, block * PANEL));
            let at = at + b * TILE;
            let codes: *const i32 = x.codes_at(at).cast();
            for half in 0..halves {
                let groups = half * GROUPS / halves..(half + 1) * GROUPS / halves;
                // A product waits for the one before it: two sums a row, rows in turns.
                let mut dots = [[_mm512_setzero_si512(); 2]; R];
                let mut wides = [_mm512_setzero_si512(); R];
                for r in 0..R {
                    let wide = x.wide.get_unchecked(at + r);
                    for (upper, g) in wide.upper.iter().zip(wide.eightfold) {
                        let g = usize::from(g);
                        if !HALVES || groups.contains(&(g / 8)) {
                            let x = _mm512_set1_epi32(upper.as_ptr().cast::<i32>().read());
                            let w = _mm512_load_si512(line.cast::<u64>().add(g).cast());
                            wides[r] = _mm512_dpbusd_epi32(wides[r], w, x);
                        }
                    }
                    if w.offset != 0 {
                        let sums = [first_sums, second_sums]
                            .map(|sums| *x.half_sums.get_unchecked(sums + b * 2 * TILE + r));
                        let sum = if HALVES { sums[half] } else { sums[0] + sums[1] };
                        dots[r][0] = _mm512_set1_epi32(-w.offset * sum);
                    }
                }
                macro_rules! groups {
                    ($($g:literal)*) => {$(
                        if groups.contains(&$g) {
                            for (r, dots) in dots.iter_mut().enumerate() {
                                let x = _mm512_set1_epi32(*codes.add((2 * r + 1) * GROUPS + $g));
                                let dot = _mm512_dpbusd_epi32(dots[$g % 2], weights[$g], x);
                                dots[$g % 2] = in_order(dot);
                            }
                        }
                    )*};
                }
                groups!(0 1 2 3 4 5 6 7);
                for (r, acc) in acc.iter_mut().enumerate() {
                    let wide = _mm512_slli_epi32::<WIDE_BITS>(wides[r]);
                    let dot = _mm512_add_epi32(dots[r][0], dots[r][1]);
                    let dot = _mm512_cvtepi32_ps(_mm512_add_epi32(dot, wide));
                    let x_scale = _mm512_set1_ps(*x.scales.get_unchecked(at + r));
                    *acc = _mm512_fmadd_ps(_mm512_mul_ps(scale[half], x_scale), dot, *acc);
                }
            }
            if let Some(min) = min {
                for (r, acc) in acc.iter_mut().enumerate() {
                    let sum = _mm512_set1_ps(*x.scaled_sums.get_unchecked(at + r));
                    *acc = _mm512_fmadd_ps(min, sum, *acc);
                }
            }
        }
    }
    for (out, acc) in out.iter_mut().zip(acc) {
        // SAFETY: 16 floats.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), acc) };
    }
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
