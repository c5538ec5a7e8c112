//! The engine on the default model: what it says depends on nothing but the request.

mod engine_support;

use engine_support::{engine, ids, prompt, questions, run};
use pleach::engine::{EngineConfig, EngineHandle, Event, FinishReason, Request};
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
    let (handle, thread) = EngineHandle::start(engine(&config(), None));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let long = Request { ignore_eos: true, ..Request::greedy(prompt("Count."), 1000) };
        let mut dropped = handle.submit(long).await.unwrap();
        assert!(matches!(dropped.recv().await, Some(Event::Tokens(_))));
        drop(dropped);
        let mut kept = handle.submit(Request::greedy(prompt("Hello"), 4)).await.unwrap();
        let mut tokens = 0;
        while let Some(event) = kept.recv().await {
            match event {
                Event::Tokens(new) => tokens += new.len(),
                Event::Finished { stats, .. } => assert_eq!(stats.generated_tokens, tokens),
            }
        }
        assert!((1..=4).contains(&tokens));
    });
    // The thread ends only because the cancelled request is gone.
    drop(handle);
    thread.join().unwrap();
}
