//! The table of all metrics: what each is called and counts. Raw counters; ratios are PromQL's business.
//! [`crate::observe::exporter`] describes them to Prometheus, and a test holds `docs/metrics.md` against them.

/// One metric.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// Its name in Prometheus.
    pub name: &'static str,
    /// How it is counted.
    pub kind: Kind,
    /// What tells its series apart.
    pub labels: &'static [Label],
    /// Whether its series are there at 0 from the start, or from the start of its model's engine, so that a rate over the
    /// first event is seen. All values of its other labels are known then.
    pub from_start: bool,
    /// What it counts, a sentence.
    pub help: &'static str,
}

/// How a metric is counted.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// A sum that only grows.
    Counter,
    /// A value that rises and falls.
    Gauge,
    /// Observations, counted up to each of these bounds.
    Histogram(&'static [f64]),
}

impl Metric {
    /// Whether each model that is served has series of its own.
    #[must_use]
    pub fn is_of_a_model(&self) -> bool {
        self.labels.first().is_some_and(|label| label.name == "model")
    }
}

impl Kind {
    /// Its name in Prometheus.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram(_) => "histogram",
        }
    }
}

/// A label of a metric's series.
#[derive(Debug, Clone, Copy)]
pub struct Label {
    /// Its name.
    pub name: &'static str,
    /// Its values; none where they are not known beforehand.
    pub values: &'static [&'static str],
}

/// Seconds that a reader waits; from one step of a small model to a long queue.
const WAITS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5.0, 10.0, 30.0, 60.0];
/// Seconds of a step or between tokens; narrow, since a tenth more is felt.
const STEPS: [f64; 20] = [
    0.0005, 0.001, 0.0015, 0.002, 0.003, 0.004, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05,
    0.075, 0.1, 0.2, 0.4, 0.8, 1.5, 5.0,
];
/// Seconds of a whole request.
const REQUESTS: [f64; 14] =
    [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0];
/// Tokens of a request.
const TOKENS: [f64; 14] = [
    8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0, 32768.0,
    131_072.0,
];

const fn label(name: &'static str, values: &'static [&'static str]) -> Label {
    Label { name, values }
}

const POSITION: Label = label("position", &[]);
const PROPOSER: Label = label("proposer", &["draft_model", "ngram", "prediction", "grammar"]);
const NO_DRAFT: Label =
    label("reason", &["disabled", "prefill", "last_token", "no_room", "no_match", "unprofitable"]);
const ROLE: Label = label("role", &["target", "draft"]);
const FINISH: Label = label(
    "reason",
    &["stop", "length", "timeout", "grammar", "grammar_error", "error", "cancelled"],
);
const KEY: Label = label("key", &[]);
const ENDPOINT: Label = label("endpoint", &[]);
const CODE: Label = label("code", &[]);
const DRAFT: Label = label("draft", &["current", "candidate"]);
const OUTCOME: Label = label("outcome", &["switched", "refused", "failed", "stopped"]);
const ZONE: Label = label("zone", &[]);
const VERSION: Label = label("version", &[]);
const MODEL: Label = label("model", &[]);
const SERVED_DRAFT: Label = label("draft", &[]);

/// Declares a constant with the name of each metric, and the table.
macro_rules! metrics {
    ($($constant:ident $name:literal $kind:expr, [$($label:ident),*], $from_start:literal, $help:literal;)*) => {
        $(
            #[doc = $help]
            pub const $constant: &str = $name;
        )*
        /// All metrics.
        pub const ALL: &[Metric] = &[$(
            Metric {
                name: $name,
                kind: $kind,
                labels: &[$($label),*],
                from_start: $from_start,
                help: $help,
            },
        )*];
    };
}

metrics! {
    PROMPT_TOKENS "pleach_prompt_tokens_total" Kind::Counter, [MODEL], true,
        "Prompt tokens of the requests taken on.";
    PREFIX_CACHE_QUERIES "pleach_prefix_cache_queries_total" Kind::Counter, [MODEL], true,
        "Prompt tokens looked up in the prefix cache.";
    PREFIX_CACHE_HITS "pleach_prefix_cache_hits_total" Kind::Counter, [MODEL], true,
        "Prompt tokens found in the prefix cache, which need not be computed.";
    GENERATED_TOKENS "pleach_generated_tokens_total" Kind::Counter, [MODEL], true,
        "Generated tokens sent: accepted, recovered and bonus tokens.";
    DRAFTS "pleach_spec_decode_drafts_total" Kind::Counter, [MODEL], true,
        "Rounds with at least one draft token.";
    DRAFT_TOKENS "pleach_spec_decode_draft_tokens_total" Kind::Counter, [MODEL], true,
        "Draft tokens verified by the target.";
    ACCEPTED_TOKENS "pleach_spec_decode_accepted_tokens_total" Kind::Counter, [MODEL], true,
        "Draft tokens accepted and sent.";
    ACCEPTED_PER_POSITION "pleach_spec_decode_accepted_tokens_per_position_total" Kind::Counter, [MODEL, POSITION], false,
        "Accepted draft tokens by position in their round, from 0.";
    PROPOSER_DRAFT_TOKENS "pleach_spec_decode_proposer_draft_tokens_total" Kind::Counter, [MODEL, PROPOSER], true,
        "Draft tokens verified by the target, by who proposed them.";
    PROPOSER_ACCEPTED_TOKENS "pleach_spec_decode_proposer_accepted_tokens_total" Kind::Counter, [MODEL, PROPOSER], true,
        "Draft tokens accepted and sent, by who proposed them.";
    RECOVERED_TOKENS "pleach_spec_decode_recovered_tokens_total" Kind::Counter, [MODEL], true,
        "Tokens drawn after a rejection.";
    BONUS_TOKENS "pleach_spec_decode_bonus_tokens_total" Kind::Counter, [MODEL], true,
        "Tokens drawn when no draft token of the round was rejected: after full acceptance, in rounds without draft tokens, and in sequences that do not speculate.";
    ROUNDS_WITHOUT_DRAFTS "pleach_spec_decode_rounds_without_drafts_total" Kind::Counter, [MODEL, NO_DRAFT], true,
        "Rounds without draft tokens, by reason.";
    DRAFT_FAILURES "pleach_spec_decode_draft_failures_total" Kind::Counter, [MODEL], true,
        "Times the draft model failed and was left out, for a sequence or for good.";
    FORWARD_PASSES "pleach_forward_passes_total" Kind::Counter, [MODEL, ROLE], true,
        "Forward passes, by the model's role.";
    FLOPS "pleach_flops_total" Kind::Counter, [MODEL, ROLE], true,
        "Floating-point operations spent, by the model's role.";
    FLOPS_SAVED "pleach_flops_saved_total" Kind::Counter, [MODEL], true,
        "Floating-point operations saved against drafting the same tokens with the full model.";
    FLOPS_WASTED "pleach_flops_wasted_total" Kind::Counter, [MODEL, ROLE], true,
        "Floating-point operations spent on draft tokens that were not sent: the target's in verifying them, the draft's in proposing them.";
    TARGET_PASSES_SAVED "pleach_target_passes_saved_total" Kind::Counter, [MODEL], true,
        "Target passes saved against one pass per token.";
    PREEMPTIONS "pleach_preemptions_total" Kind::Counter, [MODEL], true,
        "Sequences that lost their cache to older ones and are recomputed.";
    REQUESTS_FINISHED "pleach_requests_finished_total" Kind::Counter, [MODEL, FINISH], true,
        "Requests that ended, by reason; with `timeout`, `--request-timeout` was over; with `grammar_error`, the request's grammar got stuck or too costly.";
    KEY_TOKENS "pleach_key_tokens_total" Kind::Counter, [KEY], false,
        "Prompt and generated tokens, by the name of the API key.";
    HTTP_REQUESTS "pleach_http_requests_total" Kind::Counter, [ENDPOINT, CODE], false,
        "HTTP requests answered, by route and status.";
    RECORDED_ANSWERS "pleach_recorded_answers_total" Kind::Counter, [], true,
        "Answers that `--record-traffic` recorded for the training of drafts.";
    RECORDING_FAILURES "pleach_recording_failures_total" Kind::Counter, [], true,
        "Answers that should have been recorded and could not.";
    COMPARED_TOKENS "pleach_draft_comparison_tokens_total" Kind::Counter, [MODEL], true,
        "Tokens that a new draft and the serving one were held against.";
    COMPARED_ACCEPTED_TOKENS "pleach_draft_comparison_accepted_tokens_total" Kind::Counter, [MODEL, DRAFT], true,
        "Of the tokens that drafts were held against, those that a draft held likeliest, by draft.";
    COMPARISONS "pleach_draft_comparisons_total" Kind::Counter, [MODEL, OUTCOME], true,
        "Comparisons of drafts that ended, by outcome.";
    ENERGY "pleach_energy_joules_total" Kind::Counter, [ZONE], false,
        "Energy of the whole machine's processors, memory (RAPL) and NVIDIA GPUs (NVML, zone gpu-N) by their own meters; absent where the system does not let the server read them.";
    INFO "pleach_info" Kind::Gauge, [VERSION, MODEL, SERVED_DRAFT], false,
        "What is served: 1, and 0 for a draft that was replaced.";
    RUNNING_SEQUENCES "pleach_running_sequences" Kind::Gauge, [MODEL], true,
        "Sequences running.";
    WAITING_SEQUENCES "pleach_waiting_sequences" Kind::Gauge, [MODEL], true,
        "Sequences waiting.";
    KV_CACHE_USED_BLOCKS "pleach_kv_cache_used_blocks" Kind::Gauge, [MODEL], true,
        "Blocks of the K/V cache in use, of 16 positions each.";
    KV_CACHE_BLOCKS "pleach_kv_cache_blocks" Kind::Gauge, [MODEL], false,
        "Blocks of the K/V cache.";
    QUEUE_TIME "pleach_queue_time_seconds" Kind::Histogram(&WAITS), [MODEL], false,
        "Seconds from submission to the first step.";
    TIME_TO_FIRST_TOKEN "pleach_time_to_first_token_seconds" Kind::Histogram(&WAITS), [MODEL], false,
        "Seconds from submission to the first token.";
    INTER_TOKEN_LATENCY "pleach_inter_token_latency_seconds" Kind::Histogram(&STEPS), [MODEL], false,
        "Seconds between tokens; the tokens of one round share its time evenly.";
    DECODE_STEP "pleach_decode_step_seconds" Kind::Histogram(&STEPS), [MODEL], false,
        "Seconds of generating tokens in one step: target pass, prompts' share left out, and draft passes.";
    DECODE_STEP_WITHOUT "pleach_decode_step_without_speculation_seconds" Kind::Histogram(&STEPS), [MODEL], false,
        "Seconds that the same tokens would have taken without speculation, estimated from measured step costs.";
    PROPOSER_SPENT "pleach_spec_decode_proposer_spent_seconds" Kind::Histogram(&STEPS), [MODEL, PROPOSER], true,
        "Seconds of one step that drafting took, by proposer: draft passes, and the rows that verified draft tokens, by measured step costs.";
    PROPOSER_SAVED "pleach_spec_decode_proposer_saved_seconds" Kind::Histogram(&STEPS), [MODEL, PROPOSER], true,
        "Seconds that the tokens accepted in the same step would have taken without them, by proposer.";
    REQUEST_DURATION "pleach_request_duration_seconds" Kind::Histogram(&REQUESTS), [MODEL], false,
        "Seconds from submission to the end; cancelled requests are left out.";
    REQUEST_PROMPT_TOKENS "pleach_request_prompt_tokens" Kind::Histogram(&TOKENS), [MODEL], false,
        "Prompt tokens of a request.";
    REQUEST_GENERATED_TOKENS "pleach_request_generated_tokens" Kind::Histogram(&TOKENS), [MODEL], false,
        "Generated tokens of a request.";
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;
    use std::path::Path;

    use super::*;

    /// The table in `docs/metrics.md` is this one. `PLEACH_UPDATE_DOCS=1` writes it anew.
    #[test]
    fn the_document_has_this_table() {
        let head = "| metric | type | what |\n|---|---|---|\n";
        let mut table = String::from(head);
        for metric in ALL {
            let names: Vec<&str> = metric.labels.iter().map(|label| label.name).collect();
            let labels =
                if names.is_empty() { String::new() } else { format!("{{{}}}", names.join(",")) };
            let Metric { name, kind, help, .. } = metric;
            let _ = write!(table, "| `{name}{labels}` | {} | {help}", kind.name());
            for label in metric.labels.iter().filter(|label| !label.values.is_empty()) {
                let values: Vec<String> =
                    label.values.iter().map(|value| format!("`{value}`")).collect();
                let _ = write!(table, " `{}` is {}.", label.name, values.join(", "));
            }
            table += " |\n";
        }
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
        let text = std::fs::read_to_string(&path).expect("the document is there");
        let (before, rest) = text.split_once(head).expect("the document has a table");
        let after = rest.split_once("\n\n").expect("text follows the table").1;
        let wanted = format!("{before}{table}\n{after}");
        if std::env::var_os("PLEACH_UPDATE_DOCS").is_some() {
            std::fs::write(&path, &wanted).expect("the document can be written");
        }
        let text = std::fs::read_to_string(&path).expect("the document is there");
        assert!(text == wanted, "run with PLEACH_UPDATE_DOCS=1");
    }

    #[test]
    fn series_that_are_there_from_the_start_are_known() {
        for metric in ALL.iter().filter(|metric| metric.from_start) {
            let labels = &metric.labels[usize::from(metric.is_of_a_model())..];
            let known = labels.iter().all(|label| !label.values.is_empty());
            assert!(known && labels.len() < 2, "{}", metric.name);
        }
    }
}
