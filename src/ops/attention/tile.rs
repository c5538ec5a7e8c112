//! Rows of one sequence and one of its K/V heads: what reads the same keys and values.

use std::ops::Range;

use super::super::isa::Isa;
#[cfg(target_arch = "x86_64")]
use super::avx512;
use super::{LayerCache, portable, softmax};
use crate::kv_cache::BLOCK_SIZE;

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
    /// Where a block's keys, `[dim, 16]`, and its values, `[16, dim]`, begin.
    #[inline(always)]
    pub(super) fn base(&self, block: usize) -> usize {
        (self.blocks[block] as usize * self.of + self.index) * self.dim * BLOCK_SIZE
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
    fn seen_by_any(&self) -> Range<usize> {
        let seen = (0..self.queries()).step_by(self.group).map(|query| self.seen(query));
        seen.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end)).unwrap_or(0..0)
    }

    /// Chunks that any query attends to.
    pub(super) fn chunks(&self) -> Range<usize> {
        let seen = self.seen_by_any();
        seen.start / CHUNK..seen.end.div_ceil(CHUNK)
    }

    /// Attends to one chunk: `scores` is room for `[queries, CHUNK]`, `sums` takes, for each query,
    /// `dim` weighted sums of values, the top and the sum of the weights. Those of a query that sees
    /// nothing of the chunk mean nothing. The same thread goes on with the chunks before `end`.
    pub(super) fn attend(
        &self,
        isa: Isa,
        chunk: usize,
        end: usize,
        scores: &mut [f32],
        sums: &mut [f32],
    ) {
        let seen = self.seen_by_any();
        let end = seen.end.min(end * CHUNK).div_ceil(BLOCK_SIZE);
        let first = seen.start.max(chunk * CHUNK) / BLOCK_SIZE;
        let blocks = first..end.min((chunk + 1) * CHUNK / BLOCK_SIZE);
        #[cfg(target_arch = "x86_64")]
        if let Some(pieces) = avx512::Pieces::new(isa, self, blocks.clone(), end) {
            pieces.scores(scores);
            self.weigh(isa, blocks, scores, sums);
            pieces.sums(scores, sums);
            return;
        }
        portable::scores(isa, self, blocks.clone(), scores);
        self.weigh(isa, blocks.clone(), scores, sums);
        portable::sums(isa, self, blocks, scores, sums);
    }

    /// Scores of some blocks become weights.
    fn weigh(&self, isa: Isa, blocks: Range<usize>, scores: &mut [f32], sums: &mut [f32]) {
        let dim = self.kv.dim;
        let chunk = blocks.start * BLOCK_SIZE / CHUNK;
        let start = blocks.start * BLOCK_SIZE % CHUNK;
        let places = start..start + blocks.len() * BLOCK_SIZE;
        let scale = 1.0 / (dim as f32).sqrt();
        for (query, sums) in sums.chunks_exact_mut(dim + 2).enumerate() {
            let seen = self.seen_in(query, chunk);
            let place = |at: usize| at.clamp(start, places.end) - start;
            let (begin, end) = (place(seen.start), place(seen.end));
            let (top, sum) = sums[dim..].split_at_mut(1);
            let scores = &mut scores[query * CHUNK..][places.clone()];
            softmax::weigh(isa, scores, begin, end, scale, &mut top[0], &mut sum[0]);
        }
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
