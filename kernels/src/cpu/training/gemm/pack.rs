//! Operands as tiles.

use std::arch::x86_64::*;

/// One AMX tile: 16 rows of 16 bf16 pairs.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Tile(pub(super) [__m512i; 16]);

/// Packs an operand into `[outer / 16, rounded up to even][k / 32]` tiles, zero beyond the edges.
///
/// `outer` and `inner` are (length, stride) of the axis that stays and of the axis summed over. A
/// tile is first read along whichever axis is contiguous: 16 rows of 16 pairs where k is, 16 pairs of
/// 16 columns where the outer axis is; the two layouts are transposes of each other.
///
/// # Safety
/// Needs AVX-512 F and BF16, and `data` must hold every element the lengths and strides name.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) unsafe fn pack(
    data: &[f32],
    outer: (usize, usize),
    inner: (usize, usize),
    transpose: bool,
    packed: &mut Vec<Tile>,
) {
    let k_tiles = inner.0.div_ceil(32);
    let outer_tiles = outer.0.div_ceil(32) * 2;
    packed.clear();
    packed.reserve(outer_tiles * k_tiles);
    for o in (0..outer_tiles).map(|tile| tile * 16) {
        for k in (0..k_tiles).map(|tile| tile * 32) {
            let mut rows = [_mm512_setzero_si512(); 16];
            for (i, row) in rows.iter_mut().enumerate() {
                let (lo, hi) = if inner.1 == 1 {
                    let at = (o + i) * outer.1 + k;
                    let left = if o + i < outer.0 { inner.0.saturating_sub(k) } else { 0 };
                    // SAFETY: `left` counts the elements of this row from `at` on.
                    unsafe { (load(data, at, left), load(data, at + 16, left.saturating_sub(16))) }
                } else {
                    let at = (k + 2 * i) * inner.1 + o;
                    let left = outer.0.saturating_sub(o);
                    let count = |row: usize| if row < inner.0 { left } else { 0 };
                    // SAFETY: `count` is the elements left in a row of k that exists, else 0.
                    unsafe {
                        let even = load(data, at, count(k + 2 * i));
                        (even, load(data, at + inner.1, count(k + 2 * i + 1)))
                    }
                };
                *row = if inner.1 == 1 { round_run(lo, hi) } else { round_pairs(lo, hi) };
            }
            packed.push(Tile(if transpose { transpose16(rows) } else { rows }));
        }
    }
}

/// Up to 16 values from `at` on, zero from `left` on.
///
/// # Safety
/// Needs AVX-512 F; `data[at..at + min(left, 16)]` must exist.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load(data: &[f32], at: usize, left: usize) -> __m512 {
    let mask = if left >= 16 { !0 } else { (1u16 << left) - 1 };
    debug_assert!(left == 0 || at + left.min(16) <= data.len());
    // SAFETY: masked-out lanes are not read, and the others exist by the caller's promise.
    unsafe { _mm512_maskz_loadu_ps(mask, data.as_ptr().wrapping_add(at)) }
}

/// 32 consecutive values as 16 pairs of bf16.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn round_run(lo: __m512, hi: __m512) -> __m512i {
    // SAFETY: both types are 512 plain bits.
    unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(hi, lo)) }
}

/// Lane i of the result is the pair (`even[i]`, `odd[i]`) in bf16.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn round_pairs(even: __m512, odd: __m512) -> __m512i {
    let widen = |x: __m512| {
        // SAFETY: both types are 256 plain bits.
        let half = unsafe { std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(x)) };
        _mm512_cvtepu16_epi32(half)
    };
    _mm512_or_si512(widen(even), _mm512_slli_epi32::<16>(widen(odd)))
}

/// Transposes a 16 x 16 matrix of 32-bit lanes.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose16(r: [__m512i; 16]) -> [__m512i; 16] {
    let mut a = [_mm512_setzero_si512(); 16];
    let mut b = a;
    for i in 0..8 {
        a[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        a[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    // Now b[4g + j] holds, in 128-bit lane l, column 4l + j of rows 4g .. 4g + 4.
    for g in 0..4 {
        for half in 0..2 {
            let (x, y) = (a[4 * g + half], a[4 * g + 2 + half]);
            b[4 * g + 2 * half] = _mm512_unpacklo_epi64(x, y);
            b[4 * g + 2 * half + 1] = _mm512_unpackhi_epi64(x, y);
        }
    }
    for j in 0..4 {
        let (w, x, y, z) = (b[j], b[4 + j], b[8 + j], b[12 + j]);
        let wx_even = _mm512_shuffle_i32x4::<0b10_00_10_00>(w, x);
        let wx_odd = _mm512_shuffle_i32x4::<0b11_01_11_01>(w, x);
        let yz_even = _mm512_shuffle_i32x4::<0b10_00_10_00>(y, z);
        let yz_odd = _mm512_shuffle_i32x4::<0b11_01_11_01>(y, z);
        a[j] = _mm512_shuffle_i32x4::<0b10_00_10_00>(wx_even, yz_even);
        a[4 + j] = _mm512_shuffle_i32x4::<0b10_00_10_00>(wx_odd, yz_odd);
        a[8 + j] = _mm512_shuffle_i32x4::<0b11_01_11_01>(wx_even, yz_even);
        a[12 + j] = _mm512_shuffle_i32x4::<0b11_01_11_01>(wx_odd, yz_odd);
    }
    a
}
