//! How many rows of prompts a pass may have while sequences decode.

use crate::kv_cache::BLOCK_SIZE;

/// Seconds that prompts may add to a pass that others wait for.
const MOST_SECONDS: f64 = 0.15;
/// Rows of prompts that a pass may have however long they take.
const LEAST_ROWS: usize = BLOCK_SIZE;
/// Share of the difference that one pass moves the pace by.
const SHARE: f64 = 0.3;

/// How fast prompts are read: measured on the passes that read them, so that it follows model, machine and contexts.
#[derive(Debug, Default)]
pub(super) struct PromptPace {
    /// Seconds of a row; `None` before the first.
    row: Option<f64>,
}

impl PromptPace {
    /// Takes a pass into account to which `rows` rows of prompts added `seconds`. Few rows say little.
    pub(super) fn observe(&mut self, rows: usize, seconds: f64) {
        if rows >= LEAST_ROWS {
            let row = seconds.max(0.0) / rows as f64;
            self.row = Some(self.row.map_or(row, |known| known + SHARE * (row - known)));
        }
    }

    /// Rows of prompts that a pass may have while sequences decode.
    pub(super) fn rows(&self) -> usize {
        // A pace of 0 leaves all rows there are.
        self.row.map_or(usize::MAX, |row| ((MOST_SECONDS / row) as usize).max(LEAST_ROWS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_follow_the_pace() {
        let mut pace = PromptPace::default();
        assert_eq!(pace.rows(), usize::MAX, "nothing is known");
        pace.observe(LEAST_ROWS - 1, 100.0);
        assert_eq!(pace.rows(), usize::MAX, "few rows");
        pace.observe(500, 5.0);
        assert_eq!(pace.rows(), LEAST_ROWS, "10 ms a row");
        (0..50).for_each(|_| pace.observe(100, 0.05));
        assert!((290..=300).contains(&pace.rows()), "{}", pace.rows());
        (0..50).for_each(|_| pace.observe(100, -1.0));
        assert!(pace.rows() > 1_000_000);
    }
}
