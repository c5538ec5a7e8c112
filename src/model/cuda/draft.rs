//! A draft of either kind in a device's memory.

use super::attached::CudaAttached;
use super::decoder::CudaDecoder;
use crate::model::ModelConfig;

/// A model that drafts for another on the same device.
pub enum CudaDraft {
    /// A pruned model of its own, with its own K/V cache.
    Standalone(Box<CudaDecoder>),
    /// Blocks of the target that read what the target has computed.
    Attached(Box<CudaAttached>),
}

impl CudaDraft {
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

    /// The shape, and the device memory that one block of its K/V cache takes: an attached one has none.
    #[must_use]
    pub fn cache_needs(&self) -> (&ModelConfig, usize) {
        let bytes = match self {
            Self::Standalone(decoder) => decoder.block_bytes(),
            Self::Attached(_) => 0,
        };
        (self.config(), bytes)
    }
}
