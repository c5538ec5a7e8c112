//! The recorder behind `/metrics`: help texts, buckets, and the series that are there from the start.

use std::time::Duration;

use metrics::{
    Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

use crate::engine::{NoDraft, Outcome};
use crate::metrics::{
    ACCEPTED_PER_POSITION, ACCEPTED_TOKENS, BONUS_TOKENS, COMPARED_ACCEPTED_TOKENS,
    COMPARED_TOKENS, COMPARISONS, DECODE_STEP, DECODE_STEP_WITHOUT, DRAFT_FAILURES, DRAFT_TOKENS,
    DRAFTS, ENERGY, FLOPS, FLOPS_SAVED, FLOPS_WASTED, FORWARD_PASSES, GENERATED_TOKENS,
    HTTP_REQUESTS, INFO, INTER_TOKEN_LATENCY, KEY_TOKENS, KV_CACHE_BLOCKS, KV_CACHE_USED_BLOCKS,
    PREEMPTIONS, PREFIX_CACHE_HITS, PREFIX_CACHE_QUERIES, PROMPT_TOKENS, PROPOSER_ACCEPTED_TOKENS,
    PROPOSER_DRAFT_TOKENS, PROPOSER_SAVED, PROPOSER_SPENT, QUEUE_TIME, RECORDED_ANSWERS,
    RECORDING_FAILURES, RECOVERED_TOKENS, REQUEST_DURATION, REQUEST_GENERATED_TOKENS,
    REQUEST_PROMPT_TOKENS, REQUESTS_FINISHED, ROUNDS_WITHOUT_DRAFTS, RUNNING_SEQUENCES,
    TARGET_PASSES_SAVED, TIME_TO_FIRST_TOKEN, WAITING_SEQUENCES,
};
use crate::spec::Proposer;

/// Seconds that a reader waits; from one step of a small model to a long queue.
const SECONDS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5.0, 10.0, 30.0, 60.0];
/// Seconds of a step or between tokens; narrow, since a tenth more is felt.
const STEP_SECONDS: [f64; 20] = [
    0.0005, 0.001, 0.0015, 0.002, 0.003, 0.004, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05,
    0.075, 0.1, 0.2, 0.4, 0.8, 1.5, 5.0,
];
/// Seconds of a whole request.
const REQUEST_SECONDS: [f64; 14] =
    [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0];
/// Tokens of a request.
const TOKENS: [f64; 14] = [
    8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0, 32768.0,
    131_072.0,
];
/// How often new observations are counted into their buckets; until then each takes memory.
const UPKEEP: Duration = Duration::from_secs(5);

/// Installs the process-wide recorder; its handle renders the metrics page.
///
/// # Errors
/// If a recorder is installed already.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    let mut builder = PrometheusBuilder::new().set_buckets(&SECONDS)?;
    for (names, buckets) in [
        (
            &[
                INTER_TOKEN_LATENCY,
                DECODE_STEP,
                DECODE_STEP_WITHOUT,
                PROPOSER_SPENT,
                PROPOSER_SAVED,
            ][..],
            &STEP_SECONDS[..],
        ),
        (&[REQUEST_DURATION], &REQUEST_SECONDS),
        (&[REQUEST_PROMPT_TOKENS, REQUEST_GENERATED_TOKENS], &TOKENS),
    ] {
        for name in names {
            builder = builder.set_buckets_for_metric(Matcher::Full((*name).into()), buckets)?;
        }
    }
    let handle = builder.install_recorder()?;
    describe();
    let upkeep = handle.clone();
    let work = move || loop {
        std::thread::sleep(UPKEEP);
        upkeep.run_upkeep();
    };
    // Without this thread the page itself does the same at every scrape.
    let _ = std::thread::Builder::new().name("metrics".into()).spawn(work);
    Ok(handle)
}

fn describe() {
    for (name, help) in [
        (GENERATED_TOKENS, "Generated tokens sent: accepted, recovered and bonus tokens."),
        (HTTP_REQUESTS, "HTTP requests answered, by route and status."),
        (KEY_TOKENS, "Prompt and generated tokens by the name of the API key."),
        (PROMPT_TOKENS, "Prompt tokens of the requests taken on."),
        (PREFIX_CACHE_QUERIES, "Prompt tokens looked up in the prefix cache."),
        (PREFIX_CACHE_HITS, "Prompt tokens found in the prefix cache, which need not be computed."),
        (DRAFTS, "Rounds with at least one draft token."),
        (DRAFT_TOKENS, "Draft tokens verified by the target."),
        (ACCEPTED_TOKENS, "Draft tokens accepted and sent."),
        (ACCEPTED_PER_POSITION, "Accepted draft tokens by position in their round, from 0."),
        (PROPOSER_DRAFT_TOKENS, "Draft tokens verified by the target, by who proposed them."),
        (PROPOSER_ACCEPTED_TOKENS, "Draft tokens accepted and sent, by who proposed them."),
        (RECOVERED_TOKENS, "Tokens drawn after a rejection."),
        (BONUS_TOKENS, "Tokens drawn when no draft token of the round was rejected."),
        (REQUESTS_FINISHED, "Requests that ended, by reason."),
        (ROUNDS_WITHOUT_DRAFTS, "Rounds without draft tokens, by reason."),
        (
            FLOPS_WASTED,
            "Floating-point operations spent on draft tokens that were not sent, by model.",
        ),
        (ENERGY, "Energy of the machine's processors and memory by their own meters (RAPL)."),
        (DRAFT_FAILURES, "Times the draft model failed and was left out."),
        (FORWARD_PASSES, "Forward passes by model."),
        (FLOPS, "Floating-point operations spent, by model."),
        (FLOPS_SAVED, "Floating-point operations saved against drafting with the full model."),
        (TARGET_PASSES_SAVED, "Target passes saved against one pass per token."),
        (COMPARED_TOKENS, "Tokens that a new draft and the serving one were held against."),
        (COMPARED_ACCEPTED_TOKENS, "Of these, the tokens that a draft held likeliest, by draft."),
        (COMPARISONS, "Comparisons of drafts that ended, by outcome."),
        (RECORDED_ANSWERS, "Answers recorded for the training of drafts."),
        (RECORDING_FAILURES, "Answers that should have been recorded and could not."),
        (PREEMPTIONS, "Sequences that lost their cache to older ones and are recomputed."),
    ] {
        describe_counter!(name, help);
    }
    // From the start, so that a rate over the first event is seen.
    for name in [
        GENERATED_TOKENS,
        PROMPT_TOKENS,
        PREFIX_CACHE_QUERIES,
        PREFIX_CACHE_HITS,
        DRAFTS,
        DRAFT_TOKENS,
        ACCEPTED_TOKENS,
        RECOVERED_TOKENS,
        BONUS_TOKENS,
        DRAFT_FAILURES,
        FLOPS_SAVED,
        TARGET_PASSES_SAVED,
        PREEMPTIONS,
        RECORDED_ANSWERS,
        RECORDING_FAILURES,
        COMPARED_TOKENS,
    ] {
        counter!(name).increment(0);
    }
    for proposer in Proposer::ALL {
        counter!(PROPOSER_DRAFT_TOKENS, "proposer" => proposer.name()).increment(0);
        counter!(PROPOSER_ACCEPTED_TOKENS, "proposer" => proposer.name()).increment(0);
        for name in [PROPOSER_SPENT, PROPOSER_SAVED] {
            histogram!(name, "proposer" => proposer.name()).record_many(0.0, 0);
        }
    }
    for model in ["target", "draft"] {
        counter!(FORWARD_PASSES, "model" => model).increment(0);
        counter!(FLOPS, "model" => model).increment(0);
        counter!(FLOPS_WASTED, "model" => model).increment(0);
    }
    for draft in ["current", "candidate"] {
        counter!(COMPARED_ACCEPTED_TOKENS, "draft" => draft).increment(0);
    }
    for outcome in Outcome::ALL {
        counter!(COMPARISONS, "outcome" => outcome.name()).increment(0);
    }
    for reason in NoDraft::ALL {
        counter!(ROUNDS_WITHOUT_DRAFTS, "reason" => reason.name()).increment(0);
    }
    for reason in ["stop", "length", "grammar", "error", "cancelled"] {
        counter!(REQUESTS_FINISHED, "reason" => reason).increment(0);
    }
    for (name, help) in [
        (INFO, "What is served: 1, and 0 for a draft that was replaced."),
        (RUNNING_SEQUENCES, "Sequences running."),
        (WAITING_SEQUENCES, "Sequences waiting."),
        (KV_CACHE_USED_BLOCKS, "Blocks of the K/V cache in use."),
        (KV_CACHE_BLOCKS, "Blocks of the K/V cache."),
    ] {
        describe_gauge!(name, help);
    }
    for name in [RUNNING_SEQUENCES, WAITING_SEQUENCES, KV_CACHE_USED_BLOCKS] {
        gauge!(name).set(0.0);
    }
    for (name, help) in [
        (QUEUE_TIME, "Seconds from submission to the first step."),
        (TIME_TO_FIRST_TOKEN, "Seconds from submission to the first token."),
        (INTER_TOKEN_LATENCY, "Seconds between tokens; the tokens of one round share its time."),
        (DECODE_STEP, "Seconds of generating tokens in one step, draft passes included."),
        (DECODE_STEP_WITHOUT, "Seconds the same tokens would take without speculation, estimated."),
        (REQUEST_DURATION, "Seconds from submission to the end."),
        (PROPOSER_SPENT, "Seconds of one step that drafting took, by proposer."),
        (PROPOSER_SAVED, "Seconds that accepted draft tokens saved in one step, by proposer."),
    ] {
        describe_histogram!(name, Unit::Seconds, help);
    }
    describe_histogram!(REQUEST_PROMPT_TOKENS, "Prompt tokens of a request.");
    describe_histogram!(REQUEST_GENERATED_TOKENS, "Generated tokens of a request.");
}
