use std::convert::Infallible;
use std::sync::Arc;

use super::*;
use crate::sampling::{Distribution, Dry, History, Processor, SamplingParams};
use crate::speculation::Proposer;

fn token(id: u32) -> DraftToken {
    DraftToken::copied(id, Proposer::Ngram)
}

fn greedy(draft: &[u32], target: &[u32]) -> Verdict {
    let draft: Vec<DraftToken> = draft.iter().map(|&id| token(id)).collect();
    let [verdict, coupled] = [Draws::new(1), Draws::coupled(1)].map(|draws| {
        let verdict: Result<_, Infallible> =
            rejection_sample(&draft, &draws, 10, |i| Ok(Distribution::one_hot(target[i])));
        verdict.unwrap()
    });
    assert_eq!(verdict, coupled);
    verdict
}

#[test]
fn one_hot_rounds_accept_the_matching_prefix() {
    let bonus = |accepted, id| {
        let last = FinalToken::Bonus(id);
        Verdict { accepted, last, bonus_prob: Some(1.0) }
    };
    let recovered = Verdict::recovered;
    assert_eq!(greedy(&[5, 6, 7], &[5, 6, 7, 8]), bonus(3, 8));
    assert_eq!(greedy(&[5, 6, 7], &[5, 6, 9, 8]), recovered(2, 9));
    assert_eq!(greedy(&[5, 6, 7], &[1, 6, 7, 8]), recovered(0, 1));
    assert_eq!(greedy(&[], &[4]), bonus(0, 4));
}

#[test]
fn rows_after_a_rejection_are_not_asked_for() {
    let draft = [token(1), token(2)];
    let verdict = rejection_sample(&draft, &Draws::new(0), 0, |i| match i {
        0 => Ok(Distribution::one_hot(3)),
        _ => Err("asked too far"),
    });
    assert_eq!(verdict, Ok(Verdict::recovered(0, 3)));
    let failed = rejection_sample(&draft, &Draws::new(0), 0, |_| Err("nan"));
    assert_eq!(failed, Err("nan"));
}

/// A pair of models over 6 tokens: logits given the token before. The draft sees only the tokens of
/// `ids`, in that order of rows.
struct Pair {
    target: fn(u32) -> [f32; 6],
    draft: fn(u32) -> Vec<f32>,
    ids: Option<[u32; 3]>,
    /// What is proposed with certainty in place of what the draft draws.
    copied: Option<[u32; 2]>,
}

/// One round of two draft tokens from token 0 on; the first two tokens of the outcome, continued
/// from the target alone where the round yields only one.
fn two_tokens(pair: &Pair, params: &SamplingParams, draws: Draws) -> [u32; 2] {
    let mut processor = Processor::new();
    let mut history = History::new(&[0]);
    let (mut draft, mut last) = (Vec::new(), 0);
    for position in 1..3 {
        let logits = (pair.draft)(last);
        let exclude = params.excludes_top(&draws, position);
        let ids = pair.ids.map(Arc::from);
        let draft_probs = processor.distribution(&logits, ids.as_ref(), params, &history, exclude);
        let draft_probs = draft_probs.unwrap();
        let id = draws.draft(&draft_probs, position);
        let (proposer, confidence) = (Proposer::DraftModel, 0.5);
        draft.push(match pair.copied {
            Some(tokens) => DraftToken::copied(tokens[position - 1], Proposer::Ngram),
            None => DraftToken { id, draft_probs, proposer, confidence },
        });
        let id = draft[position - 1].id;
        history.push(id);
        last = id;
    }
    let mut history = History::new(&[0]);
    let verdict = rejection_sample(&draft, &draws, 1, |i| {
        let previous = if i == 0 { 0 } else { draft[i - 1].id };
        if i > 0 {
            history.push(previous);
        }
        let exclude = params.excludes_top(&draws, 1 + i);
        processor.distribution(&(pair.target)(previous), None, params, &history, exclude)
    });
    let verdict = verdict.unwrap();
    let (FinalToken::Recovered(id) | FinalToken::Bonus(id)) = verdict.last;
    let mut tokens: Vec<u32> = draft[..verdict.accepted].iter().map(|t| t.id).collect();
    tokens.push(id);
    if tokens.len() < 2 {
        let mut history = History::new(&[0]);
        history.push(tokens[0]);
        let exclude = params.excludes_top(&draws, 2);
        let logits = (pair.target)(tokens[0]);
        let next = processor.distribution(&logits, None, params, &history, exclude);
        tokens.push(draws.sample(&next.unwrap(), 2));
    }
    [tokens[0], tokens[1]]
}

/// Chi-square of the joint distribution of two tokens against the target's own.
fn check(pair: &Pair, params: &SamplingParams) {
    check_draws(pair, params, Draws::new);
    check_draws(pair, params, Draws::coupled);
}

fn check_draws(pair: &Pair, params: &SamplingParams, draws: fn(u64) -> Draws) {
    let trials = 40_000;
    let mut counts = [[0u32; 6]; 6];
    for seed in 0..trials {
        let [first, second] = two_tokens(pair, params, draws(seed));
        counts[first as usize][second as usize] += 1;
    }
    let mut processor = Processor::new();
    // Over both ways that the coin of XTC falls.
    let mut probs = |previous: u32, history: &History| -> [f64; 6] {
        let heads = f64::from(params.xtc_probability);
        let [excluded, whole] = [true, false].map(|exclude| {
            let logits = (pair.target)(previous);
            processor.distribution(&logits, None, params, history, exclude).unwrap()
        });
        std::array::from_fn(|id| {
            let [excluded, whole] =
                [&excluded, &whole].map(|probs| f64::from(probs.prob(id as u32)));
            if heads > 0.0 { heads * excluded + (1.0 - heads) * whole } else { whole }
        })
    };
    let mut history = History::new(&[0]);
    let first = probs(0, &history);
    let (mut chi_square, mut cells) = (0.0, 0);
    for a in 0..6 {
        history.push(a);
        let second = probs(a, &history);
        history.pop(a);
        for b in 0..6 {
            let expected = first[a as usize] * second[b] * trials as f64;
            let seen = f64::from(counts[a as usize][b]);
            if expected == 0.0 {
                assert_eq!(seen, 0.0, "impossible tokens {a}, {b}");
            } else if expected >= 5.0 {
                chi_square += (seen - expected).powi(2) / expected;
                cells += 1;
            }
        }
    }
    // Mean and deviation of chi-square with `cells - 1` degrees of freedom; seeds are fixed, so
    // this either always passes or never does.
    let degrees = f64::from(cells - 1);
    let limit = degrees + 4.0 * (2.0 * degrees).sqrt();
    assert!(chi_square < limit, "{chi_square} against {limit} for {params:?}");
}

fn target(previous: u32) -> [f32; 6] {
    let shift = previous as f32 * 0.7;
    std::array::from_fn(|id| (id as f32 * 1.3 + shift).sin() * 1.5)
}

/// Penalises a token behind which the last one has come.
fn repetitive() -> Dry {
    Dry { multiplier: 0.8, allowed_length: 1, ..Dry::default() }
}

fn all_params() -> Vec<SamplingParams> {
    let base = SamplingParams::default();
    vec![
        base.clone(),
        SamplingParams { temperature: 0.6, ..base.clone() },
        SamplingParams { temperature: 1.7, top_k: Some(4), ..base.clone() },
        SamplingParams { top_p: 0.8, ..base.clone() },
        SamplingParams { min_p: 0.2, temperature: 1.3, ..base.clone() },
        SamplingParams { typical_p: 0.6, ..base.clone() },
        SamplingParams { top_n_sigma: 1.0, temperature: 1.5, ..base.clone() },
        SamplingParams { xtc_probability: 0.5, xtc_threshold: 0.15, ..base.clone() },
        SamplingParams { dry: Some(repetitive()), ..base.clone() },
        SamplingParams {
            repetition_penalty: 1.4,
            presence_penalty: 0.8,
            frequency_penalty: 0.5,
            logit_bias: [(4, 1.0)].into(),
            ..base
        },
    ]
}

#[test]
fn output_is_the_targets_for_a_close_draft() {
    fn draft(previous: u32) -> Vec<f32> {
        target(previous).iter().enumerate().map(|(id, l)| l + 0.3 * (id % 2) as f32).collect()
    }
    all_params()
        .iter()
        .for_each(|params| check(&Pair { target, draft, ids: None, copied: None }, params));
}

#[test]
fn output_is_the_targets_for_a_bad_draft() {
    fn draft(previous: u32) -> Vec<f32> {
        target(previous).iter().map(|logit| -2.0 * logit).collect()
    }
    all_params()
        .iter()
        .for_each(|params| check(&Pair { target, draft, ids: None, copied: None }, params));
}

#[test]
fn output_is_the_targets_for_a_trimmed_draft() {
    fn draft(previous: u32) -> Vec<f32> {
        let full = target(previous + 1);
        vec![full[1], full[2], full[5]]
    }
    let pair = Pair { target, draft, ids: Some([1, 2, 5]), copied: None };
    all_params().iter().for_each(|params| check(&pair, params));
}

#[test]
fn output_is_the_targets_for_copied_tokens() {
    fn draft(previous: u32) -> Vec<f32> {
        target(previous).to_vec()
    }
    for copied in [[1, 2], [4, 4], [0, 5]] {
        let pair = Pair { target, draft, ids: None, copied: Some(copied) };
        all_params().iter().for_each(|params| check(&pair, params));
    }
}

/// With coupled draws a seed decides the tokens, whatever the draft.
#[test]
fn coupled_output_does_not_depend_on_the_draft() {
    let drafts: [fn(u32) -> Vec<f32>; 3] = [
        |previous| target(previous).to_vec(),
        |previous| target(previous).iter().map(|logit| -2.0 * logit).collect(),
        |_| vec![0.0; 6],
    ];
    for params in all_params() {
        for seed in 0..500 {
            let outputs = drafts.map(|draft| {
                two_tokens(
                    &Pair { target, draft, ids: None, copied: None },
                    &params,
                    Draws::coupled(seed),
                )
            });
            assert!(outputs.iter().all(|output| *output == outputs[0]), "{outputs:?}");
        }
    }
}
