//! What a target in a device's memory lends its drafts.

use std::sync::Arc;

use super::decoder::CudaDecoder;
use super::layer::Stack;
use crate::model::ModelConfig;
use pleach_kernels::DType;
use pleach_kernels::cuda::{Device, Table};

/// What a target in a device's memory lends its drafts, also while it serves: its embedding and its head, the device and
/// the format of activations.
#[derive(Clone)]
pub struct CudaLender {
    pub(super) device: Arc<Device>,
    pub(super) config: ModelConfig,
    pub(super) dtype: DType,
    pub(super) embedding: Arc<Table>,
    pub(super) head: Arc<Stack>,
}

impl CudaLender {
    /// The target's shape.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
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
            embedding: Arc::clone(&self.embedding),
            head: Arc::clone(&self.head),
        }
    }
}
