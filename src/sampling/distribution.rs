//! A probability distribution over token ids.

use super::listed::Listed;
use super::weights::Weights;

/// What tokens are drawn from.
#[derive(Debug, Clone, PartialEq)]
pub enum Distribution {
    /// A few tokens are left of all.
    Listed(Listed),
    /// All that a model knows are.
    Whole(Weights),
}

impl Distribution {
    /// All probability on one token: greedy sampling.
    #[must_use]
    pub fn one_hot(id: u32) -> Self {
        Self::Listed(Listed::one_hot(id))
    }

    /// Normalises non-negative weights given in strictly rising order of id. `None` if nothing has
    /// weight.
    #[must_use]
    pub fn from_weights(weights: Vec<(u32, f32)>) -> Option<Self> {
        Listed::from_weights(weights).map(Self::Listed)
    }

    /// The tokens that can be drawn with their probabilities, in order of id.
    #[must_use]
    pub fn entries(&self) -> Vec<(u32, f32)> {
        match self {
            Self::Listed(listed) => listed.entries().to_vec(),
            Self::Whole(weights) => weights.entries().collect(),
        }
    }

    /// Whether this token alone can be drawn.
    #[must_use]
    pub fn is_certain(&self, id: u32) -> bool {
        matches!(self, Self::Listed(listed) if matches!(listed.entries(), [(only, _)] if *only == id))
    }

    /// Probability of a token.
    #[must_use]
    pub fn prob(&self, id: u32) -> f32 {
        match self {
            Self::Listed(listed) => listed.prob(id),
            Self::Whole(weights) => weights.prob(id),
        }
    }

    /// The token at quantile `uniform` in [0, 1) of the cumulative distribution in order of id.
    #[must_use]
    pub fn draw(&self, uniform: f64) -> u32 {
        match self {
            Self::Listed(listed) => listed.draw(uniform),
            Self::Whole(weights) => weights.draw(uniform),
        }
    }

    /// The winner of an exponential race, whose numbers are the hashes of `key` and the tokens: a draw in which the
    /// distributions of two models agree more often than in independent ones.
    #[must_use]
    pub fn race(&self, key: u64) -> u32 {
        match self {
            Self::Listed(listed) => listed.race(key),
            Self::Whole(weights) => weights.race(key),
        }
    }

    /// norm(max(0, self − other)): what is left of the target's distribution after a draft token
    /// from `other` was rejected. `None` if nothing is left, which exact arithmetic rules out.
    #[must_use]
    pub fn residual(self, other: &Self) -> Option<Self> {
        match self {
            Self::Listed(listed) => listed.residual(|id| other.prob(id)).map(Self::Listed),
            Self::Whole(weights) => {
                let left = match other {
                    Self::Listed(listed) => weights.without(listed.entries().iter().copied()),
                    Self::Whole(other) => weights.without(other.entries()),
                };
                left.map(Self::Whole)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dist(weights: &[(u32, f32)]) -> Distribution {
        Distribution::from_weights(weights.to_vec()).unwrap()
    }

    #[test]
    fn normalises_and_draws_by_quantile() {
        let d = dist(&[(2, 1.0), (5, 0.0), (9, 3.0)]);
        assert_eq!(d.entries(), [(2, 0.25), (9, 0.75)]);
        assert_eq!((d.prob(9), d.prob(5), d.prob(3)), (0.75, 0.0, 0.0));
        assert_eq!((d.draw(0.0), d.draw(0.2499), d.draw(0.25), d.draw(0.9999)), (2, 2, 9, 9));
        assert_eq!(Distribution::from_weights(vec![(1, 0.0)]), None);
        assert_eq!(Distribution::from_weights(vec![]), None);
    }

    #[test]
    fn residual_keeps_only_the_excess() {
        let target = dist(&[(1, 0.5), (2, 0.25), (4, 0.25)]);
        let draft = dist(&[(0, 0.25), (1, 0.25), (2, 0.5)]);
        assert_eq!(target.clone().residual(&draft).unwrap().entries(), [(1, 0.5), (4, 0.5)]);
        assert_eq!(target.clone().residual(&target), None);
        let one = Distribution::one_hot(3);
        assert_eq!(one.clone().residual(&Distribution::one_hot(4)), Some(one.clone()));
        assert!(one.is_certain(3) && !one.is_certain(4) && !target.is_certain(1));
    }
}
