//! The integer path for AVX2, with and without VNNI.

use std::arch::x86_64::*;

use crate::cpu::activations::Activations;
use crate::cpu::quantize::{BLOCK, GROUP, WIDE_BITS};
use crate::cpu::weights::{IntPanels, PANEL, Scales};

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
            let low = _mm256_set1_epi8(15);
            // Without VNNI, codes centred on 128 are multiplied as signed bytes, so that pairs of products fit
            // 16 bits.
            let signed = !$vnni && w.offset == 128;
            for side in 0..2 {
                let mut acc = [_mm256_setzero_ps(); R];
                for b in 0..blocks {
                    let block = panel * blocks + b;
                    let mut groups = [_mm256_setzero_si256(); 8];
                    // SAFETY: a block has 8 or 4 lines of 64 bytes, of which this takes one half each.
                    unsafe {
                        let lines =
                            w.codes.as_ptr().add(block * w.lines()).cast::<__m256i>().add(side);
                        if w.eight_bit {
                            for (g, group) in groups.iter_mut().enumerate() {
                                *group = _mm256_load_si256(lines.add(2 * g));
                                if signed {
                                    *group = _mm256_xor_si256(*group, _mm256_set1_epi8(-128));
                                }
                            }
                        } else {
                            for g in 0..4 {
                                let line = _mm256_load_si256(lines.add(2 * g));
                                groups[g] = _mm256_and_si256(line, low);
                                groups[g + 4] = _mm256_and_si256(_mm256_srli_epi16::<4>(line), low);
                            }
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
                            let scale = unsafe {
                                lanes(&w.scales, (block * halves + half) * PANEL + side * 8)
                            };
                            let scale = _mm256_mul_ps(scale, x_scale);
                            *acc = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(dot), *acc);
                        }
                        if let Some(mins) = &w.mins {
                            // SAFETY: 16 minima per block.
                            let min = unsafe { lanes(mins, block * PANEL + side * 8) };
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

/// # Safety
/// Needs AVX and F16C; `at .. at + 8` must exist.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn lanes(scales: &Scales, at: usize) -> __m256 {
    // SAFETY: by the caller's promise.
    unsafe {
        match scales {
            Scales::F16(v) => _mm256_cvtph_ps(_mm_loadu_si128(v.as_ptr().add(at).cast())),
            Scales::F32(v) => _mm256_loadu_ps(v.as_ptr().add(at)),
        }
    }
}
