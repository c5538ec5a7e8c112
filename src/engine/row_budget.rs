//! How many rows a pass may have, where memory does not hold as many as are set.

use std::time::Duration;

/// Tries of a pass of one row, and the time between them: what took the memory may give it back.
const TRIES: usize = 8;
const PAUSE: Duration = Duration::from_millis(50);
/// Passes that must go well before larger ones are tried.
const PATIENCE: usize = 64;

/// Halved where a pass did not fit, and doubled after a while: what took the memory may have given it back.
#[derive(Debug)]
pub(super) struct RowBudget {
    most: usize,
    rows: usize,
    passed: usize,
    /// Passes of one row that did not fit, one after the other.
    failed: usize,
}

impl RowBudget {
    /// Passes of `most` rows, until one does not fit.
    pub(super) const fn new(most: usize) -> Self {
        Self { most, rows: most, passed: 0, failed: 0 }
    }

    /// Rows that the next pass may have.
    pub(super) const fn rows(&self) -> usize {
        self.rows
    }

    /// A pass of so many rows did not fit. Returns how long to wait before the next; `None` where none is smaller and
    /// this one was tried often enough.
    pub(super) fn failed(&mut self, rows: usize) -> Option<Duration> {
        (self.rows, self.passed) = ((rows / 2).max(1), 0);
        if rows > 1 {
            return Some(Duration::ZERO);
        }
        self.failed = (self.failed + 1) % TRIES;
        (self.failed > 0).then_some(PAUSE)
    }

    /// A pass went well.
    pub(super) fn passed(&mut self) {
        (self.passed, self.failed) = (self.passed + 1, 0);
        if self.passed == PATIENCE {
            (self.rows, self.passed) = ((2 * self.rows).min(self.most), 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_halved_at_once_and_come_back_slowly() {
        let mut budget = RowBudget::new(100);
        (0..1000).for_each(|_| budget.passed());
        assert_eq!(budget.rows(), 100);
        assert_eq!((budget.failed(60), budget.rows()), (Some(Duration::ZERO), 30));
        assert_eq!((budget.failed(3), budget.rows()), (Some(Duration::ZERO), 1));
        (1..PATIENCE).for_each(|_| budget.passed());
        assert_eq!(budget.rows(), 1);
        budget.passed();
        assert_eq!(budget.rows(), 2);
        (0..7 * PATIENCE).for_each(|_| budget.passed());
        assert_eq!(budget.rows(), 100);
    }

    #[test]
    fn a_pass_of_one_row_is_tried_again() {
        let mut budget = RowBudget::new(100);
        for _ in 0..2 {
            (1..TRIES).for_each(|_| assert_eq!(budget.failed(1), Some(PAUSE)));
            assert_eq!((budget.failed(1), budget.rows()), (None, 1));
        }
        (1..TRIES).for_each(|_| assert_eq!(budget.failed(1), Some(PAUSE)));
        budget.passed();
        assert_eq!(budget.failed(1), Some(PAUSE), "it went well in between");
    }
}
