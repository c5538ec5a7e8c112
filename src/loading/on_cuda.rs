//! Models in the memory of a CUDA device, and engines over them; errors say what to do where it has too little.

use std::sync::Arc;

use super::adapters::{AdapterError, LoadedAdapter};
use super::error::LoadError;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::adapter::Adapter;
use crate::cli::{KvCacheDtype, LoraModule};
use crate::engine::{Engine, EngineConfig};
use crate::model::{CudaDecoder, CudaDraft, CudaLender};
use pleach_kernels::cuda::{Device, KvFormat};

/// What a device has no memory for, and what to do then.
const WEIGHTS: (&str, &str) =
    ("the weights", "take a smaller --model or one of fewer bits, or another --device");
const DRAFT: (&str, &str) = ("the draft's weights", "take a smaller --draft");
const ADAPTERS: (&str, &str) =
    ("the adapters", "leave out some of --lora, or take a smaller --model");
const CACHE: (&str, &str) = (
    "the rows of a pass and the K/V cache",
    "lower --gpu-memory-utilization, --max-num-batched-tokens, --max-num-seqs or --max-model-len",
);

/// Loads a model onto a device, for caches that hold keys and values as `cache`.
///
/// # Errors
/// [`LoadError`] where the device does not compute it, or has too little memory.
pub fn load_cuda_target(
    checkpoint: &mut Checkpoint,
    device: &Arc<Device>,
    cache: KvCacheDtype,
) -> Result<CudaDecoder, LoadError> {
    let format = match cache {
        KvCacheDtype::Auto => KvFormat::Float,
        KvCacheDtype::Int8 => KvFormat::Int8,
    };
    let loaded = CudaDecoder::load_with(checkpoint, device, format);
    loaded.map_err(|error| LoadError::from(error).advise(WEIGHTS))
}

/// Loads a draft of the target that lends what they share, which was loaded from `checkpoint`, onto its device.
///
/// # Errors
/// [`LoadError`] where it does not fit the target, the device does not compute it, or has too little memory.
pub fn load_cuda_draft(
    draft: &mut Checkpoint,
    target: &CudaLender,
    checkpoint: &mut Checkpoint,
) -> Result<CudaDraft, LoadError> {
    let loaded = target.load_draft(draft, checkpoint);
    loaded.map_err(|error| LoadError::from(error).advise(DRAFT))
}

/// Loads adapters of a target onto its device, in order.
///
/// # Errors
/// [`LoadError`] where one does not fit the target, or the device has too little memory.
pub(super) fn load_cuda_adapters(
    adapters: &[(LoraModule, Adapter)],
    target: &CudaDecoder,
) -> Result<Vec<LoadedAdapter>, LoadError> {
    let load = |(LoraModule { name, path }, adapter): &(_, _)| -> Result<_, LoadError> {
        let layout = target.adapter_shapes().lay_out(adapter);
        let layout = layout.map_err(|error| AdapterError::File { name: name.clone(), error })?;
        let weights = layout.load(target.adapters());
        let weights = weights.map_err(|error| LoadError::from(error).advise(ADAPTERS))?;
        Ok(LoadedAdapter::new(name.clone(), path.clone(), weights))
    };
    adapters.iter().map(load).collect()
}

/// An engine over a target and perhaps a draft on its device, as [`Engine::on_cuda`].
///
/// # Errors
/// [`LoadError`] where the settings or the models do not fit together or the device.
pub fn cuda_engine(
    target: CudaDecoder,
    draft: Option<CudaDraft>,
    config: EngineConfig,
) -> Result<Engine, LoadError> {
    let engine = Engine::on_cuda(target, draft, config);
    engine.map_err(|error| LoadError::from(error).advise(CACHE))
}
