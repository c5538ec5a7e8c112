//! Low-rank additions to products (LoRA, arXiv 2106.09685): `y += scale * B (A x)` for some of the rows.
//!
//! The factors are f32 and read the rows' values, not their steps. Both products of a row sum in a fixed order, and
//! rows without an addition are not touched, so a row's bits depend on that row alone.

use std::ops::Range;

use crate::cpu::activations::Activations;
use crate::cpu::isa::{Isa, per_isa};
use crate::cpu::pool::ThreadPool;
use crate::cpu::quantize::BLOCK;
use crate::cpu::shared_mut::SharedMut;
use crate::cpu::store::Store;

/// Outputs that are computed side by side.
const WIDTH: usize = BLOCK;
/// Partial sums of a dot product.
const LANES: usize = 32;
/// Multiplications from which a task pays.
const TASK: usize = 1 << 14;
/// Tasks that are enough for a thread.
const TASKS: usize = 6;

/// The factors of a low-rank addition to a matrix.
#[derive(Debug)]
pub struct LowRank {
    rank: usize,
    inner: usize,
    outputs: usize,
    scale: f32,
    /// `[rank, inner]`
    a: Store<f32>,
    /// `[outputs / WIDTH, rank, WIDTH]`; behind the last output it is 0.
    b: Store<f32>,
}

impl LowRank {
    /// `scale * B A` of A, `[rank, inner]`, and B, `[outputs, rank]`.
    ///
    /// # Panics
    /// If the rank is 0 or divides one of the lengths not.
    #[must_use]
    pub fn new(rank: usize, scale: f32, a: &[f32], b: &[f32]) -> Self {
        assert!(rank > 0, "a rank above 0");
        assert!(a.len().is_multiple_of(rank) && b.len().is_multiple_of(rank), "factors of {rank}");
        let (inner, outputs) = (a.len() / rank, b.len() / rank);
        let mut own = Store::zeroed(a.len());
        own.copy_from_slice(a);
        let mut panels = Store::zeroed(outputs.div_ceil(WIDTH) * rank * WIDTH);
        for (output, row) in b.chunks_exact(rank).enumerate() {
            let panel = &mut panels[output / WIDTH * rank * WIDTH..][..rank * WIDTH];
            for (panel, value) in panel.chunks_exact_mut(WIDTH).zip(row) {
                panel[output % WIDTH] = *value;
            }
        }
        Self { rank, inner, outputs, scale, a: own, b: panels }
    }

    /// Memory of the factors.
    #[must_use]
    pub fn bytes(&self) -> usize {
        (self.a.len() + self.b.len()) * size_of::<f32>()
    }
}

/// Low-rank additions to the outputs of one matrix, for the rows of one operand.
#[derive(Debug, Default)]
pub struct Additions<'a> {
    parts: Vec<Part<'a>>,
    /// `scale * A x` of every row of every part.
    sums: Vec<f32>,
}

/// Rows that have the same factors.
#[derive(Debug)]
struct Part<'a> {
    rows: Range<usize>,
    factors: &'a LowRank,
    /// Where its sums begin.
    first: usize,
}

impl<'a> Additions<'a> {
    /// The additions of rows of `x`, each with its factors; other rows have none.
    ///
    /// # Panics
    /// If the rows are not in `x`, or the factors are not those of matrices of one shape and of the width of `x`.
    pub fn new(
        pool: &ThreadPool,
        rows: impl IntoIterator<Item = (Range<usize>, &'a LowRank)>,
        x: &Activations,
    ) -> Self {
        Self::new_on(Isa::best(), pool, rows, x)
    }

    fn new_on(
        isa: Isa,
        pool: &ThreadPool,
        rows: impl IntoIterator<Item = (Range<usize>, &'a LowRank)>,
        x: &Activations,
    ) -> Self {
        let (mut parts, mut total) = (Vec::<Part<'_>>::new(), 0);
        for (rows, factors) in rows {
            assert!(rows.end <= x.rows, "rows {rows:?} of {}", x.rows);
            assert_eq!(factors.inner, x.cols, "width of factors and of x");
            let outputs = parts.first().map_or(factors.outputs, |part| part.factors.outputs);
            assert_eq!(factors.outputs, outputs, "outputs of factors");
            let first = total;
            total += rows.len() * factors.rank;
            parts.push(Part { rows, factors, first });
        }
        let mut sums = vec![0.0; total];
        let cols = x.cols;
        let tasks = (total * cols).div_ceil(TASK).min(total).min(pool.threads() * TASKS);
        let shared = SharedMut::new(&mut sums);
        pool.run(tasks, &|task| {
            let range = total * task / tasks..total * (task + 1) / tasks;
            // SAFETY: each task has its own sums.
            let sums = unsafe { shared.slice(range.start, range.len()) };
            for (index, sum) in range.zip(sums) {
                let part = &parts[parts.partition_point(|part| part.first <= index) - 1];
                let LowRank { rank, scale, a, .. } = part.factors;
                let (row, place) = ((index - part.first) / rank, (index - part.first) % rank);
                let x = &x.values[(part.rows.start + row) * cols..][..cols];
                dot(isa, x, &a[place * cols..][..cols], sum);
                *sum *= scale;
            }
        });
        Self { parts, sums }
    }

    /// Adds them to the outputs, which begin at `offset` of rows of `stride` values.
    ///
    /// # Panics
    /// If a row of `out` has no room for them, or is not there.
    pub fn add(&self, pool: &ThreadPool, out: &mut [f32], stride: usize, offset: usize) {
        self.add_on(Isa::best(), pool, out, stride, offset);
    }

    fn add_on(&self, isa: Isa, pool: &ThreadPool, out: &mut [f32], stride: usize, offset: usize) {
        let Some(outputs) = self.outputs() else { return };
        assert!(offset + outputs <= stride, "{outputs} outputs at {offset} of a row of {stride}");
        let panels = outputs.div_ceil(WIDTH);
        let work = self.sums.len() * panels * WIDTH;
        let tasks = work.div_ceil(TASK).min(panels).min(pool.threads() * TASKS);
        let out = SharedMut::new(out);
        pool.run(tasks, &|task| {
            let (start, end) = (panels * task / tasks, panels * (task + 1) / tasks);
            let columns = start * WIDTH..outputs.min(end * WIDTH);
            let offset = offset + columns.start;
            // SAFETY: no other task has these columns.
            unsafe { self.add_columns(isa, columns, &out, stride, offset) };
        });
    }

    /// Outputs of the matrix that is added to; `None` where nothing is.
    pub(crate) fn outputs(&self) -> Option<usize> {
        self.parts.first().map(|part| part.factors.outputs)
    }

    /// Adds some of the outputs, from the first of a block on: they begin at `offset` of rows of `stride` values.
    ///
    /// # Safety
    /// No other part of `out` that overlaps these may be alive.
    pub(crate) unsafe fn add_columns(
        &self,
        isa: Isa,
        columns: Range<usize>,
        out: &SharedMut<'_, f32>,
        stride: usize,
        offset: usize,
    ) {
        assert!(columns.start.is_multiple_of(WIDTH), "columns {columns:?} begin in a block");
        let panels = columns.start / WIDTH..columns.end.div_ceil(WIDTH);
        for Part { rows, factors, first } in &self.parts {
            let size = factors.rank * WIDTH;
            let b = &factors.b[panels.start * size..panels.end * size];
            let sums = self.sums[*first..].chunks_exact(factors.rank);
            for (row, sums) in rows.clone().zip(sums) {
                // SAFETY: by the caller's promise; one row at a time.
                let out = unsafe { out.slice(row * stride + offset, columns.len()) };
                expand(isa, sums, b, out);
            }
        }
    }
}

per_isa! {
    fn dot(x: &[f32], w: &[f32], sum: &mut f32) {
        let mut parts = [0f32; LANES];
        let (x, x_rest) = x.as_chunks::<LANES>();
        let (w, w_rest) = w.as_chunks::<LANES>();
        for (x, w) in x.iter().zip(w) {
            for ((part, x), w) in parts.iter_mut().zip(x).zip(w) {
                *part = x.mul_add(*w, *part);
            }
        }
        for ((part, x), w) in parts.iter_mut().zip(x_rest).zip(w_rest) {
            *part = x.mul_add(*w, *part);
        }
        *sum = parts.iter().sum();
    }
}

per_isa! {
    fn expand(sums: &[f32], b: &[f32], out: &mut [f32]) {
        for (b, out) in b.chunks_exact(sums.len() * WIDTH).zip(out.chunks_mut(WIDTH)) {
            let mut added = [0f32; WIDTH];
            for (sum, b) in sums.iter().zip(b.as_chunks::<WIDTH>().0) {
                for (added, b) in added.iter_mut().zip(b) {
                    *added = sum.mul_add(*b, *added);
                }
            }
            for (out, added) in out.iter_mut().zip(added) {
                *out += added;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::Random;
    use crate::{Activation, Gated, PackedMatrix, gate_mul, gated_product, matmul};

    /// Factors of odd and even sizes: A and B with them.
    fn factors(random: &mut Random, inner: usize, outputs: usize) -> [(LowRank, Vec<f32>); 2] {
        [3, 16].map(|rank| {
            let (a, b) = (random.vec(rank * inner), random.vec(outputs * rank));
            let scale = 1.0 + random.value() / 2.0;
            let mut product = vec![0.0; outputs * inner];
            for (row, b) in product.chunks_exact_mut(inner).zip(b.chunks_exact(rank)) {
                for (col, value) in row.iter_mut().enumerate() {
                    let sum = (0..rank).map(|r| f64::from(b[r]) * f64::from(a[r * inner + col]));
                    *value = (sum.sum::<f64>() * f64::from(scale)) as f32;
                }
            }
            (LowRank::new(rank, scale, &a, &b), product)
        })
    }

    fn operand(x: &[f32], cols: usize) -> Activations {
        let mut operand = Activations::new();
        operand.set(&ThreadPool::new(1), x, x.len() / cols, cols);
        operand
    }

    #[test]
    fn additions_agree_with_f64_and_paths_agree() {
        let mut random = Random::new();
        for (inner, outputs, rows) in [(1, 1, 1), (31, 33, 5), (64, 96, 9), (577, 129, 40)] {
            let [one, two] = factors(&mut random, inner, outputs);
            let (x, before) = (random.vec(rows * inner), random.vec(rows * (outputs + 7)));
            let x = operand(&x, inner);
            let cut = random.bits() as usize % rows;
            // The last row has none where there are several.
            let ranges = [0..cut, cut..rows.max(2) - 1];
            let parts = || ranges.iter().cloned().zip([&one.0, &two.0]);
            let pool = ThreadPool::new(3);
            let mut out = before.clone();
            Additions::new(&pool, parts(), &x).add(&pool, &mut out, outputs + 7, 5);
            for (row, (out, before)) in
                out.chunks(outputs + 7).zip(before.chunks(outputs + 7)).enumerate()
            {
                let product = match ranges.iter().position(|rows| rows.contains(&row)) {
                    Some(0) => Some(&one.1),
                    Some(_) => Some(&two.1),
                    None => None,
                };
                for (column, (out, before)) in out.iter().zip(before).enumerate() {
                    let Some(product) = product.filter(|_| (5..5 + outputs).contains(&column))
                    else {
                        assert_eq!(out.to_bits(), before.to_bits());
                        continue;
                    };
                    let w = &product[(column - 5) * inner..][..inner];
                    let terms = x.values[row * inner..][..inner].iter().zip(w);
                    let terms = terms.map(|(x, w)| f64::from(*x) * f64::from(*w));
                    let want = f64::from(*before) + terms.sum::<f64>();
                    let error = (f64::from(*out) - want).abs();
                    assert!(error < 1e-4 * (1.0 + want.abs()), "{out}, not {want}");
                }
            }
            // The same bits on every path, for any threads, and of a row alone.
            for isa in Isa::supported() {
                let pool = ThreadPool::new(1 + random.bits() as usize % 3);
                let mut other = before.clone();
                let additions = Additions::new_on(isa, &pool, parts(), &x);
                additions.add_on(isa, &pool, &mut other, outputs + 7, 5);
                assert_eq!(other, out, "{isa:?} {inner} x {outputs}");
            }
            for (rows, factors) in parts() {
                for row in rows {
                    let alone = operand(&x.values[row * inner..][..inner], inner);
                    let place = row * (outputs + 7)..(row + 1) * (outputs + 7);
                    let mut other = before[place.clone()].to_vec();
                    let additions = Additions::new(&pool, [(0..1, factors)], &alone);
                    additions.add(&pool, &mut other, outputs + 7, 5);
                    assert_eq!(other, out[place], "row {row}");
                }
            }
        }
    }

    #[test]
    fn nan_comes_through_in_its_row() {
        let mut random = Random::new();
        let [(factors, _), _] = factors(&mut random, 45, 70);
        let mut x = random.vec(3 * 45);
        x[45 + 44] = f32::NAN;
        let pool = ThreadPool::new(2);
        let mut out = vec![1.0; 3 * 70];
        let additions = Additions::new(&pool, [(0..3, &factors)], &operand(&x, 45));
        additions.add(&pool, &mut out, 70, 0);
        assert!(out[70..140].iter().all(|value| value.is_nan()));
        assert!(out[..70].iter().chain(&out[140..]).all(|value| value.is_finite()));
    }

    /// In the job that makes gate and up, against one after the other, to the bit.
    #[test]
    fn gated_products_take_additions_before_the_gate() {
        let mut random = Random::new();
        for (inner, outputs, rows) in [(32, 96, 1), (40, 49, 6), (64, 160, 21)] {
            let mut matrix = || {
                PackedMatrix::from_f32(outputs, inner, &random.vec(outputs * inner)).expect("fits")
            };
            let [gate, up] = [matrix(), matrix()];
            let ([one, two], [three, _]) =
                (factors(&mut random, inner, outputs), factors(&mut random, inner, outputs));
            let x = operand(&random.vec(rows * inner), inner);
            let pool = ThreadPool::new(3);
            let middle = rows / 2;
            let additions = || {
                let gate = [(0..middle, &one.0), (middle..rows, &two.0)];
                [
                    Additions::new(&pool, gate, &x),
                    Additions::new(&pool, [(0..middle, &three.0)], &x),
                ]
            };
            let mut both = vec![0.0; rows * 2 * outputs];
            matmul(&pool, &[&gate, &up], &x, &mut both, 2 * outputs);
            for (at, additions) in additions().iter().enumerate() {
                additions.add(&pool, &mut both, 2 * outputs, at * outputs);
            }
            let mut want = vec![0.0; rows * outputs];
            gate_mul(&pool, Activation::GeluTanh, &both, outputs, &mut want);
            let gated = Gated {
                activation: Activation::GeluTanh,
                weights: [&gate, &up],
                biases: [None; 2],
                additions: additions(),
            };
            let mut got = Activations::new();
            gated_product(&pool, &gated, &x, &mut got);
            assert_eq!(got.values, want, "{inner} x {outputs}, {rows} rows");
        }
    }
}
