//! Which device computes.

use std::fmt;
use std::sync::Arc;

use super::error::LoadError;
use crate::cli::ComputeDevice;
use pleach_kernels::cuda::{CudaError, Device};

/// What a device has no memory for when it is opened, and what to do then.
const OPENING: (&str, &str) = ("the kernels", "free memory on it, or choose another by --device");

/// The device that models compute on; `None` for the processor. Where the choice is left, that is the first CUDA device, and
/// the log says which, or why there is none.
///
/// # Errors
/// [`LoadError`] where a device is named that is not there, or cannot be opened.
pub fn open_device(wanted: ComputeDevice) -> Result<Option<Arc<Device>>, LoadError> {
    match wanted {
        ComputeDevice::Auto => Ok(first_device()),
        ComputeDevice::Cpu => Ok(None),
        ComputeDevice::Cuda(index) => {
            let device = Device::open(index);
            Ok(Some(device.map_err(|error| LoadError::from(error).advise(OPENING))?))
        }
    }
}

/// The first CUDA device; the log says which, or why there is none.
fn first_device() -> Option<Arc<Device>> {
    match Device::open(0) {
        Ok(device) => {
            tracing::info!(device = device.name(), "computing on the CUDA device that is there");
            Some(device)
        }
        Err(reason @ (CudaError::NoDriver(_) | CudaError::NoDevice { .. })) => {
            tracing::info!(%reason, "computing on the CPU");
            None
        }
        Err(error) => {
            tracing::warn!(%error, "the CUDA device cannot be used; computing on the CPU");
            None
        }
    }
}

/// Lets the processor compute what a device does not, where the choice is left; the log says why.
///
/// # Errors
/// The same where a device is named.
pub fn or_the_cpu<E: fmt::Display>(error: E, wanted: ComputeDevice) -> Result<(), E> {
    if wanted != ComputeDevice::Auto {
        return Err(error);
    }
    tracing::warn!(%error, "the CUDA device does not run the model; computing on the CPU");
    Ok(())
}
