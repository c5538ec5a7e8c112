//! How an engine is set up.

use super::EngineLimits;
use crate::kv_cache::BLOCK_SIZE;
use crate::model::ModelConfig;
use crate::ops::cuda::CudaError;

/// Size and behaviour of an engine.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineConfig {
    /// Sequences that run at a time; others wait by priority, then in order of arrival.
    pub max_num_seqs: usize,
    /// Rows of one forward pass at most: prompt chunks, last tokens and draft tokens together.
    pub max_num_batched_tokens: usize,
    /// Positions of one sequence; `None` for the model's own limit.
    pub max_model_len: Option<usize>,
    /// Blocks of the K/V cache; `None` for four sequences of full length.
    pub num_blocks: Option<usize>,
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
    /// Key of the draws of requests that have no seed of their own; `None` for a random one.
    pub seed: Option<u64>,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            max_num_seqs: 16,
            max_num_batched_tokens: 512,
            max_model_len: None,
            num_blocks: None,
            prefix_caching: true,
            num_speculative_tokens: 8,
            ngram: true,
            adaptive: true,
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
    /// A draft to compare with an attached drafter.
    #[error(
        "the drafter that serves is attached to its target and cannot be compared with another; start the server with --draft"
    )]
    AttachedDrafter,
    /// A CUDA device has too little memory, or fails.
    #[error(transparent)]
    Cuda(#[from] CudaError),
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
            drafter_attached: false,
            max_num_seqs: self.max_num_seqs,
            num_speculative_tokens: match draft {
                None if !self.ngram => 0,
                _ => self.num_speculative_tokens,
            },
        };
        Ok((limits, num_blocks))
    }
}
