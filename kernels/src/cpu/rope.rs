//! Rotary position embedding, half-split layout: of the first n values of a head, value i turns with value i + n / 2.

use crate::cpu::isa::{Isa, per_isa};
use crate::cpu::pool::ThreadPool;
use crate::cpu::shared_mut::SharedMut;

/// Inverse frequencies of one model and the cosines and sines of the rows at hand.
#[derive(Debug, Clone)]
pub struct RopeTable {
    /// `[n / 2]`, where the first n values of a head turn.
    inverse_frequencies: Vec<f32>,
    /// Values in a head.
    head_dim: usize,
    /// Multiplier of cosine and sine (YaRN).
    attention_factor: f32,
    /// `[rows, 2, n / 2]`: cosines, sines.
    rotations: Vec<f32>,
}

impl RopeTable {
    /// A table for heads of `head_dim` values, of which the first `2 * inverse_frequencies.len()` turn.
    ///
    /// # Panics
    /// If a head has fewer.
    #[must_use]
    pub fn new(inverse_frequencies: Vec<f32>, attention_factor: f32, head_dim: usize) -> Self {
        assert!(2 * inverse_frequencies.len() <= head_dim, "more frequencies than pairs of values");
        Self { inverse_frequencies, head_dim, attention_factor, rotations: Vec::new() }
    }

    /// Computes the rotations of rows at `positions`, kept until the next call.
    pub fn set_positions(&mut self, positions: &[u32]) {
        let half = self.inverse_frequencies.len();
        self.rotations.resize(positions.len() * 2 * half, 0.0);
        for (rotation, &position) in self.rotations.chunks_exact_mut(2 * half).zip(positions) {
            let (cos, sin) = rotation.split_at_mut(half);
            for ((cos, sin), frequency) in cos.iter_mut().zip(sin).zip(&self.inverse_frequencies) {
                // The product is rounded to f32 as the models were trained; sine and cosine are not.
                let angle = f64::from(position as f32 * frequency);
                *cos = angle.cos() as f32 * self.attention_factor;
                *sin = angle.sin() as f32 * self.attention_factor;
            }
        }
    }

    /// Cosine and sine of all frequencies at positions from 0 on, `[positions, n / 2, 2]`.
    #[must_use]
    pub fn rotations(&self, positions: usize) -> Vec<f32> {
        let mut table = self.clone();
        let positions: Vec<u32> = (0..positions as u32).collect();
        table.set_positions(&positions);
        let rows = table.rotations.chunks_exact(2 * self.inverse_frequencies.len());
        let split = rows.map(|row| row.split_at(row.len() / 2));
        split.flat_map(|(cos, sin)| cos.iter().zip(sin).flat_map(|(c, s)| [*c, *s])).collect()
    }

    /// Those of the last [`set_positions`](Self::set_positions), `[rows, 2, n / 2]`: cosines, then sines.
    #[must_use]
    pub fn rotations_of_rows(&self) -> &[f32] {
        &self.rotations
    }

    /// Rotates all heads of row `row`, in place, by the angles times `direction`: 1, or -1 for the gradient.
    ///
    /// # Panics
    /// If the last [`set_positions`](Self::set_positions) had fewer rows.
    pub fn turn_row(&self, row: usize, heads: &mut [f32], direction: f32) {
        let width = 2 * self.inverse_frequencies.len();
        turn(Isa::best(), &self.rotations[row * width..][..width], self.head_dim, direction, heads);
    }

    /// Rotates, in place, `heads` heads starting at `offset` in each row of `stride` values.
    ///
    /// # Panics
    /// If `x` does not have the rows of the last [`set_positions`](Self::set_positions).
    pub fn apply(
        &self,
        pool: &ThreadPool,
        x: &mut [f32],
        heads: usize,
        stride: usize,
        offset: usize,
    ) {
        let half = self.inverse_frequencies.len();
        let rows = self.rotations.len() / (2 * half);
        assert_eq!(x.len(), rows * stride, "{rows} rows of {stride}");
        let width = heads * self.head_dim;
        assert!(offset + width <= stride, "heads do not fit the row");
        let x = SharedMut::new(x);
        pool.run(rows, &|row| {
            // SAFETY: each task has its own row.
            let heads = unsafe { x.slice(row * stride + offset, width) };
            self.turn_row(row, heads, 1.0);
        });
    }
}

per_isa! {
    fn turn(rotation: &[f32], head_dim: usize, direction: f32, heads: &mut [f32]) {
        let (cos, sin) = rotation.split_at(rotation.len() / 2);
        for head in heads.chunks_exact_mut(head_dim) {
            let (low, high) = head[..rotation.len()].split_at_mut(cos.len());
            for (((a, b), cos), sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
                let sin = direction * sin;
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::Random;

    #[test]
    fn rotates_pairs_by_position_times_frequency() {
        let mut random = Random::new();
        let mut table = RopeTable::new(vec![1.0, 0.1, 0.01], 1.5, 6);
        table.set_positions(&[0, 7]);
        let x = random.vec(2 * 20);
        let mut y = x.clone();
        table.apply(&ThreadPool::new(2), &mut y, 3, 20, 1);
        let mut back = y.clone();
        for (row, back) in back.chunks_exact_mut(20).enumerate() {
            table.turn_row(row, &mut back[1..19], -1.0);
        }
        for (i, (x, back)) in x.iter().zip(&back).enumerate() {
            let turned = (1..19).contains(&(i % 20));
            let expected = if turned { 1.5 * 1.5 * x } else { *x };
            assert!((back - expected).abs() < 1e-5, "transpose of {i}");
        }
        for row in 0..2 {
            for head in 0..3 {
                for i in 0..3 {
                    let angle = [0.0, 7.0][row] * f64::from([1.0f32, 0.1, 0.01][i]);
                    let at = row * 20 + 1 + head * 6 + i;
                    let (a, b) = (f64::from(x[at]), f64::from(x[at + 3]));
                    let (c, s) = (1.5 * angle.cos(), 1.5 * angle.sin());
                    assert!((f64::from(y[at]) - (a * c - b * s)).abs() < 1e-5);
                    assert!((f64::from(y[at + 3]) - (b * c + a * s)).abs() < 1e-5);
                }
            }
            assert_eq!(
                (y[row * 20], y[row * 20 + 19]),
                (x[row * 20], x[row * 20 + 19]),
                "untouched"
            );
        }
    }

    /// Heads of which only the first values turn.
    #[test]
    fn the_rest_of_a_head_stays() {
        let mut random = Random::new();
        let (mut part, mut whole) =
            (RopeTable::new(vec![1.0, 0.1], 1.0, 10), RopeTable::new(vec![1.0, 0.1], 1.0, 4));
        part.set_positions(&[3]);
        whole.set_positions(&[3]);
        let x = random.vec(20);
        let mut y = x.clone();
        part.apply(&ThreadPool::new(1), &mut y, 2, 20, 0);
        for (x, y) in x.chunks(10).zip(y.chunks(10)) {
            assert_eq!(x[4..], y[4..]);
            let mut turned = x[..4].to_vec();
            whole.apply(&ThreadPool::new(1), &mut turned, 1, 4, 0);
            assert_eq!(turned, y[..4]);
        }
    }
}
