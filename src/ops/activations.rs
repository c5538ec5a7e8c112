//! The left operand of every matrix product: rows in f32 and in int8.

use super::ThreadPool;
use super::isa::{Isa, per_isa};
use super::shared_mut::SharedMut;

/// Width of an activation block: one scale per 32 values, as in the quantised weights.
pub(crate) const BLOCK: usize = 32;

/// Rows are padded to a multiple of this.
const TILE: usize = 16;

/// Work space for `[rows, cols]` activations. Each row is quantised on its own, symmetrically to int8
/// with one scale per 32 values, so that a row's bits never depend on its neighbours.
#[derive(Debug, Default)]
pub struct Activations {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    /// `[rows, cols]`
    pub(crate) values: Vec<f32>,
    /// `[rows, cols]`; empty where `cols` is no multiple of 32.
    pub(crate) codes: Vec<i8>,
    /// `[rows, cols / 32]`: value of one code step.
    pub(crate) scales: Vec<f32>,
    /// `[rows, cols / 32]`: sum of the codes of each half block.
    pub(crate) sums: Vec<[i32; 2]>,
    /// `[rows, cols / 32]`: scale times the block's sum of codes.
    pub(crate) scaled_sums: Vec<f32>,
}

impl Activations {
    /// An empty work space.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes `x`, `[rows, cols]`. Buffers grow and never shrink. NaN and infinity come out as NaN.
    ///
    /// # Panics
    /// If `x.len() != rows * cols`.
    pub fn set(&mut self, pool: &ThreadPool, x: &[f32], rows: usize, cols: usize) {
        assert_eq!(x.len(), rows * cols, "activations of {rows} x {cols}");
        (self.rows, self.cols) = (rows, cols);
        self.values.clear();
        self.values.extend_from_slice(x);
        if !cols.is_multiple_of(BLOCK) {
            return;
        }
        let blocks = cols / BLOCK;
        // Whole tiles can be read; what lies behind the last row is never used.
        let padded = rows.next_multiple_of(TILE);
        self.codes.resize(padded * cols, 0);
        self.scales.resize(padded * blocks, 0.0);
        self.sums.resize(padded * blocks, [0; 2]);
        self.scaled_sums.resize(padded * blocks, 0.0);
        let codes = SharedMut::new(&mut self.codes);
        let scales = SharedMut::new(&mut self.scales);
        let sums = SharedMut::new(&mut self.sums);
        let scaled_sums = SharedMut::new(&mut self.scaled_sums);
        let isa = Isa::best();
        pool.run(rows, &|row| {
            // SAFETY: each task touches the parts of its own row alone.
            let (codes, scales, sums, scaled_sums) = unsafe {
                (
                    codes.slice(row * cols, cols),
                    scales.slice(row * blocks, blocks),
                    sums.slice(row * blocks, blocks),
                    scaled_sums.slice(row * blocks, blocks),
                )
            };
            let x = &x[row * cols..][..cols];
            quantize_row(isa, x, codes, scales, sums, scaled_sums);
        });
    }
}

per_isa! {
    fn quantize_row(
        x: &[f32],
        codes: &mut [i8],
        scales: &mut [f32],
        sums: &mut [[i32; 2]],
        scaled_sums: &mut [f32],
    ) {
        let (x, codes) = (x.as_chunks::<BLOCK>().0, codes.as_chunks_mut::<BLOCK>().0);
        for (i, (x, codes)) in x.iter().zip(codes).enumerate() {
            // As integers, absolute values order as floats do, and NaN and infinity come out on top.
            let top = x.iter().fold(0u32, |m, v| m.max(v.to_bits() & 0x7fff_ffff));
            let top = f32::from_bits(top);
            let top = if top == f32::INFINITY { f32::NAN } else { top };
            let scale = top / 127.0;
            let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
            // Adding 1.5 * 2^23 rounds to an integer held in the low bits.
            const ROUND: f32 = 12_582_912.0;
            let mut sum = [0i32; BLOCK];
            for ((code, sum), v) in codes.iter_mut().zip(&mut sum).zip(x) {
                let rounded = v.mul_add(inverse, ROUND).to_bits().wrapping_sub(ROUND.to_bits());
                *code = rounded as i8;
                *sum = i32::from(rounded as i8);
            }
            let halves = [sum[..16].iter().sum::<i32>(), sum[16..].iter().sum()];
            scales[i] = scale;
            sums[i] = halves;
            scaled_sums[i] = scale * (halves[0] + halves[1]) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::Random;

    #[test]
    fn every_path_rounds_the_same_and_nan_stays() {
        let mut random = Random::new();
        let mut x = random.vec(3 * 96);
        x[100] = f32::NAN;
        x[130] = f32::INFINITY;
        x[192..224].fill(0.0);
        let mut a = Activations::new();
        a.set(&ThreadPool::new(2), &x, 3, 96);
        for (b, block) in x.as_chunks::<32>().0.iter().enumerate() {
            if block.iter().any(|v| !v.is_finite()) {
                assert!(a.scales[b].is_nan() && a.scaled_sums[b].is_nan());
                continue;
            }
            for (v, code) in block.iter().zip(&a.codes[b * 32..]) {
                assert!((v - a.scales[b] * f32::from(*code)).abs() <= a.scales[b] * 0.5001);
            }
            let sum: i32 = a.codes[b * 32..][..32].iter().map(|c| i32::from(*c)).sum();
            assert_eq!(a.sums[b][0] + a.sums[b][1], sum);
        }
        for isa in Isa::supported() {
            let (mut c, mut s) = ([0i8; 96], [0f32; 3]);
            quantize_row(isa, &x[..96], &mut c, &mut s, &mut [[0; 2]; 3], &mut [0.0; 3]);
            assert_eq!((&c[..], &s[..]), (&a.codes[..96], &a.scales[..3]), "{isa:?}");
        }
    }
}
