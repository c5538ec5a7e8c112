use std::collections::HashMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::super::test_model::{EOS, Fault, TestModel, VOCAB};
use super::super::{
    FinishReason, Outcome, PromptToken, ProposerCounts, Readout, TokenOut, TokenSource,
};
use super::*;
use crate::model::Rows;
use crate::sampling::SamplingParams;
use crate::speculation::Proposer;
use crate::text::StoppingText;

fn config() -> EngineConfig {
    EngineConfig {
        adaptive: false,
        ngram: false,
        num_speculative_tokens: 4,
        num_blocks: Some(64),
        ..Default::default()
    }
}

fn engine(config: &EngineConfig, draft: Option<TestModel>) -> Engine {
    let blocks = config.num_blocks.unwrap();
    let draft = draft.map(|draft| Box::new(draft) as Box<dyn Forward>);
    Engine::with_models(Box::new(TestModel::new(blocks)), draft, config.clone()).unwrap()
}

struct Output {
    tokens: Vec<TokenOut>,
    reason: FinishReason,
    stats: crate::engine::SequenceStats,
    /// What was read off the prompt.
    read: Option<Event>,
}

impl Output {
    fn ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|token| token.id).collect()
    }
}

/// Runs all requests to their end and checks that nothing is left behind.
fn run(engine: &mut Engine, requests: &[Request]) -> Vec<Output> {
    let ids: Vec<_> = requests.iter().map(|r| engine.submit(r.clone()).unwrap()).collect();
    let mut tokens: HashMap<RequestId, Vec<TokenOut>> = HashMap::new();
    let (mut ends, mut reads) = (HashMap::new(), HashMap::new());
    while engine.has_work() {
        let events = engine.step();
        assert!(!events.is_empty() || engine.has_work());
        for (id, event) in events {
            assert!(!ends.contains_key(&id), "news after the end");
            match event {
                read @ (Event::Prompt(_) | Event::Embedding(_)) => {
                    assert!(!tokens.contains_key(&id) && reads.insert(id, read).is_none());
                }
                Event::Tokens(new) => tokens.entry(id).or_default().extend(new),
                Event::Finished { reason, stats } => {
                    ends.insert(id, (reason, stats));
                }
            }
        }
    }
    assert_eq!(engine.cache_blocks().0, 0, "blocks leaked");
    let stats = engine.stats();
    let sources = stats.rounds.accepted_tokens
        + stats.rounds.recovered_tokens
        + stats.rounds.bonus_tokens
        + stats.rounds.target_tokens;
    assert_eq!(sources, stats.rounds.generated_tokens);
    assert!(stats.rounds.accepted_tokens <= stats.rounds.draft_tokens);
    let by_proposer =
        |count: fn(&ProposerCounts) -> u64| stats.rounds.proposers.iter().map(count).sum::<u64>();
    assert_eq!(stats.rounds.draft_tokens, by_proposer(|counts| counts.draft_tokens));
    assert_eq!(stats.rounds.accepted_tokens, by_proposer(|counts| counts.accepted_tokens));
    ids.iter()
        .map(|id| {
            let (reason, stats) = ends.remove(id).unwrap();
            let tokens = tokens.remove(id).unwrap_or_default();
            assert_eq!(stats.rounds.generated_tokens, tokens.len() as u64);
            Output { tokens, reason, stats, read: reads.remove(id) }
        })
        .collect()
}

fn ids(outputs: &[Output]) -> Vec<(Vec<u32>, FinishReason)> {
    outputs.iter().map(|output| (output.ids(), output.reason.clone())).collect()
}

fn requests() -> Vec<Request> {
    (0..8u32)
        .map(|n| {
            let prompt = (0..3 + n * 7).map(|i| 2 + (i * n + i) % 40).collect();
            let mut request = Request::greedy(prompt, 40);
            request.ignore_eos = n % 2 == 0;
            if n == 3 {
                request.params.repetition_penalty = 1.3;
                request.params.frequency_penalty = 0.7;
            }
            request
        })
        .collect()
}

/// Each request on its own, without speculation: what every other way of running must repeat.
fn reference(requests: &[Request]) -> Vec<(Vec<u32>, FinishReason)> {
    requests
        .iter()
        .flat_map(|r| ids(&run(&mut engine(&config(), None), std::slice::from_ref(r))))
        .collect()
}

#[test]
fn greedy_output_does_not_depend_on_speculation_batch_or_cache() {
    let requests = requests();
    let expected = reference(&requests);
    for budget in [1, 7, 512] {
        for num_blocks in [6, 9, 64] {
            for noise in [0, 80, 256] {
                let config = EngineConfig {
                    max_num_batched_tokens: budget,
                    num_blocks: Some(num_blocks),
                    ..config()
                };
                let draft = TestModel::draft(num_blocks, noise);
                let mut engine = engine(&config, Some(draft));
                let outputs = run(&mut engine, &requests);
                assert_eq!(ids(&outputs), expected, "{budget} {num_blocks} {noise}");
                if num_blocks == 6 && budget == 512 {
                    assert!(engine.stats().preemptions > 0, "the cache is tight");
                }
            }
        }
    }
}

#[test]
fn a_trimmed_draft_changes_nothing_either() {
    let requests = requests();
    let vocab: Vec<u32> = (0..48).filter(|id| id % 3 != 0).collect();
    let draft = TestModel::draft(64, 40).trimmed(&vocab);
    let mut engine = engine(&config(), Some(draft));
    assert_eq!(ids(&run(&mut engine, &requests)), reference(&requests));
    assert!(engine.stats().rounds.accepted_tokens > 0);
    assert!(engine.stats().rounds.recovered_tokens > 0);
}

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

/// A seed decides the tokens, whatever else runs and whatever is drafted.
#[test]
fn seeded_output_does_not_depend_on_speculation_batch_or_cache() {
    let mut requests = requests();
    for (seed, request) in (0..).zip(&mut requests) {
        request.params.temperature = 0.9;
        request.params.seed = Some(seed / 2);
    }
    let expected = reference(&requests);
    assert_ne!(expected[0], expected[2]);
    for (num_blocks, noise) in [(6, 80), (64, 0), (64, 80), (64, 256)] {
        for (adaptive, ngram) in [(false, false), (false, true), (true, true)] {
            let config = EngineConfig { num_blocks: Some(num_blocks), adaptive, ngram, ..config() };
            let mut engine = engine(&config, Some(TestModel::draft(num_blocks, noise)));
            assert_eq!(ids(&run(&mut engine, &requests)), expected, "{num_blocks} {noise}");
            assert!(adaptive || engine.stats().rounds.accepted_tokens > 0, "{num_blocks} {noise}");
        }
    }
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

/// Two-sample chi-square of the second and third token, drawn with and without speculation.
#[test]
fn sampled_output_has_the_targets_distribution() {
    let trials = 6000;
    let params = [
        SamplingParams::default(),
        SamplingParams { temperature: 0.7, top_k: Some(12), top_p: 0.9, ..Default::default() },
    ];
    for params in params {
        let count = |draft: Option<TestModel>, ngram: bool, seed: u64| {
            let config = EngineConfig { seed: Some(seed), ngram, ..config() };
            let mut engine = engine(&config, draft);
            let mut counts = [[0f64; 48]; 2];
            let request = Request {
                params: params.clone(),
                ignore_eos: true,
                prediction: [9, 10, 11].into(),
                ..Request::greedy(vec![5, 6, 5], 3)
            };
            let batch = vec![request; 100];
            for _ in 0..trials / 100 {
                for output in run(&mut engine, &batch) {
                    counts[0][output.tokens[1].id as usize] += 1.0;
                    counts[1][output.tokens[2].id as usize] += 1.0;
                }
            }
            counts
        };
        let plain = count(None, false, 0);
        let vocab: Vec<u32> = (0..48).filter(|id| id % 5 != 0).collect();
        let draft = || TestModel::draft(64, 128);
        for (draft, ngram) in [
            (Some(draft()), false),
            (Some(draft().trimmed(&vocab)), false),
            (Some(draft()), true),
            (None, true),
        ] {
            let speculative = count(draft, ngram, 1);
            for (a, b) in plain.iter().zip(&speculative) {
                let terms: Vec<f64> = a
                    .iter()
                    .zip(b)
                    .filter(|(a, b)| *a + *b >= 10.0)
                    .map(|(a, b)| (a - b).powi(2) / (a + b))
                    .collect();
                let degrees = (terms.len() - 1) as f64;
                let chi_square: f64 = terms.iter().sum();
                let limit = degrees + 6.0 * (2.0 * degrees).sqrt();
                assert!(chi_square < limit, "{chi_square} against {limit}");
            }
        }
    }
}

#[test]
fn log_probabilities_are_those_of_the_raw_logits() {
    let mut request = Request::greedy(vec![5, 6], 10);
    request.params.logit_bias = [(9, 50.0)].into();
    request.top_logprobs = Some(3);
    let with = |draft| run(&mut engine(&config(), draft), &[request.clone()]).remove(0).tokens;
    let plain = with(None);
    assert!(plain.iter().all(|token| token.id == 9));
    assert!(plain.iter().any(|token| token.top_logprobs[0].0 != 9), "the bias does not show");
    assert!(plain.iter().all(|token| token.top_logprobs.len() == 3));
    for (a, b) in plain.iter().zip(with(Some(TestModel::draft(64, 50)))) {
        assert_eq!((a.logprob, &a.top_logprobs), (b.logprob, &b.top_logprobs));
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

    fn forward(&mut self, rows: &Rows) -> &[f32] {
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
    let costs = engine.measure_costs(40, &[1, 2, 4], 3);
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Any mix of budget, cache size, proposers and draft length gives the greedy output of each
    /// request on its own.
    #[test]
    fn greedy_output_is_invariant(
        budget in 1usize..40,
        num_blocks in 6usize..20,
        max_num_seqs in 1usize..9,
        length in 0usize..7,
        noise in 0u64..257,
        adaptive: bool,
        ngram: bool,
        drafts: bool,
        predicted: bool,
        prefix_caching: bool,
    ) {
        let requests = requests();
        let config = EngineConfig {
            max_num_batched_tokens: budget,
            num_blocks: Some(num_blocks),
            max_num_seqs,
            num_speculative_tokens: length,
            adaptive,
            ngram,
            prefix_caching,
            ..config()
        };
        let expected = reference(&requests);
        let mut requests = requests;
        for (request, (tokens, _)) in requests.iter_mut().zip(&expected).filter(|_| predicted) {
            // Every seventh token is another.
            let prediction = tokens.iter().enumerate();
            request.prediction = prediction.map(|(i, id)| if i % 7 == 3 { 5 } else { *id }).collect();
        }
        let draft = drafts.then(|| TestModel::draft(num_blocks, noise));
        let mut engine = engine(&config, draft);
        prop_assert_eq!(ids(&run(&mut engine, &requests)), expected);
    }

    /// Conversations that begin alike and go on with what was answered, in a cache that cannot hold them
    /// all: every turn's output is as if it were computed alone, and no model reads a wrong slot.
    #[test]
    fn shared_beginnings_change_nothing(
        seed: u64,
        budget in 5usize..300,
        num_blocks in 14usize..48,
        noise in prop_oneof![Just(0u64), 0u64..257],
        max_num_seqs in 1usize..7,
    ) {
        let mut random = fastrand::Rng::with_seed(seed);
        let config = EngineConfig {
            max_num_batched_tokens: budget,
            num_blocks: Some(num_blocks),
            max_num_seqs,
            ..config()
        };
        let mut engine = engine(&config, Some(TestModel::draft(num_blocks, noise)));
        let mut text = |len: usize| (0..len).map(|_| random.u32(2..48)).collect::<Vec<u32>>();
        let beginnings = [text(130), text(40)];
        let mut prompts: Vec<Vec<u32>> = Vec::new();
        for round in 0..4 {
            prompts.retain(|prompt| prompt.len() < 190);
            while prompts.len() < 5 {
                let own = text(1 + 17 * prompts.len());
                prompts.push([&beginnings[(prompts.len() + round) % 2][..], &own].concat());
            }
            let requests: Vec<Request> = prompts
                .iter()
                .map(|p| Request { ignore_eos: true, ..Request::greedy(p.clone(), 5 + p.len() % 20) })
                .collect();
            let outputs = run(&mut engine, &requests);
            prop_assert_eq!(ids(&outputs), reference(&requests));
            for (prompt, output) in prompts.iter_mut().zip(outputs) {
                prompt.extend(output.ids());
            }
        }
        prop_assert_eq!(engine.stats().draft_failures, 0);
    }
}

/// What is read off prompts is that of a pass over the whole prompt, however it is cut into chunks,
/// whatever else runs, and whether the cache had to be given up in between.
#[test]
fn prompts_are_read_whole_in_any_chunks() {
    let prompt: Vec<u32> = (0..130).map(|i| 2 + (i * i + 3 * i) % 45).collect();
    let scored = Request {
        readout: Readout::Logprobs(2),
        top_logprobs: Some(2),
        ..Request::greedy(prompt.clone(), 3)
    };
    // The log-probability of each token is what generating from the tokens before it reports.
    let expected: Vec<PromptToken> = (0..prompt.len())
        .map(|place| {
            let id = prompt[place];
            if place == 0 {
                return PromptToken { id, logprob: None, top_logprobs: vec![] };
            }
            let all = Request {
                top_logprobs: Some(VOCAB.min(20)),
                params: SamplingParams {
                    logit_bias: [(id, 100.0)].into(),
                    ..SamplingParams::greedy()
                },
                ..Request::greedy(prompt[..place].to_vec(), 1)
            };
            let token = run(&mut engine(&config(), None), &[all])[0].tokens[0].clone();
            assert_eq!(token.id, id);
            PromptToken {
                id,
                logprob: token.logprob,
                top_logprobs: token.top_logprobs[..2].to_vec(),
            }
        })
        .collect();
    let embedded = Request { readout: Readout::Embedding, ..Request::greedy(prompt.clone(), 1) };
    let mean = |values: &mut dyn Iterator<Item = u32>| values.sum::<u32>() as f32 / 130.0;
    let means = [mean(&mut prompt.iter().copied()), mean(&mut (0..130))];
    let plain = run(&mut engine(&config(), None), &[Request::greedy(prompt, 3)]);
    let long = Request { ignore_eos: true, ..Request::greedy(vec![7, 8], 100) };
    for (budget, num_blocks) in [(512, 64), (17, 64), (100, 12)] {
        let config = EngineConfig {
            max_num_batched_tokens: budget,
            num_blocks: Some(num_blocks),
            ..config()
        };
        let mut engine = engine(&config, Some(TestModel::draft(num_blocks, 80)));
        let requests = [long.clone(), scored.clone(), embedded.clone(), scored.clone()];
        let outputs = run(&mut engine, &requests);
        for output in [&outputs[1], &outputs[3]] {
            assert_eq!(output.read, Some(Event::Prompt(expected.clone())), "{budget} {num_blocks}");
            assert_eq!(output.ids(), plain[0].ids());
        }
        let Some(Event::Embedding(embedding)) = &outputs[2].read else { panic!("no embedding") };
        assert_eq!(embedding[..2], means);
        assert!(outputs[2].tokens.is_empty() && outputs[0].read.is_none());
        assert!(num_blocks > 12 || engine.stats().preemptions > 0, "the cache is tight");
    }
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
        engine.compare("better".into(), Box::new(better), 30).unwrap();
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
        engine.compare("worse".into(), Box::new(candidate), 100).unwrap();
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
    engine.compare("better".into(), Box::new(TestModel::draft(64, 10)), 100).unwrap();
    assert_eq!(ids(&run(&mut engine, &with_ones)), expected_with_ones);
    assert_eq!(engine.comparison().unwrap().outcome, Some(Outcome::Switched));
}

#[test]
fn a_comparison_is_refused_or_stopped() {
    let mut engine = patient(None);
    let wrong = Box::new(TestModel::draft(64, 0).trimmed(&[5, 4]));
    assert_eq!(engine.compare("wrong".into(), wrong, 9), Err(EngineError::BadDraftVocabulary));
    engine.compare("other".into(), Box::new(TestModel::draft(64, 0)), 9).unwrap();
    engine.stop_comparing();
    assert_eq!(engine.comparison().unwrap().outcome, Some(Outcome::Stopped));
    run(&mut engine, &requests());
    assert_eq!(engine.comparison().unwrap().tokens, 0);
    let quiet = EngineConfig { num_speculative_tokens: 0, ..config() };
    let mut engine = super::tests::engine(&quiet, None);
    let other = Box::new(TestModel::draft(64, 0));
    assert_eq!(engine.compare("other".into(), other, 9), Err(EngineError::NoSpeculation));
}
