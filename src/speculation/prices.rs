//! What passes cost here, and what that is worth in tokens.

use super::{StepCost, Work};

/// A draft pass's place in its round: the weights of the target's pass have swept those of the first out of the
/// processor's caches, and further passes find them there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DraftStep {
    /// Behind a pass of the target.
    First,
    /// Behind another draft pass.
    Further,
}

/// What passes of the target and of the draft model cost, measured at first and followed as they run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Costs {
    /// Costs of target passes.
    pub target: StepCost,
    /// Costs of draft passes, by [`DraftStep`].
    pub draft: [StepCost; 2],
}

impl Costs {
    /// Takes a target pass into account. It tells how fast the machine is, and so of the draft model's passes too.
    pub fn observe_target(&mut self, work: Work, seconds: f64) {
        let machine = self.target.observe(work, seconds);
        self.draft.iter_mut().for_each(|cost| cost.scale(machine));
    }

    /// Takes a draft pass into account, and what it tells of the machine.
    pub fn observe_draft(&mut self, step: DraftStep, rows: usize, seconds: f64) {
        let machine = self.draft[step as usize].observe(rows, seconds);
        self.target.scale(machine);
        self.draft[1 - step as usize].scale(machine);
    }

    /// Sets the cost of draft passes with `rows` rows to a measurement.
    pub fn measured_draft(&mut self, step: DraftStep, rows: usize, seconds: f64) {
        self.draft[step as usize].measured(rows, seconds);
    }

    /// Another draft model takes over, of which one cost is known.
    pub fn replace_draft(&mut self, cost: &StepCost) {
        self.draft = [cost.clone(), cost.clone()];
    }
}

/// What computing more costs, in tokens that would otherwise be generated in the same time.
#[derive(Debug, Clone, Copy, Default)]
pub struct Prices<'a> {
    /// Costs and tokens per second, where known.
    known: Option<(&'a Costs, f64)>,
}

impl<'a> Prices<'a> {
    /// Prices at a rate of `tokens_per_second`.
    #[must_use]
    pub fn new(costs: &'a Costs, tokens_per_second: f64) -> Self {
        Self { known: Some((costs, tokens_per_second)) }
    }

    /// Prices of 0: every draft token is worth a try.
    #[must_use]
    pub fn free() -> Self {
        Self::default()
    }

    /// `more` rows of a sequence with `context` positions that is part of a target pass of `work`.
    #[must_use]
    pub fn rows(&self, work: Work, more: usize, context: usize) -> f64 {
        let price = |(costs, rate): (&Costs, f64)| {
            let with = costs.target.seconds(work.further(more, context))?;
            Some((rate * (with - costs.target.seconds(work)?)).max(0.0))
        };
        self.known.and_then(price).unwrap_or(0.0)
    }

    /// A draft pass with `rows` rows. A further one costs no more than a first one, and as much where none is known.
    #[must_use]
    pub fn draft_pass(&self, step: DraftStep, rows: usize) -> f64 {
        let price = |(costs, rate): (&Costs, f64)| {
            let [first, further] = costs.draft.each_ref().map(|cost| cost.matrices(rows));
            let seconds = match (step, further) {
                (DraftStep::Further, Some(further)) => first.map_or(further, |f| f.min(further)),
                _ => first?,
            };
            Some(rate * seconds)
        };
        self.known.and_then(price).unwrap_or(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prices_are_in_tokens() {
        let mut costs = Costs::default();
        costs.target.measured_attention(0.01);
        costs.target.measured(1, 1.0);
        costs.target.measured(5, 2.0);
        costs.measured_draft(DraftStep::First, 1, 0.1);
        let prices = Prices::new(&costs, 3.0);
        assert_eq!((prices.rows(1.into(), 4, 0), prices.rows(1.into(), 0, 9)), (3.0, 0.0));
        assert!((prices.rows(1.into(), 4, 100) - 6.0).abs() < 1e-9);
        for step in [DraftStep::First, DraftStep::Further] {
            assert!((prices.draft_pass(step, 1) - 0.3).abs() < 1e-12);
            assert_eq!(Prices::free().draft_pass(step, 9), 0.0);
        }
        let mut warm = costs.clone();
        warm.measured_draft(DraftStep::Further, 1, 0.05);
        let prices = Prices::new(&warm, 3.0);
        assert!((prices.draft_pass(DraftStep::First, 1) - 0.3).abs() < 1e-12);
        assert!((prices.draft_pass(DraftStep::Further, 1) - 0.15).abs() < 1e-12);
        assert_eq!(Prices::free().rows(1.into(), 4, 7), 0.0);
    }

    /// A machine that is twice as slow makes every pass dearer, whichever tells of it.
    #[test]
    fn all_costs_follow_the_machine() {
        let mut costs = Costs::default();
        costs.target.measured(1, 1.0);
        costs.measured_draft(DraftStep::First, 1, 0.1);
        costs.measured_draft(DraftStep::Further, 1, 0.05);
        let before = costs.clone();
        (0..20).for_each(|_| costs.observe_target(1.into(), 2.0));
        (0..20).for_each(|_| costs.observe_draft(DraftStep::Further, 1, 0.1));
        for (now, then) in costs.draft.iter().zip(&before.draft) {
            assert!(now.matrices(1) > then.matrices(1).map(|seconds| 1.5 * seconds));
        }
        assert!(costs.target.matrices(1) > Some(1.5));
    }
}
