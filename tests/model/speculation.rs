//! Speculation on the default model is lossless: the same tokens at temperature 0, the same
//! distribution above.

use std::collections::HashMap;

use crate::support::engines::{
    engine, engine_on, engine_with_attached, grammar, ids, prompt, questions, run,
};
use pleach::engine::{EngineConfig, Request};
use pleach::grammar::GrammarSource;
use pleach::model::Decoder;
use pleach::sampling::SamplingParams;
use pleach::speculation::Proposer;
use pleach_kernels::CacheFormat;

/// A perfect draft, and one that is often wrong.
const DRAFTS: [usize; 2] = [30, 27];

fn config() -> EngineConfig {
    EngineConfig { num_blocks: Some(128), ngram: false, adaptive: false, ..Default::default() }
}

/// Requests whose answers repeat their questions.
fn repetitive(max_tokens: usize) -> Vec<Request> {
    let texts = [
        "Repeat this exactly: The quick brown fox jumps over the lazy dog. The dog sleeps.",
        "Write the word 'echo' ten times, separated by commas.",
        "Add a comment to each line:\nfor i in range(10):\n    print(i)\nfor j in range(10):\n    print(j)",
    ];
    texts.iter().map(|text| Request::greedy(prompt(text), max_tokens)).collect()
}

/// The draft model, n-grams and predictions together, at any draft length, alone and in a batch.
#[test]
fn greedy_output_is_identical_with_every_proposer() {
    let mut requests: Vec<Request> =
        questions(24).into_iter().take(3).chain(repetitive(48)).collect();
    let expected = ids(&run(&mut engine(&config(), None), &requests));
    // One says what it expects, wrongly in places.
    let mut prediction = expected[5].clone();
    prediction.iter_mut().skip(6).step_by(7).for_each(|token| *token = (*token + 1) % 1000);
    requests[5].prediction = prediction.into();
    for (draft, length, adaptive) in [(None, 12, false), (Some(27), 3, false), (Some(27), 8, true)]
    {
        let config =
            EngineConfig { ngram: true, num_speculative_tokens: length, adaptive, ..config() };
        let mut engine = engine(&config, draft);
        engine.profile();
        assert_eq!(ids(&run(&mut engine, &requests)), expected, "{draft:?} {length}");
        for (request, expected) in requests.iter().zip(&expected).skip(3) {
            let alone = run(&mut engine, std::slice::from_ref(request)).remove(0);
            assert_eq!(&alone.ids(), expected);
        }
        let accepted =
            |proposer: Proposer| engine.stats().rounds.proposers[proposer as usize].accepted_tokens;
        // What is worth drafting depends on how fast this machine is just now.
        if !adaptive {
            assert!(accepted(Proposer::Ngram) > 0, "{draft:?} {length}");
            assert!(accepted(Proposer::Prediction) > 0, "{draft:?} {length}");
            assert_eq!(accepted(Proposer::DraftModel) > 0, draft.is_some());
        }
    }
}

/// A grammar drafts what it leaves no choice about: the same answers in fewer passes, at temperature 0 and 1, and
/// beside every other proposer.
#[test]
fn grammars_draft_what_must_come() {
    let schema = serde_json::json!({
        "type": "object", "additionalProperties": false,
        "required": ["temperature_in_celsius", "chance_of_rain"],
        "properties": {
            "temperature_in_celsius": {"type": "integer"},
            "chance_of_rain": {"enum": ["impossible", "possible", "certain"]},
        },
    });
    let requests: Vec<Request> = [0.0, 1.0]
        .into_iter()
        .map(|temperature| {
            let mut request = Request::greedy(prompt("What will the weather be like?"), 60);
            request.params =
                SamplingParams { temperature, seed: Some(4), ..SamplingParams::default() };
            request.grammar = Some(grammar(&GrammarSource::JsonSchema(schema.clone())));
            request
        })
        .collect();
    let plain = EngineConfig { num_speculative_tokens: 0, ..config() };
    let expected = ids(&run(&mut engine(&plain, None), &requests));
    for (draft, ngram) in [(None, true), (Some(27), false), (Some(27), true)] {
        let mut engine = engine(&EngineConfig { ngram, ..config() }, draft);
        assert_eq!(ids(&run(&mut engine, &requests)), expected, "{draft:?} {ngram}");
        let counts = engine.stats().rounds.proposers[Proposer::Grammar as usize];
        // A draft model that may go on everywhere leaves it nothing.
        assert_eq!(counts.accepted_tokens >= 4, draft.is_none(), "{counts:?}");
    }
}

/// A drafter that reads the target's states and writes to its cache leaves no trace in the text: alone and in a
/// batch, with n-grams and without, when sequences are turned out and when they share their beginning; and it has
/// tokens accepted.
#[test]
fn an_attached_drafter_leaves_no_trace() {
    let mut requests: Vec<Request> = questions(24).into_iter().chain(repetitive(48)).collect();
    requests.push(requests[3].clone());
    let expected = ids(&run(&mut engine(&config(), None), &requests));
    let longest = requests.iter().map(|r| r.prompt.len()).max().unwrap() + 48;
    let tight = longest.div_ceil(16) + 1;
    for (num_blocks, length, adaptive, ngram) in
        [(128, 4, false, false), (tight, 3, false, true), (128, 8, true, true)]
    {
        let config = EngineConfig {
            num_blocks: Some(num_blocks),
            num_speculative_tokens: length,
            adaptive,
            ngram,
            ..config()
        };
        let mut engine = engine_with_attached(&config, |_| {});
        engine.profile();
        assert_eq!(ids(&run(&mut engine, &requests)), expected, "{num_blocks} {length}");
        for (request, expected) in requests.iter().zip(&expected).skip(6) {
            let alone = run(&mut engine, std::slice::from_ref(request)).remove(0);
            assert_eq!(&alone.ids(), expected);
        }
        let drafted = engine.stats().rounds.proposers[Proposer::DraftModel as usize];
        println!("{drafted:?}");
        assert!(adaptive || drafted.accepted_tokens > 0, "{drafted:?}");
        assert_eq!(engine.stats().draft_failures, 0);
    }
}

/// With keys and values of 8 bits, too, the text is the same alone and in a batch, whole and in chunks, in a cache so small
/// that sequences are turned out, and with every proposer: n-grams, an attached drafter and a draft model.
#[test]
fn an_int8_cache_changes_nothing_of_this() {
    let hold = |target: &mut Decoder| target.set_cache_format(CacheFormat::Int8);
    let requests: Vec<Request> = questions(24)
        .into_iter()
        .take(4)
        .chain(repetitive(40))
        .map(|request| Request { top_logprobs: Some(0), ..request })
        .collect();
    let logprobs = |outputs: Vec<pleach::engine::Answer>| -> Vec<Vec<(u32, u32)>> {
        let of = |token: &pleach::engine::TokenOut| (token.id, token.logprob.unwrap().to_bits());
        outputs.iter().map(|output| output.tokens.iter().map(of).collect()).collect()
    };
    let mut plain = engine_on(&config(), None, hold);
    let expected: Vec<_> = requests
        .iter()
        .flat_map(|request| logprobs(run(&mut plain, std::slice::from_ref(request))))
        .collect();
    let f16 = logprobs(run(&mut engine(&config(), None), &requests));
    for (f16, int8) in f16.iter().zip(&expected) {
        assert_eq!(f16[0].0, int8[0].0, "the first token");
        assert_ne!(f16, int8, "the cache is of another format");
    }
    let longest = requests.iter().map(|r| r.prompt.len()).max().unwrap() + 40;
    let tight = longest.div_ceil(16) + 1;
    for (draft, attached, ngram, max_num_batched_tokens, num_blocks) in [
        (None, false, false, 7, 128),
        (None, false, true, 512, tight),
        (None, true, false, 512, 128),
        (None, true, true, 7, tight),
        (Some(27), false, false, 512, 128),
        (Some(27), false, true, 11, tight),
    ] {
        let config = EngineConfig {
            ngram,
            max_num_batched_tokens,
            num_blocks: Some(num_blocks),
            num_speculative_tokens: 4,
            ..config()
        };
        let case = format!("{draft:?} {attached} {ngram} {max_num_batched_tokens} {num_blocks}");
        let mut engine = if attached {
            engine_with_attached(&config, hold)
        } else {
            engine_on(&config, draft, hold)
        };
        assert_eq!(logprobs(run(&mut engine, &requests)), expected, "{case}");
        assert_eq!(logprobs(run(&mut engine, &requests[6..])), expected[6..], "{case}");
        let rounds = &engine.stats().rounds;
        assert_eq!(rounds.accepted_tokens > 0, attached || ngram || draft.is_some(), "{case}");
        let drafted = rounds.proposers[Proposer::DraftModel as usize].accepted_tokens;
        assert_eq!(drafted > 0, attached || draft.is_some(), "{case}");
        assert_eq!(engine.stats().draft_failures, 0, "{case}");
    }
}

#[test]
fn greedy_output_is_identical_with_and_without() {
    let mut requests = questions(20);
    requests[2].params.repetition_penalty = 1.2;
    requests[4].params.frequency_penalty = 0.8;
    let mut plain = engine(&config(), None);
    let expected = ids(&run(&mut plain, &requests));
    let longest = requests.iter().map(|r| r.prompt.len()).max().unwrap() + 20;
    let tight = longest.div_ceil(16) + 1;
    for blocks in DRAFTS {
        for (budget, num_blocks, length) in [(512, 128, 4), (7, 128, 2), (512, tight, 6)] {
            let config = EngineConfig {
                max_num_batched_tokens: budget,
                num_blocks: Some(num_blocks),
                num_speculative_tokens: length,
                ..config()
            };
            let mut engine = engine(&config, Some(blocks));
            let outputs = run(&mut engine, &requests);
            assert_eq!(ids(&outputs), expected, "{blocks} {budget} {num_blocks}");
            if num_blocks == 128 {
                let alone = run(&mut engine, &requests[3..4]);
                assert_eq!(alone[0].ids(), expected[3]);
            }
            let stats = engine.stats();
            assert!(stats.rounds.draft_tokens > 0);
            assert_eq!(
                stats.rounds.accepted_tokens
                    + stats.rounds.recovered_tokens
                    + stats.rounds.bonus_tokens,
                stats.rounds.generated_tokens
            );
            // The target as its own draft computes the same bits, so nothing is ever rejected.
            assert_eq!(stats.rounds.recovered_tokens == 0, blocks == 30);
        }
    }
}

#[test]
fn the_controller_changes_speed_alone() {
    let requests = questions(16);
    let expected = ids(&run(&mut engine(&config(), None), &requests));
    let adaptive = EngineConfig { adaptive: true, ..config() };
    let mut engine = engine(&adaptive, Some(27));
    engine.profile();
    assert_eq!(ids(&run(&mut engine, &requests)), expected);
}

/// A seed decides the tokens, whatever else runs and whatever is drafted.
#[test]
fn seeded_output_is_identical_with_and_without() {
    let request = |seed| Request {
        params: SamplingParams { seed: Some(seed), ..Default::default() },
        ..Request::greedy(prompt("Write a haiku about rain."), 16)
    };
    let requests = [request(1), request(2), request(1)];
    let expected = ids(&run(&mut engine(&config(), None), &requests));
    assert_eq!(expected[0], expected[2]);
    assert_ne!(expected[0], expected[1]);
    for (blocks, adaptive) in
        DRAFTS.into_iter().flat_map(|blocks| [(blocks, false), (blocks, true)])
    {
        let mut engine = engine(&EngineConfig { adaptive, ..config() }, Some(blocks));
        assert_eq!(ids(&run(&mut engine, &requests)), expected, "{blocks} {adaptive}");
        // How much is drafted where it has to pay is the machine's business.
        if !adaptive {
            assert!(engine.stats().rounds.accepted_tokens > 0);
            assert_eq!(engine.stats().rounds.recovered_tokens == 0, blocks == 30);
        }
        assert_eq!(ids(&run(&mut engine, &requests[..1])), expected[..1], "{blocks} {adaptive}");
    }
}

/// Two-sample chi-square of the second and third token over many samples.
#[test]
fn sampled_output_has_the_same_distribution() {
    const SAMPLES: usize = 320;
    let params = SamplingParams { top_k: Some(6), temperature: 1.3, ..Default::default() };
    let count = |draft: Option<usize>, seed: u64| {
        let mut engine = engine(&EngineConfig { seed: Some(seed), ..config() }, draft);
        let request = Request {
            params: params.clone(),
            ignore_eos: true,
            ..Request::greedy(prompt("Hi")[1..4].to_vec(), 3)
        };
        let requests = vec![request; SAMPLES];
        let mut counts: [HashMap<u32, f64>; 2] = Default::default();
        for output in run(&mut engine, &requests) {
            for (counts, token) in counts.iter_mut().zip(&output.tokens[1..]) {
                *counts.entry(token.id).or_default() += 1.0;
            }
        }
        counts
    };
    let plain = count(None, 0);
    let speculative = count(Some(27), 1);
    for (a, b) in plain.iter().zip(&speculative) {
        let mut others = [0.0; 2];
        let mut terms = Vec::new();
        let mut keys: Vec<u32> = a.keys().chain(b.keys()).copied().collect();
        keys.sort_unstable();
        keys.dedup();
        for key in keys {
            let [x, y] = [a, b].map(|counts| counts.get(&key).copied().unwrap_or(0.0));
            if x + y >= 10.0 {
                terms.push((x - y).powi(2) / (x + y));
            } else {
                others = [others[0] + x, others[1] + y];
            }
        }
        if others[0] + others[1] >= 10.0 {
            terms.push((others[0] - others[1]).powi(2) / (others[0] + others[1]));
        }
        assert!(terms.len() > 3, "too few tokens to compare");
        let degrees = (terms.len() - 1) as f64;
        let chi_square: f64 = terms.iter().sum();
        let limit = degrees + 4.0 * (2.0 * degrees).sqrt();
        assert!(chi_square < limit, "{chi_square} against {limit}");
    }
}
