//! Where a command's models compute.

use std::sync::Arc;

use anyhow::{Context, Result};
use pleach::cli::{ComputeDevice, KvCacheDtype};
use pleach::loading::{open_device, or_the_cpu};
use pleach::model::{CudaDecoder, ModelConfig};
use pleach_kernels::cuda::Device;

/// Where a command's models compute, chosen as the server chooses.
pub(crate) struct Place {
    wanted: ComputeDevice,
    /// `None` for the processor.
    pub(crate) device: Option<Arc<Device>>,
}

impl Place {
    /// Opens the device that is `wanted` for a model of this shape, whose cache holds keys and values as `cache`. Where
    /// the choice is left, that is a device that is there and computes the model, which is told, else the processor.
    pub(crate) fn open(
        wanted: ComputeDevice,
        cache: KvCacheDtype,
        model: &ModelConfig,
    ) -> Result<Self> {
        let advice = || format!("--device {wanted}: `--device cpu` computes on the processor");
        let device = match open_device(wanted, cache).with_context(advice)? {
            Some(device) => match CudaDecoder::check(model) {
                Ok(()) => Some(device),
                Err(error) => {
                    or_the_cpu(error, wanted).with_context(advice)?;
                    None
                }
            },
            None => None,
        };
        if let Some(device) = &device {
            let why = match wanted {
                ComputeDevice::Auto => {
                    ", the CUDA device that is there; `--device cpu` chooses the processor"
                }
                _ => "",
            };
            eprintln!("computing on {}{why}", device.name());
        }
        Ok(Self { wanted, device })
    }

    /// What the device is called, where one computes.
    pub(crate) fn name(&self) -> Option<&str> {
        self.device.as_deref().map(Device::name)
    }

    /// Goes over to the processor for what the device does not do, where the choice is left.
    ///
    /// # Errors
    /// The same where a device is named.
    pub(crate) fn leave(&mut self, error: anyhow::Error) -> Result<()> {
        // All that an error says is told in one line.
        or_the_cpu(format!("{error:#}"), self.wanted).map_err(|_| error)?;
        self.device = None;
        Ok(())
    }
}

/// Refuses a device for what the processor alone computes.
pub(crate) fn on_cpu_alone(device: ComputeDevice, what: &str) -> Result<()> {
    let named = matches!(device, ComputeDevice::Cuda(_));
    anyhow::ensure!(
        !named,
        "--device {device}: CUDA devices do not compute {what}; leave --device out, or take `--device cpu`"
    );
    Ok(())
}
