//! The thread pool of the kernels: spins briefly, then parks.
//!
//! A job is a number of tasks; every thread, the caller included, claims the next task until none is
//! left, or from a share of its own first. Spinning between the small jobs of one forward pass keeps them microseconds apart; parking
//! soon after leaves the cores to others. A thread that wakes late claims nothing and holds up nobody.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How long an idle thread looks for the next job before it parks.
const SPIN: Duration = Duration::from_micros(50);

/// Bits of a task number in [`Shared::state`].
const TASK_BITS: u32 = 20;
/// Most tasks a job may have.
const MAX_TASKS: usize = (1 << TASK_BITS) - 1;

type Task = dyn Fn(usize) + Sync;

struct Shared {
    /// `job number << 40 | tasks << 20 | next task`. A claim is a compare-and-swap of the whole word,
    /// so a task can be claimed only while its job is the current one.
    state: AtomicU64,
    /// The current job. Written only by the caller while no task is claimed; read only by the holder
    /// of a claim, whose job cannot end before the claim is completed.
    job: UnsafeCell<Option<*const Task>>,
    completed: AtomicUsize,
    /// Pieces taken of each thread's share; see [`ThreadPool::run_shares`].
    taken: Vec<Taken>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    parked: Vec<AtomicBool>,
    stop: AtomicBool,
}

/// A counter on a cache line of its own.
#[repr(align(64))]
struct Taken(AtomicUsize);

// SAFETY: `job` is shared under the protocol in its comment; the pointed-to closure is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer carries no thread affinity.
unsafe impl Send for Shared {}

/// Cores this process may use.
#[must_use]
pub fn available_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// A fixed set of threads that run the tasks of one job at a time.
pub struct ThreadPool {
    shared: Arc<Shared>,
    /// Held during a job: one job at a time.
    caller: Mutex<()>,
    wake: Vec<Thread>,
    workers: Vec<JoinHandle<()>>,
}

impl ThreadPool {
    /// A pool of `threads` threads (at least 1), of which the caller of [`run`](Self::run) is one.
    #[must_use]
    pub fn new(threads: usize) -> Self {
        let workers = threads.max(1) - 1;
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            completed: AtomicUsize::new(0),
            taken: (0..=workers).map(|_| Taken(AtomicUsize::new(0))).collect(),
            panic: Mutex::new(None),
            parked: (0..workers).map(|_| AtomicBool::new(false)).collect(),
            stop: AtomicBool::new(false),
        });
        let workers: Vec<_> = (0..workers)
            .map(|index| {
                let shared = Arc::clone(&shared);
                std::thread::Builder::new()
                    .name(format!("ops-{index}"))
                    .spawn(move || work(&shared, index))
                    .expect("the system can start a thread")
            })
            .collect();
        let wake = workers.iter().map(|w| w.thread().clone()).collect();
        Self { shared, caller: Mutex::new(()), wake, workers }
    }

    /// Threads that take part, the caller included.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `f(0) .. f(tasks - 1)`, in any order and on any thread; returns when all have run.
    ///
    /// # Panics
    /// If a task panicked, with its payload, after all tasks have ended.
    pub fn run(&self, tasks: usize, f: &(dyn Fn(usize) + Sync)) {
        self.run_after(|_| {}, tasks, f);
    }

    /// As [`run`](Self::run), where neighbouring tasks had better run one after the other on one thread, which finds
    /// behind one what it fetches for the next: each thread has a share of them and takes from the others' when its own
    /// is done.
    ///
    /// # Panics
    /// As [`run`](Self::run).
    pub fn run_shares(&self, tasks: usize, f: &(dyn Fn(usize) + Sync)) {
        let shares = self.threads().min(tasks);
        let reset = |shared: &Shared| {
            shared.taken.iter().for_each(|taken| taken.0.store(0, Ordering::Relaxed));
        };
        if shares <= 1 {
            return (0..tasks).for_each(f);
        }
        self.run_after(reset, shares, &|own| {
            for share in (own..shares).chain(0..own) {
                let end = tasks * (share + 1) / shares;
                let start = tasks * share / shares;
                loop {
                    let task = start + self.shared.taken[share].0.fetch_add(1, Ordering::Relaxed);
                    if task >= end {
                        break;
                    }
                    f(task);
                }
            }
        });
    }

    /// As [`run`](Self::run), after `prepare` has run and no other job does.
    fn run_after(&self, prepare: impl FnOnce(&Shared), tasks: usize, f: &(dyn Fn(usize) + Sync)) {
        if tasks <= 1 || self.workers.is_empty() {
            (0..tasks).for_each(f);
            return;
        }
        assert!(tasks <= MAX_TASKS, "{tasks} tasks in one job");
        let guard = self.caller.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = &*self.shared;
        prepare(shared);
        // SAFETY: the lifetime is only erased: no task runs after this function returns. The cell is
        // ours to write: the last job is complete, so no claim is held.
        unsafe {
            *shared.job.get() =
                Some(std::mem::transmute::<*const (dyn Fn(usize) + Sync), *const Task>(f));
        }
        shared.completed.store(0, Ordering::Relaxed);
        let job = (shared.state.load(Ordering::Relaxed) >> (2 * TASK_BITS)).wrapping_add(1);
        let state = job << (2 * TASK_BITS) | (tasks as u64) << TASK_BITS;
        shared.state.store(state, Ordering::SeqCst);
        for (parked, thread) in shared.parked.iter().zip(&self.wake) {
            if parked.load(Ordering::SeqCst) && parked.swap(false, Ordering::SeqCst) {
                thread.unpark();
            }
        }
        while shared.run_one() {}
        let mut spins = 0u32;
        while shared.completed.load(Ordering::Acquire) < tasks {
            spins += 1;
            if spins < 2_000 { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
        let panic = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(guard);
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for (worker, thread) in self.workers.drain(..).zip(&self.wake) {
            thread.unpark();
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn has_task(state: u64) -> bool {
        let mask = MAX_TASKS as u64;
        state & mask < state >> TASK_BITS & mask
    }

    /// Claims and runs one task; false where none is left.
    fn run_one(&self) -> bool {
        let mut state = self.state.load(Ordering::Acquire);
        loop {
            if !Self::has_task(state) {
                return false;
            }
            match self.state.compare_exchange_weak(
                state,
                state + 1,
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => break,
                Err(now) => state = now,
            }
        }
        // SAFETY: we hold a claim on the current job, which therefore cannot end or be replaced, and
        // its closure outlives it.
        let task = unsafe { &*(*self.job.get()).expect("a job with tasks is set") };
        let index = (state & MAX_TASKS as u64) as usize;
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| task(index))) {
            *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(payload);
        }
        self.completed.fetch_add(1, Ordering::Release);
        true
    }
}

fn work(shared: &Shared, index: usize) {
    while !shared.stop.load(Ordering::Relaxed) {
        if shared.run_one() {
            continue;
        }
        let idle_since = Instant::now();
        while !Shared::has_task(shared.state.load(Ordering::Relaxed)) {
            // A pause takes up to 140 cycles, and a job may take no more than a few thousand.
            std::hint::spin_loop();
            if idle_since.elapsed() < SPIN {
                continue;
            }
            shared.parked[index].store(true, Ordering::SeqCst);
            // A job published before the store is seen here; one published after it wakes us.
            if !Shared::has_task(shared.state.load(Ordering::SeqCst))
                && !shared.stop.load(Ordering::SeqCst)
            {
                std::thread::park();
            }
            shared.parked[index].store(false, Ordering::SeqCst);
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_even_with_more_threads_than_cores() {
        for threads in [1, 2, 7] {
            let pool = ThreadPool::new(threads);
            for tasks in [0, 1, 2, 3, 100, 1000] {
                let counts: Vec<_> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                let count = |i: usize| {
                    counts[i].fetch_add(1, Ordering::Relaxed);
                };
                pool.run(tasks, &count);
                pool.run_shares(tasks, &count);
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 2));
            }
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = ThreadPool::new(3);
        let run = || pool.run(50, &|i| assert_ne!(i, 17, "seventeen"));
        assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
        let run = || pool.run_shares(50, &|i| assert_ne!(i, 17, "seventeen"));
        assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
        let sum = AtomicUsize::new(0);
        pool.run(10, &|i| {
            sum.fetch_add(i, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 45);
    }

    #[test]
    fn several_callers_take_turns() {
        let pool = ThreadPool::new(2);
        let sum = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        let add = |_| {
                            sum.fetch_add(1, Ordering::Relaxed);
                        };
                        pool.run(8, &add);
                        pool.run_shares(8, &add);
                    }
                });
            }
        });
        assert_eq!(sum.into_inner(), 4 * 200 * 8);
    }
}
