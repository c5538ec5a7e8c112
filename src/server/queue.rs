//! Room for requests: how many are taken on at a time, and when those turned away may come back.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::ApiError;

/// Seconds that the pace is taken from.
const WINDOW: f64 = 30.0;
/// Seconds to wait at most: nobody knows more.
const LONGEST: f64 = 300.0;

/// Places for requests that run or wait.
#[derive(Debug)]
pub(super) struct Queue {
    places: Arc<Semaphore>,
    all: usize,
    /// Places of those that wait.
    waiting: usize,
    pace: Mutex<Pace>,
}

/// Places for the sequences of one request, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    queue: Arc<Queue>,
    permit: OwnedSemaphorePermit,
}

impl Queue {
    /// Room for `running` sequences and `waiting` more.
    pub(super) fn new(running: usize, waiting: usize) -> Self {
        let all = running.saturating_add(waiting).min(Semaphore::MAX_PERMITS);
        Self {
            places: Arc::new(Semaphore::new(all)),
            all,
            waiting,
            pace: Mutex::new(Pace::new(Instant::now())),
        }
    }

    /// Sequences that there is room for.
    pub(super) fn room(&self) -> usize {
        self.all
    }

    /// Places for the `count` sequences that `field` asks for, or 429 and when to come back.
    pub(super) fn enter(self: &Arc<Self>, count: usize, field: &str) -> Result<Place, ApiError> {
        if count > self.all {
            let message = format!(
                "`{field}` asks for {count} sequences; this server has room for {}, waiting ones included",
                self.all
            );
            return Err(ApiError::invalid(field, message));
        }
        let permits = u32::try_from(count).ok();
        let permit = permits.and_then(|n| Arc::clone(&self.places).try_acquire_many_owned(n).ok());
        match permit {
            Some(permit) => {
                if self.places.available_permits() + count == self.all {
                    self.pace().came(Instant::now());
                }
                Ok(Place { queue: Arc::clone(self), permit })
            }
            None => Err(ApiError::rate_limited(
                "the server's queue is full; try again after the time in Retry-After",
                self.pace().seconds_for(self.waiting.max(count), Instant::now()),
            )),
        }
    }

    fn pace(&self) -> std::sync::MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.queue.pace().left(self.permit.num_permits(), Instant::now());
    }
}

/// How fast places become free: those of the last [`WINDOW`] seconds, older ones weighing less and less.
#[derive(Debug)]
struct Pace {
    start: Instant,
    last: Instant,
    /// Places that became free, as they weighed at `last`.
    places: f64,
}

impl Pace {
    fn new(now: Instant) -> Self {
        Self { start: now, last: now, places: 0.0 }
    }

    /// Notes that somebody came where nobody was: the time between does not count.
    fn came(&mut self, now: Instant) {
        self.start += now.saturating_duration_since(self.last);
        self.last = now;
    }

    /// Notes that `places` became free.
    fn left(&mut self, places: usize, now: Instant) {
        self.places = self.weighed(now) + places as f64;
        self.last = now;
    }

    /// Whole seconds, at least 1, in which `places` become free.
    fn seconds_for(&self, places: usize, now: Instant) -> u64 {
        let watched = now.saturating_duration_since(self.start).as_secs_f64();
        let window = WINDOW * (1.0 - (-watched / WINDOW).exp());
        // Before the first one, that it may come now is all that is known.
        let interval = window / self.weighed(now).max(1.0);
        (interval * places as f64).clamp(1.0, LONGEST).ceil() as u64
    }

    fn weighed(&self, now: Instant) -> f64 {
        let age = now.saturating_duration_since(self.last).as_secs_f64();
        self.places * (-age / WINDOW).exp()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_time_to_come_back_follows_the_pace() {
        let start = Instant::now();
        let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
        let mut pace = Pace::new(start);
        assert_eq!(pace.seconds_for(100, at(0.001)), 1, "nothing is known yet");
        (1..=50).for_each(|n| pace.left(1, at(0.2 * f64::from(n))));
        // A place every 0.2 s: 100 waiting ones take 20 s.
        assert_eq!(pace.seconds_for(100, at(10.0)), 20);
        assert_eq!(pace.seconds_for(1, at(10.0)), 1);
        assert_eq!(pace.seconds_for(100, at(11.0)), 23, "nobody has left for a second");
        assert_eq!(pace.seconds_for(100, at(1000.0)), 300, "at most");
        // Four at once every 0.4 s is twice the pace.
        (1..=100).for_each(|n| pace.left(4, at(10.0 + 0.4 * f64::from(n))));
        let seconds = pace.seconds_for(100, at(50.0));
        assert!((10..=14).contains(&seconds), "{seconds}");
        // Idle time does not count.
        pace.came(at(5000.0));
        assert_eq!(pace.seconds_for(100, at(5000.0)), seconds);
    }

    #[test]
    fn places_are_given_back_whole() {
        let queue = Arc::new(Queue::new(2, 2));
        let (one, three) = (queue.enter(1, "n").unwrap(), queue.enter(3, "n").unwrap());
        assert!(queue.enter(1, "n").is_err());
        drop(three);
        let _two = queue.enter(2, "n").unwrap();
        assert!(queue.enter(2, "n").is_err() && queue.enter(usize::MAX, "n").is_err());
        drop(one);
        assert!(queue.enter(2, "n").is_ok());
    }
}
