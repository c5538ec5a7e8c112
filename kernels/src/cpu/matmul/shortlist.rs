//! Products of which only the largest of each row are wanted exactly, as of a draft model's head: a 4-bit copy of the
//! matrix finds where they are. It has about half the bytes of one of 8 bits.

use std::sync::Arc;

use super::{ROWS, matmul, rows_of};
use crate::cpu::activations::Activations;
use crate::cpu::isa::{Isa, per_isa};
use crate::cpu::pool::ThreadPool;
use crate::cpu::shared_mut::SharedMut;
use crate::cpu::weights::{PANEL, PackedMatrix};
use crate::dtype::DType;

/// The copy's format.
const ROUGH: DType = DType::Q4_0;
/// Panels of a row that are computed exactly.
const PANELS: usize = 16;
/// Most rows for which the copy pays: with more, the matrix is read once for all of them anyway.
const FEW: usize = 2;

/// A matrix, and a copy of 4 bits a weight where that has at most three quarters of its bytes.
pub struct Shortlist {
    exact: Arc<PackedMatrix>,
    rough: Option<PackedMatrix>,
}

impl Shortlist {
    /// Makes the copy.
    #[must_use]
    pub fn new(exact: Arc<PackedMatrix>) -> Self {
        let pays = Self::copy_bytes(exact.dtype(), exact.out_features, exact.in_features) > 0;
        let rough = pays.then(|| exact.rounded(ROUGH)).flatten();
        Self { exact, rough }
    }

    /// The matrix.
    #[must_use]
    pub fn exact(&self) -> &Arc<PackedMatrix> {
        &self.exact
    }

    /// Memory of the copy that one of a matrix stored as `dtype` has.
    #[must_use]
    pub fn copy_bytes(dtype: DType, out_features: usize, in_features: usize) -> usize {
        let [exact, rough] = [dtype, ROUGH]
            .map(|dtype| PackedMatrix::packed_bytes(dtype, out_features, in_features));
        let whole = in_features.is_multiple_of(ROUGH.block_size());
        // It is read beside the panels that are exact.
        if whole && rough <= exact / 4 * 3 { rough } else { 0 }
    }

    /// Memory of its copy.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.rough.as_ref().map_or(0, PackedMatrix::bytes)
    }

    /// `out = x w^T`, `[rows, outputs]`; of a few rows, those in the 16 panels of 16 outputs with the largest are exact
    /// and the others have the weights rounded to 4 bits.
    ///
    /// # Panics
    /// As [`matmul`].
    pub fn product(&self, pool: &ThreadPool, x: &Activations, out: &mut [f32]) {
        let (isa, outputs) = (Isa::best(), self.exact.out_features);
        let Some(rough) = self.rough.as_ref().filter(|_| x.rows <= FEW) else {
            matmul(pool, &[&self.exact], x, out, outputs);
            return;
        };
        matmul(pool, &[rough], x, out, outputs);
        let rows = out.chunks_exact(outputs).take(x.rows).enumerate();
        let places: Vec<_> = rows
            .flat_map(|(row, it)| largest(isa, it).into_iter().map(move |panel| (row, panel)))
            .collect();
        let out = SharedMut::new(out);
        pool.run(places.len(), &|place| {
            let (row, panel) = places[place];
            let mut sums = [[[0f32; PANEL]; ROWS]];
            rows_of(isa, &self.exact, panel, x, row..row + 1, &mut sums);
            let width = (outputs - panel * PANEL).min(PANEL);
            // SAFETY: no other task has this panel of this row.
            let out = unsafe { out.slice(row * outputs + panel * PANEL, width) };
            out.copy_from_slice(&sums[0][0][..width]);
        });
    }
}

/// The [`PANELS`] panels with the largest values, all where there are fewer.
fn largest(isa: Isa, values: &[f32]) -> Vec<usize> {
    let mut tops = vec![f32::NEG_INFINITY; values.len().div_ceil(PANEL)];
    panel_tops(isa, values, &mut tops);
    let mut panels: Vec<_> = (0..tops.len()).collect();
    if panels.len() > PANELS {
        panels.select_nth_unstable_by(PANELS - 1, |&a, &b| tops[b].total_cmp(&tops[a]));
        panels.truncate(PANELS);
    }
    panels
}

per_isa! {
    fn panel_tops(values: &[f32], tops: &mut [f32]) {
        let larger = |a: f32, b: f32| if a > b { a } else { b };
        let (panels, rest) = values.as_chunks::<PANEL>();
        for (top, panel) in tops.iter_mut().zip(panels) {
            let eight: [f32; 8] = std::array::from_fn(|i| larger(panel[i], panel[i + 8]));
            let four: [f32; 4] = std::array::from_fn(|i| larger(eight[i], eight[i + 4]));
            *top = larger(larger(four[0], four[2]), larger(four[1], four[3]));
        }
        if let Some(top) = tops.get_mut(panels.len()) {
            *top = rest.iter().copied().fold(f32::NEG_INFINITY, larger);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::reduce::argmax;
    use crate::cpu::testing::Random;

    #[test]
    fn the_largest_products_are_those_of_the_matrix() {
        let mut random = Random::new();
        let (outputs, cols) = (1003, 96);
        let values = random.vec(outputs * cols);
        let bytes = DType::Q8_0.quantize(&values).expect("whole blocks");
        let exact = PackedMatrix::pack(DType::Q8_0, outputs, cols, &bytes).expect("fits");
        let head = Shortlist::new(Arc::new(exact));
        assert_eq!(head.bytes(), Shortlist::copy_bytes(DType::Q8_0, outputs, cols));
        assert!(head.bytes() > 0 && head.bytes() < 6 * head.exact().bytes() / 10);
        for threads in [1, 3] {
            let pool = ThreadPool::new(threads);
            for rows in [1, 2, 3] {
                let x = random.vec(rows * cols);
                let mut operand = Activations::new();
                operand.set(&pool, &x, rows, cols);
                let (mut out, mut all) = ([f32::NAN; 3 * 1003], [f32::NAN; 3 * 1003]);
                head.product(&pool, &operand, &mut out);
                matmul(&pool, &[head.exact()], &operand, &mut all, outputs);
                for row in 0..rows {
                    let [out, all] = [&out, &all].map(|it| &it[row * outputs..][..outputs]);
                    assert_eq!(argmax(out), argmax(all));
                    let same = out.iter().zip(all).filter(|(a, b)| a == b).count();
                    assert!(same >= PANEL * PANELS - PANEL, "{same} of {outputs}");
                    let error = out.iter().zip(all).map(|(a, b)| (a - b).powi(2)).sum::<f32>();
                    let norm = all.iter().map(|v| v * v).sum::<f32>();
                    assert!(error < 0.02 * norm, "{error} of {norm}");
                }
                assert!(out[rows * outputs..].iter().all(|v| v.is_nan()));
            }
        }
    }

    #[test]
    fn what_has_four_bits_or_no_blocks_has_no_copy() {
        let pool = ThreadPool::new(1);
        let mut random = Random::new();
        let values = random.vec(20 * 64);
        let blocks = |dtype: DType| dtype.quantize(&values).expect("whole blocks");
        for (dtype, bytes, cols) in [
            (DType::Q4_0, blocks(DType::Q4_0), 64),
            (DType::Q4_1, blocks(DType::Q4_1), 64),
            (DType::F32, bytemuck::cast_slice(&random.vec(20 * 30)).to_vec(), 30),
        ] {
            let exact = PackedMatrix::pack(dtype, 20, cols, &bytes).expect("fits");
            let head = Shortlist::new(Arc::new(exact));
            assert_eq!([head.bytes(), Shortlist::copy_bytes(dtype, 20, cols)], [0; 2]);
            let mut x = Activations::new();
            x.set(&pool, &random.vec(cols), 1, cols);
            let (mut out, mut all) = ([0f32; 20], [0f32; 20]);
            head.product(&pool, &x, &mut out);
            matmul(&pool, &[head.exact()], &x, &mut all, 20);
            assert_eq!(out, all);
        }
    }
}
