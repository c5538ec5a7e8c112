//! A draft that was tried.

use serde::{Deserialize, Serialize};

use super::shape::Shape;

/// A draft that was tried.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Tried {
    #[serde(flatten)]
    pub(crate) shape: Shape,
    /// Chance that a draft token is accepted, given that all before it were.
    pub(crate) alpha: f64,
    /// At four draft tokens a round.
    pub(crate) mean_acceptance_length: f64,
    /// Seconds of a draft step over those of a target step.
    pub(crate) draft_step_cost: f64,
    /// With n-grams alone: tokens per second over those without speculation, the geometric mean over the tasks.
    pub(crate) ngram: f64,
    /// With the draft alone.
    pub(crate) draft: f64,
    /// With both.
    pub(crate) both: f64,
}

impl Tried {
    /// What it adds to n-grams.
    pub(super) fn gain(&self) -> f64 {
        self.both / self.ngram
    }
}
