//! Counter-based random numbers: a draw is a hash of (seed, position, purpose), so it depends on no
//! other draw, no other sequence and no order of evaluation.

use super::Distribution;
use pleach_kernels::unit;

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
    /// Whether the most likely tokens are left out.
    Exclude,
}

/// The draws of one sequence.
#[derive(Debug, Clone, Copy)]
pub struct Draws {
    seed: u64,
    coupled: bool,
}

impl Draws {
    /// Draws keyed by `seed`. With speculation, which token comes out depends on what was drafted;
    /// only its distribution does not.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { seed, coupled: false }
    }

    /// Draws keyed by `seed` under which draft and target draw with the same random numbers, and a
    /// draft token stands if it is the very token that the target draws. The output is then the
    /// same for a seed whatever was drafted, or nothing; a few more draft tokens are rejected
    /// (drafter-invariant speculative decoding, Daliri et al., arXiv 2408.07978).
    #[must_use]
    pub fn coupled(seed: u64) -> Self {
        Self { seed, coupled: true }
    }

    /// The key of all draws.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Whether draft and target draw with the same random numbers.
    #[must_use]
    pub fn is_coupled(&self) -> bool {
        self.coupled
    }

    /// The draft token at `position`.
    #[must_use]
    pub fn draft(&self, draft_probs: &Distribution, position: usize) -> u32 {
        self.draw(draft_probs, position, Purpose::Draft)
    }

    /// The token at `position` from the target's distribution, or from what is left of it.
    #[must_use]
    pub fn sample(&self, probs: &Distribution, position: usize) -> u32 {
        self.draw(probs, position, Purpose::Sample)
    }

    fn draw(&self, probs: &Distribution, position: usize, purpose: Purpose) -> u32 {
        if self.coupled {
            probs.race(self.key(position, Purpose::Sample))
        } else {
            probs.draw(self.uniform(position, purpose))
        }
    }

    /// A number uniform in [0, 1) for the token at `position` of the sequence (the prompt's first
    /// token is at 0).
    #[must_use]
    pub fn uniform(&self, position: usize, purpose: Purpose) -> f64 {
        unit(self.key(position, purpose))
    }

    fn key(&self, position: usize, purpose: Purpose) -> u64 {
        let position = position as u64;
        let counter = [position as u32, (position >> 32) as u32, purpose as u32, 0];
        let [low, high, ..] = philox(counter, [self.seed as u32, (self.seed >> 32) as u32]);
        u64::from(high) << 32 | u64::from(low)
    }
}

/// Philox4x32-10 (Salmon et al., SC 2011): 128 random bits of a counter and a key; as `kernels/cuda/verify.cu` draws.
fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let a = 0xd251_1f53 * u64::from(counter[0]);
        let b = 0xcd9e_8d57 * u64::from(counter[2]);
        counter = [
            (b >> 32) as u32 ^ counter[1] ^ key[0],
            b as u32,
            (a >> 32) as u32 ^ counter[3] ^ key[1],
            a as u32,
        ];
        key = [key[0].wrapping_add(0x9e37_79b9), key[1].wrapping_add(0xbb67_ae85)];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The published vectors of Philox4x32-10.
    #[test]
    fn philox_vectors() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox(
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0]
            ),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

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

    /// Coupled draws follow the distribution, and agree between distributions more often than
    /// independent ones would: at least (1 - TV) / (1 + TV) of the time.
    #[test]
    fn coupled_draws_follow_their_distribution_and_agree() {
        let dist = |weights: [f32; 4]| {
            let weights = [2, 5, 6, 40].into_iter().zip(weights).collect();
            Distribution::from_weights(weights).unwrap()
        };
        let (p, q) = (dist([0.5, 0.3, 0.15, 0.05]), dist([0.4, 0.3, 0.2, 0.1]));
        let n = 20_000;
        let (mut counts, mut agree) = ([0u32; 41], 0);
        for seed in 0..n {
            let draws = Draws::coupled(seed);
            let id = draws.sample(&p, 7);
            counts[id as usize] += 1;
            agree += u32::from(id == draws.draft(&q, 7));
        }
        for (id, prob) in p.entries() {
            let share = f64::from(counts[id as usize]) / n as f64;
            assert!(
                (share - f64::from(prob)).abs() < 5.0 * 0.5 / (n as f64).sqrt(),
                "{id} {share}"
            );
        }
        let variation = 0.1;
        assert!(f64::from(agree) / n as f64 > (1.0 - variation) / (1.0 + variation), "{agree}");
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
