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

    /// The device of this choice: [`ComputeDevice::Auto`] takes the first CUDA device if this program was built for one
    /// and it is there.
    ///
    /// # Errors
    /// [`TrainError::Options`] where it is not there.
    pub fn open(choice: ComputeDevice) -> Result<Self, TrainError> {
        let built = candle_core::utils::cuda_is_available();
        match choice {
            ComputeDevice::Cpu => Ok(Self::processor()),
            ComputeDevice::Auto if !built => Ok(Self::processor()),
            ComputeDevice::Auto => Ok(Self::cuda(0).unwrap_or_else(|error| {
                tracing::warn!(%error, "no CUDA device to train on; training on the processor");
                Self::processor()
            })),
            ComputeDevice::Cuda(_) if !built => Err(TrainError::Options(
                "--device cuda: this pleach-tools trains on the processor alone; build one with \
                 `--features cuda` (docs/building-a-draft.md)"
                    .into(),
            )),
            ComputeDevice::Cuda(number) => Self::cuda(number)
                .map_err(|e| TrainError::Options(format!("--device cuda:{number}: {e}"))),
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

    /// Whether our own kernels compute.
    pub(super) fn is_fused(&self) -> bool {
        self.fused
    }
}
