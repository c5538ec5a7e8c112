//! Keys and values of one layer on a device.

use std::sync::Arc;

use super::calls::Address;
use super::memory::Memory;
use super::{CudaError, Device};
use crate::{AttentionShape, DType};

/// How keys and values are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvFormat {
    /// As they are computed, in the activations' format.
    Float,
    /// Codes of 8 bits, and an f32 scale for each head of a position. Activations are BF16 then.
    Int8,
}

impl KvFormat {
    /// Bytes of the keys, or the values, of one head of a position.
    const fn bytes(self, head_dim: usize) -> usize {
        match self {
            Self::Float => 2 * head_dim,
            Self::Int8 => head_dim + size_of::<f32>(),
        }
    }
}

/// Keys and values of one layer, `[blocks, kv_heads, block_size, head_dim]` each; behind codes their scales, `[blocks,
/// kv_heads, block_size]`.
pub struct KvLayer {
    pub(super) keys: Memory,
    pub(super) values: Memory,
    /// Of what is computed with them.
    pub(super) dtype: DType,
    format: KvFormat,
    pub(super) shape: AttentionShape,
    pub(super) num_blocks: usize,
    pub(super) block_size: usize,
}

impl KvLayer {
    /// A cache of `num_blocks` blocks of `block_size` positions for one layer, for activations of a format.
    ///
    /// # Errors
    /// If there is no memory left, or the activations are neither BF16 nor F16, or not BF16 beside codes.
    pub fn new(
        device: &Arc<Device>,
        shape: AttentionShape,
        dtype: DType,
        format: KvFormat,
        [num_blocks, block_size]: [usize; 2],
    ) -> Result<Self, CudaError> {
        let fits = dtype == DType::BF16 || (dtype == DType::F16 && format == KvFormat::Float);
        if !fits {
            let reason = format!("no {format:?} cells beside {dtype:?} rows");
            return Err(CudaError::Argument { what: "keys and values", reason });
        }
        let bytes = num_blocks * Self::block_bytes(&shape, format, block_size) / 2;
        let memory = || Memory::new(device, bytes);
        let (keys, values) = (memory()?, memory()?);
        Ok(Self { keys, values, dtype, format, shape, num_blocks, block_size })
    }

    /// Bytes of one block of one layer, keys and values.
    #[must_use]
    pub fn block_bytes(shape: &AttentionShape, format: KvFormat, block_size: usize) -> usize {
        2 * shape.kv_heads * block_size * format.bytes(shape.head_dim)
    }

    /// Where the scales of keys and of values lie; 0 where there are none.
    pub(super) fn scales(&self) -> [Address; 2] {
        match self.format {
            KvFormat::Float => [0; 2],
            KvFormat::Int8 => {
                [&self.keys, &self.values].map(|codes| codes.address + self.codes() as u64)
            }
        }
    }

    /// Bytes of the codes of all keys.
    fn codes(&self) -> usize {
        self.num_blocks * self.block_cells()
    }

    /// Keys of a block.
    fn block_cells(&self) -> usize {
        self.shape.kv_heads * self.block_size * self.shape.head_dim
    }

    /// Keys and values of some blocks, `[blocks, kv_heads, block_size, head_dim]` each, once everything before is done.
    ///
    /// # Errors
    /// What went wrong in the kernels before, or in a copy.
    ///
    /// # Panics
    /// If there are no such blocks.
    pub fn read(&self, blocks: &[u32]) -> Result<[Vec<f32>; 2], CudaError> {
        let read = |memory: &Memory| {
            let mut cells = Vec::new();
            for &block in blocks {
                cells.extend(self.read_block(memory, block as usize)?);
            }
            Ok(cells)
        };
        Ok([read(&self.keys)?, read(&self.values)?])
    }

    fn read_block(&self, memory: &Memory, block: usize) -> Result<Vec<f32>, CudaError> {
        assert!(block < self.num_blocks, "block {block} of {}", self.num_blocks);
        let (cells, dim) = (self.block_cells(), self.shape.head_dim);
        let bytes = |from: usize, count: usize| -> Result<Vec<u8>, CudaError> {
            let mut bytes = vec![0; count];
            memory.read_now(from, &mut bytes)?;
            Ok(bytes)
        };
        match self.format {
            KvFormat::Float => {
                let size = cells * self.dtype.block_bytes();
                let mut values = vec![0.0; cells];
                self.dtype.dequantize(&bytes(block * size, size)?, &mut values);
                Ok(values)
            }
            KvFormat::Int8 => {
                let codes = bytes(block * cells, cells)?;
                let size = cells / dim * size_of::<f32>();
                let scales = bytes(self.codes() + block * size, size)?;
                let scales: Vec<f32> = bytemuck::pod_collect_to_vec(&scales);
                let head = |(codes, scale): (&[u8], &f32)| {
                    let (codes, scale): (&[i8], f32) = (bytemuck::cast_slice(codes), *scale);
                    codes.iter().map(|code| f32::from(*code) * scale).collect::<Vec<_>>()
                };
                Ok(codes.chunks_exact(dim).zip(&scales).flat_map(head).collect())
            }
        }
    }
}
