//! How many threads compute fastest: as many as the processor runs at a time, or one a core.

use std::collections::HashSet;
use std::sync::OnceLock;
use std::time::Instant;

use crate::cpu::activations::Activations;
use crate::cpu::matmul::matmul;
use crate::cpu::pool::{SPIN, ThreadPool};
use crate::cpu::weights::PackedMatrix;
use crate::dtype::DType;

/// Matrices of the pass that is timed, and their size: together more than most caches hold.
const MATRICES: usize = 16;
const OUTPUTS: usize = 4096;
const INPUTS: usize = 1536;
/// Rows of the passes that are timed: a token, and one with draft tokens.
const ROWS: [usize; 2] = [1, 4];
/// Passes of each kind.
const REPEATS: usize = 7;
/// What several threads a core must gain at least: the others that they leave no room for count too.
const GAIN: f64 = 1.03;

/// Threads that the processor runs at a time for this process.
fn available_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Threads that compute fastest. Where cores run several threads each, products of a few rows are timed with all
/// threads and with one a core, once a process and in about a fifth of a second.
#[must_use]
pub fn best_threads() -> usize {
    static BEST: OnceLock<usize> = OnceLock::new();
    *BEST.get_or_init(|| {
        let threads = available_threads();
        match available_cores() {
            Some(cores) if cores < threads => better([threads, cores], seconds([threads, cores])),
            _ => threads,
        }
    })
}

/// The first number of threads where it gains enough over the second.
fn better(threads: [usize; 2], seconds: [f64; 2]) -> usize {
    threads[usize::from(seconds[0] * GAIN >= seconds[1])]
}

/// Cores that run this process's threads, where the system says it.
fn available_cores() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    cores(allowed, |cpu| {
        let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
        std::fs::read_to_string(path).ok()
    })
}

/// Cores of the logical processors in a list like `0-3,8`, of each of which `siblings` gives the list of those on its
/// core.
fn cores(list: &str, siblings: impl Fn(usize) -> Option<String>) -> Option<usize> {
    let mut cores = HashSet::new();
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        for cpu in first.parse().ok()?..=last.parse().ok()? {
            cores.insert(siblings(cpu)?);
        }
    }
    Some(cores.len())
}

/// Seconds of products of a few rows on each number of threads, measured in turns, the fastest of several.
fn seconds<const N: usize>(threads: [usize; N]) -> [f64; N] {
    let pools = threads.map(ThreadPool::new);
    let Some(pool) = pools.first() else { return [0.0; N] };
    let bytes = vec![0x11; DType::Q4_0.bytes_for(OUTPUTS * INPUTS).expect("whole blocks")];
    let pack = |_| PackedMatrix::pack_on(pool, DType::Q4_0, OUTPUTS, INPUTS, &bytes);
    let matrices: Vec<_> = (0..MATRICES).map(|at| pack(at).expect("the size fits")).collect();
    let mut total = [0.0; N];
    for rows in ROWS {
        let mut x = Activations::new();
        x.set(pool, &vec![1.0; rows * INPUTS], rows, INPUTS);
        let mut out = vec![0.0; rows * OUTPUTS];
        let mut best = [f64::INFINITY; N];
        for _ in 0..REPEATS {
            for (best, pool) in best.iter_mut().zip(&pools) {
                // The other pool's threads have parked by then, and this one's are awake.
                std::thread::sleep(2 * SPIN);
                let mut product = |w| matmul(pool, &[w], &x, &mut out, OUTPUTS);
                product(&matrices[0]);
                let started = Instant::now();
                matrices.iter().for_each(product);
                *best = best.min(started.elapsed().as_secs_f64());
            }
        }
        total.iter_mut().zip(best).for_each(|(total, best)| *total += best);
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn siblings_are_one_core() {
        // Eight cores of two threads, numbered as most processors do.
        let siblings = |cpu: usize| (cpu < 16).then(|| format!("{},{}\n", cpu % 8, cpu % 8 + 8));
        for (allowed, expected) in [
            ("\t0-15\n", Some(8)),
            ("0-7", Some(8)),
            ("0-3,8-11", Some(4)),
            ("0,8", Some(1)),
            ("5", Some(1)),
            ("12-16", None),
            ("", None),
            ("a-b", None),
        ] {
            assert_eq!(cores(allowed, siblings), expected, "{allowed}");
        }
    }

    #[test]
    fn the_best_number_is_one_that_is_there() {
        let best = best_threads();
        assert!((1..=available_threads()).contains(&best), "{best}");
        assert_eq!(best_threads(), best);
        assert_eq!(better([8, 4], [1.0, 1.02]), 4, "not worth the room of others");
        assert_eq!(better([8, 4], [1.0, 1.04]), 8);
        assert_eq!(better([8, 4], [1.0, 0.5]), 4);
        assert!(seconds([1, 2, 3]).iter().all(|it| it.is_finite() && *it > 0.0));
    }
}
