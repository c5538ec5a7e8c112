//! The left operand of every matrix product: rows in f32 and in int8.

use crate::cpu::isa::{Isa, per_isa};
use crate::cpu::lanes::fold_lanes;
use crate::cpu::pool::ThreadPool;
use crate::cpu::shared_mut::SharedMut;
use crate::cpu::weights::Line;

/// Width of an activation block: one scale per 32 values, as in the quantised weights.
pub(crate) const BLOCK: usize = 32;

/// A step of the second plane is `2^-REST_BITS` of one of the first.
pub(crate) const REST_BITS: u32 = 4;

/// Rows whose blocks lie side by side, as a tile takes them; rows are padded to a multiple of this.
pub(crate) const TILE: usize = 16;

/// Work space for `[rows, cols]` activations. Each row is quantised on its own, symmetrically to int8
/// with one scale per 32 values, so that a row's bits never depend on its neighbours. Where the values
/// are `precise`, a second int8 plane holds what the first one rounds off: behind a norm a few channels
/// are so much larger than the rest that 8 bits lose what the model says (README of the benches).
/// The second plane's step is a sixteenth of the first one's, so that 4-bit weights, shifted by as much,
/// multiply both planes of a block in one tile.
///
/// What belongs to the blocks lies as `[rows / 16, cols / 32, 16 rows]`.
#[derive(Debug, Default)]
pub struct Activations {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    /// `[rows, cols]`
    pub(crate) values: Vec<f32>,
    /// For every block its codes, plane after plane; unused where `cols` is no multiple of 32.
    codes: Vec<Line>,
    /// Whether a value is `16 * code + rest` steps, its rest in a second plane, instead of `code` steps.
    pub(crate) precise: bool,
    /// For every block the value of one step.
    pub(crate) scales: Vec<f32>,
    /// `[rows / 16, cols / 32, 2 halves, 16 rows]`: sums of the steps of the halves of every block.
    pub(crate) half_sums: Vec<i32>,
    /// For every block its scale times the sum of its steps.
    pub(crate) scaled_sums: Vec<f32>,
}

impl Activations {
    /// An empty work space.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A value in steps of its scale.
    pub(crate) fn steps(&self, row: usize, col: usize) -> i32 {
        let codes = self.block_codes(self.place(row, col / BLOCK));
        let step = |plane: usize| i32::from(codes[plane * BLOCK + col % BLOCK]);
        if self.precise { (step(0) << REST_BITS) + step(1) } else { step(0) }
    }

    /// Where the `block`-th block of a row lies; the next one lies [`TILE`] further.
    #[inline]
    pub(crate) fn place(&self, row: usize, block: usize) -> usize {
        place(row, block, self.cols / BLOCK)
    }

    /// The sums of the steps of both halves of the block that lies at `place`.
    #[inline]
    pub(crate) fn sums_of(&self, place: usize) -> [i32; 2] {
        let [first, second] = half_sums(place);
        [self.half_sums[first], self.half_sums[second]]
    }

    /// Codes of a block.
    #[inline]
    pub(crate) fn codes_per_block(&self) -> usize {
        BLOCK * (1 + usize::from(self.precise))
    }

    /// The codes of the block that lies at `place`, plane after plane.
    #[inline]
    pub(crate) fn block_codes(&self, place: usize) -> &[i8] {
        let count = self.codes_per_block();
        &bytemuck::cast_slice(&self.codes)[place * count..][..count]
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
    /// width, values. One task makes and quantises a part of all rows of a tile: they share cache lines, which
    /// two threads had better not write in turns.
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
            pool.run(rows.div_ceil(TILE) * parts, &|task| {
                let (tile, part) = (task / parts, task % parts);
                for row in tile * TILE..rows.min((tile + 1) * TILE) {
                    // SAFETY: each task has its own part.
                    unsafe { out.make(row, part, |values| make(row, part, values)) };
                }
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
            let lines = (padded * cols * (1 + usize::from(precise))).div_ceil(size_of::<Line>());
            self.codes.resize(lines, Line([0; 64]));
            self.scales.resize(padded * blocks, 0.0);
            self.half_sums.resize(2 * padded * blocks, 0);
            self.scaled_sums.resize(padded * blocks, 0.0);
        }
        let parts = Parts {
            isa: Isa::best(),
            cols,
            width: cols / parts,
            precise,
            at_once: quantized && (cols / parts).is_multiple_of(BLOCK),
            values: SharedMut::new(&mut self.values),
            blocks: Blocks {
                codes: SharedMut::new(bytemuck::cast_slice_mut(&mut self.codes)),
                scales: SharedMut::new(&mut self.scales),
                half_sums: SharedMut::new(&mut self.half_sums),
                scaled_sums: SharedMut::new(&mut self.scaled_sums),
            },
        };
        job(&parts);
        if quantized && !parts.at_once {
            // Parts end within blocks.
            pool.run(rows, &|row| {
                // SAFETY: each task has its own row, and the job that made it has ended.
                unsafe { parts.quantize(row, 0, parts.values.slice(row * cols, cols)) };
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
    blocks: Blocks<'a>,
}

/// What belongs to the blocks of all rows.
struct Blocks<'a> {
    codes: SharedMut<'a, i8>,
    scales: SharedMut<'a, f32>,
    half_sums: SharedMut<'a, i32>,
    scaled_sums: SharedMut<'a, f32>,
}

/// Where a block of a row of `blocks` blocks lies.
#[inline]
fn place(row: usize, block: usize, blocks: usize) -> usize {
    (row / TILE * blocks + block) * TILE + row % TILE
}

/// Where the sums of the halves of the block at `place` lie.
#[inline]
pub(crate) fn half_sums(place: usize) -> [usize; 2] {
    let first = place + place / TILE * TILE;
    [first, first + TILE]
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
            unsafe { self.quantize(row, part * self.width / BLOCK, values) };
        }
    }

    /// # Safety
    /// The blocks of the row from `block` on, those of `x`, must be this task's own.
    unsafe fn quantize(&self, row: usize, block: usize, x: &[f32]) {
        let at = place(row, block, self.cols / BLOCK);
        if self.precise {
            quantize_row::<2>(self.isa, x, &self.blocks, at);
        } else {
            quantize_row::<1>(self.isa, x, &self.blocks, at);
        }
    }
}

per_isa! {
    /// Quantises the blocks of `x`, which lie at `at` and [`TILE`] further each, and must be the caller's own.
    fn quantize_row<const PLANES: usize>(x: &[f32], out: &Blocks<'_>, at: usize) {
        const STEPS: f32 = (1 << REST_BITS) as f32;
        for (i, x) in x.as_chunks::<BLOCK>().0.iter().enumerate() {
            let at = at + i * TILE;
            // As integers, absolute values order as floats do, and NaN and infinity come out on top.
            let top = x.iter().fold(0u32, |m, v| m.max(v.to_bits() & 0x7fff_ffff));
            let top = f32::from_bits(top);
            let top = if top == f32::INFINITY { f32::NAN } else { top };
            let scale = top / 127.0;
            let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
            // Adding 1.5 * 2^23 rounds to an integer held in the low bits.
            const ROUND: f32 = 12_582_912.0;
            let (mut codes, mut rests) = ([0i8; BLOCK], [0i8; BLOCK]);
            let mut sum = [0i32; BLOCK];
            for (((code, rest), sum), v) in codes.iter_mut().zip(&mut rests).zip(&mut sum).zip(x) {
                let rounded = v.mul_add(inverse, ROUND);
                *code = rounded.to_bits().wrapping_sub(ROUND.to_bits()) as i8;
                *sum = i32::from(*code);
                if PLANES == 2 {
                    let steps = v.mul_add(inverse, ROUND - rounded).mul_add(STEPS, ROUND);
                    *rest = steps.to_bits().wrapping_sub(ROUND.to_bits()) as i8;
                    *sum = (*sum << REST_BITS) + i32::from(*rest);
                }
            }
            let halves = [0, 1].map(|half| fold_lanes(sum.as_chunks().0[half], |a, b| a + b));
            let scale = if PLANES == 2 { scale / STEPS } else { scale };
            // SAFETY: the caller's own blocks.
            unsafe {
                let planes = out.codes.slice(at * PLANES * BLOCK, PLANES * BLOCK);
                planes[..BLOCK].copy_from_slice(&codes);
                if PLANES == 2 {
                    planes[BLOCK..].copy_from_slice(&rests);
                }
                out.scales.set(at, scale);
                for (at, sum) in half_sums(at).into_iter().zip(halves) {
                    out.half_sums.set(at, sum);
                }
                out.scaled_sums.set(at, scale * (halves[0] + halves[1]) as f32);
            }
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
            for (b, block) in x.as_chunks::<BLOCK>().0.iter().enumerate() {
                let (row, at) = (b / 3, a.place(b / 3, b % 3));
                if block.iter().any(|v| !v.is_finite()) {
                    assert!(a.scales[at].is_nan() && a.scaled_sums[at].is_nan());
                    continue;
                }
                let steps = |i: usize| a.steps(row, b % 3 * BLOCK + i);
                for (i, v) in block.iter().enumerate() {
                    let error = (v - a.scales[at] * steps(i) as f32).abs();
                    assert!(error <= a.scales[at] * 0.501);
                }
                assert_eq!(a.sums_of(at).iter().sum::<i32>(), (0..BLOCK).map(steps).sum::<i32>());
            }
            for isa in Isa::supported() {
                let mut codes = vec![0i8; TILE * 3 * a.codes_per_block()];
                let (mut scales, mut sums) = (vec![0.0; TILE * 3], vec![0; TILE * 6]);
                let mut scaled = vec![0.0; TILE * 3];
                let blocks = Blocks {
                    codes: SharedMut::new(&mut codes),
                    scales: SharedMut::new(&mut scales),
                    half_sums: SharedMut::new(&mut sums),
                    scaled_sums: SharedMut::new(&mut scaled),
                };
                for (row, x) in x.chunks(96).enumerate() {
                    if precise {
                        quantize_row::<2>(isa, x, &blocks, row);
                    } else {
                        quantize_row::<1>(isa, x, &blocks, row);
                    }
                }
                let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                assert_eq!(codes, bytemuck::cast_slice::<_, i8>(&a.codes), "{isa:?}");
                assert_eq!(
                    (bits(&scales), sums),
                    (bits(&a.scales), a.half_sums.clone()),
                    "{isa:?}"
                );
                assert_eq!(bits(&scaled), bits(&a.scaled_sums), "{isa:?}");
            }
        }
    }
}
