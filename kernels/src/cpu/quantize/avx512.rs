//! Two blocks at a time: what there is once a group, of both blocks' sixteen groups, stands in one vector.
//!
//! Part j of a pair is its j-th run of 16 values. In a vector of groups, lane L of 128 bits holds the L-th groups of the
//! four parts, so elements 0 and 1 of each lane belong to the first block, 2 and 3 to the second. Nearly every step waits
//! for the one before it, so two pairs go side by side.

use std::arch::x86_64::*;

use bytemuck::cast;

use super::{BLOCK, GROUPS, MOST, MOST_WIDE, ROUND, RowBlocks, WIDE, WIDE_BITS, Wide, key};

const PARTS: usize = 4;

/// [`key`] without its peak, for a vector of groups.
const NUMBERS: [u32; 16] = {
    let mut numbers = [0; 16];
    let mut k = 0;
    while k < 16 {
        numbers[k] = key(0, k % 2 * (GROUPS / 2) + k / PARTS);
        k += 1;
    }
    numbers
};

/// As [`quantize_row`](super::quantize_row).
#[target_feature(enable = "avx512f,avx512bw,avx512vl,fma")]
pub(super) fn quantize_row(x: &[[f32; BLOCK]], mut row: impl RowBlocks) {
    let (pairs, last) = x.as_chunks::<2>();
    let (fours, pair) = pairs.as_chunks::<2>();
    for (i, pairs) in fours.iter().enumerate() {
        quantize(pairs, 4 * i, 4, &mut row);
    }
    if let [pair] = pair {
        quantize(&[*pair], 4 * fours.len(), 2, &mut row);
    }
    if let [x] = last {
        quantize(&[[*x; 2]], 2 * pairs.len(), 1, &mut row);
    }
}

/// The `count` blocks of the row from `first` on.
// Vectors go from hand to hand without closures, which would not be compiled for this set.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,fma")]
fn quantize<const P: usize>(
    pairs: &[[[f32; BLOCK]; 2]; P],
    first: usize,
    count: usize,
    row: &mut impl RowBlocks,
) {
    let mut peaks = [_mm512_setzero_si512(); P];
    let mut keys = peaks;
    for p in 0..P {
        peaks[p] = peaks_of(&pairs[p]);
        keys[p] = keys_of(peaks[p]);
    }
    // The two groups with the largest peaks, and the largest peak of all and of the others.
    let mut tops = [peaks; WIDE];
    let (mut narrow, mut all) = (peaks, peaks);
    let mut others = [0; P];
    for p in 0..P {
        tops[0][p] = largest(keys[p]);
        all[p] = largest(peaks[p]);
    }
    for p in 0..P {
        others[p] = _mm512_cmpneq_epi32_mask(keys[p], tops[0][p]);
        tops[1][p] = largest(_mm512_maskz_mov_epi32(others[p], keys[p]));
    }
    for p in 0..P {
        others[p] &= _mm512_cmpneq_epi32_mask(keys[p], tops[1][p]);
        narrow[p] = largest(_mm512_maskz_mov_epi32(others[p], peaks[p]));
    }
    let mut scales = [_mm_setzero_ps(); P];
    let mut inverses = scales;
    for p in 0..P {
        scales[p] = scales_of(low(all[p]), low(narrow[p]));
        inverses[p] = inverses_of(scales[p]);
    }
    for p in 0..P {
        let (pair, inverse) = (&pairs[p], inverses[p]);
        let [one, two] = [
            _mm512_broadcastss_ps(inverse),
            _mm512_broadcastss_ps(_mm_movehl_ps(inverse, inverse)),
        ];
        let steps = [
            steps(load(&pair[0], 0), one),
            steps(load(&pair[0], 1), one),
            steps(load(&pair[1], 0), two),
            steps(load(&pair[1], 1), two),
        ];
        let wide = _mm512_maskz_set1_epi32(!others[p], -1);
        let upper = [
            upper(steps[0], _mm512_shuffle_epi32::<0b00_00_00_00>(wide)),
            upper(steps[1], _mm512_shuffle_epi32::<0b01_01_01_01>(wide)),
            upper(steps[2], _mm512_shuffle_epi32::<0b10_10_10_10>(wide)),
            upper(steps[3], _mm512_shuffle_epi32::<0b11_11_11_11>(wide)),
        ];
        let uppers = [bytes(upper[0], upper[1]), bytes(upper[2], upper[3])];
        let lowers = [
            bytes(lower(steps[0], upper[0]), lower(steps[1], upper[1])),
            bytes(lower(steps[2], upper[2]), lower(steps[3], upper[3])),
        ];
        let halves = sums(steps);
        let sums = _mm_add_epi32(halves, _mm_shuffle_epi32::<0b10_11_00_01>(halves));
        let scaled = lanes_f32(_mm_mul_ps(scales[p], _mm_cvtepi32_ps(sums)));
        let (scales, halves) = (lanes_f32(scales[p]), lanes(halves));
        let tops = [groups(low(tops[0][p])), groups(low(tops[1][p]))];
        // The two groups of the first block, and of the second.
        let groups = [_mm_unpacklo_epi32(tops[0], tops[1]), _mm_unpackhi_epi32(tops[0], tops[1])];
        for b in 0..2.min(count - 2 * p) {
            let block = row.block(first + 2 * p + b);
            let codes = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(uppers[b]), lowers[b]);
            // SAFETY: two times 32 bytes.
            unsafe { _mm512_storeu_si512(block.codes.as_mut_ptr().cast(), codes) };
            let upper = _mm256_permutevar8x32_epi32(uppers[b], _mm256_castsi128_si256(groups[b]));
            let upper = _mm_cvtsi128_si64(_mm256_castsi256_si128(upper)).to_le_bytes();
            let [group, _, _, _, other, ..] = _mm_cvtsi128_si64(groups[b]).to_le_bytes();
            *block.wide = Wide { upper: cast(upper), eightfold: [8 * group, 8 * other] };
            *block.scale = scales[2 * b];
            *block.scaled_sum = scaled[2 * b];
            let [half, other] = block.half_sums;
            (*half, *other) = (halves[2 * b], halves[2 * b + 1]);
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(x: &[f32; BLOCK], half: usize) -> __m512 {
    let x = &x.as_chunks::<16>().0[half];
    // SAFETY: 16 floats.
    unsafe { _mm512_loadu_ps(x.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn low(x: __m512i) -> __m128i {
    _mm512_castsi512_si128(x)
}

/// The size of the largest value of each group of a pair, as integers, which NaN and infinity top.
#[inline]
#[target_feature(enable = "avx512f")]
fn peaks_of(pair: &[[f32; BLOCK]; 2]) -> __m512i {
    let sizes = [
        size(load(&pair[0], 0)),
        size(load(&pair[0], 1)),
        size(load(&pair[1], 0)),
        size(load(&pair[1], 1)),
    ];
    let pairs = [
        _mm512_max_epu32(
            _mm512_unpacklo_epi32(sizes[0], sizes[1]),
            _mm512_unpackhi_epi32(sizes[0], sizes[1]),
        ),
        _mm512_max_epu32(
            _mm512_unpacklo_epi32(sizes[2], sizes[3]),
            _mm512_unpackhi_epi32(sizes[2], sizes[3]),
        ),
    ];
    _mm512_max_epu32(
        _mm512_unpacklo_epi64(pairs[0], pairs[1]),
        _mm512_unpackhi_epi64(pairs[0], pairs[1]),
    )
}

#[inline]
#[target_feature(enable = "avx512f")]
fn size(x: __m512) -> __m512i {
    _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(i32::MAX))
}

/// The [`key`] of each group.
#[inline]
#[target_feature(enable = "avx512f")]
fn keys_of(peaks: __m512i) -> __m512i {
    // SAFETY: 16 integers.
    let numbers = unsafe { _mm512_loadu_si512(NUMBERS.as_ptr().cast()) };
    _mm512_or_si512(_mm512_andnot_si512(_mm512_set1_epi32(7), peaks), numbers)
}

/// The largest of a block's groups, in all its elements.
#[inline]
#[target_feature(enable = "avx512f")]
fn largest(groups: __m512i) -> __m512i {
    let top = _mm512_max_epu32(groups, _mm512_shuffle_epi32::<0b10_11_00_01>(groups));
    let top = _mm512_max_epu32(top, _mm512_shuffle_i32x4::<0b01_00_11_10>(top, top));
    _mm512_max_epu32(top, _mm512_shuffle_i32x4::<0b10_11_00_01>(top, top))
}

/// As [`scale_of`](super::scale_of).
#[inline]
#[target_feature(enable = "avx512f,avx512vl")]
fn scales_of(largest: __m128i, narrow: __m128i) -> __m128 {
    let [largest, narrow] = [_mm_castsi128_ps(largest), _mm_castsi128_ps(narrow)];
    let infinite = _mm_cmp_ps_mask::<_CMP_EQ_OQ>(largest, _mm_set1_ps(f32::INFINITY));
    let largest = _mm_mask_mov_ps(largest, infinite, _mm_set1_ps(f32::NAN));
    let wide = _mm_div_ps(largest, _mm_set1_ps(MOST_WIDE));
    let narrow = _mm_div_ps(narrow, _mm_set1_ps(MOST));
    _mm_mask_mov_ps(wide, _mm_cmp_ps_mask::<_CMP_GT_OQ>(narrow, wide), narrow)
}

/// As [`inverse_of`](super::inverse_of).
#[inline]
#[target_feature(enable = "avx512f,avx512vl")]
fn inverses_of(scales: __m128) -> __m128 {
    let normal = _mm_cmp_ps_mask::<_CMP_GE_OQ>(scales, _mm_set1_ps(f32::MIN_POSITIVE));
    _mm_maskz_div_ps(normal, _mm_set1_ps(1.0), scales)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn steps(x: __m512, inverse: __m512) -> __m512i {
    let round = _mm512_set1_ps(ROUND);
    let rounded = _mm512_castps_si512(_mm512_fmadd_ps(x, inverse, round));
    _mm512_sub_epi32(rounded, _mm512_castps_si512(round))
}

/// The upper codes of the groups where `wide` has all bits, else 0.
#[inline]
#[target_feature(enable = "avx512f")]
fn upper(steps: __m512i, wide: __m512i) -> __m512i {
    let raised = _mm512_add_epi32(steps, _mm512_set1_epi32(1 << (WIDE_BITS - 1)));
    _mm512_and_si512(_mm512_srai_epi32::<WIDE_BITS>(raised), wide)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn lower(steps: __m512i, upper: __m512i) -> __m512i {
    _mm512_sub_epi32(steps, _mm512_slli_epi32::<WIDE_BITS>(upper))
}

/// The codes of a block's two halves.
#[inline]
#[target_feature(enable = "avx512f")]
fn bytes(half: __m512i, other: __m512i) -> __m256i {
    _mm256_set_m128i(_mm512_cvtepi32_epi8(other), _mm512_cvtepi32_epi8(half))
}

/// The groups of [`key`]s.
#[inline]
#[target_feature(enable = "avx512f,avx512vl")]
fn groups(keys: __m128i) -> __m128i {
    _mm_andnot_si128(keys, _mm_set1_epi32(GROUPS as i32 - 1))
}

/// The sum of each part.
#[inline]
#[target_feature(enable = "avx512f,avx512vl")]
fn sums(parts: [__m512i; PARTS]) -> __m128i {
    let pairs = [
        _mm512_add_epi32(
            _mm512_unpacklo_epi32(parts[0], parts[1]),
            _mm512_unpackhi_epi32(parts[0], parts[1]),
        ),
        _mm512_add_epi32(
            _mm512_unpacklo_epi32(parts[2], parts[3]),
            _mm512_unpackhi_epi32(parts[2], parts[3]),
        ),
    ];
    let groups = _mm512_add_epi32(
        _mm512_unpacklo_epi64(pairs[0], pairs[1]),
        _mm512_unpackhi_epi64(pairs[0], pairs[1]),
    );
    let half =
        _mm256_add_epi32(_mm512_castsi512_si256(groups), _mm512_extracti64x4_epi64::<1>(groups));
    _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256::<1>(half))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn lanes(x: __m128i) -> [i32; PARTS] {
    let mut lanes = [0; PARTS];
    // SAFETY: four integers.
    unsafe { _mm_storeu_si128(lanes.as_mut_ptr().cast(), x) };
    lanes
}

#[inline]
#[target_feature(enable = "avx512f")]
fn lanes_f32(x: __m128) -> [f32; PARTS] {
    lanes(_mm_castps_si128(x)).map(|bits| f32::from_bits(bits as u32))
}
