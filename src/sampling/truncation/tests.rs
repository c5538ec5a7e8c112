use crate::sampling::{Distribution, History, Processor, SamplingParams};

fn run(logits: &[f32], params: &SamplingParams, exclude: bool) -> Distribution {
    Processor::new().distribution(logits, None, params, &History::default(), exclude).unwrap()
}

fn ids(distribution: &Distribution) -> Vec<u32> {
    distribution.entries().iter().map(|entry| entry.0).collect()
}

fn random_logits(random: &mut fastrand::Rng) -> Vec<f32> {
    let count = if random.u8(0..16) == 0 { random.usize(1000..2000) } else { random.usize(2..200) };
    let logit = |_| if random.u8(0..8) == 0 { f32::NEG_INFINITY } else { random.f32() * 9.0 };
    (0..count).map(logit).chain([1.0]).collect()
}

/// Probabilities of all tokens, by the definition.
fn softmax(logits: &[f32]) -> Vec<f64> {
    let weights: Vec<f64> = logits.iter().map(|&logit| f64::from(logit).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / sum).collect()
}

/// Tokens of random distributions that a truncation keeps, by the definition and by the processor. They may differ in
/// what rounding puts on either side of the bound.
fn check(
    params: impl Fn(f64) -> SamplingParams,
    exclude: bool,
    kept: impl Fn(&[f32], &[f64], f64) -> Vec<bool>,
) {
    let mut random = fastrand::Rng::with_seed(5);
    let mut cut = 0;
    for _ in 0..400 {
        let logits = random_logits(&mut random);
        let value = 0.05 + 0.9 * random.f64();
        let probs = softmax(&logits);
        let [low, high] = [value - 1e-5, value + 1e-5].map(|value| kept(&logits, &probs, value));
        let found = ids(&run(&logits, &params(value), exclude));
        assert!(!found.is_empty() && found.len() <= logits.len());
        cut += usize::from(found.len() < probs.iter().filter(|p| **p > 0.0).count());
        for (id, (low, high)) in (0..).zip(low.into_iter().zip(high)) {
            let is_kept = found.contains(&id);
            assert!(is_kept == low || is_kept == high, "token {id} at {value} of {probs:?}");
        }
    }
    assert!(cut > 20, "the truncation does something: {cut}");
}

/// Whether those that are likelier have less than some mass together.
fn is_likely(probs: &[f64], id: usize, mass: f64) -> bool {
    let likelier = probs.iter().filter(|p| **p > probs[id]);
    probs[id] > 0.0 && likelier.sum::<f64>() < mass
}

#[test]
fn the_likeliest_stay() {
    let most = |probs: &[f64]| probs.iter().copied().fold(0.0, f64::max);
    let by_mass = |value| SamplingParams { top_p: value as f32, ..Default::default() };
    check(by_mass, false, |_, probs, mass| {
        (0..probs.len()).map(|id| is_likely(probs, id, mass)).collect()
    });
    let by_share = |value| SamplingParams { min_p: value as f32, ..Default::default() };
    check(by_share, false, |_, probs, share| {
        probs.iter().map(|&p| p >= share * most(probs)).collect()
    });
    let rank = |value: f64| (value * 30.0) as usize + 1;
    let by_rank = |value| SamplingParams { top_k: Some(rank(value) as u32), ..Default::default() };
    check(by_rank, false, |_, probs, value| {
        let likelier = |p: f64| probs.iter().filter(|other| **other > p).count();
        probs.iter().map(|&p| p > 0.0 && likelier(p) < rank(value)).collect()
    });
    let by_both = |value| SamplingParams { top_p: value as f32, min_p: 0.3, ..Default::default() };
    check(by_both, false, |_, probs, mass| {
        (0..probs.len())
            .map(|id| is_likely(probs, id, mass) && probs[id] >= 0.3 * most(probs))
            .collect()
    });
}

#[test]
fn typical_tokens_are_those_whose_information_is_near_the_entropy() {
    let params = |value| SamplingParams { typical_p: value as f32, ..Default::default() };
    check(params, false, |_, probs, mass| {
        let information = |p: f64| if p > 0.0 { -p.ln() } else { f64::INFINITY };
        let possible = probs.iter().filter(|p| **p > 0.0);
        let entropy: f64 = possible.map(|&p| p * information(p)).sum();
        let distance = |id: usize| (information(probs[id]) - entropy).abs();
        // A token is kept if those nearer to the entropy have less than the mass.
        (0..probs.len())
            .map(|id| {
                let nearer = (0..probs.len()).filter(|&other| distance(other) < distance(id));
                probs[id] > 0.0 && nearer.map(|other| probs[other]).sum::<f64>() < mass
            })
            .collect()
    });
}

#[test]
fn top_choices_but_the_least_likely_are_excluded() {
    let params = |value| SamplingParams {
        xtc_probability: 1.0,
        xtc_threshold: value as f32 / 8.0,
        ..Default::default()
    };
    check(params, true, |_, probs, value| {
        let tops = probs.iter().copied().filter(|&p| p >= value / 8.0);
        let least = tops.fold(f64::INFINITY, f64::min);
        probs.iter().map(|&p| p > 0.0 && p <= least).collect()
    });
    // Where the coin does not fall, nothing is.
    let logits = [3.0, 2.0, 2.5, 0.0];
    let params = params(0.8);
    assert_eq!(ids(&run(&logits, &params, false)), [0, 1, 2, 3]);
    assert_eq!(ids(&run(&logits, &params, true)), [1, 3]);
    // One token alone stays, as does the last of equals.
    let alone = SamplingParams { top_k: Some(1), ..params.clone() };
    assert_eq!(ids(&run(&logits, &alone, true)), [0]);
    assert_eq!(ids(&run(&[1.0; 4], &params, true)), [3]);
    // A threshold above one half leaves nothing out.
    let high = SamplingParams { xtc_threshold: 0.6, ..params };
    assert_eq!(ids(&run(&[9.0, 0.0], &high, true)), [0, 1]);
}

#[test]
fn logits_within_some_deviations_of_the_largest_stay() {
    let params = |value| SamplingParams { top_n_sigma: value as f32 * 3.0, ..Default::default() };
    check(params, false, |logits, _, value| {
        let finite: Vec<f64> =
            logits.iter().filter(|l| l.is_finite()).map(|&l| f64::from(l)).collect();
        let count = finite.len() as f64;
        let mean = finite.iter().sum::<f64>() / count;
        let variance = finite.iter().map(|l| (l - mean) * (l - mean)).sum::<f64>() / count;
        let max = finite.iter().copied().fold(f64::MIN, f64::max);
        let least = max - value * 3.0 * variance.sqrt();
        logits.iter().map(|&logit| f64::from(logit) >= least).collect()
    });
    // Temperature does not matter to it.
    let logits = [4.0, 3.0, 1.0, 0.5, 0.0];
    let kept = [0.3, 1.0, 5.0].map(|temperature| {
        ids(&run(
            &logits,
            &SamplingParams { temperature, top_n_sigma: 1.0, ..Default::default() },
            false,
        ))
    });
    assert_eq!(kept, [[0, 1], [0, 1], [0, 1]]);
}

/// Least probability is relative to the most likely token that is left.
#[test]
fn min_p_follows_typical_p() {
    let logits = [0.4f32, 0.2, 0.2, 0.1, 0.1].map(f32::ln);
    let typical = SamplingParams { typical_p: 0.35, ..Default::default() };
    assert_eq!(ids(&run(&logits, &typical, false)), [1, 2]);
    let both = SamplingParams { min_p: 0.9, ..typical };
    assert_eq!(ids(&run(&logits, &both, false)), [1, 2]);
}

#[test]
fn the_most_likely_token_is_taken_at_temperature_0() {
    let params = SamplingParams {
        typical_p: 0.1,
        xtc_probability: 1.0,
        xtc_threshold: 0.01,
        ..SamplingParams::greedy()
    };
    assert_eq!(ids(&run(&[0.1, 0.3, 0.2], &params, true)), [1]);
}
