//! Where a command's models compute.

use std::sync::Arc;

use anyhow::{Context, Result};
use pleach::checkpoint::Checkpoint;
use pleach::cli::{ComputeDevice, DeviceChoice};
use pleach::loading::{open_device, or_the_cpu};
use pleach::model::CudaDecoder;
use pleach_kernels::cuda::Device;

/// Where a command's models compute, chosen as the server chooses.
pub(crate) struct Place {
    wanted: ComputeDevice,
    /// `None` for the processor.
    device: Option<Arc<Device>>,
}

impl Place {
    /// Opens the device that is chosen for a model. Where the choice is left, that is a device that is there and computes
    /// the model, which is told, else the processor.
    pub(crate) fn open(
        DeviceChoice { device: wanted }: DeviceChoice,
        model: &Checkpoint,
    ) -> Result<Self> {
        let advice = || format!("--device {wanted}: `--device cpu` computes on the processor");
        let device = match open_device(wanted).with_context(advice)? {
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

    /// Whether the processor may yet compute what the device does not.
    pub(crate) fn may_leave(&self) -> bool {
        self.device.is_some() && self.wanted == ComputeDevice::Auto
    }

    /// What `load` makes for the device, or for the processor (`None`) where there is none or it failed there.
    ///
    /// # Errors
    /// As [`or_on_cpu`](Self::or_on_cpu).
    pub(crate) fn load<T>(
        &mut self,
        mut load: impl FnMut(Option<&Arc<Device>>) -> Result<T>,
    ) -> Result<T> {
        match &self.device {
            Some(device) => {
                let tried = load(Some(device));
                self.or_on_cpu(tried, || load(None))
            }
            None => load(None),
        }
    }

    /// What was `tried` on the device; where it failed and the choice is left, what the processor has in its place, where
    /// everything is computed from then on.
    ///
    /// # Errors
    /// That of the device where it is named, else that of the processor.
    pub(crate) fn or_on_cpu<T>(
        &mut self,
        tried: Result<T>,
        on_cpu: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        tried.or_else(|error| {
            // All that an error says is told in one line.
            or_the_cpu(format!("{error:#}"), self.wanted).map_err(|_| error)?;
            self.device = None;
            on_cpu()
        })
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
