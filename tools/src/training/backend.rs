//! Where the graph of a network is computed, and by whose operations.

use candle_core::{Device, Tensor};

use super::TrainError;
use super::composed;
use super::graph_ops::{GateMul, Linear, RmsNorm};
use pleach::cli::ComputeDevice;
use pleach_kernels::Activation;

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

    /// `y = x w^T`: x `[rows, in]`, w `[out, in]`, y `[rows, out]`.
    pub(super) fn linear(&self, x: &Tensor, w: &Tensor) -> candle_core::Result<Tensor> {
        if self.fused { x.apply_op2(w, Linear) } else { x.matmul(&w.t()?) }
    }

    /// RMS norm of rows as long as the weight; `x` may have more dimensions.
    pub(super) fn rms_norm(
        &self,
        x: &Tensor,
        weight: &Tensor,
        eps: f32,
    ) -> candle_core::Result<Tensor> {
        if self.fused {
            x.apply_op2(weight, RmsNorm { eps })
        } else {
            composed::rms_norm(x, weight, eps)
        }
    }

    /// `activation(gate) * up` of rows `[gate | up]`: `[rows, 2 n]` to `[rows, n]`.
    pub(super) fn gate_mul(
        &self,
        x: &Tensor,
        activation: Activation,
    ) -> candle_core::Result<Tensor> {
        if self.fused {
            x.apply_op1(GateMul { activation })
        } else {
            composed::gate_mul(x, activation)
        }
    }
}
