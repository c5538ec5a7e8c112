//! A distribution from which nothing is cut off: a weight for every token that a model knows, as they come.

use std::sync::Arc;

use pleach_kernels::{SUMMED, sum_weights};

/// A weight for every token; its chance is its share of all weight.
#[derive(Debug, Clone, PartialEq)]
pub struct Weights {
    weights: Vec<f32>,
    /// Token ids of the weights, rising; without, a weight's place is its token.
    ids: Option<Arc<[u32]>>,
    /// Of each [`SUMMED`] weights.
    sums: Vec<f64>,
    total: f64,
    /// `1 / total`
    scale: f64,
}

impl Weights {
    /// Takes non-negative weights of tokens and [their sums](sum_weights). `None` if nothing has weight.
    pub(super) fn new(weights: Vec<f32>, sums: Vec<f64>, ids: Option<Arc<[u32]>>) -> Option<Self> {
        let total = sums.iter().sum::<f64>();
        let scale = 1.0 / total;
        (total > 0.0 && total.is_finite()).then_some(Self { weights, ids, sums, total, scale })
    }

    fn row(&self, id: u32) -> Option<usize> {
        match &self.ids {
            None => Some(id as usize).filter(|&row| row < self.weights.len()),
            Some(ids) => ids.binary_search(&id).ok(),
        }
    }

    fn id(&self, row: usize) -> u32 {
        self.ids.as_ref().map_or(row as u32, |ids| ids[row])
    }

    fn share(&self, weight: f32) -> f32 {
        (f64::from(weight) * self.scale) as f32
    }

    /// The tokens with their probabilities, in order of id, but for those that have none.
    pub(super) fn entries(&self) -> impl Iterator<Item = (u32, f32)> {
        let all = self.weights.iter().enumerate().filter(|(_, weight)| **weight > 0.0);
        all.map(|(row, &weight)| (self.id(row), self.share(weight)))
    }

    pub(super) fn prob(&self, id: u32) -> f32 {
        self.row(id).map_or(0.0, |row| self.share(self.weights[row]))
    }

    pub(super) fn draw(&self, uniform: f64) -> u32 {
        let mut left = uniform * self.total;
        for (block, (weights, sum)) in self.weights.chunks(SUMMED).zip(&self.sums).enumerate() {
            if left >= *sum {
                left -= sum;
                continue;
            }
            let place = weights.iter().position(|&weight| {
                left -= f64::from(weight);
                left < 0.0
            });
            // In another order, rounding left the sum a little below.
            let place = place.or_else(|| Self::last(weights)).expect("invariant: it has weight");
            return self.id(block * SUMMED + place);
        }
        self.id(Self::last(&self.weights).expect("invariant: some token has weight"))
    }

    /// The last of some weights that is not 0.
    fn last(weights: &[f32]) -> Option<usize> {
        weights.iter().rposition(|&weight| weight > 0.0)
    }

    pub(super) fn race(&self, key: u64) -> u32 {
        let winner = pleach_kernels::race(&self.weights, self.ids.as_deref(), key);
        self.id(winner.expect("invariant: some token has weight"))
    }

    /// What is left without these probabilities, of tokens in order of id.
    pub(super) fn without(mut self, taken: impl Iterator<Item = (u32, f32)>) -> Option<Self> {
        for (id, prob) in taken {
            if let Some(row) = self.row(id) {
                let weight = &mut self.weights[row];
                *weight = (f64::from(*weight) - f64::from(prob) * self.total).max(0.0) as f32;
            }
        }
        sum_weights(&self.weights, &mut self.sums);
        Self::new(self.weights, self.sums, self.ids)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Distribution;
    use super::*;

    fn whole(weights: Vec<f32>, ids: Option<Arc<[u32]>>) -> Option<Weights> {
        let mut sums = vec![0.0; weights.len().div_ceil(SUMMED)];
        sum_weights(&weights, &mut sums);
        Weights::new(weights, sums, ids)
    }

    /// Weights of a vocabulary or of a part of it, some of them 0, and the same as a list.
    fn both(random: &mut fastrand::Rng) -> [Distribution; 2] {
        let count = random.usize(1..3000);
        let weight = |_| if random.bool() { random.f32() } else { 0.0 };
        let weights: Vec<f32> = (1..count).map(weight).chain([0.5]).collect();
        let ids: Option<Arc<[u32]>> = random.bool().then(|| (0..).step_by(3).take(count).collect());
        let id = |row: usize| ids.as_ref().map_or(row as u32, |ids| ids[row]);
        let listed = weights.iter().enumerate().map(|(row, &weight)| (id(row), weight)).collect();
        let listed = Distribution::from_weights(listed).unwrap();
        [Distribution::Whole(whole(weights, ids).unwrap()), listed]
    }

    #[test]
    fn weights_are_drawn_as_a_list_of_them_is() {
        let mut random = fastrand::Rng::new();
        for _ in 0..200 {
            let ([weights, listed], others) = (both(&mut random), both(&mut random));
            let close = |a: &Distribution, b: &Distribution| {
                let all = (0..9003).map(|id| (a.prob(id), b.prob(id)));
                all.into_iter().all(|(a, b)| (a - b).abs() < 1e-6)
            };
            assert!(close(&weights, &listed));
            let (entries, wanted) = (weights.entries(), listed.entries());
            let ids =
                |entries: &[(u32, f32)]| entries.iter().map(|entry| entry.0).collect::<Vec<_>>();
            assert_eq!(ids(&entries), ids(&wanted));
            for other in &others {
                match (weights.clone().residual(other), listed.clone().residual(other)) {
                    (Some(weights), Some(listed)) => assert!(close(&weights, &listed)),
                    (weights, listed) => assert!(weights.is_none() && listed.is_none()),
                }
            }
            let nobody = Distribution::one_hot(1 << 20);
            assert_eq!(weights.clone().residual(&nobody), Some(weights.clone()));
            for _ in 0..50 {
                let uniform = random.f64();
                let (id, before) = (weights.draw(uniform), uniform - 1e-6);
                let near = [before.max(0.0), uniform, uniform + 1e-6].map(|at| listed.draw(at));
                assert!(
                    near.contains(&id) && weights.prob(id) > 0.0,
                    "{id} at {uniform}: {near:?}"
                );
                let key = random.u64(..);
                assert_eq!(weights.race(key), listed.race(key));
            }
            let last = wanted.last().map(|entry| entry.0);
            assert_eq!(Some(weights.draw(1.0 - f64::EPSILON / 2.0)), last);
        }
        assert_eq!((whole(vec![], None), whole(vec![0.0; 9], None)), (None, None));
        assert_eq!(whole(vec![1.0, f32::NAN], None), None);
    }
}
