use super::*;
use crate::sampling::{History, Processor, SamplingParams};

/// The definition, word by word: every place before the last token, compared backwards token by token.
fn plain(dry: &Dry, tokens: &[u32]) -> HashMap<u32, f32> {
    let window = dry.penalty_last_n.unwrap_or(usize::MAX).min(tokens.len());
    let tokens = &tokens[tokens.len() - window..];
    let ends_in_breaker = |tokens: &[u32]| dry.breakers.iter().any(|b| tokens.ends_with(b));
    let unbroken = (0..=tokens.len()).rev().find(|&end| ends_in_breaker(&tokens[..end]));
    let most = tokens.len() - unbroken.unwrap_or(0);
    let mut lengths: HashMap<u32, usize> = HashMap::new();
    for place in 1..tokens.len() {
        let same = |length: &usize| tokens[..place].ends_with(&tokens[tokens.len() - length..]);
        let length = (1..=place.min(most)).take_while(same).count();
        let kept = lengths.entry(tokens[place]).or_default();
        *kept = length.max(*kept);
    }
    let penalised = lengths
        .into_iter()
        .filter(|(id, length)| *length >= dry.allowed_length && !dry.breakers.contains(&vec![*id]));
    let penalty = |length: usize| dry.base.powi((length - dry.allowed_length) as i32);
    penalised.map(|(id, length)| (id, dry.multiplier * penalty(length))).collect()
}

#[test]
fn penalties_are_those_of_the_definition() {
    let mut random = fastrand::Rng::with_seed(3);
    let mut longest = 0.0f32;
    for _ in 0..3000 {
        let kinds = random.u32(0..5);
        let tokens: Vec<u32> = (0..random.usize(0..60)).map(|_| random.u32(0..=kinds)).collect();
        let breaker = |random: &mut fastrand::Rng| {
            (0..random.usize(1..4)).map(|_| random.u32(0..=kinds)).collect::<Vec<u32>>()
        };
        let mut breakers: Vec<_> = (0..random.usize(0..3)).map(|_| breaker(&mut random)).collect();
        // Where one breaker lies within another, the last one that begins counts: here, none does.
        breakers.truncate(if breakers.iter().all(|b| b.len() == 1) { 2 } else { 1 });
        breakers.sort_unstable();
        breakers.dedup();
        let dry = Dry {
            multiplier: 0.5 + random.f32(),
            base: 1.0 + random.f32(),
            allowed_length: random.usize(0..4),
            penalty_last_n: random.bool().then(|| random.usize(0..40)),
            breakers: breakers.into(),
        };
        let (found, expected) = (dry.penalties(&tokens), plain(&dry, &tokens));
        assert_eq!(found.len(), expected.len(), "{dry:?} {tokens:?}: {found:?} {expected:?}");
        for (id, penalty) in found {
            let close = (penalty / expected[&id] - 1.0).abs() < 1e-4;
            assert!(close, "{dry:?} {tokens:?}: {id} {penalty} {}", expected[&id]);
            longest = longest.max(penalty);
        }
    }
    assert!(longest > 1e3);
}

#[test]
fn a_longer_repetition_costs_more() {
    let dry = Dry { multiplier: 0.5, base: 2.0, ..Dry::default() };
    // "1 2 3" has come before, followed by 4; "2 3" too, followed by 5.
    let tokens = [2, 3, 5, 1, 2, 3, 4, 9, 1, 2, 3];
    assert_eq!(dry.penalties(&tokens), [(4, 1.0), (5, 0.5)].into());
    assert!(dry.penalties(&[7, 8, 1, 8]).is_empty(), "one token is allowed");
    let narrow = Dry { penalty_last_n: Some(8), ..dry.clone() };
    assert_eq!(narrow.penalties(&tokens), [(4, 1.0)].into());
    let broken = Dry { breakers: [vec![1]].into(), ..dry.clone() };
    assert_eq!(broken.penalties(&tokens), [(4, 0.5), (5, 0.5)].into());
    let broken = Dry { breakers: [vec![4], vec![9, 1, 2]].into(), ..dry };
    assert!(broken.penalties(&tokens).is_empty());
}

/// A penalty beyond all numbers leaves some token.
#[test]
fn what_is_repeated_without_end_is_still_possible() {
    let dry = Dry { multiplier: 100.0, base: 100.0, penalty_last_n: None, ..Dry::default() };
    let params = SamplingParams { dry: Some(dry), ..SamplingParams::default() };
    let history = History::new(&[0; 1000]);
    let distribution = |logits: &[f32]| {
        Processor::new().distribution(logits, None, &params, &history, false).unwrap()
    };
    assert_eq!(distribution(&[5.0]).entries(), [(0, 1.0)]);
    assert_eq!(distribution(&[5.0, -90.0]).entries(), [(1, 1.0)]);
}

/// Prompt and generated text count alike, and what is taken back no longer does.
#[test]
fn penalties_follow_the_history() {
    let dry = Dry { multiplier: 2.0, ..Dry::default() };
    let params = SamplingParams { dry: Some(dry), ..SamplingParams::greedy() };
    assert!(params.uses_history());
    let mut history = History::new(&[1, 2, 3, 4]);
    let next = |history: &History| {
        let logits = [0.0, 0.0, 0.0, 1.0, 0.5];
        let distribution = Processor::new().distribution(&logits, None, &params, history, false);
        distribution.unwrap().entries()[0].0
    };
    assert_eq!(next(&history), 3);
    history.push(1);
    history.push(2);
    assert_eq!(next(&history), 4);
    history.pop(2);
    assert_eq!(next(&history), 3);
}
