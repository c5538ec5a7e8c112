//! LoRA adapters: those of a configuration, and those that are loaded while their model serves.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::checkpoint::CheckpointError;
use crate::checkpoint::adapter::{Adapter, TENSORS};
use crate::cli::LoraModule;
use crate::engine::Turns;
use crate::memory::Reserved;
use crate::model::{AdapterShapes, AdapterWeights, CudaAdapters, CudaDecoder};
use pleach_kernels::cuda::CudaError;

/// Why an adapter of the configuration cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// Its files cannot be read, it is of a kind that is not followed, or it does not fit the model.
    #[error("--lora {name}: {error}")]
    File {
        /// The adapter's name.
        name: String,
        /// What is wrong.
        error: CheckpointError,
    },
    /// Requests for it would be requests for another one.
    #[error("--lora {name}: {other} has this name already; give the adapter another one")]
    Name {
        /// The name.
        name: String,
        /// Who has it.
        other: &'static str,
    },
}

/// Why an adapter is not taken in while its model serves.
#[derive(Debug, thiserror::Error)]
pub enum AdapterLoadError {
    /// Its files cannot be read, it is of a kind that is not followed, or it does not fit the model.
    #[error(transparent)]
    File(#[from] CheckpointError),
    /// There is no room for it.
    #[error(
        "reading the adapter takes up to {needed} MB, and {left} MB are left: unload others, or start the server with a \
         lower --kv-blocks or --max-model-len"
    )]
    Memory {
        /// Megabytes that it takes.
        needed: u64,
        /// Megabytes that are left.
        left: u64,
    },
    /// There is no room for it on the model's device.
    #[error(
        "the adapter needs {needed} MB, and {left} MB are left on the device: unload others, or start the server with a \
         lower --gpu-memory-utilization or --kv-blocks"
    )]
    DeviceMemory {
        /// Megabytes that it takes.
        needed: u64,
        /// Megabytes that are left.
        left: u64,
    },
    /// The device did not take it.
    #[error("the adapter cannot be copied to the device: {0}")]
    Device(#[from] CudaError),
}

/// An adapter in memory, under its name.
#[derive(Debug)]
pub struct LoadedAdapter {
    /// Its name in the API.
    pub name: String,
    /// Its folder.
    pub path: PathBuf,
    /// Its factors.
    pub weights: Arc<AdapterWeights>,
}

/// Reads the adapters of a model that is called by `names`, in order.
pub(super) fn read(
    modules: &[LoraModule],
    names: &[String],
) -> Result<Vec<(LoraModule, Adapter)>, AdapterError> {
    let mut adapters: Vec<(LoraModule, Adapter)> = Vec::new();
    for module in modules {
        let name = &module.name;
        let taken = |other| Err(AdapterError::Name { name: name.clone(), other });
        if names.contains(name) {
            return taken("the model");
        }
        if adapters.iter().any(|(other, _)| other.name == *name) {
            return taken("another adapter");
        }
        let adapter = Adapter::read(&module.path);
        let adapter = adapter.map_err(|error| AdapterError::File { name: name.clone(), error })?;
        adapters.push((module.clone(), adapter));
    }
    Ok(adapters)
}

/// Loads adapters for a model of these shapes, in order; their files' own factors are not kept.
pub(super) fn load(
    adapters: Vec<(LoraModule, Adapter)>,
    shapes: &Arc<AdapterShapes>,
) -> Result<Vec<LoadedAdapter>, AdapterError> {
    let load = |(LoraModule { name, path }, adapter): (_, Adapter)| match shapes.load(&adapter) {
        Ok(weights) => Ok(LoadedAdapter::new(name, path, weights)),
        Err(error) => Err(AdapterError::File { name, error }),
    };
    adapters.into_iter().map(load).collect()
}

impl LoadedAdapter {
    pub(super) fn new(name: String, path: PathBuf, weights: AdapterWeights) -> Self {
        let megabytes = weights.bytes() / 1_000_000;
        tracing::info!(name, folder = %path.display(), megabytes, "adapter loaded");
        Self { name, path, weights: Arc::new(weights) }
    }
}

/// Adapters that were loaded into the processor's memory for any model while it served, as long as somebody has them.
#[derive(Clone, Default)]
pub(super) struct LoadedBeside(Arc<Mutex<Vec<Weak<AdapterWeights>>>>);

impl LoadedBeside {
    /// Those that there are. Until it is dropped nothing else is let in beside the caches.
    pub(super) fn lock(&self) -> MutexGuard<'_, Vec<Weak<AdapterWeights>>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|weights| weights.strong_count() > 0);
        all
    }
}

/// Memory that adapters take.
pub(super) fn bytes_of(adapters: &[Weak<AdapterWeights>]) -> u64 {
    adapters.iter().filter_map(Weak::upgrade).map(|weights| weights.bytes() as u64).sum()
}

/// Loads adapters of a model that may be serving.
#[derive(Clone)]
pub struct AdapterLoader {
    shapes: Arc<AdapterShapes>,
    /// Where the model is on a device: its adapters there, and the turns of the engines on it, which do not compute while
    /// one is copied to it.
    device: Option<(CudaAdapters, Turns)>,
    /// The caches of all engines that serve.
    pub(super) caches: Reserved,
    /// What was loaded beside them.
    pub(super) loaded: LoadedBeside,
}

impl AdapterLoader {
    /// Loads adapters for a model of these shapes, beside caches that are not known yet.
    pub(super) fn new(shapes: Arc<AdapterShapes>) -> Self {
        let loaded = LoadedBeside::default();
        Self { shapes, device: None, caches: Reserved::none(), loaded }
    }

    /// Loads adapters for a model on a device, whose engines take `turns`.
    pub(super) fn on_cuda(model: &CudaDecoder, turns: &Turns) -> Self {
        let device = Some((model.adapters().clone(), turns.clone()));
        Self { device, ..Self::new(Arc::clone(model.adapter_shapes())) }
    }

    /// Loads the adapter in a folder.
    ///
    /// # Errors
    /// [`AdapterLoadError`] where it cannot be served: then nothing of it is kept.
    pub fn load(&self, name: String, path: PathBuf) -> Result<LoadedAdapter, AdapterLoadError> {
        let mut loaded = self.loaded.lock();
        check_memory(&self.caches, &path, bytes_of(&loaded))?;
        let adapter = Adapter::read(&path)?;
        let Some((adapters, turns)) = &self.device else {
            let adapter = LoadedAdapter::new(name, path, self.shapes.load(&adapter)?);
            loaded.push(Arc::downgrade(&adapter.weights));
            return Ok(adapter);
        };
        let layout = self.shapes.lay_out(&adapter)?;
        drop(adapter);
        let _turn = turns.take();
        if let Some([needed, left]) = lacking(layout.bytes() as u64, adapters.free()? as u64) {
            return Err(AdapterLoadError::DeviceMemory { needed, left });
        }
        Ok(LoadedAdapter::new(name, path, layout.load(adapters)?))
    }
}

/// Megabytes that are needed and left, where that is too little for so many bytes: a tenth of what is left is for the rows
/// of a pass.
pub(super) fn lacking(needed: u64, left: u64) -> Option<[u64; 2]> {
    (needed > left / 10 * 9).then_some([needed.div_ceil(1_000_000), left / 1_000_000])
}

/// Whether there is room to read an adapter beside caches, where the process holds so many bytes of `others`: a file of
/// 16-bit factors lies beside these in 32 bits and those that compute.
fn check_memory(caches: &Reserved, folder: &Path, others: u64) -> Result<(), AdapterLoadError> {
    // Whoever reads the file says why it cannot be read.
    let needed = folder.join(TENSORS).metadata().map_or(0, |file| 5 * file.len());
    match caches.available_beside(others) {
        Some(left) if needed > left => {
            let (needed, left) = (needed.div_ceil(1_000_000), left / 1_000_000);
            Err(AdapterLoadError::Memory { needed, left })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adapter_waits_for_no_memory_that_is_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let mut caches = Reserved::none();
        caches.add(1 << 60);
        // Where nothing is to be read, nothing is needed.
        assert!(check_memory(&caches, folder.path(), 0).is_ok());
        std::fs::write(folder.path().join(TENSORS), [0; 300_000]).unwrap();
        assert!(check_memory(&Reserved::none(), folder.path(), 0).is_ok());
        if crate::memory::available().is_some() {
            let error = check_memory(&caches, folder.path(), 0).unwrap_err().to_string();
            assert!(error.contains("up to 2 MB, and 0 MB are left"), "{error}");
        }
    }
}
