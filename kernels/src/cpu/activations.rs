//! The left operand of every matrix product: rows in f32 and in integer steps.

use std::ops::Range;

use crate::cpu::isa::Isa;
use crate::cpu::pool::ThreadPool;
use crate::cpu::quantize::{BLOCK, Block, RowBlocks, WIDE_BITS, Wide, quantize_row};
use crate::cpu::shared_mut::SharedMut;
use crate::cpu::weights::Line;

/// Rows whose blocks lie side by side, as a tile takes them; rows are padded to a multiple of this.
pub(crate) const TILE: usize = 16;

/// Work space for `[rows, cols]` activations. Each row is quantised on its own, symmetrically to integer steps with
/// one scale per 32 values, so that a row's bits never depend on its neighbours.
///
/// A few channels are so much larger than the rest that 8 bits beside them lose what the model says (README of the
/// benches). So in each block the two groups of four values with the largest peaks are *wide*: a value of theirs is
/// `16 * upper + lower` steps, 2,039 at most, while every other value is at most 127 of the same steps. The upper
/// codes of other groups are 0, and products leave them out.
///
/// What belongs to the blocks lies as `[rows / 16, cols / 32, 16 rows]`.
#[derive(Debug, Default)]
pub struct Activations {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    /// `[rows, cols]`
    pub(crate) values: Vec<f32>,
    /// For every block 32 upper codes and 32 lower ones; unused where `cols` is no multiple of 32.
    codes: Vec<Line>,
    /// For every block its wide groups.
    pub(crate) wide: Vec<Wide>,
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
        let [upper, lower] = self.codes_of(self.place(row, col / BLOCK));
        let (upper, lower) = (upper[col % BLOCK], lower[col % BLOCK]);
        (i32::from(upper) << WIDE_BITS) + i32::from(lower)
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

    /// The upper and the lower codes of the block that lies at `place`.
    #[inline]
    pub(crate) fn codes_of(&self, place: usize) -> &[[i8; BLOCK]; 2] {
        bytemuck::cast_ref(&self.codes[place])
    }

    /// As [`codes_of`](Self::codes_of), where there must be such a block.
    #[inline]
    pub(crate) fn codes_at(&self, place: usize) -> *const i8 {
        self.codes.as_ptr().wrapping_add(place).cast()
    }

    /// Takes `x`, `[rows, cols]`. Buffers grow and never shrink. NaN and infinity come out as NaN.
    ///
    /// # Panics
    /// If `x.len() != rows * cols`.
    pub fn set(&mut self, pool: &ThreadPool, x: &[f32], rows: usize, cols: usize) {
        assert_eq!(x.len(), rows * cols, "activations of {rows} x {cols}");
        self.fill(pool, rows, cols, &|row, out| out.copy_from_slice(&x[row * cols..][..cols]));
    }

    /// As [`set`](Self::set), with the values that `make` writes of each row. One task makes and quantises all rows of
    /// a tile: they share cache lines, which two threads had better not write in turns.
    pub(crate) fn fill(
        &mut self,
        pool: &ThreadPool,
        rows: usize,
        cols: usize,
        make: &(dyn Fn(usize, &mut [f32]) + Sync),
    ) {
        self.fill_with(pool, rows, cols, 1, |out| {
            pool.run(rows.div_ceil(TILE), &|tile| {
                for row in tile * TILE..rows.min((tile + 1) * TILE) {
                    // SAFETY: each task has its own rows.
                    unsafe { out.make_columns(row, 0..cols, |values| make(row, values)) };
                }
            });
        });
    }

    /// As [`fill`](Self::fill), where one `job` makes all values, in `parts` parts of equal width or by columns.
    ///
    /// # Panics
    /// If `parts` does not divide `cols`.
    pub(crate) fn fill_with(
        &mut self,
        pool: &ThreadPool,
        rows: usize,
        cols: usize,
        parts: usize,
        job: impl FnOnce(&Parts),
    ) {
        assert!(cols.is_multiple_of(parts), "{parts} parts of {cols} values");
        (self.rows, self.cols) = (rows, cols);
        self.values.resize(rows * cols, 0.0);
        let quantized = cols.is_multiple_of(BLOCK);
        if quantized {
            // Whole tiles can be read; what lies behind the last row is never used.
            let (padded, blocks) = (rows.next_multiple_of(TILE), cols / BLOCK);
            self.codes.resize(padded * blocks, Line([0; 64]));
            self.wide.resize(padded * blocks, Wide::default());
            self.scales.resize(padded * blocks, 0.0);
            self.half_sums.resize(2 * padded * blocks, 0);
            self.scaled_sums.resize(padded * blocks, 0.0);
        }
        let parts = Parts {
            isa: Isa::best(),
            cols,
            width: cols / parts,
            at_once: quantized && (cols / parts).is_multiple_of(BLOCK),
            values: SharedMut::new(&mut self.values),
            blocks: Blocks {
                codes: SharedMut::new(bytemuck::cast_slice_mut(&mut self.codes)),
                wide: SharedMut::new(&mut self.wide),
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
    /// Whether a part is whole blocks.
    at_once: bool,
    values: SharedMut<'a, f32>,
    blocks: Blocks<'a>,
}

/// What belongs to the blocks of all rows.
struct Blocks<'a> {
    codes: SharedMut<'a, [[i8; BLOCK]; 2]>,
    wide: SharedMut<'a, Wide>,
    scales: SharedMut<'a, f32>,
    half_sums: SharedMut<'a, i32>,
    scaled_sums: SharedMut<'a, f32>,
}

/// The blocks of a row from that on which lies at `first`: a task's own.
struct OwnBlocks<'a> {
    blocks: &'a Blocks<'a>,
    first: usize,
}

impl RowBlocks for OwnBlocks<'_> {
    #[inline(always)]
    fn block(&mut self, i: usize) -> Block<'_> {
        let at = self.first + i * TILE;
        let ([first, second], blocks) = (half_sums(at), self.blocks);
        // SAFETY: who made this promised that no other task has these blocks.
        unsafe {
            Block {
                codes: blocks.codes.element(at),
                wide: blocks.wide.element(at),
                scale: blocks.scales.element(at),
                half_sums: [blocks.half_sums.element(first), blocks.half_sums.element(second)],
                scaled_sum: blocks.scaled_sums.element(at),
            }
        }
    }
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
        // SAFETY: by the caller's promise.
        unsafe { self.make_columns(row, part * self.width..(part + 1) * self.width, make) };
    }

    /// Quantises the columns of a row that `make` writes. Where rows are quantised, parts and these columns must be whole
    /// blocks.
    ///
    /// # Safety
    /// No other task may make these columns.
    pub(crate) unsafe fn make_columns(
        &self,
        row: usize,
        columns: Range<usize>,
        make: impl FnOnce(&mut [f32]),
    ) {
        // SAFETY: the columns are this task's own.
        let values = unsafe { self.values.slice(row * self.cols + columns.start, columns.len()) };
        make(values);
        if self.at_once {
            // SAFETY: as above.
            unsafe { self.quantize(row, columns.start / BLOCK, values) };
        }
    }

    /// # Safety
    /// The blocks of the row from `block` on, those of `x`, must be this task's own.
    unsafe fn quantize(&self, row: usize, block: usize, x: &[f32]) {
        let first = place(row, block, self.cols / BLOCK);
        quantize_row(self.isa, x, OwnBlocks { blocks: &self.blocks, first });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::quantize::GROUP;
    use crate::cpu::testing::Random;

    #[test]
    fn values_are_rounded_to_steps_and_nan_stays() {
        let mut random = Random::new();
        let mut x = random.vec(3 * 96);
        x[100] = f32::NAN;
        x[130] = f32::INFINITY;
        x[192..224].fill(0.0);
        // Values that stick out, in one group and in several.
        x[7] = -40.0;
        (x[33], x[34], x[50]) = (9.0, -11.0, 3000.0);
        let mut a = Activations::new();
        a.set(&ThreadPool::new(2), &x, 3, 96);
        for (b, block) in x.as_chunks::<BLOCK>().0.iter().enumerate() {
            let (row, at) = (b / 3, a.place(b / 3, b % 3));
            if block.iter().any(|v| !v.is_finite()) {
                assert!(a.scales[at].is_nan() && a.scaled_sums[at].is_nan());
                continue;
            }
            let steps = |i: usize| a.steps(row, b % 3 * BLOCK + i);
            let groups = a.wide[at].groups();
            let is_wide = |i: usize| groups.contains(&(i / GROUP));
            let most = |wide| {
                let sizes = (0..BLOCK).filter(|i| is_wide(*i) == wide).map(|i| block[i].abs());
                sizes.fold(0f32, f32::max)
            };
            assert!(most(true) >= most(false) && groups[0] != groups[1]);
            assert_eq!(a.scales[at], (most(true) / 2039.0).max(most(false) / 127.0));
            for (i, v) in block.iter().enumerate() {
                let error = (v - a.scales[at] * steps(i) as f32).abs();
                assert!(error <= a.scales[at] * 0.501);
                assert!(is_wide(i) || a.codes_of(at)[0][i] == 0);
            }
            assert_eq!(a.sums_of(at).iter().sum::<i32>(), (0..BLOCK).map(steps).sum::<i32>());
        }
    }
}
