//! The integer path for AVX2, with and without VNNI.

use std::arch::x86_64::*;

use crate::cpu::activations::Activations;
use crate::cpu::quantize::{BLOCK, GROUP, WIDE_BITS};
use crate::cpu::weights::{IntPanels, PANEL, Scales};

const GROUPS: usize = BLOCK / GROUP;

macro_rules! kernel {
    ($name:ident, $features:literal, $vnni:literal) => {
        /// `R` rows and one panel.
        ///
        /// # Safety
        /// Needs the features; otherwise as `vnni::panels`.
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $name<const R: usize>(
            w: &IntPanels,
            panel: usize,
            x: &Activations,
            first: usize,
            sums: &mut [[f32; PANEL]; R],
        ) {
            /// Adds the products of four codes and those of 8 outputs. Without VNNI, `signed` codes of outputs are
            /// multiplied as such.
            #[inline]
            #[target_feature(enable = $features)]
            fn add_product(dot: __m256i, w: __m256i, x: &[i8; GROUP], signed: bool) -> __m256i {
                let x = _mm256_set1_epi32(i32::from_le_bytes(x.map(|code| code as u8)));
                if $vnni {
                    #[allow(unused_unsafe)]
                    // SAFETY: VNNI is there if `$vnni`.
                    return unsafe { _mm256_dpbusd_avx_epi32(dot, w, x) };
                }
                let pairs = if signed {
                    _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w))
                } else {
                    _mm256_maddubs_epi16(w, x)
                };
                _mm256_add_epi32(dot, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
            }

            let blocks = x.cols / BLOCK;
            let halves = 1 + usize::from(w.half_blocks);
            // Without VNNI, codes centred on 128 are multiplied as signed bytes, so that pairs of products fit
            // 16 bits.
            let signed = !$vnni && w.offset == 128;
            for side in 0..2 {
                let mut acc = [_mm256_setzero_ps(); R];
                for b in 0..blocks {
                    let block = panel * blocks + b;
                    // SAFETY: a block has as many lines of 64 bytes as bits, of which this takes one half each.
                    let mut groups = unsafe {
                        unpack(
                            w.codes.as_ptr().add(block * w.bits).cast::<__m256i>().add(side),
                            w.bits,
                        )
                    };
                    if signed {
                        for group in &mut groups {
                            *group = _mm256_xor_si256(*group, _mm256_set1_epi8(-128));
                        }
                    }
                    for (r, acc) in acc.iter_mut().enumerate() {
                        let at = x.place(first + r, b);
                        let lower = x.codes_of(at)[1].as_chunks::<GROUP>().0;
                        let x_scale = _mm256_set1_ps(x.scales[at]);
                        for half in 0..halves {
                            let sums = x.sums_of(at);
                            let sum = if halves == 1 { sums[0] + sums[1] } else { sums[half] };
                            let per_half = 8 / halves;
                            let of_half = half * per_half..(half + 1) * per_half;
                            let mut dot = _mm256_setzero_si256();
                            for (g, upper) in x.wide[at].groups().into_iter().zip(&x.wide[at].upper)
                            {
                                if of_half.contains(&g) {
                                    dot = add_product(dot, groups[g], upper, signed);
                                }
                            }
                            dot = _mm256_slli_epi32::<{ WIDE_BITS as i32 }>(dot);
                            for g in of_half {
                                dot = add_product(dot, groups[g], &lower[g], signed);
                            }
                            if !signed {
                                dot = _mm256_add_epi32(dot, _mm256_set1_epi32(-w.offset * sum));
                            }
                            // SAFETY: 16 scales per half block.
                            let scale = unsafe { lanes(&w.scales, block * halves + half, side) };
                            let scale = _mm256_mul_ps(scale, x_scale);
                            *acc = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(dot), *acc);
                        }
                        if let Some(mins) = &w.mins {
                            // SAFETY: 16 minima per block.
                            let min = unsafe { lanes(mins, block, side) };
                            *acc = _mm256_fmadd_ps(min, _mm256_set1_ps(x.scaled_sums[at]), *acc);
                        }
                    }
                }
                for (sums, acc) in sums.iter_mut().zip(acc) {
                    // SAFETY: 8 of 16 floats.
                    unsafe { _mm256_storeu_ps(sums.as_mut_ptr().add(side * 8), acc) };
                }
            }
        }
    };
}

kernel!(panel, "avx2,fma,f16c", false);
kernel!(panel_vnni, "avx2,fma,f16c,avxvnni", true);

/// Half of the outputs' codes of a block, one byte each.
///
/// # Safety
/// Needs AVX2; a half of each of `bits` lines must lie at `lines`, two halves apart.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn unpack(lines: *const __m256i, bits: usize) -> [__m256i; GROUPS] {
    // SAFETY: by the caller's promise.
    let line = |g: usize| unsafe { _mm256_load_si256(lines.add(2 * g)) };
    if bits == 8 {
        return std::array::from_fn(line);
    }
    let low = _mm256_set1_epi8(15);
    let mut groups = [_mm256_setzero_si256(); GROUPS];
    for g in 0..GROUPS / 2 {
        let line = line(g);
        groups[g] = _mm256_and_si256(line, low);
        groups[g + GROUPS / 2] = _mm256_and_si256(_mm256_srli_epi16::<4>(line), low);
    }
    if bits > 4 {
        // Each group's bits come to lie lowest in their bytes, one after the other.
        let (upper, mask) = (bits - 4, _mm256_set1_epi8((1 << (bits - 4)) - 1));
        let mut line_of = _mm256_setzero_si256();
        for (g, group) in groups.iter_mut().enumerate() {
            if g % (GROUPS / upper) == 0 {
                line_of = line(GROUPS / 2 + g / (GROUPS / upper));
            }
            let bits = _mm256_slli_epi16::<4>(_mm256_and_si256(line_of, mask));
            *group = _mm256_or_si256(*group, bits);
            line_of = _mm256_srl_epi16(line_of, _mm_cvtsi32_si128(upper as i32));
        }
    }
    groups
}

/// The values of an entry for half of the outputs.
///
/// # Safety
/// Needs AVX2 and F16C; the entry must exist.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn lanes(scales: &Scales, entry: usize, side: usize) -> __m256 {
    let (unit, steps) = scales.place(entry);
    // SAFETY: a unit has two rows, half of it one; by the caller's promise it exists, as the steps do.
    unsafe {
        let unit = _mm256_cvtph_ps(_mm_loadu_si128(scales.at(unit + side).cast()));
        let Some(steps) = steps else { return unit };
        let steps = _mm_loadl_epi64(scales.at(steps).cast::<u8>().add(side * 8).cast());
        _mm256_mul_ps(unit, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(steps)))
    }
}
