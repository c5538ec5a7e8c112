//! Draws whose random numbers belong to the tokens: an exponential race.

use crate::cpu::isa::{Isa, per_isa};

/// The finaliser of SplitMix64 after one step of its counter: a hash of 64 bits.
#[inline(always)]
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The upper 53 bits as a number in [0, 1).
#[inline(always)]
#[must_use]
pub fn unit(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

/// The row of the token with the least `-ln(1 - u) / weight`, the first among equals, where `u`, uniform in [0, 1), is
/// a hash of `key` and the token's id: its row, or that row's entry of `ids`. That is a draw from the distribution of
/// the weights (the Gumbel-max trick in other words). `None` where no weight is positive. As `kernels/cuda/verify.cu`
/// draws.
///
/// # Panics
/// If there are not as many ids as weights.
#[must_use]
pub fn race(weights: &[f32], ids: Option<&[u32]>, key: u64) -> Option<usize> {
    let mut winner = None;
    match ids {
        None => run::<0>(Isa::best(), weights, &[], key, &mut winner),
        Some(ids) => {
            assert_eq!(weights.len(), ids.len(), "ids");
            run::<1>(Isa::best(), weights, ids, key, &mut winner);
        }
    }
    winner
}

/// Rows that are looked at together.
const LANES: usize = 16;

per_isa! {
    fn run<const NAMED: usize>(weights: &[f32], ids: &[u32], key: u64, winner: &mut Option<usize>) {
        let mut best = f64::INFINITY;
        let uniform = |row: usize| {
            let id = if NAMED == 1 { u64::from(ids[row]) } else { row as u64 };
            unit(mix(key ^ id))
        };
        for (block, weights) in weights.chunks(LANES).enumerate() {
            let start = block * LANES;
            // -ln(1 - u) is at least u, so nearly all lose without a logarithm, and whole blocks at once.
            let mut open = weights.len() < LANES;
            if let Ok(weights) = <&[f32; LANES]>::try_from(weights) {
                for (lane, weight) in weights.iter().enumerate() {
                    open |= uniform(start + lane) < best * f64::from(*weight);
                }
            }
            if !open {
                continue;
            }
            for (row, &weight) in (start..).zip(weights).filter(|(_, weight)| **weight > 0.0) {
                let (uniform, weight) = (uniform(row), f64::from(weight));
                if uniform < best * weight {
                    let time = -(-uniform).ln_1p() / weight;
                    if time < best {
                        (*winner, best) = (Some(row), time);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::Random;

    /// What the race is defined as.
    fn plain(weights: &[f32], ids: Option<&[u32]>, key: u64) -> Option<usize> {
        let times = weights.iter().enumerate().filter(|(_, weight)| **weight > 0.0).map(
            |(row, &weight)| {
                let id = ids.map_or(row as u64, |ids| u64::from(ids[row]));
                (-(-unit(mix(key ^ id))).ln_1p() / f64::from(weight), row)
            },
        );
        times.min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, row)| row)
    }

    #[test]
    fn every_instruction_set_names_the_same_winner() {
        let mut random = Random::new();
        for _ in 0..300 {
            let len = random.bits() as usize % 700;
            let weights: Vec<f32> = random
                .vec(len)
                .iter()
                .map(|v| (v * 6.0).exp() * f32::from(u8::from(*v > -0.5)))
                .collect();
            let ids: Vec<u32> = (0..len as u32).map(|row| row * 3 + 1).collect();
            let key = mix(random.bits());
            for ids in [None, Some(&ids[..])] {
                let wanted = plain(&weights, ids, key);
                assert_eq!(race(&weights, ids, key), wanted);
                for isa in Isa::supported() {
                    let mut winner = None;
                    match ids {
                        None => run::<0>(isa, &weights, &[], key, &mut winner),
                        Some(ids) => run::<1>(isa, &weights, ids, key, &mut winner),
                    }
                    assert_eq!(winner, wanted, "{isa:?}");
                }
            }
        }
        assert_eq!((race(&[], None, 1), race(&[0.0; 40], None, 1)), (None, None));
    }

    /// Shares of the winners are those of the weights, within five standard errors.
    #[test]
    fn winners_follow_the_weights() {
        let weights = [0.5, 0.0, 0.3, 0.15, 0.05];
        let (rounds, mut counts) = (20_000u64, [0u32; 5]);
        for key in 0..rounds {
            counts[race(&weights, None, mix(key)).unwrap()] += 1;
        }
        for (count, weight) in counts.into_iter().zip(weights) {
            let share = f64::from(count) / rounds as f64;
            let error = (f64::from(weight) * (1.0 - f64::from(weight)) / rounds as f64).sqrt();
            assert!((share - f64::from(weight)).abs() <= 5.0 * error, "{share} for {weight}");
        }
    }
}
