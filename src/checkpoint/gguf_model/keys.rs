//! The metadata of an architecture.

use crate::checkpoint::CheckpointError;
use crate::checkpoint::gguf::Gguf;

/// The architecture whose files hold projections side by side, and the rows of heads in Hugging Face order.
pub(in crate::checkpoint) const PHI3: &str = "phi3";

/// The metadata of a file, by the keys of its architecture.
pub(super) struct Keys<'a> {
    pub(super) gguf: &'a Gguf,
    pub(super) arch: &'a str,
}

impl Keys<'_> {
    pub(super) fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.arch)
    }

    pub(super) fn error(&self, name: &str, reason: impl Into<String>) -> CheckpointError {
        CheckpointError::field(self.gguf.path(), &self.key(name), reason)
    }

    pub(super) fn optional_usize(&self, name: &str) -> Result<Option<usize>, CheckpointError> {
        self.gguf
            .get(&self.key(name))
            .map(|v| {
                v.as_u64()
                    .and_then(|v| u32::try_from(v).ok())
                    .map(|v| v as usize)
                    .ok_or_else(|| self.error(name, format!("{v:?} is no number of this kind")))
            })
            .transpose()
    }

    pub(super) fn usize(&self, name: &str) -> Result<usize, CheckpointError> {
        self.optional_usize(name)?.ok_or_else(|| self.error(name, "is missing"))
    }

    pub(super) fn optional_f64(&self, name: &str) -> Result<Option<f64>, CheckpointError> {
        self.gguf
            .get(&self.key(name))
            .map(|v| v.as_f64().ok_or_else(|| self.error(name, format!("{v:?} is no number"))))
            .transpose()
    }
}

impl Keys<'_> {
    /// Says which keys of the architecture are not read.
    pub(super) fn warn_of_unknown(&self) {
        let prefix = self.key("");
        let mut unknown: Vec<&str> = self
            .gguf
            .keys()
            .filter_map(|key| key.strip_prefix(&prefix))
            .filter(|name| !KNOWN.contains(name))
            .collect();
        unknown.sort_unstable();
        if !unknown.is_empty() {
            let file = self.gguf.path().display();
            tracing::warn!(%file, keys = unknown.join(", "), "keys that are not known are ignored");
        }
    }
}

/// Keys of an architecture that are read, or that change nothing.
const KNOWN: [&str; 32] = [
    "attention.causal",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "attention.value_length",
    "attn_logit_softcapping",
    "block_count",
    "context_length",
    "embedding_length",
    "expert_count",
    "expert_used_count",
    "feed_forward_length",
    "final_logit_softcapping",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.freq_base_swa",
    "rope.scale_linear",
    "rope.scaling.attn_factor",
    "rope.scaling.factor",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "rope.scaling.yarn_attn_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "rope.scaling.yarn_ext_factor",
    "rope.scaling.yarn_log_multiplier",
    "tensor_data_layout",
    "vocab_size",
];
