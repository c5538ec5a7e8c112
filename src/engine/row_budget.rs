//! How many rows a pass may have, where memory does not hold as many as are set.

/// Passes that must go well before larger ones are tried.
const PATIENCE: usize = 64;

/// Halved where a pass did not fit, and doubled after a while: what took the memory may have given it back.
#[derive(Debug)]
pub(super) struct RowBudget {
    most: usize,
    rows: usize,
    passed: usize,
}

impl RowBudget {
    /// Passes of `most` rows, until one does not fit.
    pub(super) const fn new(most: usize) -> Self {
        Self { most, rows: most, passed: 0 }
    }

    /// Rows that the next pass may have.
    pub(super) const fn rows(&self) -> usize {
        self.rows
    }

    /// A pass of so many rows did not fit. `false` where none is smaller.
    pub(super) fn failed(&mut self, rows: usize) -> bool {
        (self.rows, self.passed) = ((rows / 2).max(1), 0);
        rows > 1
    }

    /// A pass went well.
    pub(super) fn passed(&mut self) {
        self.passed += 1;
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
        assert!(budget.failed(60) && budget.rows() == 30);
        assert!(budget.failed(3) && budget.rows() == 1);
        assert!(!budget.failed(1) && budget.rows() == 1);
        (1..PATIENCE).for_each(|_| budget.passed());
        assert_eq!(budget.rows(), 1);
        budget.passed();
        assert_eq!(budget.rows(), 2);
        (0..7 * PATIENCE).for_each(|_| budget.passed());
        assert_eq!(budget.rows(), 100);
    }
}
