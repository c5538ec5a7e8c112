//! Matrices that training does not move, packed once for all the products with them.

use candle_core::Result;

use super::gemm::{Constant, adapted_product, product_by};
use pleach_kernels::MatRef;

/// A frozen matrix W, `[out, in]`.
pub(super) struct Frozen {
    shape: [usize; 2],
    /// `W^T` and `W`, as right operands.
    operands: [Constant; 2],
}

impl Frozen {
    /// A matrix of rows of `inner` values.
    ///
    /// # Errors
    /// What candle says.
    ///
    /// # Panics
    /// If the values are not whole rows.
    pub(super) fn new(values: &[f32], inner: usize) -> Result<Self> {
        let out = values.len() / inner;
        assert_eq!(values.len(), out * inner, "whole rows");
        let w = MatRef::new(values, out, inner, inner);
        let operands = [Constant::new(w.t())?, Constant::new(w)?];
        Ok(Self { shape: [out, inner], operands })
    }

    /// Rows and columns.
    pub(super) fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// `y = x W^T`: x `[rows, in]`, y `[rows, out]`.
    pub(super) fn forward(&self, x: MatRef, y: &mut [f32]) -> Result<()> {
        product_by(x, &self.operands[0], y)
    }

    /// `dx = dy W`, the gradient of [`forward`](Self::forward).
    pub(super) fn backward(&self, dy: MatRef, dx: &mut [f32]) -> Result<()> {
        product_by(dy, &self.operands[1], dx)
    }

    /// `low = x u` and `y = x W^T + low v`.
    pub(super) fn adapted_forward(
        &self,
        x: MatRef,
        factors: [MatRef; 2],
        low: &mut [f32],
        y: &mut [f32],
    ) -> Result<()> {
        adapted_product(x, &self.operands[0], factors, low, y)
    }

    /// `dlow = dy u` and `dx = dy W + dlow v`.
    pub(super) fn adapted_backward(
        &self,
        dy: MatRef,
        factors: [MatRef; 2],
        dlow: &mut [f32],
        dx: &mut [f32],
    ) -> Result<()> {
        adapted_product(dy, &self.operands[1], factors, dlow, dx)
    }
}
