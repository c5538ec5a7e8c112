//! What is drafted, from where, and which draft model does it.

use super::*;

#[test]
fn a_perfect_draft_is_always_accepted() {
    let mut engine = engine(&config(), Some(TestModel::draft(64, 0)));
    let request = Request { ignore_eos: true, ..Request::greedy(vec![5, 6], 41) };
    let output = &run(&mut engine, &[request])[0];
    // One token from the prompt, then eight rounds of four accepted tokens and a bonus.
    assert_eq!(output.stats.rounds.drafts, 8);
    assert_eq!(output.stats.rounds.accepted_per_position, [8; 4]);
    assert_eq!((output.stats.target_passes, output.stats.rounds.recovered_tokens), (9, 0));
    assert_eq!(engine.stats().rounds.target_passes_saved, 32);
    assert!(engine.stats().flops_saved > 0);
    // One pass per draft token, and none to catch up: the first of a round does both.
    assert_eq!(output.stats.draft_passes, 32);
}

/// The draft model reads the first block and the last tokens of a long prompt, and the output is the
/// same: it would read another's slots, and panic, if it mixed up what it has read.
#[test]
fn a_long_prompt_is_read_in_part() {
    let prompt: Vec<u32> = (0..200).map(|i| 2 + i * 7 % 40).collect();
    let request = Request { ignore_eos: true, ..Request::greedy(prompt, 50) };
    let expected = reference(std::slice::from_ref(&request));
    let config = EngineConfig { num_blocks: Some(27), prefix_caching: false, ..config() };
    let mut engine = engine(&config, Some(TestModel::draft(27, 0)));
    let alone = run(&mut engine, std::slice::from_ref(&request));
    assert_eq!(ids(&alone), expected);
    // Four draft tokens for each of 50, behind a part of the 200 tokens of the prompt.
    let rows = engine.stats().draft.rows;
    assert!(rows < 4 * 50 + 160, "{rows}");
    assert_eq!(ids(&run(&mut engine, &[request.clone(), request])), [&expected[..]; 2].concat());
    let stats = engine.stats();
    assert!(stats.preemptions > 0 && stats.rounds.draft_tokens > 0 && stats.draft_failures == 0);
}

/// Blocks of ended sequences serve later ones, target and draft alike: nothing but speed changes, and
/// the draft model is as good as if it had read all itself.
#[test]
fn ended_sequences_leave_their_blocks() {
    let mut engine = engine(&config(), Some(TestModel::draft(64, 0)));
    let ask = |prompt: &[u32]| Request {
        ignore_eos: true,
        num_speculative_tokens: Some(4),
        ..Request::greedy(prompt.to_vec(), 41)
    };
    let mut prompt: Vec<u32> = (0..70).map(|i| 2 + i * 7 % 40).collect();
    for (turn, cached) in [0, 96, 144].into_iter().enumerate() {
        let expected = reference(&[ask(&prompt)]);
        let output = run(&mut engine, &[ask(&prompt)]).remove(0);
        assert_eq!(ids(std::slice::from_ref(&output)), expected, "turn {turn}");
        assert_eq!(output.stats.cached_tokens, cached, "turn {turn}");
        assert_eq!(
            (output.stats.rounds.drafts, output.stats.rounds.recovered_tokens),
            (8, 0),
            "turn {turn}"
        );
        prompt.extend(output.ids());
        prompt.extend([3, 4, 5]);
    }
    let rows = engine.stats().draft.rows;
    // The first turn's prompt, what each turn drafts, and little between them.
    assert!(rows < 70 + 3 * 41 + 2 * 32, "{rows}");
    assert_eq!(engine.stats().prefix_cache_hits, 96 + 144);
    assert_eq!(engine.stats().prefix_cache_queries, 70 + 114 + 158);
    assert_eq!(engine.stats().draft_failures, 0);
}

/// Choices of one request run together: one of them computes the prompt.
#[test]
fn siblings_share_their_prompt() {
    let prompt: Vec<u32> = (0..100).map(|i| 2 + i * 7 % 40).collect();
    let request = |seed| {
        let mut request = Request { ignore_eos: true, ..Request::greedy(prompt.clone(), 30) };
        request.params.temperature = 1.0;
        request.params.seed = Some(seed);
        request
    };
    let requests: Vec<Request> = (0..4).map(request).collect();
    let mut engine = engine(&config(), Some(TestModel::draft(64, 60)));
    let outputs = run(&mut engine, &requests);
    assert_eq!(ids(&outputs), reference(&requests));
    let cached: Vec<usize> = outputs.iter().map(|output| output.stats.cached_tokens).collect();
    assert_eq!(cached, [0, 96, 96, 96]);
    assert_eq!(engine.stats().draft_failures, 0);
}

#[test]
fn limits_bound_the_draft() {
    let mut engine = engine(&config(), Some(TestModel::draft(64, 0)));
    for max_tokens in 1..12 {
        let request = Request { ignore_eos: true, ..Request::greedy(vec![5, 6], max_tokens) };
        let output = &run(&mut engine, &[request])[0];
        assert_eq!((output.tokens.len(), &output.reason), (max_tokens, &FinishReason::Length));
    }
    // The context ends the sequence as well.
    let prompt: Vec<u32> = vec![3; 250];
    let request = Request { ignore_eos: true, ..Request::greedy(prompt, 1000) };
    assert_eq!(run(&mut engine, &[request])[0].tokens.len(), 6);
}

#[test]
fn requests_bound_speculation() {
    let mut engine = engine(&config(), Some(TestModel::draft(64, 0)));
    let base = Request { ignore_eos: true, ..Request::greedy(vec![5, 6], 20) };
    let bounded = |n| Request { num_speculative_tokens: Some(n), ..base.clone() };
    let outputs = run(&mut engine, &[bounded(0), bounded(2), bounded(99)]);
    assert_eq!(outputs[0].stats.rounds.draft_tokens, 0);
    assert!(outputs[0].tokens.iter().all(|t| t.source == TokenSource::Target));
    assert_eq!(outputs[1].stats.rounds.accepted_per_position.len(), 2);
    assert_eq!(outputs[2].stats.rounds.accepted_per_position.len(), 4);
    assert_eq!(outputs[0].ids(), outputs[2].ids());
}

/// A prediction that is right but for two edits: nearly all of it is accepted, and both counts are true.
#[test]
fn predictions_are_followed_and_counted() {
    let base = Request { ignore_eos: true, ..Request::greedy(vec![5, 6], 60) };
    let mut engine = engine(&config(), None);
    let all = run(&mut engine, std::slice::from_ref(&base))[0].ids();
    let mut prediction = all.clone();
    prediction[20] ^= 1;
    prediction.remove(40);
    let prediction: Arc<[u32]> = prediction.into();
    let config = EngineConfig { ngram: true, ..config() };
    let mut engine = self::engine(&config, None);
    let request = Request { prediction: prediction.clone(), ..base.clone() };
    let output = &run(&mut engine, &[request])[0];
    assert_eq!(output.ids(), all);
    let counts = output.stats.rounds.proposer(Proposer::Prediction);
    assert!(counts.accepted_tokens > 35, "{counts:?}");
    assert!((1..20).contains(&(counts.draft_tokens - counts.accepted_tokens)), "{counts:?}");
    assert!(output.stats.target_passes < 25, "{}", output.stats.target_passes);
    // Without speculation it is ignored.
    let off = Request { num_speculative_tokens: Some(0), prediction, ..base };
    let output = &run(&mut engine, &[off])[0];
    assert_eq!((output.ids(), output.stats.rounds.draft_tokens), (all, 0));
}

/// Text that repeats itself is drafted from itself, without a draft model.
#[test]
fn repetition_is_copied() {
    let config = EngineConfig { ngram: true, ..config() };
    let mut engine = engine(&config, None);
    let mut request = Request { ignore_eos: true, ..Request::greedy(vec![5, 6], 100) };
    request.params.logit_bias = [(7, 100.0)].into();
    let output = &run(&mut engine, &[request])[0];
    assert!(output.ids().iter().all(|&id| id == 7));
    assert!(output.stats.target_passes < 25, "{}", output.stats.target_passes);
    assert_eq!(
        output.stats.rounds.proposer(Proposer::Ngram).draft_tokens,
        output.stats.rounds.draft_tokens
    );
}

/// An engine in which a target pass takes long, so that acceptance alone decides.
fn patient(draft: Option<TestModel>) -> Engine {
    let mut engine = engine(&EngineConfig { ngram: draft.is_none(), ..config() }, draft);
    engine.drafting.costs_mut().target.measured(1, 1e3);
    engine.drafting.costs_mut().target.measured(8, 1.1e3);
    engine
}

/// Whenever another draft takes over, every sequence goes on to the same end.
#[test]
fn a_better_draft_takes_over_in_the_middle_of_sequences() {
    let requests = requests();
    let expected = reference(&requests);
    for (first, trimmed) in [(None, false), (Some(250), false), (Some(250), true)] {
        let mut engine = patient(first.map(|noise| TestModel::draft(64, noise)));
        let mut better = TestModel::draft(64, 10);
        if trimmed {
            better = better.trimmed(&(0..48).filter(|id| id % 7 != 3).collect::<Vec<_>>());
        }
        // The others are still running when the first of them have ended.
        for request in &requests {
            engine.submit(Request { max_tokens: 8, ..request.clone() }).unwrap();
        }
        engine.compare("better".into(), Candidate::Standalone(Box::new(better)), 30).unwrap();
        assert_eq!(ids(&run(&mut engine, &requests)), expected, "{first:?} {trimmed}");
        let comparison = engine.comparison().unwrap();
        assert_eq!(comparison.outcome, Some(Outcome::Switched), "{comparison:?}");
        assert!(comparison.tokens >= 30 && comparison.candidate.accepted_tokens > 15);
        assert_eq!(comparison.current.is_some(), first.is_some());
        let before = engine.stats().rounds.proposers[Proposer::DraftModel as usize];
        assert_eq!(ids(&run(&mut engine, &requests)), expected);
        let after = engine.stats().rounds.proposers[Proposer::DraftModel as usize];
        let accepted = after.accepted_tokens - before.accepted_tokens;
        let drafted = after.draft_tokens - before.draft_tokens;
        assert!(drafted > 0 && accepted * 3 > drafted, "{accepted} of {drafted}");
    }
}

#[test]
fn a_draft_that_is_worse_or_broken_does_not_take_over() {
    let requests = requests();
    let expected = reference(&requests);
    let mut nan = TestModel::draft(64, 0);
    let mut panics = TestModel::draft(64, 0);
    (nan.on_one, panics.on_one) = (Fault::Nan, Fault::Panic);
    let mut with_ones = requests.clone();
    with_ones.iter_mut().for_each(|request| request.prompt.push(1));
    let expected_with_ones = reference(&with_ones);
    for (candidate, outcome) in [
        (TestModel::draft(64, 250), Outcome::Refused),
        (nan, Outcome::Failed),
        (panics, Outcome::Failed),
    ] {
        let mut engine = patient(Some(TestModel::draft(64, 10)));
        engine.compare("worse".into(), Candidate::Standalone(Box::new(candidate)), 100).unwrap();
        assert_eq!(ids(&run(&mut engine, &with_ones)), expected_with_ones);
        let drafted = engine.stats().rounds.draft_tokens;
        assert_eq!(engine.comparison().unwrap().outcome, Some(outcome));
        assert_eq!(ids(&run(&mut engine, &requests)), expected);
        assert!(engine.stats().rounds.draft_tokens > drafted, "the old draft goes on");
    }
    // One that fails on everything is worth less than any other.
    let mut broken = TestModel::draft(64, 0);
    broken.on_one = Fault::Nan;
    let mut engine = patient(Some(broken));
    engine
        .compare("better".into(), Candidate::Standalone(Box::new(TestModel::draft(64, 10))), 100)
        .unwrap();
    assert_eq!(ids(&run(&mut engine, &with_ones)), expected_with_ones);
    assert_eq!(engine.comparison().unwrap().outcome, Some(Outcome::Switched));
}

#[test]
fn a_comparison_is_refused_or_stopped() {
    let mut engine = patient(None);
    let wrong = Candidate::Standalone(Box::new(TestModel::draft(64, 0).trimmed(&[5, 4])));
    assert_eq!(engine.compare("wrong".into(), wrong, 9), Err(EngineError::BadDraftVocabulary));
    engine
        .compare("other".into(), Candidate::Standalone(Box::new(TestModel::draft(64, 0))), 9)
        .unwrap();
    engine.stop_comparing();
    assert_eq!(engine.comparison().unwrap().outcome, Some(Outcome::Stopped));
    run(&mut engine, &requests());
    assert_eq!(engine.comparison().unwrap().tokens, 0);
    let quiet = EngineConfig { num_speculative_tokens: 0, ..config() };
    let mut engine = super::engine(&quiet, None);
    let other = Candidate::Standalone(Box::new(TestModel::draft(64, 0)));
    assert_eq!(engine.compare("other".into(), other, 9), Err(EngineError::NoSpeculation));
}
