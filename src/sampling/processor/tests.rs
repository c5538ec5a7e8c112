use super::*;

fn run(logits: &[f32], params: &SamplingParams) -> Vec<(u32, f32)> {
    let history = History::default();
    let result = Processor::new().distribution(logits, None, params, &history, false);
    result.unwrap().entries()
}

fn ids(entries: &[(u32, f32)]) -> Vec<u32> {
    entries.iter().map(|e| e.0).collect()
}

/// Logits whose softmax is 0.5, 0.25, 0.125, 0.125.
fn halves() -> [f32; 4] {
    [0.5f32.ln(), 0.25f32.ln(), 0.125f32.ln(), 0.125f32.ln()]
}

#[test]
fn greedy_takes_the_lowest_id_among_equals() {
    let params = SamplingParams::greedy();
    assert_eq!(run(&[1.0, 5.0, 5.0], &params), [(1, 1.0)]);
}

#[test]
fn temperature_one_is_softmax() {
    let entries = run(&halves(), &SamplingParams::default());
    for ((_, prob), expected) in entries.iter().zip([0.5, 0.25, 0.125, 0.125]) {
        assert!((prob - expected).abs() < 1e-6);
    }
}

#[test]
fn temperature_sharpens_and_flattens() {
    let with = |temperature| {
        let params = SamplingParams { temperature, ..Default::default() };
        run(&halves(), &params)[0].1
    };
    // 0.5^2 / (0.5^2 + 0.25^2 + 2 * 0.125^2) at temperature 1/2.
    assert!((with(0.5) - 0.25 / 0.34375).abs() < 1e-6);
    assert!(with(2.0) < 0.5);
    assert_eq!(with(1e-30), 1.0, "no overflow");
}

#[test]
fn top_k_breaks_ties_by_id() {
    let params = SamplingParams { top_k: Some(3), ..Default::default() };
    assert_eq!(ids(&run(&halves(), &params)), [0, 1, 2]);
    let params = SamplingParams { top_k: Some(99), ..Default::default() };
    assert_eq!(run(&halves(), &params).len(), 4);
}

#[test]
fn top_p_keeps_the_token_that_crosses() {
    let with = |top_p| ids(&run(&halves(), &SamplingParams { top_p, ..Default::default() }));
    assert_eq!(with(0.4), [0]);
    assert_eq!(with(0.6), [0, 1]);
    assert_eq!(with(0.8), [0, 1, 2]);
    // Far more candidates than one sorted head.
    let flat = vec![0.0f32; 5000];
    let kept = run(&flat, &SamplingParams { top_p: 0.5, ..Default::default() });
    assert!((2499..=2501).contains(&kept.len()), "{}", kept.len());
    assert_eq!(kept[10].0, 10, "lower ids first among equals");
}

#[test]
fn min_p_is_relative_to_the_best() {
    let with = |min_p| ids(&run(&halves(), &SamplingParams { min_p, ..Default::default() }));
    assert_eq!(with(0.45), [0, 1]);
    assert_eq!(with(1.0), [0]);
}

#[test]
fn truncations_compose_in_order() {
    // top-k leaves {0, 1} at 2/3 and 1/3; top-p 0.6 is then met by token 0 alone.
    let params = SamplingParams { top_k: Some(2), top_p: 0.6, ..Default::default() };
    assert_eq!(ids(&run(&halves(), &params)), [0]);
}

#[test]
fn penalties_follow_their_definitions() {
    let mut history = History::new(&[0, 1]);
    for id in [1, 2, 2] {
        history.push(id);
    }
    let params = SamplingParams {
        repetition_penalty: 2.0,
        presence_penalty: 0.5,
        frequency_penalty: 0.25,
        logit_bias: [(3, 1.5)].into(),
        ..Default::default()
    };
    let mut logits = [4.0, -1.0, 4.0, 4.0, 4.0];
    adjust(&mut logits, None, &params, &history);
    assert_eq!(logits, [2.0, -2.75, 1.0, 5.5, 4.0]);
    history.pop(2);
    history.pop(2);
    let mut logits = [4.0; 5];
    adjust(&mut logits, None, &params, &history);
    assert_eq!(logits[2], 4.0, "popped");
}

#[test]
fn trimmed_rows_carry_their_token_ids() {
    let mut history = History::new(&[]);
    history.push(70);
    history.push(8);
    let params = SamplingParams { frequency_penalty: 1.0, ..SamplingParams::greedy() };
    let mut processor = Processor::new();
    let mut run = |params: &SamplingParams| {
        let ids = Arc::from([5, 70, 90]);
        processor.distribution(&[1.0, 2.0, 1.5], Some(&ids), params, &history, false).unwrap()
    };
    assert_eq!(run(&params), Distribution::one_hot(90));
    let sampled = SamplingParams { top_k: Some(2), ..Default::default() };
    assert_eq!(ids(&run(&sampled).entries()), [70, 90]);
    assert_eq!(ids(&run(&SamplingParams::default()).entries()), [5, 70, 90]);
}

#[test]
fn bad_logits_are_errors() {
    let history = History::default();
    for params in [SamplingParams::greedy(), SamplingParams::default()] {
        let mut processor = Processor::new();
        let mut run =
            |logits: &[f32]| processor.distribution(logits, None, &params, &history, false);
        assert_eq!(run(&[0.0, f32::NAN]), Err(LogitsError::NotFinite { id: 1 }));
        assert_eq!(run(&[f32::INFINITY]), Err(LogitsError::NotFinite { id: 0 }));
        assert_eq!(run(&[f32::NEG_INFINITY; 2]), Err(LogitsError::NothingLeft));
        assert!(run(&[f32::NEG_INFINITY, 0.0]).is_ok());
    }
}
