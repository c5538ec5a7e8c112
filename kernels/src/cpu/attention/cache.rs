//! Keys and values of one layer, in blocks.

use super::cells::{CacheFormat, Cells};
use super::shape::AttentionShape;
use crate::cpu::elementwise::scale;
use crate::cpu::pool::ThreadPool;
use crate::cpu::rope::RopeTable;
use crate::cpu::shared_mut::SharedMut;

/// Positions per block.
pub const BLOCK_SIZE: usize = 16;

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
        let rows = num_blocks * shape.kv_heads * BLOCK_SIZE;
        let cells = || Cells::new(format, rows, shape.head_dim);
        Self { keys: cells(), values: cells() }
    }

    /// Bytes that `num_blocks` blocks take.
    #[must_use]
    pub fn bytes(num_blocks: usize, shape: &AttentionShape, format: CacheFormat) -> usize {
        2 * num_blocks * shape.kv_heads * BLOCK_SIZE * format.bytes(shape.head_dim)
    }

    /// The keys and values of a slot, `[kv_heads, head_dim]` each.
    ///
    /// # Panics
    /// If the slot lies outside the cache, or the two differ in length.
    pub fn read(&self, slot: u32, head_dim: usize, keys: &mut [f32], values: &mut [f32]) {
        assert_eq!(keys.len(), values.len(), "keys and values of one slot");
        let (block, position) = (slot as usize / BLOCK_SIZE, slot as usize % BLOCK_SIZE);
        let heads = keys.len() / head_dim;
        let both = keys.chunks_exact_mut(head_dim).zip(values.chunks_exact_mut(head_dim));
        for (head, (keys, values)) in both.enumerate() {
            let first = (block * heads + head) * BLOCK_SIZE;
            for (at, key) in keys.iter_mut().enumerate() {
                let at = first * head_dim + at * BLOCK_SIZE + position;
                self.keys.read(at, std::slice::from_mut(key));
            }
            let row = first + position;
            self.values.read(row * head_dim, values);
            for (cells, read) in [(&self.keys, keys), (&self.values, values)] {
                if let Some(scales) = cells.scales() {
                    scale(read, scales[row]);
                }
            }
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
                let first = (block * shape.kv_heads + head) * BLOCK_SIZE;
                let (row, part) = (first + position, head * dim..(head + 1) * dim);
                // SAFETY: each task has its own slot.
                unsafe {
                    keys.write(row, first * dim + position, BLOCK_SIZE, &row_keys[part.clone()]);
                    values.write(row, row * dim, 1, &row_values[part]);
                }
            }
        });
    }
}
