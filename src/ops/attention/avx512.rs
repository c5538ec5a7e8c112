//! Several query heads and two blocks side by side, for AVX-512.

use std::arch::x86_64::*;
use std::ops::Range;

use super::super::isa::Isa;
use super::cache::Cells;
use super::plain::weights_of;
use super::{KvHead, seen_in};
use crate::kv_cache::BLOCK_SIZE;

/// 16 cells, `at` behind the first.
///
/// # Safety
/// Needs AVX-512 F; the cells must exist and be f16 if `HALF`, else f32.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load<const HALF: bool>(cells: *const u8, at: usize) -> __m512 {
    // SAFETY: by the caller's promise.
    unsafe {
        if HALF {
            _mm512_cvtph_ps(_mm256_loadu_si256(cells.add(2 * at).cast()))
        } else {
            _mm512_loadu_ps(cells.add(4 * at).cast())
        }
    }
}

/// The `len` cells from `at` on.
fn cells(cells: &Cells, at: usize, len: usize) -> *const u8 {
    match cells {
        Cells::F16(cells) => cells[at..][..len].as_ptr().cast(),
        Cells::F32(cells) => cells[at..][..len].as_ptr().cast(),
    }
}

/// # Safety
/// Needs AVX-512 F; `kv.dim` must be a multiple of 16, `q` and `out` hold `G` heads of it. `HALF` tells
/// whether the cache holds f16.
#[target_feature(enable = "avx512f,fma")]
pub(super) unsafe fn heads<const G: usize, const HALF: bool>(
    q: &[f32],
    kv: &KvHead,
    seen: Range<usize>,
    scores: &mut [[f32; BLOCK_SIZE]],
    out: &mut [f32],
) {
    let blocks = kv.blocks.len();
    let first = seen.start / BLOCK_SIZE;
    assert!(q.len() == G * kv.dim && out.len() == q.len() && scores.len() == G * blocks);
    for block in (first..blocks).step_by(2) {
        // An odd last block is computed twice.
        let pair = [block, (block + 1).min(blocks - 1)];
        let size = kv.dim * BLOCK_SIZE;
        let keys = pair.map(|block| cells(&kv.cache.keys, kv.base(block), size));
        let mut sums = [[_mm512_setzero_ps(); 2]; G];
        for d in 0..kv.dim {
            // SAFETY: `dim` lines of 16 keys a block, `G` heads of `dim` values.
            unsafe {
                let low = load::<HALF>(keys[0], d * BLOCK_SIZE);
                let high = load::<HALF>(keys[1], d * BLOCK_SIZE);
                for (head, sums) in sums.iter_mut().enumerate() {
                    let q = _mm512_set1_ps(*q.get_unchecked(head * kv.dim + d));
                    sums[0] = _mm512_fmadd_ps(q, low, sums[0]);
                    sums[1] = _mm512_fmadd_ps(q, high, sums[1]);
                }
            }
        }
        for (head, sums) in sums.iter().enumerate() {
            for (block, sums) in pair.iter().zip(sums) {
                let scores = &mut scores[head * blocks + block];
                // SAFETY: 16 floats.
                unsafe { _mm512_storeu_ps(scores.as_mut_ptr(), *sums) };
            }
        }
    }
    let scale = 1.0 / (kv.dim as f32).sqrt();
    let mut inverse = [0f32; G];
    for (scores, inverse) in scores.chunks_mut(blocks).zip(&mut inverse) {
        let start = first * BLOCK_SIZE;
        weights_of(Isa::Avx512Vnni, &mut scores[first..], start, &seen, scale, inverse);
    }
    for start in (0..kv.dim).step_by(64) {
        // SAFETY: the features are there; the columns lie within the head.
        unsafe {
            match (kv.dim - start) / 16 {
                1 => columns::<G, 1, HALF>(kv, &seen, scores, &inverse, start, out),
                2 => columns::<G, 2, HALF>(kv, &seen, scores, &inverse, start, out),
                3 => columns::<G, 3, HALF>(kv, &seen, scores, &inverse, start, out),
                _ => columns::<G, 4, HALF>(kv, &seen, scores, &inverse, start, out),
            }
        }
    }
}

/// Weighted sums of `16 W` columns of the values.
///
/// # Safety
/// As [`heads`]; `start + 16 W` must not exceed the head.
#[target_feature(enable = "avx512f,fma")]
unsafe fn columns<const G: usize, const W: usize, const HALF: bool>(
    kv: &KvHead,
    seen: &Range<usize>,
    scores: &[[f32; BLOCK_SIZE]],
    inverse: &[f32; G],
    start: usize,
    out: &mut [f32],
) {
    let blocks = kv.blocks.len();
    let mut sums = [[_mm512_setzero_ps(); W]; G];
    for block in seen.start / BLOCK_SIZE..blocks {
        let values = cells(&kv.cache.values, kv.base(block), kv.dim * BLOCK_SIZE);
        for position in seen_in(block, seen.start, seen.end) {
            // SAFETY: 16 rows of `dim` values a block, and 16 weights for each head.
            unsafe {
                let row = position * kv.dim + start;
                let mut columns = [_mm512_setzero_ps(); W];
                for (i, column) in columns.iter_mut().enumerate() {
                    *column = load::<HALF>(values, row + i * 16);
                }
                for (head, sums) in sums.iter_mut().enumerate() {
                    let weight = scores.get_unchecked(head * blocks + block)[position];
                    let weight = _mm512_set1_ps(weight);
                    for (sum, column) in sums.iter_mut().zip(columns) {
                        *sum = _mm512_fmadd_ps(weight, column, *sum);
                    }
                }
            }
        }
    }
    for (head, (sums, inverse)) in sums.iter().zip(inverse).enumerate() {
        for (i, sum) in sums.iter().enumerate() {
            let out = &mut out[head * kv.dim + start + i * 16..][..16];
            let sum = _mm512_mul_ps(*sum, _mm512_set1_ps(*inverse));
            // SAFETY: 16 floats.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr(), sum) };
        }
    }
}
