//! A row of f32 values in blocks of integer steps.

use crate::cpu::isa::{Isa, per_isa};
use crate::cpu::lanes::fold_lanes;

/// Width of an activation block: one scale per 32 values, as in the quantised weights.
pub(crate) const BLOCK: usize = 32;

/// Values of a group, the operands of one lane of an integer dot product.
pub(crate) const GROUP: usize = 4;

/// Groups of a block that are wide: their values take 12 bits, those of the others 8.
pub(crate) const WIDE: usize = 2;

/// A step of a wide value's upper code is `2^WIDE_BITS` steps.
pub(crate) const WIDE_BITS: u32 = 4;

const GROUPS: usize = BLOCK / GROUP;

/// The most steps of a value, and of a wide one.
const MOST: f32 = 127.0;
const MOST_WIDE: f32 = 127.0 * 16.0 + 7.0;

/// Adding 1.5 * 2^23 rounds to an integer held in the low bits.
const ROUND: f32 = 12_582_912.0;

/// The wide groups of a block.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C, align(4))]
pub(crate) struct Wide {
    /// Their upper codes.
    pub(crate) upper: [[i8; GROUP]; WIDE],
    /// Eight times which of the groups they are: a distance in words between weights of a byte.
    pub(crate) eightfold: [u8; WIDE],
}

impl Wide {
    /// Which of the groups of the block they are.
    pub(crate) fn groups(&self) -> [usize; WIDE] {
        self.eightfold.map(|group| usize::from(group) / 8)
    }
}

/// Where a block of 32 values goes, in integer steps.
pub(crate) struct Block<'a> {
    /// Upper and lower codes: a value is `16 * upper + lower` steps. Upper codes are 0 but in the wide groups.
    pub(crate) codes: &'a mut [[i8; BLOCK]; 2],
    /// The groups with the largest peaks.
    pub(crate) wide: &'a mut Wide,
    /// The value of a step; NaN where a value is NaN or infinite.
    pub(crate) scale: &'a mut f32,
    /// Sums of the steps of both halves.
    pub(crate) half_sums: [&'a mut i32; 2],
    /// The scale times the sum of all steps.
    pub(crate) scaled_sum: &'a mut f32,
}

impl Block<'_> {
    /// Sets all but the codes.
    #[inline(always)]
    fn set(self, wide: [usize; WIDE], scale: f32, halves: [i32; 2]) {
        self.wide.upper = wide.map(|group| self.codes[0].as_chunks().0[group]);
        self.wide.eightfold = wide.map(|group| 8 * group as u8);
        *self.scale = scale;
        *self.scaled_sum = scale * halves[0].wrapping_add(halves[1]) as f32;
        for (to, sum) in self.half_sums.into_iter().zip(halves) {
            *to = sum;
        }
    }
}

/// Quantises the blocks of `x` into those that `block` names.
#[inline]
pub(crate) fn quantize_row<'a>(isa: Isa, x: &[f32], mut block: impl FnMut(usize) -> Block<'a>) {
    let x = x.as_chunks().0;
    #[cfg(target_arch = "x86_64")]
    if matches!(isa, Isa::AmxInt8 | Isa::Avx512Vnni) {
        // SAFETY: the set was detected.
        unsafe { avx512::row(x, block) };
        return;
    }
    for (i, x) in x.iter().enumerate() {
        quantize_block(isa, x, block(i));
    }
}

/// A group's peak, in whose last bits its number stands: larger peaks first, and the first group of equal ones.
const fn key(peak: u32, group: usize) -> u32 {
    peak & !(GROUPS as u32 - 1) | (GROUPS - 1 - group) as u32
}

/// The group of a [`key`].
const fn group_of(key: u32) -> usize {
    GROUPS - 1 - key as usize % GROUPS
}

/// The value of a step, by the sizes of the largest value and of the largest that is not wide, as bits of f32.
#[inline(always)]
fn scale_of(largest: u32, narrow: u32) -> f32 {
    let largest = f32::from_bits(largest);
    let wide = if largest == f32::INFINITY { f32::NAN } else { largest } / MOST_WIDE;
    let narrow = f32::from_bits(narrow) / MOST;
    if narrow > wide { narrow } else { wide }
}

/// What values are multiplied by to be steps; 0 where that would be infinite, so that the smallest values are none.
#[inline(always)]
fn inverse_of(scale: f32) -> f32 {
    if scale >= f32::MIN_POSITIVE { 1.0 / scale } else { 0.0 }
}

per_isa! {
    /// Quantises a block.
    fn quantize_block(x: &[f32; BLOCK], out: Block<'_>) {
        // As integers, absolute values order as floats do, and NaN and infinity come out on top.
        let peaks: [u32; GROUPS] = std::array::from_fn(|g| {
            let x = &x.as_chunks::<GROUP>().0[g];
            x.iter().fold(0, |peak, v| peak.max(v.to_bits() & 0x7fff_ffff))
        });
        let mut keys: [u32; GROUPS] = std::array::from_fn(|g| key(peaks[g], g));
        let mut narrow = peaks;
        let wide = [(); WIDE].map(|()| {
            let group = group_of(keys.iter().fold(0, |top, key| top.max(*key)));
            (keys[group], narrow[group]) = (0, 0);
            group
        });
        let [largest, narrow] = [peaks, narrow].map(|p| p.iter().fold(0, |top, p| top.max(*p)));
        let scale = scale_of(largest, narrow);
        let inverse = inverse_of(scale);
        let mut steps = [0i32; BLOCK];
        for (steps, v) in steps.iter_mut().zip(x) {
            *steps = v.mul_add(inverse, ROUND).to_bits().wrapping_sub(ROUND.to_bits()) as i32;
        }
        *out.codes = [[0; BLOCK], steps.map(|steps| steps as i8)];
        for k in wide.into_iter().flat_map(|g| g * GROUP..(g + 1) * GROUP) {
            let upper = steps[k].wrapping_add(1 << (WIDE_BITS - 1)) >> WIDE_BITS;
            out.codes[0][k] = upper as i8;
            out.codes[1][k] = steps[k].wrapping_sub(upper << WIDE_BITS) as i8;
        }
        let halves = [0, 1].map(|half| fold_lanes(steps.as_chunks().0[half], i32::wrapping_add));
        out.set(wide, scale, halves);
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use super::{BLOCK, Block, GROUP, ROUND, WIDE, WIDE_BITS, group_of, inverse_of, key, scale_of};

    /// [`key`] without its peak, for the 16 values of both halves: a group is four lanes.
    const NUMBERS: [[u32; BLOCK / 2]; 2] = {
        let mut numbers = [[0; BLOCK / 2]; 2];
        let mut k = 0;
        while k < BLOCK {
            numbers[k / 16][k % 16] = key(0, k / GROUP);
            k += 1;
        }
        numbers
    };

    /// As [`quantize_row`](super::quantize_row).
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,fma")]
    pub(super) fn row<'a>(x: &[[f32; BLOCK]], mut block: impl FnMut(usize) -> Block<'a>) {
        for (i, x) in x.iter().enumerate() {
            quantize(x, block(i));
        }
    }

    // Vectors go from hand to hand without closures, which would not be compiled for this set.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,fma")]
    fn quantize(x: &[f32; BLOCK], out: Block<'_>) {
        let [first, second] = *x.as_chunks::<16>().0 else { unreachable!("two halves") };
        let x = [load(&first), load(&second)];
        let peaks = [peaks(x[0]), peaks(x[1])];
        let mut keys = [keys(peaks[0], &NUMBERS[0]), keys(peaks[1], &NUMBERS[1])];
        let mut narrow = peaks;
        let mut is_wide = [0; 2];
        let mut wide = [0; WIDE];
        for wide in &mut wide {
            let top = largest(keys);
            for half in 0..2 {
                let found = _mm512_cmpeq_epi32_mask(keys[half], top);
                is_wide[half] |= found;
                keys[half] = _mm512_maskz_mov_epi32(!found, keys[half]);
                narrow[half] = _mm512_maskz_mov_epi32(!found, narrow[half]);
            }
            *wide = group_of(_mm512_cvtsi512_si32(top) as u32);
        }
        let (top, narrow) = (largest(peaks), largest(narrow));
        let scale = scale_of(_mm512_cvtsi512_si32(top) as u32, _mm512_cvtsi512_si32(narrow) as u32);
        let inverse = _mm512_set1_ps(inverse_of(scale));
        let steps = [steps(x[0], inverse), steps(x[1], inverse)];
        let upper = [upper(steps[0], is_wide[0]), upper(steps[1], is_wide[1])];
        let lower = [lower(steps[0], upper[0]), lower(steps[1], upper[1])];
        // One store, so that what reads it again need not wait.
        let codes = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(codes(upper)), codes(lower));
        // SAFETY: two times 32 bytes.
        unsafe { _mm512_storeu_si512(out.codes.as_mut_ptr().cast(), codes) };
        let sums = [_mm512_reduce_add_epi32(steps[0]), _mm512_reduce_add_epi32(steps[1])];
        out.set(wide, scale, sums);
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn load(x: &[f32; 16]) -> __m512 {
        // SAFETY: 16 floats.
        unsafe { _mm512_loadu_ps(x.as_ptr()) }
    }

    /// Every group's peak, in all its lanes.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn peaks(x: __m512) -> __m512i {
        let sizes = _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(i32::MAX));
        let pairs = _mm512_max_epu32(sizes, _mm512_shuffle_epi32::<0b10_11_00_01>(sizes));
        _mm512_max_epu32(pairs, _mm512_shuffle_epi32::<0b01_00_11_10>(pairs))
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn keys(peaks: __m512i, numbers: &[u32; 16]) -> __m512i {
        // SAFETY: 16 integers.
        let numbers = unsafe { _mm512_loadu_si512(numbers.as_ptr().cast()) };
        _mm512_or_si512(_mm512_andnot_si512(_mm512_set1_epi32(7), peaks), numbers)
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn steps(x: __m512, inverse: __m512) -> __m512i {
        let round = _mm512_set1_ps(ROUND);
        let rounded = _mm512_castps_si512(_mm512_fmadd_ps(x, inverse, round));
        _mm512_sub_epi32(rounded, _mm512_castps_si512(round))
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn upper(steps: __m512i, is_wide: __mmask16) -> __m512i {
        let raised = _mm512_add_epi32(steps, _mm512_set1_epi32(1 << (WIDE_BITS - 1)));
        _mm512_maskz_srai_epi32::<WIDE_BITS>(is_wide, raised)
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn lower(steps: __m512i, upper: __m512i) -> __m512i {
        _mm512_sub_epi32(steps, _mm512_slli_epi32::<WIDE_BITS>(upper))
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn codes(halves: [__m512i; 2]) -> __m256i {
        let (first, second) = (_mm512_cvtepi32_epi8(halves[0]), _mm512_cvtepi32_epi8(halves[1]));
        _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(first), second)
    }

    /// The largest of all groups, each the same in four lanes.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn largest(groups: [__m512i; 2]) -> __m512i {
        let top = _mm512_max_epu32(groups[0], groups[1]);
        let top = _mm512_max_epu32(top, _mm512_shuffle_i32x4::<0b01_00_11_10>(top, top));
        _mm512_max_epu32(top, _mm512_shuffle_i32x4::<0b10_11_00_01>(top, top))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::Random;

    #[test]
    fn every_path_rounds_the_same() {
        let mut random = Random::new();
        for case in 0..300 {
            let mut x: [f32; BLOCK] = random.vec(BLOCK).try_into().expect("as many");
            let lane = random.bits() as usize % BLOCK;
            match case % 6 {
                0 => x[lane] *= 1e4,
                1 => x[lane] = f32::NAN,
                2 => x[lane] = f32::NEG_INFINITY,
                3 => x.fill(if case == 3 { 0.0 } else { -1.5 }),
                4 => x
                    .iter_mut()
                    .step_by(3)
                    .for_each(|v| *v = f32::from_bits(random.bits() as u32 % 99)),
                _ => x = x.map(|v| v * 1e-40),
            }
            let mut want = None;
            for isa in Isa::supported().into_iter().rev() {
                let (mut codes, mut wide) = ([[7; BLOCK]; 2], Wide::default());
                let (mut scale, mut scaled_sum, mut sums) = (7.0, 7.0, [7; 2]);
                let [first, second] = &mut sums;
                quantize_block_on(
                    isa,
                    &x,
                    Block {
                        codes: &mut codes,
                        wide: &mut wide,
                        scale: &mut scale,
                        half_sums: [first, second],
                        scaled_sum: &mut scaled_sum,
                    },
                );
                if scale < f32::MIN_POSITIVE {
                    assert_eq!((codes, sums), ([[0; BLOCK]; 2], [0; 2]), "{isa:?} {x:?}");
                }
                let got = (codes, wide, scale.to_bits(), sums, scaled_sum.to_bits());
                assert_eq!(*want.get_or_insert(got), got, "{isa:?} {x:?}");
            }
        }
    }

    fn quantize_block_on(isa: Isa, x: &[f32; BLOCK], block: Block<'_>) {
        let mut block = Some(block);
        quantize_row(isa, x, |_| block.take().expect("one block"));
    }
}
