//! The LoRA adapters of a configuration: their names and their files.

use crate::checkpoint::CheckpointError;
use crate::checkpoint::adapter::Adapter;
use crate::cli::LoraModule;
use crate::model::{Decoder, ModelError};

/// Why an adapter cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// Its files cannot be read, or it is of a kind that is not followed.
    #[error("--lora {name}: {error}")]
    File {
        /// The adapter's name.
        name: String,
        /// What is wrong.
        error: CheckpointError,
    },
    /// It does not fit the model.
    #[error("--lora {name}: {error}")]
    Model {
        /// The adapter's name.
        name: String,
        /// What does not fit.
        error: ModelError,
    },
    /// Requests for it would be requests for another one.
    #[error("--lora {name}: {other} has this name already; give the adapter another one")]
    Name {
        /// The name.
        name: String,
        /// Who has it.
        other: &'static str,
    },
    /// Adapters are for the CPU.
    #[error("--lora: CUDA devices compute no adapters; use `--device cpu`, or leave --lora out")]
    Cuda,
}

/// Reads the adapters of a model that is called by `names`, in order.
pub(super) fn read(
    modules: &[LoraModule],
    names: &[String],
) -> Result<Vec<(String, Adapter)>, AdapterError> {
    let mut adapters: Vec<(String, Adapter)> = Vec::new();
    for LoraModule { name, path } in modules {
        let taken = |other| Err(AdapterError::Name { name: name.clone(), other });
        if names.contains(name) {
            return taken("the model");
        }
        if adapters.iter().any(|(other, _)| other == name) {
            return taken("another adapter");
        }
        let adapter = Adapter::read(path);
        let adapter = adapter.map_err(|error| AdapterError::File { name: name.clone(), error })?;
        adapters.push((name.clone(), adapter));
    }
    Ok(adapters)
}

/// Adds adapters to their model, in order; their files' own factors are not kept.
pub(super) fn add(
    adapters: Vec<(String, Adapter)>,
    model: &mut Decoder,
) -> Result<(), AdapterError> {
    for (name, adapter) in adapters {
        model
            .add_adapter(&adapter)
            .map_err(|error| AdapterError::Model { name: name.clone(), error })?;
        tracing::info!(name, file = %adapter.path().display(), "adapter loaded");
    }
    Ok(())
}
