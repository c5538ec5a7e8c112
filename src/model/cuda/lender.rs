//! What a target in a device's memory lends its drafts.

use std::sync::Arc;

use super::decoder::CudaDecoder;
use super::layer::Stack;
use crate::checkpoint::{Checkpoint, TensorInfo};
use crate::kv_cache::BLOCK_SIZE;
use crate::model::{ModelConfig, ModelError, PROJECTIONS, tensor_names};
use pleach_kernels::DType;
use pleach_kernels::cuda::{Device, KvFormat, KvLayer, Table};

/// What a target in a device's memory lends its drafts, also while it serves: its embedding and its head, the device and
/// the formats of activations and of caches.
#[derive(Clone)]
pub struct CudaLender {
    pub(super) device: Arc<Device>,
    pub(super) config: ModelConfig,
    pub(super) dtype: DType,
    pub(super) kv_format: KvFormat,
    pub(super) embedding: Arc<Table>,
    pub(super) head: Arc<Stack>,
}

impl CudaLender {
    /// The target's shape.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Memory that a draft will take, with a K/V cache of `num_blocks` blocks; an attached one has no cache.
    ///
    /// # Errors
    /// [`ModelError`] naming a tensor whose format is not read.
    pub fn draft_bytes(&self, draft: &Checkpoint, num_blocks: usize) -> Result<u64, ModelError> {
        let config = &draft.config;
        let blocks = tensor_names(config, |name| draft.has(name));
        let others = ["model.embed_tokens.weight", "lm_head.weight"].into_iter().chain(PROJECTIONS);
        let names = blocks.iter().map(String::as_str).chain(others);
        let mut bytes = 0;
        for name in names.filter(|name| draft.has(name)) {
            let TensorInfo { dtype, shape } = draft.info(name)?;
            let values: usize = shape.iter().product();
            bytes += dtype.bytes_for(values).unwrap_or(values * size_of::<f32>());
        }
        if !draft.has("lm_head.weight")
            && let Some(rows) = &draft.draft_vocab
        {
            bytes += rows.len() * self.head.bytes() / self.head.outputs;
        }
        if draft.attachment.is_none() {
            let layer = KvLayer::block_bytes(&config.attention(0), self.kv_format, BLOCK_SIZE);
            bytes += num_blocks * layer * config.num_hidden_layers;
        }
        Ok(bytes as u64)
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }
}

impl CudaDecoder {
    /// What drafts of this model share with it.
    #[must_use]
    pub fn lender(&self) -> CudaLender {
        CudaLender {
            device: Arc::clone(&self.device),
            config: self.config.clone(),
            dtype: self.dtype,
            kv_format: self.kv_format,
            embedding: Arc::clone(&self.embedding),
            head: Arc::clone(&self.head),
        }
    }
}
