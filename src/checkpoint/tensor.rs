//! A tensor as files have it.

use pleach_kernels::DType;

/// What a file says of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// The format of its values.
    pub dtype: DType,
    /// Rows first.
    pub shape: Vec<usize>,
}

/// A tensor as it lies in the file.
#[derive(Debug, Clone)]
pub struct RawTensor {
    /// Storage format.
    pub dtype: DType,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// Encoded values, row-major.
    pub data: Vec<u8>,
}

impl RawTensor {
    /// The decoded values.
    #[must_use]
    pub fn to_f32(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.shape.iter().product()];
        self.dtype.dequantize(&self.data, &mut values);
        values
    }
}
