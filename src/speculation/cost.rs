//! What forward passes cost, in seconds.

use std::collections::BTreeMap;

/// Share of the difference that one pass moves the cost of its own number of rows by, at least.
const OWN: f64 = 0.03;
/// Share that it moves all costs by: the machine as a whole is slower or faster.
const ALL: f64 = 0.05;
/// Passes that a measurement counts as.
const MEASURED: f64 = 40.0;

/// A row reads the cached positions before it; a further row of the same sequence shares the reading, and
/// costs about this part of the first (1/3 for a second row to 1/5 for a sixteenth, measured).
const FURTHER: f64 = 0.25;

/// What a pass computes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Work {
    /// Rows of all sequences.
    pub rows: usize,
    /// Cached positions that attention reads, those that rows share counted once and a little.
    pub positions: f64,
}

impl From<usize> for Work {
    /// Rows that attend to next to nothing.
    fn from(rows: usize) -> Self {
        Self { rows, positions: 0.0 }
    }
}

impl Work {
    /// Adds a sequence that computes `rows` rows behind `context` cached positions.
    #[must_use]
    pub fn sequence(self, rows: usize, context: usize) -> Self {
        let first = if rows == 0 { 0.0 } else { (1.0 - FURTHER) * context as f64 };
        let work = self.further(rows, context);
        Self { positions: work.positions + first, ..work }
    }

    /// Adds `rows` rows to a sequence that is part of the work, behind `context` cached positions.
    #[must_use]
    pub fn further(self, rows: usize, context: usize) -> Self {
        let positions = self.positions + FURTHER * (rows * context) as f64;
        Self { rows: self.rows + rows, positions }
    }
}

/// Seconds of a pass by its work: measured at first, then followed as passes run. Between known
/// numbers of rows the cost is a line, and attention adds a price per position read.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepCost {
    /// Rows → seconds without attention, and the passes that say so.
    points: BTreeMap<usize, (f64, f64)>,
    /// Seconds per position read.
    attention: f64,
}

/// The numbers of rows on either side whose costs are kept: powers of two, and half-way between.
fn around(rows: usize) -> (usize, usize) {
    let power = 1 << rows.max(1).ilog2();
    match (power + power / 2, 2 * power) {
        _ if rows <= power => (power, power),
        (middle, _) if rows == middle => (middle, middle),
        (middle, _) if rows < middle => (power, middle),
        (middle, next) => (middle, next),
    }
}

impl StepCost {
    /// Sets what attention costs, in seconds per position read. To be called before
    /// [`measured`](Self::measured), which leaves it out.
    pub fn measured_attention(&mut self, seconds: f64) {
        self.attention = seconds.max(0.0);
    }

    /// Sets the cost of passes with the rows of `work` to a measurement.
    pub fn measured(&mut self, work: impl Into<Work>, seconds: f64) {
        let work = work.into();
        let matrices = self.without_attention(work, seconds);
        self.points.insert(work.rows, (matrices, MEASURED));
    }

    /// Takes a pass into account. Returns how many times slower than expected the machine as a whole
    /// seems to be, as far as one pass can tell.
    pub fn observe(&mut self, work: impl Into<Work>, seconds: f64) -> f64 {
        let work = work.into();
        let Some(expected) = self.seconds(work) else {
            let matrices = self.without_attention(work, seconds);
            self.points.insert(work.rows, (matrices, 1.0));
            return 1.0;
        };
        // One pass that was interrupted says little.
        let ratio = (seconds / expected).clamp(0.5, 2.0);
        self.attention *= ratio.powf(OWN * self.attention * work.positions / expected);
        let (below, above) = around(work.rows);
        let share = (work.rows - below) as f64 / (above - below).max(1) as f64;
        let mut trust = 0.0;
        for (rows, weight) in [(below, 1.0 - share), (above, share)] {
            if let Some(expected) = self.matrices(rows).filter(|_| weight > 0.0) {
                let (own, passes) = self.points.entry(rows).or_insert((expected, 0.0));
                // A cost that is little known learns; a well-known one tells of the machine.
                trust += weight * (*passes / MEASURED).min(1.0);
                *passes += weight;
                *own *= ratio.powf(weight * OWN.max(1.0 / *passes));
            }
        }
        let machine = ratio.powf(ALL * trust);
        self.scale(machine);
        machine
    }

    /// Multiplies all costs: the machine has become slower or faster.
    pub fn scale(&mut self, factor: f64) {
        self.points.values_mut().for_each(|(seconds, _)| *seconds *= factor);
        self.attention *= factor;
    }

    /// Seconds of a pass, or `None` before the first.
    #[must_use]
    pub fn seconds(&self, work: impl Into<Work>) -> Option<f64> {
        let work = work.into();
        Some(self.matrices(work.rows)? + self.attention * work.positions)
    }

    /// What is left of `seconds` for all but attention.
    fn without_attention(&self, work: Work, seconds: f64) -> f64 {
        (seconds - self.attention * work.positions).max(seconds / 4.0)
    }

    /// Seconds of a pass with `rows` rows that attend to nothing.
    pub(super) fn matrices(&self, rows: usize) -> Option<f64> {
        let point = |(&rows, &(seconds, _)): (&usize, &(f64, f64))| (rows as f64, seconds);
        let below = self.points.range(..=rows).next_back().map(point);
        let above = self.points.range(rows + 1..).next().map(point);
        let (a, b) = match (below, above) {
            (Some(below), Some(above)) => (below, above),
            // Beyond the last point as between the last two.
            (Some(last), None) => match self.points.range(..last.0 as usize).next_back() {
                Some(before) => (point(before), last),
                None => return Some(last.1),
            },
            (None, above) => return above.map(|(_, seconds)| seconds),
        };
        let slope = (b.1 - a.1) / (b.0 - a.0);
        let from = if above.is_some() { a } else { b };
        let slope = if above.is_some() { slope } else { slope.max(0.0) };
        Some(from.1 + slope * (rows as f64 - from.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_numbers_of_rows() {
        let expected = [(1, 1), (2, 2), (3, 3), (4, 4), (4, 6), (6, 6), (6, 8), (8, 8), (8, 12)];
        assert_eq!((1..10).map(around).collect::<Vec<_>>(), expected);
        assert_eq!([13, 500].map(around), [(12, 16), (384, 512)]);
    }

    #[test]
    fn lines_between_points() {
        let mut cost = StepCost::default();
        assert_eq!(cost.seconds(1), None);
        cost.measured(2, 1.0);
        assert_eq!([1, 2, 9].map(|n| cost.seconds(n)), [Some(1.0); 3], "one point: flat");
        cost.measured(4, 2.0);
        let at = |cost: &StepCost, n: usize| cost.seconds(n).unwrap();
        assert_eq!([1, 2, 3, 4, 8].map(|n| at(&cost, n)), [1.0, 1.0, 1.5, 2.0, 4.0]);
        cost.measured(8, 1.0);
        assert_eq!([6, 8, 100].map(|n| at(&cost, n)), [1.5, 1.0, 1.0]);
    }

    #[test]
    fn follows_what_is_seen() {
        let mut cost = StepCost::default();
        cost.measured(1, 1.0);
        cost.measured(4, 1.5);
        let at = |cost: &StepCost, n: usize| cost.seconds(n).unwrap();
        // A busy machine doubles everything, though only one number of rows is seen.
        let machine: f64 = (0..200).map(|_| cost.observe(1, 2.0)).product();
        assert!((at(&cost, 1) - 2.0).abs() < 0.05);
        assert!(at(&cost, 4) > 2.2 && (at(&cost, 4) / machine - 1.5).abs() < 1e-6);
        // Rows of other numbers find their own cost.
        (0..900).for_each(|step| {
            cost.observe(1 + step % 2 * 4, [2.0, 5.0][step % 2]);
        });
        assert!((at(&cost, 5) - 5.0).abs() < 0.3, "{}", at(&cost, 5));
        assert!((at(&cost, 1) - 2.0).abs() < 0.2);
        let before = at(&cost, 1);
        cost.observe(1, 1000.0);
        assert!(at(&cost, 1) < 1.1 * before, "an interruption");
    }

    /// What is not known yet is learnt without doubting what is: else a few long passes of a draft
    /// model would make its short ones look dear.
    #[test]
    fn the_unknown_leaves_the_known_alone() {
        let mut cost = StepCost::default();
        cost.measured(1, 1.0);
        cost.measured(16, 2.0);
        (0..10).for_each(|_| assert_eq!(cost.observe(96, 30.0).max(1.1), 1.1));
        assert!((cost.seconds(1).unwrap() - 1.0).abs() < 0.2);
        assert!((cost.seconds(96).unwrap() - 30.0).abs() < 3.0);
    }

    #[test]
    fn attention_is_told_from_rows() {
        // 1 + 0.1 per row, and 0.001 per position.
        let truth = |work: Work| 1.0 + 0.1 * work.rows as f64 + 1e-3 * work.positions;
        let mut cost = StepCost::default();
        cost.measured_attention(4e-4);
        for n in [1, 2, 4, 8] {
            cost.measured(Work::default().sequence(n, 50), truth(Work::default().sequence(n, 50)));
        }
        for step in 0..4000 {
            let work = Work::default().sequence(1 + step % 8, 50 + step * 7 % 1000);
            cost.observe(work, truth(work));
        }
        for (n, context) in [(1, 50), (1, 1000), (4, 500), (8, 1000)] {
            let work = Work::default().sequence(n, context);
            let error = cost.seconds(work).unwrap() / truth(work) - 1.0;
            assert!(error.abs() < 0.2, "{work:?}: {error}");
        }
    }
}
