//! Rows of one sequence and one of its K/V heads: what reads the same keys and values.

use std::ops::Range;

use super::cache::{BLOCK_SIZE, LayerCache};
use super::cells::Cells;
use super::softmax;
use crate::cpu::isa::Isa;

/// Positions that have a softmax of their own. Fixed: a row's bits depend on it.
pub(super) const CHUNK: usize = 128;

/// One K/V head of one sequence.
pub(super) struct KvHead<'a> {
    pub(super) cache: &'a LayerCache,
    pub(super) blocks: &'a [u32],
    pub(super) index: usize,
    pub(super) of: usize,
    pub(super) dim: usize,
}

impl KvHead<'_> {
    /// The first of the 16 rows of a block.
    #[inline(always)]
    fn row(&self, block: usize) -> usize {
        (self.blocks[block] as usize * self.of + self.index) * BLOCK_SIZE
    }

    /// Where a block's keys, `[dim, 16]`, and its values, `[16, dim]`, begin.
    #[inline(always)]
    pub(super) fn base(&self, block: usize) -> usize {
        self.row(block) * self.dim
    }

    /// Scales of keys or values of the blocks of a chunk, one for each position, where they have any.
    pub(super) fn scales(&self, cells: &Cells, blocks: Range<usize>) -> Option<[f32; CHUNK]> {
        let scales = cells.scales()?;
        let mut chunk = [0.0; CHUNK];
        for (block, chunk) in blocks.zip(chunk.as_chunks_mut::<BLOCK_SIZE>().0) {
            chunk.copy_from_slice(&scales[self.row(block)..][..BLOCK_SIZE]);
        }
        Some(chunk)
    }
}

/// Some rows of a sequence, and the query heads that share one K/V head. Query i is head `i % group` of
/// row `i / group`.
pub(super) struct Tile<'a> {
    pub(super) kv: KvHead<'a>,
    /// Index of the first row in the batch.
    pub(super) first_row: usize,
    /// Of each row.
    pub(super) positions: &'a [u32],
    pub(super) window: Option<usize>,
    /// Multiplier of scores.
    pub(super) scale: f32,
    /// Bound of scaled scores.
    pub(super) cap: Option<f32>,
    /// From the first row's first query head on; rows are `q_stride` apart.
    pub(super) q: &'a [f32],
    pub(super) q_stride: usize,
    /// Query heads per K/V head.
    pub(super) group: usize,
}

impl Tile<'_> {
    pub(super) fn queries(&self) -> usize {
        self.positions.len() * self.group
    }

    #[inline(always)]
    pub(super) fn query(&self, index: usize) -> &[f32] {
        let at = index / self.group * self.q_stride + index % self.group * self.kv.dim;
        &self.q[at..][..self.kv.dim]
    }

    /// Positions that a query attends to.
    #[inline(always)]
    fn seen(&self, query: usize) -> Range<usize> {
        let end = self.positions[query / self.group] as usize + 1;
        self.window.map_or(0, |window| end.saturating_sub(window))..end
    }

    /// Those in a chunk, counted from its start.
    #[inline(always)]
    pub(super) fn seen_in(&self, query: usize, chunk: usize) -> Range<usize> {
        let (seen, start) = (self.seen(query), chunk * CHUNK);
        let place = |position: usize| position.clamp(start, start + CHUNK) - start;
        place(seen.start)..place(seen.end)
    }

    /// Positions that any query attends to.
    pub(super) fn seen_by_any(&self) -> Range<usize> {
        let seen = (0..self.queries()).step_by(self.group).map(|query| self.seen(query));
        seen.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end)).unwrap_or(0..0)
    }

    /// Chunks that any query attends to.
    pub(super) fn chunks(&self) -> Range<usize> {
        let seen = self.seen_by_any();
        seen.start / CHUNK..seen.end.div_ceil(CHUNK)
    }

    /// Adds the sums of a chunk, the next one of those attended to.
    pub(super) fn merge(&self, isa: Isa, chunk: usize, from: &[f32], into: &mut [f32]) {
        let width = self.kv.dim + 2;
        let queries = from.chunks_exact(width).zip(into.chunks_exact_mut(width));
        for (query, (from, into)) in queries.enumerate() {
            if self.seen_in(query, chunk).is_empty() {
                continue;
            }
            if self.seen(query).start >= chunk * CHUNK {
                into.copy_from_slice(from);
            } else {
                softmax::merge(isa, into, from);
            }
        }
    }
}
