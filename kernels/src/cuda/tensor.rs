//! What lives on a device: rows of numbers, weight matrices, and the host memory results come back to.

use std::ops::Range;
use std::sync::Arc;

use super::calls::{self, Address, Unfit};
use super::memory::{HostMemory, Memory};
use super::{CudaError, Device};
use crate::DType;

/// `[rows, cols]` numbers, row-major without gaps.
pub struct Tensor {
    pub(super) memory: Memory,
    pub(super) dtype: DType,
    pub(super) rows: usize,
    pub(super) cols: usize,
}

impl Tensor {
    /// A tensor of a float format with undefined contents.
    ///
    /// # Errors
    /// If there is no memory left, or the format is no float format.
    pub fn new(
        device: &Arc<Device>,
        dtype: DType,
        rows: usize,
        cols: usize,
    ) -> Result<Self, CudaError> {
        if !matches!(dtype, DType::BF16 | DType::F16 | DType::F32) {
            let reason = format!("{dtype:?} is no float format");
            return Err(CudaError::Argument { what: "a tensor", reason });
        }
        let memory = Memory::new(device, rows * cols * dtype.block_bytes())?;
        Ok(Self { memory, dtype, rows, cols })
    }

    /// A tensor with the values given, rounded to `dtype`.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    ///
    /// # Panics
    /// If there are not `rows * cols` values.
    pub fn from_f32(
        device: &Arc<Device>,
        dtype: DType,
        [rows, cols]: [usize; 2],
        values: &[f32],
    ) -> Result<Self, CudaError> {
        assert_eq!(values.len(), rows * cols, "[{rows}, {cols}]");
        let mut tensor = Self::new(device, dtype, rows, cols)?;
        let bytes = tensor.bytes_of(values);
        tensor.memory.write(&bytes)?;
        Ok(tensor)
    }

    /// Values as the tensor has them.
    ///
    /// # Panics
    /// If there are more than `rows * cols` values.
    pub(super) fn bytes_of(&self, values: &[f32]) -> Vec<u8> {
        let [rows, cols] = self.shape();
        assert!(values.len() <= rows * cols, "{} values of [{rows}, {cols}]", values.len());
        self.dtype.quantize(values).expect("invariant: a float format")
    }

    /// Gives the first rows the values of one of `from` each, by its index; starts as many copies as there are runs of
    /// indices that follow each other.
    ///
    /// # Errors
    /// What the device says.
    ///
    /// # Panics
    /// If formats or widths differ, there are more indices than rows, or an index lies outside.
    pub fn copy_rows(&mut self, from: &Self, indices: &[u32]) -> Result<(), CudaError> {
        assert_eq!((self.dtype, self.cols), (from.dtype, from.cols), "format and width");
        assert!(indices.len() <= self.rows, "{} indices of {} rows", indices.len(), self.rows);
        let row = self.cols * self.dtype.block_bytes();
        let mut place = 0;
        for run in indices.chunk_by(|a, b| a + 1 == *b) {
            let first = run[0] as usize;
            let count = run.len();
            assert!(first + count <= from.rows, "row {} of {}", first + count - 1, from.rows);
            self.memory.copy(place * row, &from.memory, first * row, count * row)?;
            place += count;
        }
        Ok(())
    }

    /// Gives the tensor other rows; its contents are undefined then.
    ///
    /// # Errors
    /// If there is no memory left.
    pub fn set_rows(&mut self, rows: usize) -> Result<(), CudaError> {
        self.rows = 0;
        self.memory.reserve(rows * self.cols * self.dtype.block_bytes())?;
        self.rows = rows;
        Ok(())
    }

    /// The values of one row, once everything before is done.
    ///
    /// # Errors
    /// What went wrong in the kernels before, or in the copy.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row(&self, row: usize) -> Result<Vec<f32>, CudaError> {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        let mut bytes = vec![0u8; self.cols * self.dtype.block_bytes()];
        let first = row * bytes.len();
        self.memory.read_now(first, &mut bytes)?;
        let mut values = vec![0.0; self.cols];
        self.dtype.dequantize(&bytes, &mut values);
        Ok(values)
    }

    /// `[rows, cols]`
    #[must_use]
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    pub(super) fn address(&self) -> Address {
        self.memory.address
    }
}

/// A weight matrix as its file stores it, to look rows up in.
pub struct Table {
    pub(super) memory: Memory,
    pub(super) dtype: DType,
    pub(super) rows: usize,
    pub(super) cols: usize,
}

/// A weight matrix laid out for the product.
pub struct Weights {
    pub(super) memory: Memory,
    pub(super) dtype: DType,
    pub(super) outputs: usize,
    pub(super) inputs: usize,
}

/// Checks that `bytes` hold a matrix of a format that kernels take.
fn check_matrix(
    what: &'static str,
    dtype: DType,
    rows: usize,
    cols: usize,
    bytes: &[u8],
) -> Result<(), CudaError> {
    if matches!(dtype, DType::F32 | DType::Q5_0 | DType::Q5_1) {
        let reason = format!("no {dtype:?} weights on CUDA devices");
        return Err(CudaError::Argument { what, reason });
    }
    if dtype.bytes_for(cols).and_then(|row| row.checked_mul(rows)) == Some(bytes.len()) {
        return Ok(());
    }
    let reason =
        format!("a {dtype:?} matrix of {rows} x {cols} does not take {} bytes", bytes.len());
    Err(CudaError::Argument { what, reason })
}

impl Table {
    /// Copies a row-major matrix stored as `dtype` to the device.
    ///
    /// # Errors
    /// If there is no memory left, or the bytes do not fit the shape.
    pub fn new(
        device: &Arc<Device>,
        dtype: DType,
        rows: usize,
        cols: usize,
        bytes: &[u8],
    ) -> Result<Self, CudaError> {
        check_matrix("a table", dtype, rows, cols, bytes)?;
        let mut memory = Memory::new(device, bytes.len())?;
        memory.write(bytes)?;
        Ok(Self { memory, dtype, rows, cols })
    }

    /// Memory it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.memory.bytes
    }
}

impl Weights {
    /// Packs a row-major matrix stored as `dtype`, without changing a value.
    ///
    /// # Errors
    /// If there is no memory left, the bytes do not fit the shape, or the kernel does not take the width: it must
    /// be whole blocks of the format, and a multiple of 32.
    pub fn pack(
        device: &Arc<Device>,
        dtype: DType,
        outputs: usize,
        inputs: usize,
        bytes: &[u8],
    ) -> Result<Self, CudaError> {
        let what = "packing weights";
        check_matrix(what, dtype, outputs, inputs, bytes)?;
        let (rows, cols) = (outputs as i64, inputs as i64);
        let packed = calls::packed_bytes(rows, cols, dtype).map_err(|Unfit| {
            let reason = format!("a width of {inputs} is no multiple of 32");
            CudaError::Argument { what, reason }
        })?;
        let mut stored = Memory::new(device, bytes.len())?;
        stored.write(bytes)?;
        let memory = Memory::new(device, packed as usize)?;
        let (weights, packed) = (stored.address, memory.address);
        let pack = calls::Pack { weights, packed, outputs: rows, inputs: cols };
        // SAFETY: `stored` holds the matrix, checked above, and `memory` as much as the kernel writes.
        unsafe { device.start(what, calls::pack(pack, dtype)) }?;
        Ok(Self { memory, dtype, outputs, inputs })
    }

    /// Rows of the matrix.
    #[must_use]
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Memory it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.memory.bytes
    }
}

/// Numbers on the host that come from a device.
pub struct HostBuffer {
    memory: HostMemory,
    /// Bytes that were read last.
    len: usize,
}

impl HostBuffer {
    /// An empty one.
    ///
    /// # Errors
    /// If there is no memory left.
    pub fn new(device: &Arc<Device>) -> Result<Self, CudaError> {
        Ok(Self { memory: HostMemory::new(device, 0)?, len: 0 })
    }

    /// The values of some rows of an f32 tensor, ranges one behind the other, once everything before is done; where there
    /// are none, it waits for nothing.
    ///
    /// # Errors
    /// What went wrong in the kernels before, or in a copy.
    ///
    /// # Panics
    /// If there are no such rows.
    pub fn read_rows(
        &mut self,
        from: &Tensor,
        ranges: impl Iterator<Item = Range<usize>> + Clone,
    ) -> Result<&[f32], CudaError> {
        if from.dtype != DType::F32 {
            let reason = format!("{:?} is not F32", from.dtype);
            return Err(CudaError::Argument { what: "reading a tensor", reason });
        }
        self.copy(&from.memory.device, ranges.map(|range| (from, range)))?;
        Ok(self.values())
    }

    /// The values of rows of tensors of one float format, one behind the other, once everything before is done.
    ///
    /// # Errors
    /// What went wrong in the kernels before, or in a copy; memory is taken as in [`reserve`](Self::reserve).
    ///
    /// # Panics
    /// If there are no such rows, or not `out.len()` values.
    pub fn decode_rows<'a>(
        &mut self,
        rows: impl Iterator<Item = (&'a Tensor, usize)> + Clone,
        out: &mut [f32],
    ) -> Result<(), CudaError> {
        let Some((first, _)) = rows.clone().next() else { return Ok(()) };
        self.copy(&first.memory.device, rows.map(|(from, row)| (from, row..row + 1)))?;
        first.dtype.dequantize(&self.memory.bytes()[..self.len], out);
        Ok(())
    }

    /// Copies some rows of tensors, ranges one behind the other, and waits for it.
    fn copy<'a>(
        &mut self,
        device: &Arc<Device>,
        ranges: impl Iterator<Item = (&'a Tensor, Range<usize>)> + Clone,
    ) -> Result<(), CudaError> {
        let bytes = |(from, range): &(&Tensor, Range<usize>)| {
            range.len() * from.cols * from.dtype.block_bytes()
        };
        let total = ranges.clone().map(|part| bytes(&part)).sum();
        self.reserve(device, total)?;
        self.len = total;
        if total == 0 {
            return Ok(());
        }
        let (mut rest, mut started) = (self.memory.bytes_mut(), Ok(()));
        for (from, range) in ranges.filter(|(_, range)| !range.is_empty()) {
            assert!(range.end <= from.rows, "rows {range:?} of {}", from.rows);
            let row = from.cols * from.dtype.block_bytes();
            let (to, behind) = rest.split_at_mut(range.len() * row);
            // SAFETY: the host's memory lives until the copies are done, just below.
            started = started.and(unsafe { from.memory.read(range.start * row, to) });
            rest = behind;
        }
        device.synchronize()?;
        started
    }

    /// Makes room for values of so many bytes from a device.
    ///
    /// # Errors
    /// If there is no memory left.
    pub fn reserve(&mut self, device: &Arc<Device>, bytes: usize) -> Result<(), CudaError> {
        if bytes > self.memory.bytes().len() {
            self.len = 0;
            self.memory = HostMemory::new(device, bytes)?;
        }
        Ok(())
    }

    /// What was read last of an f32 tensor.
    #[must_use]
    pub fn values(&self) -> &[f32] {
        bytemuck::cast_slice(&self.memory.bytes()[..self.len])
    }
}
