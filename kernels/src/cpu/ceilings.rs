//! What the machine can do at best, for benchmarks to hold the kernels against.

use std::hint::black_box;
use std::time::Instant;

use crate::cpu::isa::{Isa, per_isa};
use crate::cpu::pool::ThreadPool;
use crate::cpu::shared_mut::SharedMut;

/// Rates over all threads of a pool.
#[derive(Debug, Clone, Copy)]
pub struct Ceilings {
    /// Bytes read from memory, per second.
    pub read: f64,
    /// Bytes copied from memory to memory, per second.
    pub copy: f64,
    /// Multiplications of int8 codes, each added to a sum, per second; 0 without AVX-512 VNNI.
    pub int8: f64,
}

/// More than the caches hold.
const BYTES: usize = 1 << 28;
const TASKS: usize = 64;
/// Dot products of each of so many sums.
#[cfg(target_arch = "x86_64")]
const ROUNDS: usize = 1 << 20;
#[cfg(target_arch = "x86_64")]
const SUMS: usize = 16;

impl Ceilings {
    /// Measures them, in about a second.
    #[must_use]
    pub fn measure(pool: &ThreadPool) -> Self {
        let source = vec![1u64; BYTES / 8];
        let mut target = vec![2u64; BYTES / 8];
        let part = source.len() / TASKS;
        let read = best_of(|| {
            pool.run(TASKS, &|task| {
                let mut sum = 0;
                total(Isa::best(), &source[task * part..][..part], &mut sum);
                black_box(sum);
            });
        });
        let target = SharedMut::new(&mut target);
        let copy = best_of(|| {
            pool.run(TASKS, &|task| {
                // SAFETY: each task has its own part.
                let target = unsafe { target.slice(task * part, part) };
                target.copy_from_slice(&source[task * part..][..part]);
            });
        });
        let mut products = 0;
        let dots = best_of(|| {
            pool.run(pool.threads(), &|_| {
                black_box(dots());
            });
            products = pool.threads() * dots_per_call();
        });
        let bytes = BYTES as f64;
        Self { read: bytes / read, copy: bytes / copy, int8: products as f64 / dots }
    }
}

/// Seconds of the fastest of several runs.
fn best_of(mut run: impl FnMut()) -> f64 {
    let time = |_| {
        let started = Instant::now();
        run();
        started.elapsed().as_secs_f64()
    };
    (0..7).map(time).fold(f64::INFINITY, f64::min)
}

per_isa! {
    fn total(x: &[u64], sum: &mut u64) {
        *sum = x.iter().fold(0, |sum, v| sum.wrapping_add(*v));
    }
}

/// Multiplications of a call of [`dots`].
fn dots_per_call() -> usize {
    match Isa::best() {
        #[cfg(target_arch = "x86_64")]
        Isa::AmxInt8 | Isa::Avx512Vnni => ROUNDS * SUMS * 64,
        _ => 0,
    }
}

/// Dot products in registers alone.
fn dots() -> i32 {
    match Isa::best() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the set was detected.
        Isa::AmxInt8 | Isa::Avx512Vnni => unsafe { vnni() },
        _ => 0,
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vnni")]
fn vnni() -> i32 {
    use std::arch::x86_64::*;
    let mut sums = [_mm512_setzero_si512(); SUMS];
    let (a, b) = (black_box(_mm512_set1_epi8(3)), black_box(_mm512_set1_epi8(-5)));
    for _ in 0..ROUNDS {
        for sum in &mut sums {
            *sum = _mm512_dpbusd_epi32(*sum, a, b);
        }
    }
    let mut total = 0i32;
    for sum in sums {
        total = total.wrapping_add(_mm512_reduce_add_epi32(sum));
    }
    total
}
