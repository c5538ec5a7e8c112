//! Ridge regression: a linear map that starts a projection before anything is trained.

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use rayon::prelude::*;

/// Share of the mean square of an input that is added to every input's own.
const RIDGE: f64 = 0.01;

/// Sums over observations of inputs `x`, of which the outputs `y` are to be a linear map.
pub(crate) struct Ridge {
    inputs: usize,
    outputs: usize,
    observations: usize,
    /// `[inputs, inputs]` and `[inputs, outputs]`, row-major.
    xx: Vec<f64>,
    xy: Vec<f64>,
}

impl Ridge {
    pub(crate) fn new(inputs: usize, outputs: usize) -> Self {
        let (xx, xy) = (vec![0.0; inputs * inputs], vec![0.0; inputs * outputs]);
        Self { inputs, outputs, observations: 0, xx, xy }
    }

    /// Adds observations: `x` is `[observations, inputs]`, `y` is `[observations, outputs]`.
    pub(crate) fn observe(&mut self, x: &[f32], y: &[f32]) -> Result<()> {
        let count = x.len() / self.inputs;
        let x = Tensor::from_slice(x, (count, self.inputs), &Device::Cpu)?;
        let y = Tensor::from_slice(y, (count, self.outputs), &Device::Cpu)?;
        for (sum, other) in [(&mut self.xx, &x), (&mut self.xy, &y)] {
            let product = x.t()?.matmul(other)?.flatten_all()?.to_vec1::<f32>()?;
            sum.iter_mut().zip(product).for_each(|(sum, value)| *sum += f64::from(value));
        }
        self.observations += count;
        Ok(())
    }

    /// The map, `[outputs, inputs]`.
    pub(crate) fn solve(mut self) -> Result<Vec<f32>> {
        let (n, outputs) = (self.inputs, self.outputs);
        for i in 0..n {
            self.xx[i * n + i] += RIDGE * self.observations.max(1) as f64;
        }
        let factor = cholesky(self.xx, n).context("the states are no numbers")?;
        let (factor, xy) = (&factor, &self.xy);
        let column = |output: usize| {
            let mut column: Vec<f64> = (0..n).map(|i| xy[i * outputs + output]).collect();
            for i in 0..n {
                let row = &factor[i * n..][..=i];
                column[i] = (column[i] - dot(&row[..i], &column[..i])) / row[i];
            }
            for i in (0..n).rev() {
                column[i] /= factor[i * n + i];
                let (before, rest) = column.split_at_mut(i);
                let row = &factor[i * n..][..i];
                before.iter_mut().zip(row).for_each(|(value, l)| *value -= l * rest[0]);
            }
            column.into_iter().map(|value| value as f32).collect::<Vec<f32>>()
        };
        Ok((0..outputs).into_par_iter().flat_map_iter(column).collect())
    }
}

/// The lower factor of a symmetric positive matrix, row-major; `None` where it is none.
fn cholesky(mut a: Vec<f64>, n: usize) -> Option<Vec<f64>> {
    for i in 0..n {
        let (above, row) = a.split_at_mut(i * n);
        let row = &mut row[..n];
        for j in 0..i {
            let other = &above[j * n..][..=j];
            row[j] = (row[j] - dot(&row[..j], &other[..j])) / other[j];
        }
        let square = row[i] - dot(&row[..i], &row[..i]);
        if !(square > 0.0 && square.is_finite()) {
            return None;
        }
        row[i] = square.sqrt();
    }
    Some(a)
}

/// In eight partial sums, so that it is quick.
fn dot(x: &[f64], y: &[f64]) -> f64 {
    let mut parts = [0.0; 8];
    for (x, y) in x.chunks(8).zip(y.chunks(8)) {
        for ((part, x), y) in parts.iter_mut().zip(x).zip(y) {
            *part += x * y;
        }
    }
    parts.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_a_linear_map() {
        let mut random = fastrand::Rng::with_seed(1);
        let map: Vec<f32> = (0..3 * 20).map(|_| random.f32() - 0.5).collect();
        let mut ridge = Ridge::new(20, 3);
        for _ in 0..40 {
            let x: Vec<f32> = (0..100 * 20).map(|_| 4.0 * (random.f32() - 0.5)).collect();
            let y: Vec<f32> = x
                .chunks_exact(20)
                .flat_map(|x| {
                    map.chunks_exact(20).map(|m| x.iter().zip(m).map(|(x, m)| x * m).sum())
                })
                .collect();
            ridge.observe(&x, &y).unwrap();
        }
        for (found, wanted) in ridge.solve().unwrap().iter().zip(&map) {
            assert!((found - wanted).abs() < 0.01, "{found} for {wanted}");
        }
        let mut nan = Ridge::new(1, 1);
        nan.observe(&[f32::NAN], &[1.0]).unwrap();
        assert!(nan.solve().is_err());
    }
}
