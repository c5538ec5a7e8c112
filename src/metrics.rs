//! Names of all metrics, their help texts and buckets. Raw counters; ratios are PromQL's business.

use std::time::Duration;

use metrics::{
    Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

use crate::engine::{NoDraft, Outcome};
use crate::spec::Proposer;

/// What is served: 1, with the labels `version`, `model` and `draft` (`none` without one).
pub const INFO: &str = "pleach_info";
/// Requests that ended; label `reason`: `stop`, `length`, `grammar`, `error` or `cancelled`.
pub const REQUESTS_FINISHED: &str = "pleach_requests_finished_total";

/// HTTP requests answered; labels `endpoint` (the route) and `code`.
pub const HTTP_REQUESTS: &str = "pleach_http_requests_total";
/// Prompt and generated tokens by API key; label `key`: its name.
pub const KEY_TOKENS: &str = "pleach_key_tokens_total";
/// Generated tokens sent.
pub const GENERATED_TOKENS: &str = "pleach_generated_tokens_total";
/// Prompt tokens of the requests taken on.
pub const PROMPT_TOKENS: &str = "pleach_prompt_tokens_total";
/// Prompt tokens looked up in the prefix cache.
pub const PREFIX_CACHE_QUERIES: &str = "pleach_prefix_cache_queries_total";
/// Prompt tokens found in the prefix cache.
pub const PREFIX_CACHE_HITS: &str = "pleach_prefix_cache_hits_total";
/// Rounds with at least one draft token.
pub const DRAFTS: &str = "pleach_spec_decode_drafts_total";
/// Draft tokens verified.
pub const DRAFT_TOKENS: &str = "pleach_spec_decode_draft_tokens_total";
/// Draft tokens accepted and sent.
pub const ACCEPTED_TOKENS: &str = "pleach_spec_decode_accepted_tokens_total";
/// Accepted draft tokens by place in their round; label `position`, from 0.
pub const ACCEPTED_PER_POSITION: &str = "pleach_spec_decode_accepted_tokens_per_position_total";
/// Draft tokens verified; label `proposer`: `draft_model`, `ngram` or `prediction`.
pub const PROPOSER_DRAFT_TOKENS: &str = "pleach_spec_decode_proposer_draft_tokens_total";
/// Draft tokens accepted and sent; label `proposer`.
pub const PROPOSER_ACCEPTED_TOKENS: &str = "pleach_spec_decode_proposer_accepted_tokens_total";
/// Seconds of one step that drafting took: draft passes, and the rows that verified draft tokens; label `proposer`.
pub const PROPOSER_SPENT: &str = "pleach_spec_decode_proposer_spent_seconds";
/// Seconds that the tokens accepted in one step would have taken without them; label `proposer`.
pub const PROPOSER_SAVED: &str = "pleach_spec_decode_proposer_saved_seconds";
/// Tokens drawn after a rejection.
pub const RECOVERED_TOKENS: &str = "pleach_spec_decode_recovered_tokens_total";
/// Tokens drawn when nothing was rejected: after full acceptance, in rounds without draft tokens, and in
/// sequences that do not speculate.
pub const BONUS_TOKENS: &str = "pleach_spec_decode_bonus_tokens_total";
/// Rounds without draft tokens; label `reason`, see [`NoDraft`].
pub const ROUNDS_WITHOUT_DRAFTS: &str = "pleach_spec_decode_rounds_without_drafts_total";
/// Sequences or engines that went on without their draft model after it failed.
pub const DRAFT_FAILURES: &str = "pleach_spec_decode_draft_failures_total";
/// Forward passes; label `model`: `target` or `draft`.
pub const FORWARD_PASSES: &str = "pleach_forward_passes_total";
/// Floating-point operations; label `model`: `target` or `draft`.
pub const FLOPS: &str = "pleach_flops_total";
/// Operations saved against drafting the same tokens with the full model.
pub const FLOPS_SAVED: &str = "pleach_flops_saved_total";
/// Operations spent on draft tokens that were not sent; label `model`.
pub const FLOPS_WASTED: &str = "pleach_flops_wasted_total";
/// Joules by the processor's own meters; label `zone`. Absent where they cannot be read.
pub const ENERGY: &str = "pleach_energy_joules_total";
/// Tokens that a new draft and the serving one were held against.
pub const COMPARED_TOKENS: &str = "pleach_draft_comparison_tokens_total";
/// Of these, those that a draft held likeliest; label `draft`: `current` or `candidate`.
pub const COMPARED_ACCEPTED_TOKENS: &str = "pleach_draft_comparison_accepted_tokens_total";
/// Comparisons of drafts that ended; label `outcome`: `switched`, `refused`, `failed` or `stopped`.
pub const COMPARISONS: &str = "pleach_draft_comparisons_total";
/// Answers written to `--record-traffic`.
pub const RECORDED_ANSWERS: &str = "pleach_recorded_answers_total";
/// Answers that should have been, and could not.
pub const RECORDING_FAILURES: &str = "pleach_recording_failures_total";
/// Target passes saved against one pass per token.
pub const TARGET_PASSES_SAVED: &str = "pleach_target_passes_saved_total";
/// Sequences that lost their cache to older ones.
pub const PREEMPTIONS: &str = "pleach_preemptions_total";
/// Sequences running.
pub const RUNNING_SEQUENCES: &str = "pleach_running_sequences";
/// Sequences waiting.
pub const WAITING_SEQUENCES: &str = "pleach_waiting_sequences";
/// Blocks of the K/V cache in use.
pub const KV_CACHE_USED_BLOCKS: &str = "pleach_kv_cache_used_blocks";
/// Blocks of the K/V cache.
pub const KV_CACHE_BLOCKS: &str = "pleach_kv_cache_blocks";
/// Seconds from submission to the first step.
pub const QUEUE_TIME: &str = "pleach_queue_time_seconds";
/// Seconds from submission to the first token.
pub const TIME_TO_FIRST_TOKEN: &str = "pleach_time_to_first_token_seconds";
/// Seconds between tokens; the tokens of one round share its time evenly.
pub const INTER_TOKEN_LATENCY: &str = "pleach_inter_token_latency_seconds";

/// Seconds of generating tokens in one step: its share of the target pass, and the draft passes.
pub const DECODE_STEP: &str = "pleach_decode_step_seconds";
/// The same tokens without speculation, estimated from measured step costs.
pub const DECODE_STEP_WITHOUT: &str = "pleach_decode_step_without_speculation_seconds";
/// Seconds from submission to the end; requests that were cancelled left out.
pub const REQUEST_DURATION: &str = "pleach_request_duration_seconds";
/// Prompt tokens of one request.
pub const REQUEST_PROMPT_TOKENS: &str = "pleach_request_prompt_tokens";
/// Generated tokens of one request.
pub const REQUEST_GENERATED_TOKENS: &str = "pleach_request_generated_tokens";

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
