//! What forward passes cost, and what that is worth in tokens.

use std::collections::BTreeMap;

/// Share of the difference that one pass moves the cost of its own number of rows by, at least.
const OWN: f64 = 0.03;
/// Share that it moves all costs by: the machine as a whole is slower or faster.
const ALL: f64 = 0.05;
/// Passes that a measurement counts as.
const MEASURED: u32 = 40;

/// Seconds of a pass by its number of rows: measured at first, then followed as passes run. Between
/// known numbers of rows the cost is a line.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepCost {
    /// Rows → seconds, and the passes that say so.
    points: BTreeMap<usize, (f64, u32)>,
}

/// Large passes share a point with those of nearly as many rows.
fn class(rows: usize) -> usize {
    let width = (rows / 16).next_power_of_two();
    rows.div_ceil(width) * width
}

impl StepCost {
    /// Sets the cost of passes with `rows` rows to a measurement.
    pub fn measured(&mut self, rows: usize, seconds: f64) {
        self.points.insert(class(rows), (seconds, MEASURED));
    }

    /// Takes a pass into account.
    pub fn observe(&mut self, rows: usize, seconds: f64) {
        let rows = class(rows);
        let Some(expected) = self.seconds(rows) else {
            self.points.insert(rows, (seconds, 1));
            return;
        };
        // One pass that was interrupted says little.
        let ratio = (seconds / expected).clamp(0.5, 2.0);
        let (own, passes) = self.points.entry(rows).or_insert((expected, 0));
        *passes += 1;
        *own *= ratio.powf(OWN.max(1.0 / f64::from(*passes)));
        self.points.values_mut().for_each(|(seconds, _)| *seconds *= ratio.powf(ALL));
    }

    /// Seconds of a pass with `rows` rows, or `None` before the first.
    #[must_use]
    pub fn seconds(&self, rows: usize) -> Option<f64> {
        let point = |(&rows, &(seconds, _)): (&usize, &(f64, u32))| (rows as f64, seconds);
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

/// What computing more costs, in tokens that would otherwise be generated in the same time.
#[derive(Debug, Clone, Copy, Default)]
pub struct Prices<'a> {
    /// Costs of target and draft passes and tokens per second, where known.
    known: Option<(&'a StepCost, &'a StepCost, f64)>,
}

impl<'a> Prices<'a> {
    /// Prices at a rate of `tokens_per_second`.
    #[must_use]
    pub fn new(target: &'a StepCost, draft: &'a StepCost, tokens_per_second: f64) -> Self {
        Self { known: Some((target, draft, tokens_per_second)) }
    }

    /// Prices of 0: every draft token is worth a try.
    #[must_use]
    pub fn free() -> Self {
        Self::default()
    }

    /// `more` rows in a target pass that has `rows`.
    #[must_use]
    pub fn rows(&self, rows: usize, more: usize) -> f64 {
        let price = |(target, _, rate): (&StepCost, &StepCost, f64)| {
            let added = target.seconds(rows + more)? - target.seconds(rows)?;
            Some((rate * added).max(0.0))
        };
        self.known.and_then(price).unwrap_or(0.0)
    }

    /// A draft pass with `rows` rows.
    #[must_use]
    pub fn draft_pass(&self, rows: usize) -> f64 {
        let price =
            |(_, draft, rate): (&StepCost, &StepCost, f64)| Some(rate * draft.seconds(rows)?);
        self.known.and_then(price).unwrap_or(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_between_points() {
        let mut cost = StepCost::default();
        assert_eq!(cost.seconds(1), None);
        cost.measured(2, 1.0);
        assert_eq!([1, 2, 9].map(|rows| cost.seconds(rows)), [Some(1.0); 3], "one point: flat");
        cost.measured(4, 2.0);
        let at = |rows| cost.seconds(rows).unwrap();
        assert_eq!([1, 2, 3, 4, 8].map(at), [1.0, 1.0, 1.5, 2.0, 4.0]);
        cost.measured(8, 1.0);
        assert_eq!([6, 8, 100].map(|rows| cost.seconds(rows).unwrap()), [1.5, 1.0, 1.0]);
    }

    #[test]
    fn follows_what_is_seen() {
        let mut cost = StepCost::default();
        cost.measured(1, 1.0);
        cost.measured(4, 1.5);
        // A busy machine doubles everything, though only one number of rows is seen.
        (0..200).for_each(|_| cost.observe(1, 2.0));
        assert!((cost.seconds(1).unwrap() - 2.0).abs() < 0.05);
        assert!(cost.seconds(4).unwrap() > 2.2);
        // Rows of other numbers find their own cost.
        (0..600).for_each(|step| cost.observe(1 + step % 2 * 4, [2.0, 5.0][step % 2]));
        assert!((cost.seconds(5).unwrap() - 5.0).abs() < 0.3);
        assert!((cost.seconds(1).unwrap() - 2.0).abs() < 0.2);
        let before = cost.seconds(1).unwrap();
        cost.observe(1, 1000.0);
        assert!(cost.seconds(1).unwrap() < 1.1 * before, "an interruption");
    }

    #[test]
    fn prices_are_in_tokens() {
        let (mut target, mut draft) = (StepCost::default(), StepCost::default());
        target.measured(1, 1.0);
        target.measured(5, 2.0);
        draft.measured(1, 0.1);
        let prices = Prices::new(&target, &draft, 3.0);
        assert_eq!((prices.rows(1, 4), prices.rows(1, 0)), (3.0, 0.0));
        assert!((prices.draft_pass(1) - 0.3).abs() < 1e-12);
        assert_eq!((Prices::free().rows(1, 4), Prices::free().draft_pass(9)), (0.0, 0.0));
    }
}
