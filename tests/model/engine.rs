//! The engine on the default model: what it says depends on nothing but the request.

use crate::support::engines::{engine, ids, prompt, questions, run};
use pleach::engine::{EngineConfig, EngineHandle, Event, FinishReason, Request, Turns};
use pleach::sampling::SamplingParams;

fn config() -> EngineConfig {
    EngineConfig { num_blocks: Some(128), num_speculative_tokens: 0, ..Default::default() }
}

/// One at a time, eight at once, in chunks of 1, 7 and 512 rows, and in a cache so small that
/// sequences are preempted: bit-identical logits, so identical tokens and log-probabilities.
#[test]
fn output_does_not_depend_on_batch_chunks_or_preemption() {
    let requests: Vec<Request> = questions(16)
        .into_iter()
        .map(|request| Request { top_logprobs: Some(2), ..request })
        .collect();
    let mut alone = engine(&config(), None);
    let expected: Vec<_> = requests
        .iter()
        .map(|request| run(&mut alone, std::slice::from_ref(request)).remove(0).tokens)
        .collect();
    let longest = requests.iter().map(|r| r.prompt.len()).max().unwrap() + 16;
    let tight = longest.div_ceil(16) + 1;
    for (budget, num_blocks) in [(512, 128), (7, 128), (512, tight), (7, tight), (1, 128)] {
        let config = EngineConfig {
            max_num_batched_tokens: budget,
            num_blocks: Some(num_blocks),
            ..config()
        };
        // One row at a time is slow: two requests show as much as eight.
        let count = if budget == 1 { 2 } else { requests.len() };
        let mut engine = engine(&config, None);
        let outputs = run(&mut engine, &requests[..count]);
        for (output, expected) in outputs.iter().zip(&expected) {
            assert_eq!(&output.tokens, expected, "{budget} rows, {num_blocks} blocks");
        }
        if num_blocks == tight && budget == 512 {
            assert!(engine.stats().preemptions > 0, "the cache is tight");
        }
    }
}

/// A conversation whose history is in the cache, and one that computes it: the same bits, greedy and
/// seeded, with a draft model and without, alone and beside others.
#[test]
fn output_does_not_depend_on_what_is_cached() {
    let mut requests: Vec<Request> = questions(14)
        .into_iter()
        .map(|request| Request { top_logprobs: Some(1), ignore_eos: true, ..request })
        .collect();
    for (seed, request) in (0..).zip(&mut requests[4..]) {
        request.params = SamplingParams { seed: Some(seed), ..Default::default() };
    }
    let uncached = EngineConfig { prefix_caching: false, ..config() };
    let speculative = EngineConfig { num_speculative_tokens: 4, adaptive: false, ..config() };
    let mut plain = engine(&uncached, None);
    let mut others = [engine(&config(), None), engine(&speculative, Some(27))];
    for turn in 0..3 {
        let expected = run(&mut plain, &requests);
        let hits = others.each_ref().map(|other| other.stats().prefix_cache_hits);
        for other in &mut others {
            for (output, expected) in run(other, &requests).iter().zip(&expected) {
                assert_eq!(output.ids(), expected.ids(), "turn {turn}");
                let logprobs = |output: &pleach::engine::Answer| -> Vec<u32> {
                    output.tokens.iter().map(|t| t.logprob.unwrap().to_bits()).collect()
                };
                assert_eq!(logprobs(output), logprobs(expected), "turn {turn}");
            }
        }
        for (other, before) in others.iter().zip(hits) {
            let found = other.stats().prefix_cache_hits - before;
            assert!(turn == 0 || found >= 16 * requests.len() as u64, "turn {turn}: {found}");
            assert_eq!(other.stats().draft_failures, 0);
        }
        for (request, output) in requests.iter_mut().zip(expected) {
            request.prompt.extend(output.ids());
            request.prompt.extend(prompt("Go on."));
        }
    }
    assert_eq!(plain.stats().prefix_cache_queries, 0);
}

#[test]
fn it_answers() {
    let mut engine = engine(&config(), None);
    let request = Request::greedy(prompt("What is the capital of France?"), 40);
    let output = run(&mut engine, &[request]).remove(0);
    assert_eq!(output.reason, FinishReason::Eos);
    let paris = prompt("Paris");
    assert!(output.ids().iter().any(|id| paris.contains(id)), "{:?}", output.ids());
}

#[test]
fn seeds_repeat_and_differ() {
    let request = |seed| Request {
        params: SamplingParams { seed: Some(seed), ..Default::default() },
        ..Request::greedy(prompt("Tell me a joke."), 12)
    };
    let mut engine = engine(&config(), None);
    let together = ids(&run(&mut engine, &[request(1), request(2), request(1)]));
    let alone = ids(&run(&mut engine, &[request(1)]));
    assert_eq!((&together[0], &together[2]), (&alone[0], &alone[0]));
    assert_ne!(together[0], together[1]);
}

#[test]
fn the_handle_streams_and_cancels() {
    let (handle, thread) = EngineHandle::start(engine(&config(), None), Turns::default());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let long = Request { ignore_eos: true, ..Request::greedy(prompt("Count."), 1000) };
        let mut dropped = handle.submit(long).await.unwrap();
        assert!(matches!(dropped.recv().await, Some(Event::Tokens(_))));
        drop(dropped);
        let mut kept = handle.submit(Request::greedy(prompt("Hello"), 4)).await.unwrap();
        let mut tokens = 0_u64;
        while let Some(event) = kept.recv().await {
            match event {
                Event::Tokens(new) => tokens += new.len() as u64,
                Event::Prompt(_) | Event::Embedding(_) => panic!("not asked for"),
                Event::Finished { stats, .. } => assert_eq!(stats.rounds.generated_tokens, tokens),
            }
        }
        assert!((1..=4).contains(&tokens));
    });
    // The thread ends only because the cancelled request is gone.
    drop(handle);
    thread.join().unwrap();
}
