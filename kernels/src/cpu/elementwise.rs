//! What is done to every value alone.

use crate::cpu::isa::{Isa, per_isa};
use crate::cpu::lanes::tanh;
use crate::cpu::pool::ThreadPool;
use crate::cpu::shared_mut::SharedMut;

/// Values that a thread takes at a time.
const PIECE: usize = 4096;

/// `x *= by`.
pub fn scale(x: &mut [f32], by: f32) {
    x.iter_mut().for_each(|v| *v *= by);
}

/// `x = cap * tanh(factor * x / cap)`: values between `-cap` and `cap`, which small ones leave almost as they are
/// (Gemma 2, arXiv 2408.00118, section 2).
pub fn soft_cap(pool: &ThreadPool, x: &mut [f32], factor: f32, cap: f32) {
    let (isa, len) = (Isa::best(), x.len());
    let x = SharedMut::new(x);
    pool.run(len.div_ceil(PIECE), &|piece| {
        let start = piece * PIECE;
        // SAFETY: each task has its own values.
        let x = unsafe { x.slice(start, PIECE.min(len - start)) };
        cap_row(isa, x, factor / cap, cap);
    });
}

per_isa! {
    pub(crate) fn cap_row(x: &mut [f32], factor: f32, cap: f32) {
        for v in x.iter_mut() {
            *v = cap * tanh(*v * factor);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::Random;

    #[test]
    fn caps_agree_with_f64_and_paths_agree() {
        let mut random = Random::new();
        let mut x: Vec<f32> = random.vec(PIECE + 77).iter().map(|v| v * 60.0).collect();
        (x[3], x[4], x[5]) = (f32::NAN, f32::INFINITY, -1e30);
        let mut y = x.clone();
        soft_cap(&ThreadPool::new(3), &mut y, 2.0, 30.0);
        assert!(y[3].is_nan() && y[4] == 30.0 && y[5] == -30.0);
        for (x, y) in x.iter().zip(&y).skip(6) {
            let want = 30.0 * (2.0 * f64::from(*x) / 30.0).tanh();
            assert!(
                (f64::from(*y) - want).abs() <= 3e-7 * want.abs() + 1e-9,
                "{x}: {y}, not {want}"
            );
        }
        for isa in Isa::supported() {
            let mut other = x.clone();
            cap_row(isa, &mut other, 2.0 / 30.0, 30.0);
            let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || a.is_nan();
            assert!(other.iter().zip(&y).all(same), "{isa:?}");
        }
    }
}
