//! How many tokens a key may use, and when.

use std::time::Instant;

/// Tokens that may be used; a minute's worth at most, refilled all the time.
pub(super) struct Allowance {
    per_minute: f64,
    left: f64,
    at: Instant,
}

impl Allowance {
    pub(super) fn new(per_minute: u32, now: Instant) -> Self {
        Self { per_minute: per_minute.into(), left: per_minute.into(), at: now }
    }

    pub(super) fn refill(&mut self, now: Instant) {
        let seconds = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + seconds * self.per_minute / 60.0).min(self.per_minute);
        self.at = now;
    }

    /// Uses tokens, more than there are perhaps: how many an answer takes is known when it is there.
    pub(super) fn charge(&mut self, tokens: usize) {
        self.left -= tokens as f64;
    }

    /// Whole tokens that are left.
    pub(super) fn left(&self) -> u64 {
        self.left.max(0.0) as u64
    }

    /// Whether any of a token is left; else the seconds until it is.
    pub(super) fn admit(&self) -> Result<(), u64> {
        if self.left > 0.0 { Ok(()) } else { Err(self.seconds_for(-self.left).clamp(1, 3600)) }
    }

    /// Seconds until a whole minute's worth is there.
    pub(super) fn seconds_until_full(&self) -> u64 {
        self.seconds_for(self.per_minute - self.left)
    }

    fn seconds_for(&self, tokens: f64) -> u64 {
        (tokens * 60.0 / self.per_minute.max(1.0)).ceil() as u64
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_allowance_refills_with_time_up_to_a_minutes_worth() {
        let start = Instant::now();
        let mut allowance = Allowance::new(60, start);
        assert_eq!((allowance.left(), allowance.seconds_until_full()), (60, 0));
        allowance.charge(100);
        assert_eq!(allowance.admit(), Err(40));
        assert_eq!((allowance.left(), allowance.seconds_until_full()), (0, 100));
        allowance.refill(start + Duration::from_secs(41));
        assert_eq!((allowance.admit(), allowance.left()), (Ok(()), 1));
        assert_eq!(allowance.seconds_until_full(), 59);
        allowance.refill(start + Duration::from_secs(4000));
        assert_eq!((allowance.left(), allowance.seconds_until_full()), (60, 0));
    }
}
