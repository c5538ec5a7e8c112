//! Keys and values of one layer, in blocks.

use bytemuck::zeroed_vec;
use half::f16;
use half::slice::HalfFloatSliceExt;

use super::shape::AttentionShape;
use crate::cpu::pool::ThreadPool;
use crate::cpu::rope::RopeTable;
use crate::cpu::shared_mut::SharedMut;

/// Positions per block.
pub const BLOCK_SIZE: usize = 16;

/// How keys and values are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheFormat {
    /// IEEE half precision.
    F16,
    /// IEEE single precision.
    F32,
}

/// Keys or values.
#[derive(Debug)]
pub(super) enum Cells {
    F16(Vec<f16>),
    F32(Vec<f32>),
}

impl Cells {
    /// Zeros, which take no memory before they are written to.
    fn new(format: CacheFormat, len: usize) -> Self {
        match format {
            CacheFormat::F16 => Self::F16(zeroed_vec(len)),
            CacheFormat::F32 => Self::F32(zeroed_vec(len)),
        }
    }

    /// `out.len()` values from `at` on.
    #[inline(always)]
    pub(super) fn read(&self, at: usize, out: &mut [f32]) {
        match self {
            Self::F16(cells) => cells[at..][..out.len()].convert_to_f32_slice(out),
            Self::F32(cells) => out.copy_from_slice(&cells[at..][..out.len()]),
        }
    }

    fn shared(&mut self) -> SharedCells<'_> {
        match self {
            Self::F16(cells) => SharedCells::F16(SharedMut::new(cells)),
            Self::F32(cells) => SharedCells::F32(SharedMut::new(cells)),
        }
    }
}

/// Cells that the tasks of one job write to.
enum SharedCells<'a> {
    F16(SharedMut<'a, f16>),
    F32(SharedMut<'a, f32>),
}

impl SharedCells<'_> {
    /// Writes `x` to every `step`th cell from `at` on.
    ///
    /// # Safety
    /// No other task may write to these cells.
    unsafe fn write(&self, at: usize, step: usize, x: &[f32]) {
        match self {
            Self::F16(cells) => {
                let mut half = [f16::ZERO; 64];
                for (chunk, x) in x.chunks(64).enumerate() {
                    half[..x.len()].convert_from_f32_slice(x);
                    for (i, half) in half[..x.len()].iter().enumerate() {
                        // SAFETY: by the caller's promise.
                        unsafe { *cells.element(at + (chunk * 64 + i) * step) = *half };
                    }
                }
            }
            Self::F32(cells) => {
                for (i, x) in x.iter().enumerate() {
                    // SAFETY: by the caller's promise.
                    unsafe { *cells.element(at + i * step) = *x };
                }
            }
        }
    }
}

/// Keys and values of one layer for all blocks of the pool.
#[derive(Debug)]
pub struct LayerCache {
    pub(super) keys: Cells,
    pub(super) values: Cells,
}

impl LayerCache {
    /// Room for `num_blocks` blocks.
    #[must_use]
    pub fn new(num_blocks: usize, shape: &AttentionShape, format: CacheFormat) -> Self {
        let len = num_blocks * shape.kv_heads * shape.head_dim * BLOCK_SIZE;
        Self { keys: Cells::new(format, len), values: Cells::new(format, len) }
    }

    /// Bytes that `num_blocks` blocks take.
    #[must_use]
    pub fn bytes(num_blocks: usize, shape: &AttentionShape, format: CacheFormat) -> usize {
        let cell = match format {
            CacheFormat::F16 => size_of::<f16>(),
            CacheFormat::F32 => size_of::<f32>(),
        };
        2 * num_blocks * shape.kv_heads * shape.head_dim * BLOCK_SIZE * cell
    }

    /// The keys and values of a slot, `[kv_heads, head_dim]` each.
    ///
    /// # Panics
    /// If the slot lies outside the cache, or the two differ in length.
    pub fn read(&self, slot: u32, head_dim: usize, keys: &mut [f32], values: &mut [f32]) {
        assert_eq!(keys.len(), values.len(), "keys and values of one slot");
        let (block, position) = (slot as usize / BLOCK_SIZE, slot as usize % BLOCK_SIZE);
        let start = block * keys.len() * BLOCK_SIZE;
        for (at, key) in keys.iter_mut().enumerate() {
            self.keys.read(start + at * BLOCK_SIZE + position, std::slice::from_mut(key));
        }
        for (head, values) in values.chunks_exact_mut(head_dim).enumerate() {
            let start = start + (head * BLOCK_SIZE + position) * head_dim;
            self.values.read(start, values);
        }
    }

    /// Writes the keys and values of rows into their slots, which differ, after turning query and key
    /// heads, in place, where there is a rotation. Rows of `x` hold `stride` values: query, key and value
    /// heads.
    ///
    /// # Panics
    /// If a slot lies outside the cache.
    pub fn write(
        &mut self,
        pool: &ThreadPool,
        shape: &AttentionShape,
        rope: Option<&RopeTable>,
        x: &mut [f32],
        stride: usize,
        slots: &[u32],
    ) {
        let dim = shape.head_dim;
        let (q, kv) = (shape.heads * dim, shape.kv_heads * dim);
        assert_eq!(x.len(), slots.len() * stride, "a slot for every row");
        let (keys, values) = (self.keys.shared(), self.values.shared());
        let x = SharedMut::new(x);
        pool.run(slots.len(), &|index| {
            // SAFETY: each task has its own row.
            let row = unsafe { x.slice(index * stride, q + 2 * kv) };
            if let Some(rope) = rope {
                rope.turn_row(index, &mut row[..q + kv], 1.0);
            }
            let (block, position) =
                (slots[index] as usize / BLOCK_SIZE, slots[index] as usize % BLOCK_SIZE);
            let (row_keys, row_values) = row[q..].split_at(kv);
            for head in 0..shape.kv_heads {
                let base = (block * shape.kv_heads + head) * dim * BLOCK_SIZE;
                let part = head * dim..(head + 1) * dim;
                // SAFETY: each row has its own slot.
                unsafe {
                    keys.write(base + position, BLOCK_SIZE, &row_keys[part.clone()]);
                    values.write(base + position * dim, 1, &row_values[part]);
                }
            }
        });
    }
}
