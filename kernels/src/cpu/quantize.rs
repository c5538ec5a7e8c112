//! A row of f32 values in blocks of integer steps.

#[cfg(target_arch = "x86_64")]
mod avx512;

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

/// Where the blocks of a row go.
pub(crate) trait RowBlocks {
    /// The `i`-th one. To be inlined always: what fills it is compiled for another instruction set.
    fn block(&mut self, i: usize) -> Block<'_>;
}

/// Quantises the blocks of `x` into those of `row`.
#[inline]
pub(crate) fn quantize_row(isa: Isa, x: &[f32], mut row: impl RowBlocks) {
    let x = x.as_chunks().0;
    #[cfg(target_arch = "x86_64")]
    if matches!(isa, Isa::AmxInt8 | Isa::Avx512Vnni) {
        // SAFETY: the set was detected.
        unsafe { avx512::quantize_row(x, row) };
        return;
    }
    for (i, x) in x.iter().enumerate() {
        quantize_block(isa, x, row.block(i));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::Random;

    /// A block of its own.
    #[derive(Debug, Clone)]
    struct Own {
        codes: [[i8; BLOCK]; 2],
        wide: Wide,
        floats: [f32; 2],
        half_sums: [i32; 2],
    }

    impl Own {
        /// All of it, to be compared.
        fn bits(&self) -> ([[i8; BLOCK]; 2], Wide, [u32; 2], [i32; 2]) {
            (self.codes, self.wide, self.floats.map(f32::to_bits), self.half_sums)
        }
    }

    impl RowBlocks for &mut [Own] {
        fn block(&mut self, i: usize) -> Block<'_> {
            let Own { codes, wide, floats: [scale, scaled_sum], half_sums } = &mut self[i];
            Block { codes, wide, scale, half_sums: half_sums.each_mut(), scaled_sum }
        }
    }

    #[test]
    fn every_path_rounds_the_same() {
        let mut random = Random::new();
        for blocks in (1..=6).cycle().take(100) {
            let mut x: Vec<[f32; BLOCK]> = Vec::new();
            for _ in 0..blocks {
                let mut block: [f32; BLOCK] = random.vec(BLOCK).try_into().expect("as many");
                let lane = random.bits() as usize % BLOCK;
                match random.bits() % 8 {
                    0 => block[lane] *= 1e4,
                    1 => block[lane] = f32::NAN,
                    2 => block[lane] = f32::NEG_INFINITY,
                    3 => block.fill(0.0),
                    4 => block.fill(-1.5),
                    5 => block
                        .iter_mut()
                        .step_by(3)
                        .for_each(|v| *v = f32::from_bits(random.bits() as u32 % 99)),
                    6 => block = block.map(|v| v * 1e-40),
                    _ => {}
                }
                x.push(block);
            }
            let mut want = None;
            for isa in Isa::supported().into_iter().rev() {
                let (codes, wide) = ([[7; BLOCK]; 2], Wide::default());
                let mut own =
                    vec![Own { codes, wide, floats: [7.0; 2], half_sums: [7; 2] }; blocks];
                quantize_row(isa, x.as_flattened(), &mut own[..]);
                for own in own.iter().filter(|own| own.floats[0] < f32::MIN_POSITIVE) {
                    assert_eq!(
                        (own.codes, own.half_sums),
                        ([[0; BLOCK]; 2], [0; 2]),
                        "{isa:?} {x:?}"
                    );
                }
                let got: Vec<_> = own.iter().map(Own::bits).collect();
                assert_eq!(*want.get_or_insert_with(|| got.clone()), got, "{isa:?} {x:?}");
            }
        }
    }
}
