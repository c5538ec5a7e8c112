//! Names of all metrics. Raw counters; ratios are PromQL's business.

/// Generated tokens sent.
pub const GENERATED_TOKENS: &str = "pleach_generated_tokens_total";
/// Prompt tokens of the requests taken on.
pub const PROMPT_TOKENS: &str = "pleach_prompt_tokens_total";
/// Tokens of sequences that do not speculate.
pub const TARGET_TOKENS: &str = "pleach_target_tokens_total";
/// Rounds with at least one draft token.
pub const DRAFTS: &str = "pleach_spec_decode_drafts_total";
/// Draft tokens verified.
pub const DRAFT_TOKENS: &str = "pleach_spec_decode_draft_tokens_total";
/// Draft tokens accepted and sent.
pub const ACCEPTED_TOKENS: &str = "pleach_spec_decode_accepted_tokens_total";
/// Accepted draft tokens by place in their round; label `position`, from 0.
pub const ACCEPTED_PER_POSITION: &str = "pleach_spec_decode_accepted_tokens_per_position_total";
/// Tokens drawn after a rejection.
pub const RECOVERED_TOKENS: &str = "pleach_spec_decode_recovered_tokens_total";
/// Tokens drawn after full acceptance, rounds without draft tokens included.
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
