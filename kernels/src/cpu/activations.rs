//! The left operand of every matrix product: rows in f32 and in int8.

use crate::cpu::isa::{Isa, per_isa};
use crate::cpu::lanes::fold_lanes;
use crate::cpu::pool::ThreadPool;
use crate::cpu::shared_mut::SharedMut;

/// Width of an activation block: one scale per 32 values, as in the quantised weights.
pub(crate) const BLOCK: usize = 32;

/// Rows are padded to a multiple of this.
const TILE: usize = 16;

/// Work space for `[rows, cols]` activations. Each row is quantised on its own, symmetrically to int8
/// with one scale per 32 values, so that a row's bits never depend on its neighbours. Where the values
/// are `precise`, a second int8 plane holds what the first one rounds off: behind a norm a few channels
/// are so much larger than the rest that 8 bits lose what the model says (README of the benches).
#[derive(Debug, Default)]
pub struct Activations {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    /// `[rows, cols]`
    pub(crate) values: Vec<f32>,
    /// `[rows, cols]`; unused where `cols` is no multiple of 32.
    pub(crate) codes: Vec<i8>,
    /// What is left of each value, in steps of 1/256 of a code; unused without `precise`.
    pub(crate) low: Vec<i8>,
    /// Whether a value is `256 * code + low` steps instead of `code` steps.
    pub(crate) precise: bool,
    /// `[rows, cols / 32]`: value of one step.
    pub(crate) scales: Vec<f32>,
    /// `[rows, cols / 32]`: sum of the steps of each half block.
    pub(crate) sums: Vec<[i32; 2]>,
    /// `[rows, cols / 32]`: scale times the block's sum of steps.
    pub(crate) scaled_sums: Vec<f32>,
}

impl Activations {
    /// An empty work space.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A value in steps of its scale.
    pub(crate) fn steps(&self, at: usize) -> i32 {
        let code = i32::from(self.codes[at]);
        if self.precise { 256 * code + i32::from(self.low[at]) } else { code }
    }

    /// Takes `x`, `[rows, cols]`, in one int8 plane or, if `precise`, in two. Buffers grow and never
    /// shrink. NaN and infinity come out as NaN.
    ///
    /// # Panics
    /// If `x.len() != rows * cols`.
    pub fn set(&mut self, pool: &ThreadPool, x: &[f32], rows: usize, cols: usize, precise: bool) {
        assert_eq!(x.len(), rows * cols, "activations of {rows} x {cols}");
        self.fill(pool, rows, cols, 1, precise, &|row, _, out| {
            out.copy_from_slice(&x[row * cols..][..cols]);
        });
    }

    /// As [`set`](Self::set), with the values that `make` writes: row, which of `parts` parts of equal
    /// width, values. They are made and quantised by one task for each part.
    ///
    /// # Panics
    /// If `parts` does not divide `cols`.
    pub(crate) fn fill(
        &mut self,
        pool: &ThreadPool,
        rows: usize,
        cols: usize,
        parts: usize,
        precise: bool,
        make: &(dyn Fn(usize, usize, &mut [f32]) + Sync),
    ) {
        self.fill_with(pool, rows, cols, parts, precise, |out| {
            pool.run(rows * parts, &|task| {
                let (row, part) = (task / parts, task % parts);
                // SAFETY: each task has its own part.
                unsafe { out.make(row, part, |values| make(row, part, values)) };
            });
        });
    }

    /// As [`fill`](Self::fill), where one `job` makes all the parts.
    pub(crate) fn fill_with(
        &mut self,
        pool: &ThreadPool,
        rows: usize,
        cols: usize,
        parts: usize,
        precise: bool,
        job: impl FnOnce(&Parts),
    ) {
        assert!(cols.is_multiple_of(parts), "{parts} parts of {cols} values");
        (self.rows, self.cols, self.precise) = (rows, cols, precise);
        self.values.resize(rows * cols, 0.0);
        let quantized = cols.is_multiple_of(BLOCK);
        if quantized {
            // Whole tiles can be read; what lies behind the last row is never used.
            let (padded, blocks) = (rows.next_multiple_of(TILE), cols / BLOCK);
            self.codes.resize(padded * cols, 0);
            self.low.resize(padded * cols, 0);
            self.scales.resize(padded * blocks, 0.0);
            self.sums.resize(padded * blocks, [0; 2]);
            self.scaled_sums.resize(padded * blocks, 0.0);
        }
        let parts = Parts {
            isa: Isa::best(),
            cols,
            width: cols / parts,
            precise,
            at_once: quantized && (cols / parts).is_multiple_of(BLOCK),
            values: SharedMut::new(&mut self.values),
            codes: SharedMut::new(&mut self.codes),
            low: SharedMut::new(&mut self.low),
            scales: SharedMut::new(&mut self.scales),
            sums: SharedMut::new(&mut self.sums),
            scaled_sums: SharedMut::new(&mut self.scaled_sums),
        };
        job(&parts);
        if quantized && !parts.at_once {
            // Parts end within blocks.
            pool.run(rows, &|row| {
                // SAFETY: each task has its own row, and the job that made it has ended.
                unsafe { parts.quantize(row * cols, parts.values.slice(row * cols, cols)) };
            });
        }
    }
}

/// The parts of rows, which the tasks of a job make.
pub(crate) struct Parts<'a> {
    isa: Isa,
    cols: usize,
    width: usize,
    precise: bool,
    /// Whether a part is whole blocks.
    at_once: bool,
    values: SharedMut<'a, f32>,
    codes: SharedMut<'a, i8>,
    low: SharedMut<'a, i8>,
    scales: SharedMut<'a, f32>,
    sums: SharedMut<'a, [i32; 2]>,
    scaled_sums: SharedMut<'a, f32>,
}

impl Parts<'_> {
    /// Quantises the part of a row that `make` writes.
    ///
    /// # Safety
    /// No other task may make this part.
    pub(crate) unsafe fn make(&self, row: usize, part: usize, make: impl FnOnce(&mut [f32])) {
        let at = row * self.cols + part * self.width;
        // SAFETY: the part is this task's own.
        let values = unsafe { self.values.slice(at, self.width) };
        make(values);
        if self.at_once {
            // SAFETY: as above.
            unsafe { self.quantize(at, values) };
        }
    }

    /// # Safety
    /// The blocks from `at` on, those of `x`, must be this task's own.
    unsafe fn quantize(&self, at: usize, x: &[f32]) {
        let (block, blocks) = (at / BLOCK, x.len() / BLOCK);
        // SAFETY: by the caller's promise.
        let (codes, low, scales, sums, scaled_sums) = unsafe {
            (
                self.codes.slice(at, x.len()),
                self.low.slice(at, x.len()),
                self.scales.slice(block, blocks),
                self.sums.slice(block, blocks),
                self.scaled_sums.slice(block, blocks),
            )
        };
        if self.precise {
            quantize_row::<2>(self.isa, x, codes, low, scales, sums, scaled_sums);
        } else {
            quantize_row::<1>(self.isa, x, codes, low, scales, sums, scaled_sums);
        }
    }
}

per_isa! {
    fn quantize_row<const PLANES: usize>(
        x: &[f32],
        codes: &mut [i8],
        low: &mut [i8],
        scales: &mut [f32],
        sums: &mut [[i32; 2]],
        scaled_sums: &mut [f32],
    ) {
        let (codes, low) = (codes.as_chunks_mut::<BLOCK>().0, low.as_chunks_mut::<BLOCK>().0);
        let x = x.as_chunks::<BLOCK>().0;
        for (i, ((x, codes), low)) in x.iter().zip(codes).zip(low).enumerate() {
            // As integers, absolute values order as floats do, and NaN and infinity come out on top.
            let top = x.iter().fold(0u32, |m, v| m.max(v.to_bits() & 0x7fff_ffff));
            let top = f32::from_bits(top);
            let top = if top == f32::INFINITY { f32::NAN } else { top };
            let scale = top / 127.0;
            let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
            // Adding 1.5 * 2^23 rounds to an integer held in the low bits.
            const ROUND: f32 = 12_582_912.0;
            let mut sum = [0i32; BLOCK];
            for (((code, low), sum), v) in codes.iter_mut().zip(low).zip(&mut sum).zip(x) {
                let rounded = v.mul_add(inverse, ROUND);
                *code = rounded.to_bits().wrapping_sub(ROUND.to_bits()) as i8;
                *sum = i32::from(*code);
                if PLANES == 2 {
                    let rest = v.mul_add(inverse, ROUND - rounded) * 256.0;
                    let rest = if rest > 127.0 { 127.0 } else { rest };
                    let rest = if rest < -127.0 { -127.0 } else { rest };
                    *low = (rest + ROUND).to_bits().wrapping_sub(ROUND.to_bits()) as i8;
                    *sum = *sum * 256 + i32::from(*low);
                }
            }
            let halves = [0, 1].map(|half| fold_lanes(sum.as_chunks().0[half], |a, b| a + b));
            let scale = if PLANES == 2 { scale / 256.0 } else { scale };
            scales[i] = scale;
            sums[i] = halves;
            scaled_sums[i] = scale * (halves[0] + halves[1]) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::Random;

    #[test]
    fn every_path_rounds_the_same_and_nan_stays() {
        let mut random = Random::new();
        let mut x = random.vec(3 * 96);
        x[100] = f32::NAN;
        x[130] = f32::INFINITY;
        x[192..224].fill(0.0);
        for precise in [false, true] {
            let mut a = Activations::new();
            a.set(&ThreadPool::new(2), &x, 3, 96, precise);
            for (b, block) in x.as_chunks::<32>().0.iter().enumerate() {
                if block.iter().any(|v| !v.is_finite()) {
                    assert!(a.scales[b].is_nan() && a.scaled_sums[b].is_nan());
                    continue;
                }
                let steps = |i: usize| a.steps(b * 32 + i);
                for (i, v) in block.iter().enumerate() {
                    let error = (v - a.scales[b] * steps(i) as f32).abs();
                    // The second plane is held to 127, half a step short.
                    assert!(error <= a.scales[b] * if precise { 1.1 } else { 0.5001 });
                }
                assert_eq!(a.sums[b][0] + a.sums[b][1], (0..32).map(steps).sum::<i32>());
            }
            for isa in Isa::supported() {
                let (mut c, mut l, mut s) = ([0i8; 96], [0i8; 96], [0f32; 3]);
                let (mut t, mut u) = ([[0; 2]; 3], [0.0; 3]);
                if precise {
                    quantize_row::<2>(isa, &x[..96], &mut c, &mut l, &mut s, &mut t, &mut u);
                } else {
                    quantize_row::<1>(isa, &x[..96], &mut c, &mut l, &mut s, &mut t, &mut u);
                }
                let expected = (&a.codes[..96], &a.low[..96], &a.scales[..3]);
                assert_eq!((&c[..], &l[..], &s[..]), expected, "{isa:?}");
            }
        }
    }
}
