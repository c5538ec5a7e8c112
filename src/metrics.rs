//! Names of all metrics, their help texts and buckets. Raw counters; ratios are PromQL's business.

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{BuildError, PrometheusBuilder, PrometheusHandle};

use crate::spec::Proposer;

/// HTTP requests answered; labels `endpoint` (the route) and `code`.
pub const HTTP_REQUESTS: &str = "pleach_http_requests_total";
/// Prompt and generated tokens by API key; label `key`: its name.
pub const KEY_TOKENS: &str = "pleach_key_tokens_total";
/// Generated tokens sent.
pub const GENERATED_TOKENS: &str = "pleach_generated_tokens_total";
/// Prompt tokens of the requests taken on.
pub const PROMPT_TOKENS: &str = "pleach_prompt_tokens_total";
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
/// Tokens drawn after a rejection.
pub const RECOVERED_TOKENS: &str = "pleach_spec_decode_recovered_tokens_total";
/// Tokens drawn when nothing was rejected: after full acceptance, in rounds without draft tokens, and in
/// sequences that do not speculate.
pub const BONUS_TOKENS: &str = "pleach_spec_decode_bonus_tokens_total";
/// Sequences or engines that went on without their draft model after it failed.
pub const DRAFT_FAILURES: &str = "pleach_spec_decode_draft_failures_total";
/// Forward passes; label `model`: `target` or `draft`.
pub const FORWARD_PASSES: &str = "pleach_forward_passes_total";
/// Floating-point operations; label `model`: `target` or `draft`.
pub const FLOPS: &str = "pleach_flops_total";
/// Operations saved against drafting the same tokens with the full model.
pub const FLOPS_SAVED: &str = "pleach_flops_saved_total";
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

/// Seconds; from one step of a small model to a long queue.
const SECONDS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5.0, 10.0, 30.0, 60.0];

/// Installs the process-wide recorder; its handle renders the metrics page.
///
/// # Errors
/// If a recorder is installed already.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    let handle = PrometheusBuilder::new().set_buckets(&SECONDS)?.install_recorder()?;
    describe();
    Ok(handle)
}

fn describe() {
    for (name, help) in [
        (GENERATED_TOKENS, "Generated tokens sent: accepted, recovered and bonus tokens."),
        (HTTP_REQUESTS, "HTTP requests answered, by route and status."),
        (KEY_TOKENS, "Prompt and generated tokens by the name of the API key."),
        (PROMPT_TOKENS, "Prompt tokens of the requests taken on."),
        (DRAFTS, "Rounds with at least one draft token."),
        (DRAFT_TOKENS, "Draft tokens verified by the target."),
        (ACCEPTED_TOKENS, "Draft tokens accepted and sent."),
        (ACCEPTED_PER_POSITION, "Accepted draft tokens by position in their round, from 0."),
        (PROPOSER_DRAFT_TOKENS, "Draft tokens verified by the target, by who proposed them."),
        (PROPOSER_ACCEPTED_TOKENS, "Draft tokens accepted and sent, by who proposed them."),
        (RECOVERED_TOKENS, "Tokens drawn after a rejection."),
        (BONUS_TOKENS, "Tokens drawn when no draft token of the round was rejected."),
        (DRAFT_FAILURES, "Times the draft model failed and was left out."),
        (FORWARD_PASSES, "Forward passes by model."),
        (FLOPS, "Floating-point operations spent, by model."),
        (FLOPS_SAVED, "Floating-point operations saved against drafting with the full model."),
        (TARGET_PASSES_SAVED, "Target passes saved against one pass per token."),
        (PREEMPTIONS, "Sequences that lost their cache to older ones and are recomputed."),
    ] {
        describe_counter!(name, help);
    }
    // From the start, so that a rate over the first event is seen.
    for name in [
        GENERATED_TOKENS,
        PROMPT_TOKENS,
        DRAFTS,
        DRAFT_TOKENS,
        ACCEPTED_TOKENS,
        RECOVERED_TOKENS,
        BONUS_TOKENS,
        DRAFT_FAILURES,
        FLOPS_SAVED,
        TARGET_PASSES_SAVED,
        PREEMPTIONS,
    ] {
        counter!(name).increment(0);
    }
    for proposer in Proposer::ALL {
        counter!(PROPOSER_DRAFT_TOKENS, "proposer" => proposer.name()).increment(0);
        counter!(PROPOSER_ACCEPTED_TOKENS, "proposer" => proposer.name()).increment(0);
    }
    for model in ["target", "draft"] {
        counter!(FORWARD_PASSES, "model" => model).increment(0);
        counter!(FLOPS, "model" => model).increment(0);
    }
    for (name, help) in [
        (RUNNING_SEQUENCES, "Sequences running."),
        (WAITING_SEQUENCES, "Sequences waiting."),
        (KV_CACHE_USED_BLOCKS, "Blocks of the K/V cache in use."),
        (KV_CACHE_BLOCKS, "Blocks of the K/V cache."),
    ] {
        describe_gauge!(name, help);
    }
    for (name, help) in [
        (QUEUE_TIME, "Seconds from submission to the first step."),
        (TIME_TO_FIRST_TOKEN, "Seconds from submission to the first token."),
        (INTER_TOKEN_LATENCY, "Seconds between tokens; the tokens of one round share its time."),
    ] {
        describe_histogram!(name, Unit::Seconds, help);
    }
}
