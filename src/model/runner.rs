//! A decoder with the cache and work space it needs for serving.

use std::sync::Arc;

use super::{Decoder, Forward, KvCache, ModelConfig, Rows, Workspace};
use crate::kv_cache::BLOCK_SIZE;

/// Owns one decoder, its K/V cache and its work space.
pub struct Runner {
    decoder: Decoder,
    cache: KvCache,
    workspace: Workspace,
}

impl Runner {
    /// A runner whose cache has `num_blocks` blocks.
    #[must_use]
    pub fn new(decoder: Decoder, num_blocks: usize) -> Self {
        let cache = decoder.new_kv_cache(num_blocks);
        tracing::info!(
            decoder_blocks = decoder.config().num_hidden_layers,
            positions = num_blocks * BLOCK_SIZE,
            megabytes = decoder.kv_cache_bytes(num_blocks) / 1_000_000,
            "room for the K/V cache; memory is taken as it fills"
        );
        Self { decoder, cache, workspace: Workspace::new() }
    }
}

impl Forward for Runner {
    fn config(&self) -> &ModelConfig {
        self.decoder.config()
    }

    fn head_rows(&self) -> usize {
        self.decoder.head_rows()
    }

    fn draft_vocab(&self) -> Option<&Arc<[u32]>> {
        self.decoder.draft_vocab()
    }

    fn forward(&mut self, rows: &Rows) -> &[f32] {
        self.decoder.forward(rows, &mut self.cache, &mut self.workspace)
    }

    fn hidden_state(&self, row: usize, out: &mut [f32]) {
        self.decoder.hidden_state(&self.workspace, row, out);
    }
}
