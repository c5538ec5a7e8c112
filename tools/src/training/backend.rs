//! Where the graph of a network is computed, and by whose operations.

use candle_core::Device;

use super::TrainError;
use pleach::cli::ComputeDevice;

/// Where the graph of a network is computed, and by whose operations. What is trained, its moments and the optimiser's
/// steps are the processor's in either case.
#[derive(Debug, Clone)]
pub struct Backend {
    device: Device,
    fused: bool,
}

impl Backend {
    /// The processor, by our own kernels.
    #[must_use]
    pub fn processor() -> Self {
        Self { device: Device::Cpu, fused: true }
    }

    /// A device, by operations that candle composes; of the processor they are the reference for our own.
    #[must_use]
    pub fn composed(device: Device) -> Self {
        Self { device, fused: false }
    }

    /// The device of this choice, in a program that is built to train on devices: [`ComputeDevice::Auto`] takes the first if
    /// it is there. In others, the processor.
    ///
    /// # Errors
    /// [`TrainError::Options`] where the device is not there.
    pub fn open(choice: ComputeDevice) -> Result<Self, TrainError> {
        let built = candle_core::utils::cuda_is_available();
        match choice {
            ComputeDevice::Auto if built => Ok(Self::cuda(0).unwrap_or_else(|error| {
                tracing::warn!(%error, "no CUDA device to train on; training on the processor");
                Self::processor()
            })),
            ComputeDevice::Cuda(number) if built => Self::cuda(number)
                .map_err(|e| TrainError::Options(format!("--device {choice}: {e}"))),
            _ => Ok(Self::processor()),
        }
    }

    fn cuda(number: usize) -> candle_core::Result<Self> {
        let device = Device::new_cuda(number)?;
        // Products of f32 in tensor cores: rounded less than to bf16, as ours on the processor are.
        #[cfg(feature = "cuda")]
        candle_core::cuda::set_gemm_reduced_precision_f32(true);
        Ok(Self::composed(device))
    }

    /// Where tensors of the graph lie.
    pub(super) fn device(&self) -> &Device {
        &self.device
    }

    /// Whether the processor computes.
    #[must_use]
    pub fn is_processor(&self) -> bool {
        self.device.is_cpu()
    }

    /// Whether our own kernels compute.
    pub(super) fn is_fused(&self) -> bool {
        self.fused
    }
}
