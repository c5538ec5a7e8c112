//! A probability distribution over token ids.

/// Probabilities of the tokens that can be drawn, in order of token id. Tokens left out have
/// probability 0; the others sum to 1 up to rounding.
#[derive(Debug, Clone, PartialEq)]
pub struct Distribution {
    entries: Vec<(u32, f32)>,
}

impl Distribution {
    /// All probability on one token: greedy sampling.
    #[must_use]
    pub fn one_hot(id: u32) -> Self {
        Self { entries: vec![(id, 1.0)] }
    }

    /// Normalises non-negative weights given in strictly rising order of id. `None` if nothing has
    /// weight.
    #[must_use]
    pub fn from_weights(mut weights: Vec<(u32, f32)>) -> Option<Self> {
        debug_assert!(weights.is_sorted_by(|a, b| a.0 < b.0), "ids rise");
        weights.retain(|&(_, weight)| weight > 0.0);
        let sum: f64 = weights.iter().map(|&(_, weight)| f64::from(weight)).sum();
        if weights.is_empty() || !sum.is_finite() {
            return None;
        }
        for (_, weight) in &mut weights {
            *weight = (f64::from(*weight) / sum) as f32;
        }
        Some(Self { entries: weights })
    }

    /// The tokens with their probabilities, in order of id.
    #[must_use]
    pub fn entries(&self) -> &[(u32, f32)] {
        &self.entries
    }
}

/// What a token is drawn from.
pub trait Drawn: Sized {
    /// Probability of a token.
    fn prob(&self, id: u32) -> f32;

    /// The token at quantile `uniform` in [0, 1) of the cumulative distribution in order of id.
    fn draw(&self, uniform: f64) -> u32;

    /// The winner of an exponential race: the token with the least −ln(1 − uniform(id)) / prob(id),
    /// which is a draw from the distribution if the numbers are independent and uniform in [0, 1).
    /// (The Gumbel-max trick in other words.)
    fn race(&self, uniform: impl Fn(u32) -> f64) -> u32;

    /// norm(max(0, self − other)): what is left of the target's distribution after a draft token
    /// from `other` was rejected. `None` if nothing is left, which exact arithmetic rules out.
    fn residual(&self, other: &Distribution) -> Option<Self>;
}

impl Drawn for Distribution {
    fn prob(&self, id: u32) -> f32 {
        match self.entries.binary_search_by_key(&id, |&(entry, _)| entry) {
            Ok(index) => self.entries[index].1,
            Err(_) => 0.0,
        }
    }

    fn draw(&self, uniform: f64) -> u32 {
        let mut cumulative = 0.0;
        for &(id, prob) in &self.entries {
            cumulative += f64::from(prob);
            if uniform < cumulative {
                return id;
            }
        }
        // Rounding left the sum a little below `uniform`.
        let likely = self.entries.iter().rev().find(|&&(_, prob)| prob > 0.0);
        likely.expect("invariant: some token has probability").0
    }

    fn race(&self, uniform: impl Fn(u32) -> f64) -> u32 {
        if let [(only, _)] = self.entries[..] {
            return only;
        }
        race(self.entries.iter().map(|&(id, prob)| (id, f64::from(prob))), uniform)
    }

    fn residual(&self, other: &Self) -> Option<Self> {
        let mut others = other.entries.iter().peekable();
        let left = self.entries.iter().map(|&(id, prob)| {
            while others.next_if(|&&(entry, _)| entry < id).is_some() {}
            let taken = others.next_if(|&&(entry, _)| entry == id).map_or(0.0, |&(_, prob)| prob);
            (id, (prob - taken).max(0.0))
        });
        Self::from_weights(left.collect())
    }
}

/// The winner of a race of tokens with their weights, one of which is positive.
pub(super) fn race(weighed: impl Iterator<Item = (u32, f64)>, uniform: impl Fn(u32) -> f64) -> u32 {
    let (mut winner, mut best) = (None, f64::INFINITY);
    for (id, weight) in weighed {
        let uniform = uniform(id);
        // −ln(1 − u) ≥ u: most lose without a logarithm.
        if winner.is_none() || uniform < best * weight {
            let time = -(-uniform).ln_1p() / weight;
            if winner.is_none() || time < best {
                (winner, best) = (Some(id), time);
            }
        }
    }
    winner.expect("invariant: some token has weight")
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
        assert_eq!(target.residual(&draft).unwrap().entries(), [(1, 0.5), (4, 0.5)]);
        assert_eq!(target.residual(&target), None);
        let one = Distribution::one_hot(3);
        assert_eq!(one.residual(&Distribution::one_hot(4)), Some(one));
    }
}
