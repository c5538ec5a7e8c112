//! A draft of either kind, and an attached drafter wherever it computes.

use std::sync::Arc;

use super::{AttachedDrafter, CudaAttached, Decoder, ModelConfig};

/// A model that drafts for another.
pub enum Draft {
    /// A pruned model of its own, with its own K/V cache.
    Standalone(Box<Decoder>),
    /// Blocks of the target that read what the target has computed.
    Attached(Box<AttachedDrafter>),
}

impl From<Decoder> for Draft {
    fn from(decoder: Decoder) -> Self {
        Self::Standalone(Box::new(decoder))
    }
}

impl From<AttachedDrafter> for Draft {
    fn from(drafter: AttachedDrafter) -> Self {
        Self::Attached(Box::new(drafter))
    }
}

impl Draft {
    /// The shape.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        match self {
            Self::Standalone(decoder) => decoder.config(),
            Self::Attached(drafter) => drafter.config(),
        }
    }

    /// Rows of the output head.
    #[must_use]
    pub fn head_rows(&self) -> usize {
        match self {
            Self::Standalone(decoder) => decoder.head_rows(),
            Self::Attached(drafter) => drafter.head_rows(),
        }
    }

    /// Token ids of the head's rows, where the head is trimmed.
    #[must_use]
    pub fn draft_vocab(&self) -> Option<&Arc<[u32]>> {
        match self {
            Self::Standalone(decoder) => decoder.draft_vocab(),
            Self::Attached(drafter) => drafter.draft_vocab(),
        }
    }

    /// Memory of the matrices that are not `target`'s own.
    #[must_use]
    pub fn memory_bytes_beside(&self, target: &Decoder) -> usize {
        match self {
            Self::Standalone(decoder) => decoder.memory_bytes_beside(target),
            Self::Attached(drafter) => drafter.memory_bytes(),
        }
    }

    /// Bytes of a K/V cache of `num_blocks` blocks beside the target's.
    #[must_use]
    pub fn kv_cache_bytes(&self, num_blocks: usize) -> usize {
        match self {
            Self::Standalone(decoder) => decoder.kv_cache_bytes(num_blocks),
            Self::Attached(_) => 0,
        }
    }

    /// Floating-point operations of a draft step behind `context` positions.
    #[must_use]
    pub fn flops_per_token(&self, context: usize) -> u64 {
        match self {
            Self::Standalone(decoder) => {
                decoder.config().flops_per_token(context, decoder.head_rows())
            }
            Self::Attached(drafter) => drafter.flops_per_token(context),
        }
    }
}

/// A drafter that can be attached to a model: it is where the model is.
pub enum Drafter {
    /// In the processor's memory.
    Cpu(Box<AttachedDrafter>),
    /// In a CUDA device's.
    Cuda(Box<CudaAttached>),
}

impl Drafter {
    /// The shape.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        match self {
            Self::Cpu(drafter) => drafter.config(),
            Self::Cuda(drafter) => drafter.config(),
        }
    }

    /// Token ids of the head's rows, where the head is trimmed.
    #[must_use]
    pub fn draft_vocab(&self) -> Option<&Arc<[u32]>> {
        match self {
            Self::Cpu(drafter) => drafter.draft_vocab(),
            Self::Cuda(drafter) => drafter.draft_vocab(),
        }
    }
}
