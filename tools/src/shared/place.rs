//! Where a command's models compute.

use std::sync::Arc;

use anyhow::{Context, Result};
use pleach::cli::{ComputeDevice, DeviceArgs, KvCacheDtype};
use pleach::loading::{open_device, or_the_cpu};
use pleach::model::{CudaDecoder, ModelConfig};
use pleach_kernels::cuda::Device;

/// Where a command's models compute, chosen as the server chooses.
pub(crate) struct Place {
    pub(crate) args: DeviceArgs,
    /// `None` for the processor.
    pub(crate) device: Option<Arc<Device>>,
}

impl Place {
    /// Opens the device that `args` name for a model of this shape, whose cache holds keys and values as `cache`. Where
    /// they leave the choice, that is a device that is there and computes the model, which is told, else the processor.
    pub(crate) fn open(args: DeviceArgs, cache: KvCacheDtype, model: &ModelConfig) -> Result<Self> {
        let wanted = args.device;
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
        Ok(Self { args, device })
    }

    /// What the device is called, where one computes.
    pub(crate) fn name(&self) -> Option<&str> {
        self.device.as_deref().map(Device::name)
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
