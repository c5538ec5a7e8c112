//! Random inputs for the tests of the kernels.

use crate::dtype::DType;

/// The formats of quantised weights.
pub(crate) const QUANTIZED: [DType; 8] = [
    DType::Q8_0,
    DType::Q4_0,
    DType::Q4_1,
    DType::Q5_0,
    DType::Q5_1,
    DType::Q4_K,
    DType::Q5_K,
    DType::Q6_K,
];

/// A small generator; the seed is printed so that a failure can be repeated.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new() -> Self {
        let seed = std::time::UNIX_EPOCH.elapsed().map_or(1, |t| t.as_nanos() as u64);
        println!("seed {seed}");
        Self(seed)
    }

    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.0 >> 33
    }

    /// Uniform in -1..1.
    pub(crate) fn value(&mut self) -> f32 {
        self.bits() as f32 / (1u64 << 30) as f32 - 1.0
    }

    pub(crate) fn vec(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.value()).collect()
    }
}

/// Holds a gradient against the slopes of `loss` along each input.
pub(crate) fn check_gradient(x: &[f32], dx: &[f32], loss: impl Fn(&[f32]) -> f64) {
    let step = 1e-2f32;
    for i in 0..x.len() {
        let mut moved = x.to_vec();
        moved[i] = x[i] + step;
        let up = loss(&moved);
        moved[i] = x[i] - step;
        let slope = (up - loss(&moved)) / f64::from(2.0 * step);
        let error = (slope - f64::from(dx[i])).abs();
        assert!(error < 2e-3 * (1.0 + slope.abs()), "{i}: slope {slope}, gradient {}", dx[i]);
    }
}
