//! A decoder in a device's memory.

use std::sync::Arc;

use super::adapters::CudaAdapters;
use super::layer::{Layer, Stack};
use crate::kv_cache::BLOCK_SIZE;
use crate::model::{AdapterShapes, ModelConfig};
use pleach_kernels::DType;
use pleach_kernels::cuda::{Device, KvFormat, KvLayer, Table, Tensor};

/// A decoder-only transformer in a device's memory.
pub struct CudaDecoder {
    pub(super) device: Arc<Device>,
    pub(super) config: ModelConfig,
    /// Format of activations.
    pub(super) dtype: DType,
    pub(super) kv_format: KvFormat,
    pub(super) embedding: Arc<Table>,
    pub(super) layers: Vec<Layer>,
    pub(super) norm: Tensor,
    pub(super) head: Arc<Stack>,
    pub(super) draft_vocab: Option<Arc<[u32]>>,
    /// What LoRA adapters of the blocks must fit.
    pub(super) adapter_shapes: Arc<AdapterShapes>,
    pub(super) adapters: CudaAdapters,
}

impl CudaDecoder {
    /// The architecture.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The device it is on.
    #[must_use]
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// What adapters of its blocks must fit.
    #[must_use]
    pub fn adapter_shapes(&self) -> &Arc<AdapterShapes> {
        &self.adapter_shapes
    }

    /// Where its adapters lie.
    #[must_use]
    pub fn adapters(&self) -> &CudaAdapters {
        &self.adapters
    }

    /// Rows of the output head.
    #[must_use]
    pub fn head_rows(&self) -> usize {
        self.head.outputs
    }

    /// Device memory of the matrices this decoder holds alone or shares.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let layers = self.layers.iter().map(Layer::bytes).sum::<usize>();
        layers + self.head.bytes() + self.embedding.bytes()
    }

    /// Device memory that one block of the K/V cache takes.
    #[must_use]
    pub fn block_bytes(&self) -> usize {
        let bytes =
            |layer: &Layer| KvLayer::block_bytes(&layer.attention, self.kv_format, BLOCK_SIZE);
        self.layers.iter().map(bytes).sum()
    }
}
