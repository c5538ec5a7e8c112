//! Names of all metrics. Raw counters; ratios are PromQL's business. Help texts and buckets are in [`crate::exporter`].

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
/// Rounds without draft tokens; label `reason`, see [`NoDraft`](crate::engine::NoDraft).
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
