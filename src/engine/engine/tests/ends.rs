//! How sequences end: as they should, by faults, by being cancelled; and setups that do not begin.

use super::*;

#[test]
fn stop_tokens_and_eos_cut_the_round() {
    let base = Request { ignore_eos: true, ..Request::greedy(vec![5, 6], 30) };
    let mut engine = engine(&config(), Some(TestModel::draft(64, 0)));
    let all = run(&mut engine, std::slice::from_ref(&base))[0].ids();
    for stop in [all[2], all[9], all[13]] {
        let first = all.iter().position(|&id| id == stop).unwrap();
        let request = Request { stop_token_ids: [stop].into(), ..base.clone() };
        let output = &run(&mut engine, &[request])[0];
        assert_eq!(output.ids(), all[..=first]);
        assert_eq!(output.reason, FinishReason::StopToken(stop));
    }
    let eos = Request { max_tokens: 250, ignore_eos: false, ..base };
    let outputs = run(&mut engine, &[eos]);
    if let Some(end) = outputs[0].ids().iter().position(|&id| id == EOS) {
        assert_eq!((end + 1, &outputs[0].reason), (outputs[0].tokens.len(), &FinishReason::Eos));
    }
}

/// What may not come does not, wherever in a round it would, and the rest is as it would be alone.
#[test]
fn what_is_restricted_does_not_come() {
    let base = Request::greedy(vec![5, 6], 60);
    let endless = Request { ignore_eos: true, ..base.clone() };
    let plain = reference(&[endless]).remove(0).0;
    let with = |change: &dyn Fn(&mut Request)| {
        let mut request = base.clone();
        change(&mut request);
        let requests = [request];
        let mut expected = reference(&requests);
        for noise in [0, 60, 256] {
            let mut engine = engine(&config(), Some(TestModel::draft(64, noise)));
            assert_eq!(ids(&run(&mut engine, &requests)), expected);
        }
        expected.remove(0)
    };
    let stop = plain[3];
    let (all, reason) = with(&|request| {
        request.stop_token_ids = [stop].into();
        request.params.restrictions.min_tokens = 20;
    });
    assert!(all.len() > 20 && !all[..20].contains(&stop) && !all[..20].contains(&EOS), "{all:?}");
    assert!(matches!(
        reason,
        FinishReason::StopToken(_) | FinishReason::Length | FinishReason::Eos
    ));
    let pair = [plain[4], plain[5]];
    let (all, _) = with(&|request| {
        request.ignore_eos = true;
        request.params.restrictions.bad_words = [pair.to_vec(), vec![plain[0]]].into();
    });
    assert!(!all.contains(&plain[0]) && all.windows(2).all(|two| two != pair), "{all:?}");
    let (all, _) = with(&|request| request.params.restrictions.allowed = Some([7, 9, 11].into()));
    assert!(all.len() == 60 && all.iter().all(|id| [7, 9, 11].contains(id)), "{all:?}");
    // Where only ends are allowed, they come.
    let (all, _) = with(&|request| {
        request.params.restrictions.allowed = Some([EOS].into());
        request.params.restrictions.min_tokens = 9;
    });
    assert_eq!(all, [EOS]);
}

/// A stop string ends a sequence with the token that completes it, wherever in a round that is, and all
/// it took is counted.
#[test]
fn stop_strings_cut_the_round() {
    let vocab: serde_json::Map<_, _> =
        (0..VOCAB as u32).map(|id| (format!("<{id}>"), id.into())).collect();
    let model = serde_json::json!({"type": "WordLevel", "vocab": vocab, "unk_token": "<0>"});
    let tokenizer = serde_json::json!({"version": "1.0", "added_tokens": [], "model": model});
    let tokenizer: tokenizers::Tokenizer = serde_json::from_value(tokenizer).unwrap();
    let tokenizer = std::sync::Arc::new(tokenizer);
    let base = Request { ignore_eos: true, ..Request::greedy(vec![5, 6], 30) };
    let all = reference(std::slice::from_ref(&base)).remove(0).0;
    for place in 1..15 {
        // It begins with the token before, and ends within this one.
        let stop = format!("{}> <{}", all[place - 1], all[place]);
        let first = (1..).find(|&at| all[at - 1..=at] == all[place - 1..=place]).unwrap();
        let stop = Some(StoppingText::new(std::sync::Arc::clone(&tokenizer), vec![stop]));
        let mut engine = engine(&config(), Some(TestModel::draft(64, 0)));
        let output = &run(&mut engine, &[Request { stop, ..base.clone() }])[0];
        assert_eq!(
            (output.ids(), &output.reason),
            (all[..=first].to_vec(), &FinishReason::StopString)
        );
        // One token from the prompt, then rounds of four draft tokens and a bonus.
        let (drafts, bonus) = (first.div_ceil(5) as u64, first as u64 / 5);
        let stats = &output.stats;
        assert_eq!(
            (stats.rounds.drafts, stats.rounds.draft_tokens),
            (drafts, drafts * 4),
            "{place}"
        );
        assert_eq!(stats.rounds.accepted_tokens, first as u64 - bonus, "{place}");
    }
}

#[test]
fn a_failing_draft_costs_nothing_but_speed() {
    let requests = requests();
    let expected = reference(&requests);
    for fault in [Fault::Nan, Fault::Panic] {
        let mut draft = TestModel::draft(64, 20);
        draft.on_one = fault;
        let mut engine = engine(&config(), Some(draft));
        assert_eq!(ids(&run(&mut engine, &requests)), expected);
        assert!(engine.stats().draft_failures > 0);
    }
}

#[test]
fn a_failing_target_ends_its_sequence_alone() {
    let mut target = TestModel::new(64);
    target.on_one = Fault::Nan;
    let mut engine = Engine::with_models(Box::new(target), None, config()).unwrap();
    let bad = Request::greedy(vec![4, 1], 5);
    let good = Request { stop_token_ids: [1].into(), ..Request::greedy(vec![4, 2], 5) };
    let outputs = run(&mut engine, &[bad, good]);
    assert!(matches!(outputs[0].reason, FinishReason::Error(_)));
    assert!(!matches!(outputs[1].reason, FinishReason::Error(_)));
}

/// A bug in the verification of one sequence ends that one with an error, and no other notices.
#[test]
fn a_bug_in_one_sequence_is_its_own() {
    let mut requests: Vec<Request> =
        requests().into_iter().map(|r| Request { ignore_eos: true, ..r }).collect();
    requests[3].num_speculative_tokens = Some(0);
    let expected = reference(&requests);
    let mut engine = engine(&config(), Some(TestModel::draft(64, 60)));
    let ids: Vec<_> = requests.iter().map(|r| engine.submit(r.clone()).unwrap()).collect();
    let mut tokens: HashMap<RequestId, Vec<u32>> = HashMap::new();
    let mut ends = HashMap::new();
    while engine.has_work() {
        if let Some(sequence) = engine.sequences.get_mut(ids[3])
            && sequence.stats.rounds.generated_tokens > 10
        {
            // No request that was checked has these.
            sequence.params.temperature = 1.0;
            sequence.params.top_k = Some(0);
        }
        for (id, event) in engine.step() {
            match event {
                Event::Tokens(new) => {
                    tokens.entry(id).or_default().extend(new.iter().map(|token| token.id));
                }
                Event::Prompt(_) | Event::Embedding(_) => panic!("not asked for"),
                Event::Finished { reason, .. } => assert_eq!(ends.insert(id, reason), None),
            }
        }
    }
    assert_eq!(engine.cache_blocks().0, 0, "blocks leaked");
    for (index, id) in ids.iter().enumerate() {
        let (all, reason) = &expected[index];
        if index == 3 {
            let bug = "the engine met a bug in this request".to_owned();
            assert_eq!(ends[id], FinishReason::Error(bug));
            assert!(tokens[id].len() > 10 && all.starts_with(&tokens[id]));
        } else {
            assert_eq!((&tokens[id], &ends[id]), (all, reason), "{index}");
        }
    }
}

/// A draft model whose head is larger than it says: drafting panics outside of the model.
struct Lying(TestModel, std::sync::Arc<[u32]>);

impl Forward for Lying {
    fn config(&self) -> &crate::model::ModelConfig {
        self.0.config()
    }

    fn head_rows(&self) -> usize {
        self.0.head_rows()
    }

    fn draft_vocab(&self) -> Option<&std::sync::Arc<[u32]>> {
        Some(&self.1)
    }

    fn forward(&mut self, rows: &Rows) -> Result<&[f32], OutOfMemory> {
        self.0.forward(rows)
    }

    fn hidden_state(&self, row: usize, out: &mut [f32]) {
        self.0.hidden_state(row, out);
    }
}

#[test]
fn a_bug_in_drafting_costs_nothing_but_speed() {
    let requests = requests();
    let draft = Lying(TestModel::draft(64, 0), [2, 3, 4, 5].into());
    let target = Box::new(TestModel::new(64));
    let mut engine = Engine::with_models(target, Some(Box::new(draft)), config()).unwrap();
    assert_eq!(ids(&run(&mut engine, &requests)), reference(&requests));
    assert_eq!(engine.stats().draft_failures, 1);
}

#[test]
fn cancelling_frees_the_blocks() {
    let mut engine = engine(&config(), Some(TestModel::draft(64, 0)));
    let ids: Vec<_> =
        (3..6).map(|n| engine.submit(Request::greedy(vec![n; 40], 90)).unwrap()).collect();
    engine.step();
    assert!(engine.cache_blocks().0 >= 9);
    ids.into_iter().for_each(|id| engine.cancel(id));
    assert_eq!(engine.cache_blocks().0, 0);
    assert!(!engine.has_work() && engine.step().is_empty());
}

#[test]
fn measuring_leaves_no_trace() {
    let mut engine = engine(&config(), Some(TestModel::draft(64, 0)));
    let costs = engine.measure_costs(40, &[1, 2, 4], 3).unwrap();
    assert_eq!(costs.target.iter().map(|c| c.0).collect::<Vec<_>>(), [1, 2, 4]);
    assert_eq!(costs.verify_cost(1), Some(1.0));
    assert!(costs.draft_step_cost().is_some_and(|cost| cost > 0.0));
    assert_eq!((engine.cache_blocks().0, engine.stats().steps), (0, 0));
    let requests = requests();
    assert_eq!(ids(&run(&mut engine, &requests)), reference(&requests));
}

#[test]
fn impossible_setups_are_refused() {
    let build = |config: EngineConfig, draft: Option<TestModel>| {
        let draft = draft.map(|draft| Box::new(draft) as Box<dyn Forward>);
        Engine::with_models(Box::new(TestModel::new(4)), draft, config).err()
    };
    let zero = EngineConfig { max_num_seqs: 0, ..config() };
    assert_eq!(build(zero, None), Some(EngineError::Zero("max_num_seqs")));
    let long = EngineConfig { max_model_len: Some(300), ..config() };
    let too_long = EngineError::ContextTooLong { requested: 300, limit: 256 };
    assert_eq!(build(long, None), Some(too_long));
    let unsorted = TestModel::draft(4, 0).trimmed(&[3, 2]);
    assert_eq!(build(config(), Some(unsorted)), Some(EngineError::BadDraftVocabulary));
    // A small cache limits the context rather than failing later.
    let small = EngineConfig { num_blocks: Some(2), ..config() };
    let engine = engine(&small, None);
    assert_eq!(engine.limits().max_model_len, 32);
}
