//! What the target's tokens are drawn from.

use super::{Distribution, Drawn, Weights};

/// The target's distribution of a token.
#[derive(Debug, Clone, PartialEq)]
pub enum TargetDistribution {
    /// Some tokens are left of the vocabulary.
    Cut(Distribution),
    /// All are.
    Whole(Weights),
}

impl Drawn for TargetDistribution {
    fn prob(&self, id: u32) -> f32 {
        match self {
            Self::Cut(distribution) => distribution.prob(id),
            Self::Whole(weights) => weights.prob(id),
        }
    }

    fn draw(&self, uniform: f64) -> u32 {
        match self {
            Self::Cut(distribution) => distribution.draw(uniform),
            Self::Whole(weights) => weights.draw(uniform),
        }
    }

    fn race(&self, uniform: impl Fn(u32) -> f64) -> u32 {
        match self {
            Self::Cut(distribution) => distribution.race(uniform),
            Self::Whole(weights) => weights.race(uniform),
        }
    }

    fn residual(&self, other: &Distribution) -> Option<Self> {
        match self {
            Self::Cut(distribution) => distribution.residual(other).map(Self::Cut),
            Self::Whole(weights) => weights.residual(other).map(Self::Whole),
        }
    }
}
