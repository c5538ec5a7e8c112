//! How well models draft for the unpruned one, and how much better one of them does.

use std::collections::BTreeMap;

use serde::Serialize;

use super::bootstrap::{Estimate, interval, mean_and_deviation};
use crate::commands::evaluate::Accepted;

/// What became of a draft's tokens in the answers to each prompt.
pub(super) type ByPrompt = BTreeMap<String, Accepted>;

/// The measures of acceptance.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Acceptance<T> {
    pub(super) mean_acceptance_length: T,
    pub(super) alpha: T,
}

/// A measure of the models of several seeds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct OfSeeds {
    /// Mean over the seeds.
    #[serde(flatten)]
    pub(super) mean: Estimate,
    /// Standard deviation over the seeds.
    pub(super) deviation: f64,
}

/// One model beside another, on the same prompts.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Beside {
    pub(super) variant: &'static str,
    pub(super) beside: &'static str,
    #[serde(flatten)]
    pub(super) difference: Acceptance<Estimate>,
}

impl<T> Acceptance<T> {
    fn of(measured: impl Fn(fn(&Accepted) -> f64) -> T) -> Self {
        Self {
            mean_acceptance_length: measured(Accepted::mean_acceptance_length),
            alpha: measured(Accepted::alpha),
        }
    }
}

/// Acceptance with the interval of a bootstrap over prompts: as many as there are drawn anew, with replacement, for all
/// seeds alike. What other seeds would give is not in the interval. `None` where no prompt is in all.
pub(super) fn acceptance(seeds: &[&ByPrompt]) -> Option<Acceptance<OfSeeds>> {
    let prompts = Prompts::shared([seeds])?;
    Some(Acceptance::of(|measure| {
        let value = |drawn: &[usize]| mean_and_deviation(&prompts.measures(0, drawn, measure));
        let [mean, deviation] = value(&prompts.all());
        let interval = interval(|rng| value(&prompts.draw(rng))[0]);
        OfSeeds { mean: Estimate { value: mean, interval }, deviation }
    }))
}

/// How much more is accepted of one model's tokens than of another's, with the interval of a paired bootstrap: every
/// sample is of the same prompts for both.
pub(super) fn difference(ours: &[&ByPrompt], theirs: &[&ByPrompt]) -> Option<Acceptance<Estimate>> {
    let prompts = Prompts::shared([ours, theirs])?;
    Some(Acceptance::of(|measure| {
        let value = |drawn: &[usize]| {
            let [ours, theirs] =
                [0, 1].map(|model| mean_and_deviation(&prompts.measures(model, drawn, measure))[0]);
            ours - theirs
        };
        let interval = interval(|rng| value(&prompts.draw(rng)));
        Estimate { value: value(&prompts.all()), interval }
    }))
}

/// The prompts that all seeds of all models have drafted on.
struct Prompts {
    /// Of each model and seed, what became of each prompt's tokens.
    models: Vec<Vec<Vec<Accepted>>>,
    count: usize,
}

impl Prompts {
    fn shared<const N: usize>(models: [&[&ByPrompt]; N]) -> Option<Self> {
        let mut all = models.iter().copied().flatten();
        let names: Vec<&String> = all
            .next()?
            .keys()
            .filter(|name| all.clone().all(|seed| seed.contains_key(*name)))
            .collect();
        let of_seed = |seed: &&ByPrompt| names.iter().map(|name| seed[*name]).collect();
        let models = models.map(|seeds| seeds.iter().map(of_seed).collect()).to_vec();
        (!names.is_empty()).then_some(Self { models, count: names.len() })
    }

    fn all(&self) -> Vec<usize> {
        (0..self.count).collect()
    }

    fn draw(&self, rng: &mut fastrand::Rng) -> Vec<usize> {
        (0..self.count).map(|_| rng.usize(..self.count)).collect()
    }

    /// A model's measure over the prompts `drawn`, for each seed.
    fn measures(&self, model: usize, drawn: &[usize], measure: fn(&Accepted) -> f64) -> Vec<f64> {
        let of_seed = |seed: &Vec<Accepted>| measure(&drawn.iter().map(|at| seed[*at]).sum());
        self.models[model].iter().map(of_seed).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prompts of 10 rounds, with so many accepted tokens each.
    fn prompts(accepted: impl IntoIterator<Item = u64>) -> ByPrompt {
        let one = |(at, accepted_tokens): (usize, u64)| {
            let recovered_tokens = 10;
            (at.to_string(), Accepted { drafts: 10, accepted_tokens, recovered_tokens })
        };
        accepted.into_iter().enumerate().map(one).collect()
    }

    #[test]
    fn prompts_that_differ_make_the_interval() {
        // Half of 100 prompts with 5 tokens, half with 15: a mean of 1 a round that deviates by 0.05.
        let mixed = prompts((0..100).map(|at| 5 + at % 2 * 10));
        let found = acceptance(&[&mixed]).unwrap();
        let OfSeeds { mean: Estimate { value, interval: [low, high] }, deviation } =
            found.mean_acceptance_length;
        assert_eq!((value, deviation), (2.0, 0.0));
        assert!((high - low - 2.0 * 1.96 * 0.05).abs() < 0.01, "{low} to {high}");
        assert_eq!(found.alpha.mean.value, 0.5);
        let even = acceptance(&[&prompts([10; 5])]).unwrap();
        assert_eq!(even.alpha.mean.interval, [0.5; 2]);
    }

    /// What is better by the same on every prompt is surely better, however much prompts differ.
    #[test]
    fn differences_are_of_the_same_prompts() {
        let mixed = prompts((0..100).map(|at| 5 + at % 2 * 10));
        let better = prompts((0..100).map(|at| 6 + at % 2 * 10));
        let found = difference(&[&better], &[&mixed]).unwrap().mean_acceptance_length;
        for value in [found.value, found.interval[0], found.interval[1]] {
            assert!((value - 0.1).abs() < 1e-9, "{found:?}");
        }
        // Seeds count as their mean; prompts that one of them lacks do not count.
        let fewer = prompts([10, 10, 10]);
        let found = difference(&[&prompts([0; 9]), &prompts([20; 9])], &[&fewer]).unwrap();
        assert_eq!(found.mean_acceptance_length, Estimate { value: 0.0, interval: [0.0; 2] });
        assert_eq!(difference(&[&fewer], &[&ByPrompt::new()]), None);
        assert_eq!(acceptance(&[]), None);
    }
}
