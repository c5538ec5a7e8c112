//! The thread pool of the kernels: spins briefly, then parks.
//!
//! A job is a number of tasks, of which every thread has a share: neighbouring ones, so that it finds behind one what it
//! fetched for the next. A thread whose share is done takes from others', so one that wakes late holds up nobody. Spinning
//! between the small jobs of a forward pass keeps them microseconds apart; parking soon after leaves the cores to others.
//!
//! What one core writes reaches another in a tenth of a microsecond, or half of one where they share no cache, and many
//! cores that write one word wait for each other. So a job is one cache line, which its caller writes and all others
//! read, and each thread counts what is begun and ended of its share in lines of its own.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How long an idle thread looks for the next job before it parks.
pub(super) const SPIN: Duration = Duration::from_micros(50);

/// Bits of the tasks in a [`Count`].
const TASK_BITS: u32 = 20;
/// Most tasks a job may have.
const MAX_TASKS: usize = (1 << TASK_BITS) - 1;

/// Lines of its own, two of them: processors fetch lines in pairs.
#[derive(Default)]
#[repr(align(128))]
struct Own<T>(T);

/// Tasks of a share or of a thread in one job: `job number << 20 | tasks`. Only a job that is on can be counted in.
#[derive(Default)]
struct Count(AtomicU64);

impl Count {
    /// The tasks of this job; none where the last count was of one before it, `None` where that was of a later one.
    fn of(word: u64, job: u64) -> Option<u64> {
        let number = word >> TASK_BITS;
        (number <= job).then_some(if number == job { word & MAX_TASKS as u64 } else { 0 })
    }

    /// Takes the next of `tasks` tasks of this job.
    fn next(&self, job: u64, tasks: u64) -> Option<u64> {
        let mut now = self.0.load(Ordering::Acquire);
        loop {
            let task = Self::of(now, job).filter(|begun| *begun < tasks)?;
            let then = job << TASK_BITS | (task + 1);
            match self.0.compare_exchange_weak(now, then, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some(task),
                Err(other) => now = other,
            }
        }
    }
}

/// The job that is on, or was last. Only its caller writes, first 0 for the number and last what it is.
#[derive(Default)]
struct Posted {
    number: AtomicU64,
    tasks: AtomicUsize,
    /// A [`Call`], and what it is called with.
    call: AtomicPtr<()>,
    with: AtomicPtr<()>,
}

/// Runs a task of the closure behind the pointer.
type Call = unsafe fn(*const (), usize);

/// A job as threads see it.
#[derive(Clone, Copy)]
struct Job {
    number: u64,
    tasks: usize,
    call: *mut (),
    with: *mut (),
}

impl Posted {
    fn post(&self, job: Job) {
        self.number.store(0, Ordering::Relaxed);
        fence(Ordering::Release);
        self.tasks.store(job.tasks, Ordering::Relaxed);
        self.call.store(job.call, Ordering::Relaxed);
        self.with.store(job.with, Ordering::Relaxed);
        self.number.store(job.number, Ordering::SeqCst);
    }

    /// The job, unless it is the one before; none while one is written.
    fn read(&self, before: u64) -> Option<Job> {
        let number = self.number.load(Ordering::Acquire);
        if number == 0 || number == before {
            return None;
        }
        let job = Job {
            number,
            tasks: self.tasks.load(Ordering::Relaxed),
            call: self.call.load(Ordering::Relaxed),
            with: self.with.load(Ordering::Relaxed),
        };
        fence(Ordering::Acquire);
        (self.number.load(Ordering::Relaxed) == number).then_some(job)
    }
}

/// What each thread has of its own; the caller is the first one.
#[derive(Default)]
struct Member {
    /// Tasks of its share that anybody began.
    begun: Own<Count>,
    /// Tasks that it ended.
    ended: Own<Count>,
    parked: Own<AtomicBool>,
}

struct Shared {
    job: Own<Posted>,
    members: Vec<Member>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    stop: AtomicBool,
}

/// A fixed set of threads that run the tasks of one job at a time.
pub struct ThreadPool {
    shared: Arc<Shared>,
    /// Held during a job: one job at a time. The number of the last one.
    caller: Mutex<u64>,
    wake: Vec<Thread>,
    workers: Vec<JoinHandle<()>>,
}

impl ThreadPool {
    /// A pool of `threads` threads (at least 1), of which the caller of [`run`](Self::run) is one.
    #[must_use]
    pub fn new(threads: usize) -> Self {
        let threads = threads.max(1);
        let shared = Arc::new(Shared {
            job: Own::default(),
            members: (0..threads).map(|_| Member::default()).collect(),
            panic: Mutex::new(None),
            stop: AtomicBool::new(false),
        });
        let workers: Vec<_> = (1..threads)
            .map(|index| {
                let shared = Arc::clone(&shared);
                std::thread::Builder::new()
                    .name(format!("ops-{index}"))
                    .spawn(move || work(&shared, index))
                    .expect("the system can start a thread")
            })
            .collect();
        let wake = workers.iter().map(|w| w.thread().clone()).collect();
        Self { shared, caller: Mutex::new(0), wake, workers }
    }

    /// Threads that take part, the caller included.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `f(0) .. f(tasks - 1)`, in any order and on any thread; returns when all have run. Each thread begins with a
    /// share of neighbouring tasks, in order.
    ///
    /// # Panics
    /// If a task panicked, with its payload, after all tasks have ended.
    pub fn run<F: Fn(usize) + Sync>(&self, tasks: usize, f: &F) {
        /// # Safety
        /// `with` must point to an `F`.
        unsafe fn call<F: Fn(usize)>(with: *const (), task: usize) {
            // SAFETY: by the caller's promise.
            unsafe { (*with.cast::<F>())(task) };
        }
        if tasks <= 1 || self.workers.is_empty() {
            (0..tasks).for_each(f);
            return;
        }
        assert!(tasks <= MAX_TASKS, "{tasks} tasks in one job");
        let mut last = self.caller.lock().unwrap_or_else(PoisonError::into_inner);
        *last += 1;
        // Some eight years of small jobs.
        assert!(*last >> (u64::BITS - TASK_BITS) == 0, "a pool runs 2^44 jobs at most");
        let (call, with): (Call, *const F) = (call::<F>, f);
        let job =
            Job { number: *last, tasks, call: call as *mut (), with: with.cast::<()>().cast_mut() };
        let shared = &*self.shared;
        shared.job.0.post(job);
        let shares = shared.shares(tasks);
        for (member, thread) in shared.members[1..shares].iter().zip(&self.wake) {
            let parked = &member.parked.0;
            if parked.load(Ordering::SeqCst) && parked.swap(false, Ordering::SeqCst) {
                thread.unpark();
            }
        }
        shared.take_part(0, job);
        // All tasks are begun; none is called after the last has ended.
        let mut spins = 0u32;
        while shared.ended(job) < tasks as u64 {
            spins += 1;
            if spins < 2_000 { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
        let panic = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(last);
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
    /// Threads that have a share of a job.
    fn shares(&self, tasks: usize) -> usize {
        self.members.len().min(tasks)
    }

    /// Runs tasks of a job until none is left where thread `own` looks: in its own share, then in those of the threads 1,
    /// 2, 4, 8, ... behind it; the caller, of number 0, looks everywhere.
    fn take_part(&self, own: usize, job: Job) {
        let shares = self.shares(job.tasks);
        if own >= shares {
            return;
        }
        let mut ended = 0;
        let mut distance = 0;
        while distance < shares {
            let share = (own + distance) % shares;
            let start = job.tasks * share / shares;
            let end = job.tasks * (share + 1) / shares;
            let before = ended;
            while let Some(task) =
                self.members[share].begun.0.next(job.number, (end - start) as u64)
            {
                self.run_one(job, start + task as usize);
                ended += 1;
            }
            if ended > before {
                let count = job.number << TASK_BITS | ended;
                self.members[own].ended.0.0.store(count, Ordering::Release);
            }
            distance = if own == 0 || distance == 0 { distance + 1 } else { 2 * distance };
        }
    }

    /// Waits for a job behind the number `last`; `None` when the pool is dropped.
    fn wait(&self, index: usize, last: u64) -> Option<Job> {
        let mut idle_since = None;
        while !self.stop.load(Ordering::Relaxed) {
            if let Some(job) = self.job.0.read(last) {
                return Some(job);
            }
            // A pause takes up to 140 cycles, and a job may take no more than a few thousand.
            std::hint::spin_loop();
            if idle_since.get_or_insert_with(Instant::now).elapsed() < SPIN {
                continue;
            }
            let parked = &self.members[index].parked.0;
            parked.store(true, Ordering::SeqCst);
            // A job posted before the store is seen here; one posted after it wakes us.
            let posted = self.job.0.number.load(Ordering::SeqCst);
            if (posted == last || posted == 0) && !self.stop.load(Ordering::SeqCst) {
                std::thread::park();
            }
            parked.store(false, Ordering::SeqCst);
            idle_since = None;
        }
        None
    }

    /// Runs a task that is counted as begun and not as ended.
    fn run_one(&self, job: Job, task: usize) {
        // SAFETY: only `ThreadPool::run` posts jobs, with a `Call` for the closure behind `with`. A task was counted as
        // begun, so this job was on and is as it was read; its caller keeps the closure until the task counts as ended.
        let run = || unsafe {
            let call: Call = std::mem::transmute(job.call);
            call(job.with, task);
        };
        if let Err(payload) = catch_unwind(AssertUnwindSafe(run)) {
            *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(payload);
        }
    }

    /// Tasks of the job on that have ended.
    fn ended(&self, job: Job) -> u64 {
        let ended = |member: &Member| {
            Count::of(member.ended.0.0.load(Ordering::Acquire), job.number).unwrap_or(0)
        };
        self.members[..self.shares(job.tasks)].iter().map(ended).sum()
    }
}

fn work(shared: &Shared, index: usize) {
    let mut last = 0;
    while let Some(job) = shared.wait(index, last) {
        shared.take_part(index, job);
        last = job.number;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::shared_mut::SharedMut;
    use crate::cpu::testing::Random;

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
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn what_tasks_have_written_is_there_when_the_job_has_run() {
        let mut random = Random::new();
        for threads in [2, 5, 64] {
            let pool = ThreadPool::new(threads);
            for _ in 0..2000 {
                let mut written = vec![0u64; 1 + random.bits() as usize % 100];
                let (tasks, rounds) = (written.len(), random.bits() % 100);
                let out = SharedMut::new(&mut written);
                pool.run(tasks, &|task| {
                    // SAFETY: each task has its own number.
                    let number = unsafe { out.element(task) };
                    (0..=rounds).for_each(|_| *number = std::hint::black_box(*number + 1));
                });
                assert!(written.iter().all(|number| *number == rounds + 1), "{written:?}");
            }
        }
    }

    #[test]
    fn parked_threads_take_part() {
        let pool = ThreadPool::new(4);
        for idle in [Duration::ZERO, 20 * SPIN, 200 * SPIN] {
            std::thread::sleep(idle);
            let (there, since) = (AtomicUsize::new(0), Instant::now());
            pool.run(4, &|_| {
                there.fetch_add(1, Ordering::SeqCst);
                while there.load(Ordering::SeqCst) < 4 {
                    assert!(since.elapsed() < Duration::from_secs(60), "a thread did not wake");
                    std::thread::yield_now();
                }
            });
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = ThreadPool::new(3);
        let run = || pool.run(50, &|i| assert_ne!(i, 17, "seventeen"));
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
                    }
                });
            }
        });
        assert_eq!(sum.into_inner(), 4 * 100 * 8);
    }
}
