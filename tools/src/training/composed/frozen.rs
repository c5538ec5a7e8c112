//! The product of rows with a frozen matrix, of which no gradient is formed: candle's own product forms that of both sides.

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, Layout, Result, Shape, Storage, Tensor, bail,
};

/// `y = x W^T`: x `[rows, in]`, contiguous, W `[out, in]`, y `[rows, out]`.
pub(super) fn frozen_product(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    x.apply_op1(FrozenProduct { w: w.clone(), transposed: w.t()? })
}

struct FrozenProduct {
    w: Tensor,
    transposed: Tensor,
}

impl FrozenProduct {
    fn forward<S: BackendStorage>(
        &self,
        x: &S,
        layout: &Layout,
        of: impl Fn(&Storage) -> Option<&S>,
    ) -> Result<(S, Shape)> {
        let (rows, inner) = layout.shape().dims2()?;
        let out = self.w.dim(0)?;
        let (storage, transposed) = self.transposed.storage_and_layout();
        let Some(w) = of(&storage) else { bail!("the matrix is on another device") };
        let y = x.matmul(w, (1, rows, out, inner), layout, transposed)?;
        Ok((y, (rows, out).into()))
    }
}

impl CustomOp1 for FrozenProduct {
    fn name(&self) -> &'static str {
        "frozen-product"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward(x, layout, |storage| match storage {
            Storage::Cpu(storage) => Some(storage),
            _ => None,
        })
    }

    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        self.forward(x, layout, |storage| match storage {
            Storage::Cuda(storage) => Some(storage),
            _ => None,
        })
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        dy.contiguous()?.matmul(&self.w).map(Some)
    }
}
