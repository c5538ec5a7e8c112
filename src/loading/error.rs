//! Why a model cannot be served.

use std::path::PathBuf;

use super::adapters::AdapterError;
use crate::checkpoint::CheckpointError;
use crate::checkpoint::source::SourceError;
use crate::cli::AlsoError;
use crate::engine::EngineError;
use crate::model::ModelError;
use crate::text::TemplateError;
use pleach_kernels::cuda::CudaError;

/// Why a model cannot be served.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each wraps the error of one step")]
pub enum LoadError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Cuda(#[from] CudaError),
    #[error(transparent)]
    Template(#[from] TemplateError),
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    #[error(transparent)]
    Names(#[from] AlsoError),
    #[error("--also {name}: {error}")]
    Also { name: String, error: Box<Self> },
    #[error("{}: the model has no tokenizer", .0.display())]
    NoTokenizer(PathBuf),
    #[error(
        "the draft has {positions} positions, fewer than the {wanted} served; lower max_model_len"
    )]
    ShortDraft { positions: usize, wanted: usize },
    #[error(
        "the draft needs {needed} MB, and {left} MB are left beside the model and its K/V cache: take a smaller draft, or \
         start the server with a lower --kv-blocks, --max-model-len or --gpu-memory-utilization"
    )]
    DraftMemory { needed: u64, left: u64 },
    #[error("{what} do not fit onto the device: {error}; {advice}")]
    DeviceMemory { what: &'static str, error: CudaError, advice: &'static str },
    #[error("this runs on the CPU alone; leave out `--device`")]
    OnCpuAlone,
}

impl LoadError {
    /// The same error, with what did not fit and what to do where a CUDA device has too little memory.
    pub(super) fn advise(self, (what, advice): (&'static str, &'static str)) -> Self {
        match self {
            Self::Cuda(error @ CudaError::OutOfMemory { .. })
            | Self::Model(ModelError::Cuda(error @ CudaError::OutOfMemory { .. }))
            | Self::Engine(EngineError::Cuda(error @ CudaError::OutOfMemory { .. })) => {
                Self::DeviceMemory { what, error, advice }
            }
            other => other,
        }
    }
}
