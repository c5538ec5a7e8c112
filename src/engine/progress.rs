//! Whether an engine gets on with its work.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// When the engine last got on, for those who watch it from other threads.
#[derive(Debug)]
pub(super) struct Progress {
    start: Instant,
    /// Milliseconds after `start` at which the work came or a step ended last, and 1; 0 while there is no work.
    last: AtomicU64,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self { start: Instant::now(), last: AtomicU64::new(0) }
    }

    /// There is no work.
    pub(super) fn rest(&self) {
        self.last.store(0, Ordering::Relaxed);
    }

    /// Work has come, or a step has ended.
    pub(super) fn get_on(&self) {
        self.last.store(self.now() + 1, Ordering::Relaxed);
    }

    /// For how long there has been work and no step has ended.
    pub(super) fn standing_still(&self) -> Duration {
        match self.last.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            last => Duration::from_millis(self.now().saturating_sub(last - 1)),
        }
    }

    fn now(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }
}
