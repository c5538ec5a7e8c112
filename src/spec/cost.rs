//! What a forward pass costs, learnt from the passes that ran.

/// Share of the weight older passes keep when a new one is seen.
const DECAY: f64 = 0.97;

/// Seconds of a pass as a line over its number of rows, fitted to recent passes by least squares.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct StepCost {
    weight: f64,
    rows: f64,
    seconds: f64,
    rows_rows: f64,
    rows_seconds: f64,
}

impl StepCost {
    /// Takes a pass into account.
    pub fn observe(&mut self, rows: usize, seconds: f64) {
        let rows = rows as f64;
        let terms = [
            (&mut self.weight, 1.0),
            (&mut self.rows, rows),
            (&mut self.seconds, seconds),
            (&mut self.rows_rows, rows * rows),
            (&mut self.rows_seconds, rows * seconds),
        ];
        for (sum, term) in terms {
            *sum = *sum * DECAY + term;
        }
    }

    /// Seconds of a pass with `rows` rows, or `None` before the first pass.
    #[must_use]
    pub fn seconds(&self, rows: usize) -> Option<f64> {
        if self.weight == 0.0 {
            return None;
        }
        let mean_rows = self.rows / self.weight;
        let mean_seconds = self.seconds / self.weight;
        let variance = self.rows_rows / self.weight - mean_rows * mean_rows;
        let covariance = self.rows_seconds / self.weight - mean_rows * mean_seconds;
        // More rows never cost less, and a pass never costs less than its rows' share.
        let most = mean_seconds / mean_rows;
        let slope = if variance > 1e-6 { (covariance / variance).clamp(0.0, most) } else { 0.0 };
        Some((mean_seconds + slope * (rows as f64 - mean_rows)).max(1e-9))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fits_a_line() {
        let mut cost = StepCost::default();
        assert_eq!(cost.seconds(1), None);
        cost.observe(5, 0.02);
        assert_eq!(cost.seconds(1), Some(0.02), "one point: flat");
        for rows in [1, 5, 1, 5, 3, 5, 9].into_iter().cycle().take(70) {
            cost.observe(rows, 0.01 + 0.002 * rows as f64);
        }
        let close = |rows, expected: f64| {
            let seconds = cost.seconds(rows).unwrap();
            assert!((seconds - expected).abs() < 0.1 * expected, "{rows} rows: {seconds}");
        };
        close(1, 0.012);
        close(8, 0.026);
    }

    #[test]
    fn recent_passes_count_most() {
        let mut cost = StepCost::default();
        (0..200).for_each(|_| cost.observe(1, 1.0));
        (0..200).for_each(|_| cost.observe(1, 2.0));
        assert!((cost.seconds(1).unwrap() - 2.0).abs() < 0.01);
    }
}
