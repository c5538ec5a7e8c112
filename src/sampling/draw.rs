//! Counter-based random numbers: a draw is a hash of (seed, position, purpose), so it depends on no
//! other draw, no other sequence and no order of evaluation.

/// What a draw decides. Draws for different purposes at one position are independent, which
/// rejection sampling needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The draft model's choice of a draft token.
    Draft,
    /// Whether a draft token is accepted.
    Accept,
    /// A token from the target's distribution, or from what is left of it after a rejection.
    Sample,
}

/// The draws of one sequence.
#[derive(Debug, Clone, Copy)]
pub struct Draws {
    seed: u64,
}

impl Draws {
    /// Draws keyed by `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// A number uniform in [0, 1) for the token at `position` of the sequence (the prompt's first
    /// token is at 0).
    #[must_use]
    pub fn uniform(&self, position: usize, purpose: Purpose) -> f64 {
        let counter = (position as u64) * 4 + purpose as u64;
        let bits = mix(mix(self.seed) ^ mix(counter.wrapping_add(0x632b_e59b_d9b4_e019)));
        (bits >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// The finaliser of SplitMix64 after one step of its counter.
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keyed_and_uniform() {
        let draws = Draws::new(7);
        assert_eq!(draws.uniform(3, Purpose::Draft), Draws::new(7).uniform(3, Purpose::Draft));
        assert_ne!(draws.uniform(3, Purpose::Draft), draws.uniform(3, Purpose::Accept));
        assert_ne!(draws.uniform(3, Purpose::Draft), draws.uniform(4, Purpose::Draft));
        assert_ne!(draws.uniform(3, Purpose::Draft), Draws::new(8).uniform(3, Purpose::Draft));
        // Means over positions and over consecutive seeds: 1/2 within five standard errors.
        let n = 10_000;
        let tolerance = 5.0 / (12.0 * n as f64).sqrt();
        let over_positions: f64 = (0..n).map(|p| draws.uniform(p, Purpose::Sample)).sum();
        let over_seeds: f64 =
            (0..n).map(|s| Draws::new(s as u64).uniform(9, Purpose::Sample)).sum();
        for mean in [over_positions / n as f64, over_seeds / n as f64] {
            assert!((mean - 0.5).abs() < tolerance, "{mean}");
        }
    }

    #[test]
    fn purposes_are_uncorrelated() {
        let n = 20_000;
        let covariance: f64 = (0..n)
            .map(|s| {
                let draws = Draws::new(s);
                (draws.uniform(5, Purpose::Draft) - 0.5) * (draws.uniform(5, Purpose::Accept) - 0.5)
            })
            .sum::<f64>()
            / n as f64;
        assert!(covariance.abs() < 5.0 / 12.0 / (n as f64).sqrt(), "{covariance}");
    }
}
