//! The target's distribution where nothing is cut off it: a weight for every token of the vocabulary, as they come.

use super::distribution::{Distribution, Drawn, race};

/// Weights summed at a time.
const BLOCK: usize = 512;

/// A weight for every token id; the chance of a token is its share of all weight.
#[derive(Debug, Clone, PartialEq)]
pub struct Weights {
    weights: Vec<f32>,
    total: f64,
}

/// The sum of some weights, in a fixed order.
pub(super) fn sum(weights: &[f32]) -> f64 {
    let mut parts = [0.0; 8];
    let (chunks, rest) = weights.as_chunks::<8>();
    for chunk in chunks {
        for (part, weight) in parts.iter_mut().zip(chunk) {
            *part += f64::from(*weight);
        }
    }
    parts.iter().sum::<f64>() + rest.iter().map(|&weight| f64::from(weight)).sum::<f64>()
}

impl Weights {
    /// Takes non-negative weights. `None` if nothing has weight.
    #[must_use]
    pub fn new(weights: Vec<f32>) -> Option<Self> {
        let total = weights.chunks(BLOCK).map(sum).sum::<f64>();
        (total > 0.0 && total.is_finite()).then_some(Self { weights, total })
    }

    /// The last token of `weights`, the first of which is `first`, that has any.
    fn last(first: usize, weights: &[f32]) -> Option<u32> {
        weights.iter().rposition(|&weight| weight > 0.0).map(|place| (first + place) as u32)
    }
}

impl Drawn for Weights {
    fn prob(&self, id: u32) -> f32 {
        let weight = self.weights.get(id as usize).copied().unwrap_or(0.0);
        (f64::from(weight) / self.total) as f32
    }

    fn draw(&self, uniform: f64) -> u32 {
        let mut left = uniform * self.total;
        for (block, weights) in self.weights.chunks(BLOCK).enumerate() {
            let whole = sum(weights);
            if left >= whole {
                left -= whole;
                continue;
            }
            let first = block * BLOCK;
            let place = weights.iter().position(|&weight| {
                left -= f64::from(weight);
                left < 0.0
            });
            let id = place.map(|place| (first + place) as u32);
            // In another order, rounding left the sum a little below.
            return id.or_else(|| Self::last(first, weights)).expect("invariant: it has weight");
        }
        Self::last(0, &self.weights).expect("invariant: some token has weight")
    }

    fn race(&self, uniform: impl Fn(u32) -> f64) -> u32 {
        let all = (0..).zip(&self.weights).map(|(id, &weight)| (id, f64::from(weight)));
        race(all.filter(|&(_, weight)| weight > 0.0), uniform)
    }

    fn residual(&self, other: &Distribution) -> Option<Self> {
        let mut left = self.weights.clone();
        for &(id, prob) in other.entries() {
            if let Some(weight) = left.get_mut(id as usize) {
                *weight = (f64::from(*weight) - f64::from(prob) * self.total).max(0.0) as f32;
            }
        }
        Self::new(left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Weights of a vocabulary, some of them 0, and the same as a list.
    fn both(random: &mut fastrand::Rng) -> (Weights, Distribution) {
        let count = random.usize(1..3000);
        let weight = |_| if random.bool() { random.f32() } else { 0.0 };
        let weights: Vec<f32> = (1..count).map(weight).chain([0.5]).collect();
        let listed = (0..).zip(&weights).map(|(id, &weight)| (id, weight)).collect();
        (Weights::new(weights).unwrap(), Distribution::from_weights(listed).unwrap())
    }

    #[test]
    fn weights_are_drawn_as_a_list_of_them_is() {
        let mut random = fastrand::Rng::new();
        for _ in 0..200 {
            let ((weights, listed), (_, other)) = (both(&mut random), both(&mut random));
            let close = |a: &Weights, b: &Distribution| {
                let all = (0..a.weights.len() as u32 + 2).map(|id| (a.prob(id), b.prob(id)));
                all.into_iter().all(|(a, b)| (a - b).abs() < 1e-6)
            };
            assert!(close(&weights, &listed));
            match (weights.residual(&other), listed.residual(&other)) {
                (Some(weights), Some(listed)) => assert!(close(&weights, &listed)),
                (weights, listed) => assert!(weights.is_none() && listed.is_none()),
            }
            assert_eq!(weights.residual(&Distribution::one_hot(1 << 20)), Some(weights.clone()));
            for _ in 0..50 {
                let uniform = random.f64();
                let (id, before) = (weights.draw(uniform), uniform - 1e-6);
                let near = [before.max(0.0), uniform, uniform + 1e-6].map(|at| listed.draw(at));
                assert!(
                    near.contains(&id) && weights.prob(id) > 0.0,
                    "{id} at {uniform}: {near:?}"
                );
                let seed = random.u64(..);
                let number = |id: u32| fastrand::Rng::with_seed(seed ^ u64::from(id) << 32).f64();
                assert_eq!(weights.race(number), listed.race(number));
            }
            assert_eq!(weights.draw(1.0 - f64::EPSILON / 2.0), weights.weights.len() as u32 - 1);
        }
        assert_eq!((Weights::new(vec![]), Weights::new(vec![0.0; 9])), (None, None));
        assert_eq!(Weights::new(vec![1.0, f32::NAN]), None);
    }
}
