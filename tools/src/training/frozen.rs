//! Matrices that training does not move, packed once for all the products with them.

use candle_core::{Result, Tensor, bail};

use super::backend::Backend;
use super::gemm::{Constant, adapted_product, product_by};
use super::graph_ops::{dense, with_values};
use pleach_kernels::MatRef;

/// A frozen matrix W, `[out, in]`.
pub(super) struct Frozen {
    shape: [usize; 2],
    operands: Operands,
}

enum Operands {
    /// `W^T` and `W`, as right operands of our own products.
    Packed([Constant; 2]),
    /// W, on the backend's device.
    Tensor(Tensor),
}

impl Frozen {
    /// A matrix of rows of `inner` values, as products of this backend take it.
    ///
    /// # Errors
    /// What candle says.
    ///
    /// # Panics
    /// If the values are not whole rows.
    pub(super) fn new(values: &[f32], inner: usize, backend: &Backend) -> Result<Self> {
        let out = values.len() / inner;
        assert_eq!(values.len(), out * inner, "whole rows");
        let operands = if backend.is_fused() {
            let w = MatRef::new(values, out, inner, inner);
            Operands::Packed([Constant::new(w.t())?, Constant::new(w)?])
        } else {
            Operands::Tensor(Tensor::from_slice(values, (out, inner), backend.device())?)
        };
        Ok(Self { shape: [out, inner], operands })
    }

    fn packed(&self, which: usize) -> Result<&Constant> {
        match &self.operands {
            Operands::Packed(operands) => Ok(&operands[which]),
            Operands::Tensor(_) => bail!("the matrix is of another backend"),
        }
    }

    /// W, for operations that candle composes.
    pub(super) fn tensor(&self) -> Result<&Tensor> {
        match &self.operands {
            Operands::Tensor(tensor) => Ok(tensor),
            Operands::Packed(_) => bail!("the matrix is of another backend"),
        }
    }

    /// Rows and columns.
    pub(super) fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// `y = x W^T`: x `[rows, in]`, y `[rows, out]`.
    pub(super) fn forward(&self, x: MatRef, y: &mut [f32]) -> Result<()> {
        product_by(x, self.packed(0)?, y)
    }

    /// `x W^T` as a tensor, without a gradient: x `[rows, in]`.
    pub(super) fn product(&self, x: &Tensor) -> Result<Tensor> {
        if let Operands::Tensor(w) = &self.operands {
            return x.matmul(&w.t()?);
        }
        let [out, inner] = self.shape;
        let rows = x.dim(0)?;
        let mut y = vec![0.0; rows * out];
        with_values([x], |[x]| self.forward(MatRef::new(x, rows, inner, inner), &mut y))?;
        dense(y, (rows, out))
    }

    /// `dx = dy W`, the gradient of [`forward`](Self::forward).
    pub(super) fn backward(&self, dy: MatRef, dx: &mut [f32]) -> Result<()> {
        product_by(dy, self.packed(1)?, dx)
    }

    /// `low = x u` and `y = x W^T + low v`.
    pub(super) fn adapted_forward(
        &self,
        x: MatRef,
        factors: [MatRef; 2],
        low: &mut [f32],
        y: &mut [f32],
    ) -> Result<()> {
        adapted_product(x, self.packed(0)?, factors, low, y)
    }

    /// `dlow = dy u` and `dx = dy W + dlow v`.
    pub(super) fn adapted_backward(
        &self,
        dy: MatRef,
        factors: [MatRef; 2],
        dlow: &mut [f32],
        dx: &mut [f32],
    ) -> Result<()> {
        adapted_product(dy, self.packed(1)?, factors, dlow, dx)
    }
}
