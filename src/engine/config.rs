//! How an engine is set up, and what it can serve then.

use std::sync::Arc;
use std::time::Duration;

use crate::kv_cache::BLOCK_SIZE;
use crate::model::{AdapterShapes, ModelConfig};
use pleach_kernels::cuda::CudaError;

/// Size and behaviour of an engine.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineConfig {
    /// The model's name in the metrics.
    pub model: Arc<str>,
    /// Sequences that run at a time; others wait by priority, then in order of arrival.
    pub max_num_seqs: usize,
    /// Rows of one forward pass at most: prompt chunks, last tokens and draft tokens together.
    pub max_num_batched_tokens: usize,
    /// Positions of one sequence; `None` for the model's own limit.
    pub max_model_len: Option<usize>,
    /// Blocks of the K/V cache; `None` for four sequences of full length, or as many as fit into memory. On a CUDA device,
    /// as many as fit.
    pub num_blocks: Option<usize>,
    /// Bytes that the caches may take of the memory that is left, on a CUDA device those of a pass included; `None` for
    /// all.
    pub cache_memory: Option<u64>,
    /// Share of a CUDA device's memory that is used, what others use of it included.
    pub gpu_memory_utilization: f64,
    /// Whether sequences share the full blocks of what they have in common, and find those of sequences
    /// that have ended, until the room is needed. The output is the same with and without.
    pub prefix_caching: bool,
    /// Draft tokens per round at most; 0 turns speculation off.
    pub num_speculative_tokens: usize,
    /// Whether sequences draft from their own text too, where it repeats itself (prompt lookup).
    pub ngram: bool,
    /// Whether drafts are shortened, or left out, where longer ones do not pay. `false` drafts
    /// `num_speculative_tokens` every time, which measuring a draft model needs.
    pub adaptive: bool,
    /// How long a sequence may wait and run until it is ended as it is; `None` for any time.
    pub request_timeout: Option<Duration>,
    /// Key of the draws of requests that have no seed of their own; `None` for a random one.
    pub seed: Option<u64>,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            model: Arc::default(),
            max_num_seqs: 16,
            max_num_batched_tokens: 512,
            max_model_len: None,
            num_blocks: None,
            cache_memory: None,
            gpu_memory_utilization: 0.9,
            prefix_caching: true,
            num_speculative_tokens: 8,
            ngram: true,
            adaptive: true,
            request_timeout: None,
            seed: None,
        }
    }
}

/// Why an engine cannot be set up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// A setting that must be positive is 0.
    #[error("{0} must be at least 1")]
    Zero(&'static str),
    /// The requested context is longer than the model's.
    #[error("max_model_len is {requested}, but the model's positions end at {limit}")]
    ContextTooLong {
        /// Requested positions.
        requested: usize,
        /// The model's positions.
        limit: usize,
    },
    /// The draft model does not speak the target's tokens.
    #[error("the draft model has {draft} token ids, the target {target}")]
    VocabularyMismatch {
        /// Token ids of the draft model.
        draft: usize,
        /// Token ids of the target.
        target: usize,
    },
    /// The draft model's trimmed vocabulary is not a rising list of the target's token ids.
    #[error("the draft vocabulary is not a strictly rising list of token ids of the target")]
    BadDraftVocabulary,
    /// A draft for an engine that was started without speculation.
    #[error("this engine does not speculate, so a draft is of no use")]
    NoSpeculation,
    /// The memory that is left does not hold the keys and values of one sequence.
    #[error(
        "one sequence of {positions} tokens needs {needed} MB of K/V cache, and {free} MB are left beside the \
         weights{}",
        shorter(": ", *.fitting)
    )]
    Memory {
        /// Positions of one sequence.
        positions: usize,
        /// Megabytes of its keys and values.
        needed: u64,
        /// Megabytes that are left.
        free: u64,
        /// Positions that would fit.
        fitting: usize,
    },
    /// The memory that is left does not hold the blocks that were asked for.
    #[error(
        "{blocks} blocks of K/V cache need {needed} MB, and {free} MB are left beside the weights, room for {fitting} \
         blocks: lower --kv-blocks, or leave it out"
    )]
    Blocks {
        /// Blocks asked for.
        blocks: usize,
        /// Megabytes that they take.
        needed: u64,
        /// Megabytes that are left.
        free: u64,
        /// Blocks that would fit.
        fitting: usize,
    },
    /// What is left of a CUDA device does not hold the keys and values of one sequence.
    #[error(
        "one sequence of {positions} tokens needs {needed} MB of K/V cache, and {free} MB are left of the {percent} % of \
         the device's memory that --gpu-memory-utilization gives, beside weights and the rows of a pass: raise it, or lower \
         --max-num-batched-tokens or --max-num-seqs{}",
        shorter(", or ", *.fitting)
    )]
    DeviceMemory {
        /// Positions of one sequence.
        positions: usize,
        /// Megabytes of its keys and values.
        needed: u64,
        /// Megabytes that are left.
        free: u64,
        /// What may be used of the device, in hundredths.
        percent: u64,
        /// Positions that would fit.
        fitting: usize,
    },
    /// A CUDA device has too little memory, or fails.
    #[error(transparent)]
    Cuda(#[from] CudaError),
}

/// Advises sequences of so many positions, if there are any.
fn shorter(before: &str, fitting: usize) -> String {
    if fitting == 0 {
        return String::new();
    }
    format!("{before}set --max-model-len to {fitting} or less")
}

/// What an engine can serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineLimits {
    /// Positions of one sequence, prompt and generated tokens together.
    pub max_model_len: usize,
    /// Token ids lie below this.
    pub vocab_size: usize,
    /// Numbers of an embedding.
    pub hidden_size: usize,
    /// Sequences that run at a time; others wait.
    pub max_num_seqs: usize,
    /// Draft tokens per round at most; 0 without speculation.
    pub num_speculative_tokens: usize,
    /// What adapters of the target must fit; `None` where it takes none.
    pub adapters: Option<Arc<AdapterShapes>>,
}

impl EngineLimits {
    /// Checks that a draft model can draft for the target.
    ///
    /// # Errors
    /// [`EngineError`] naming what does not fit.
    pub fn check_draft(
        &self,
        config: &ModelConfig,
        draft_vocab: Option<&[u32]>,
    ) -> Result<(), EngineError> {
        let target = self.vocab_size;
        if config.vocab_size != target {
            return Err(EngineError::VocabularyMismatch { draft: config.vocab_size, target });
        }
        let (requested, limit) = (self.max_model_len, config.max_position_embeddings);
        if limit < requested {
            return Err(EngineError::ContextTooLong { requested, limit });
        }
        match draft_vocab {
            Some(ids)
                if !(ids.is_sorted_by(|a, b| a < b)
                    && ids.last().is_none_or(|&id| (id as usize) < target)) =>
            {
                Err(EngineError::BadDraftVocabulary)
            }
            _ => Ok(()),
        }
    }
}

impl EngineConfig {
    /// Limits and number of blocks for a target and, perhaps, a draft model.
    ///
    /// # Errors
    /// [`EngineError`] if the settings or the models do not fit together.
    pub fn resolve(
        &self,
        target: &ModelConfig,
        draft: Option<&ModelConfig>,
    ) -> Result<(EngineLimits, usize), EngineError> {
        if self.max_num_seqs == 0 {
            return Err(EngineError::Zero("max_num_seqs"));
        }
        if self.max_num_batched_tokens == 0 {
            return Err(EngineError::Zero("max_num_batched_tokens"));
        }
        if self.num_blocks == Some(0) {
            return Err(EngineError::Zero("num_blocks"));
        }
        let positions = target.max_position_embeddings;
        let positions = draft.map_or(positions, |d| positions.min(d.max_position_embeddings));
        let max_model_len = self.max_model_len.unwrap_or(positions);
        if max_model_len == 0 {
            return Err(EngineError::Zero("max_model_len"));
        }
        if max_model_len > positions {
            return Err(EngineError::ContextTooLong { requested: max_model_len, limit: positions });
        }
        if let Some(draft) = draft
            && draft.vocab_size != target.vocab_size
        {
            let (draft, target) = (draft.vocab_size, target.vocab_size);
            return Err(EngineError::VocabularyMismatch { draft, target });
        }
        let per_sequence = max_model_len.div_ceil(BLOCK_SIZE);
        let num_blocks = self.num_blocks.unwrap_or(per_sequence * self.max_num_seqs.min(4));
        let limits = EngineLimits {
            // One sequence always fits, so preemption always ends.
            max_model_len: max_model_len.min(num_blocks * BLOCK_SIZE),
            vocab_size: target.vocab_size,
            hidden_size: target.hidden_size,
            max_num_seqs: self.max_num_seqs,
            num_speculative_tokens: match draft {
                None if !self.ngram => 0,
                _ => self.num_speculative_tokens,
            },
            adapters: None,
        };
        Ok((limits, num_blocks))
    }
}
