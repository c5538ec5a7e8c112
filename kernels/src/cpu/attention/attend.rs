//! Attention of a tile to one chunk, by the kernels of an instruction set.

use std::ops::Range;

#[cfg(target_arch = "x86_64")]
use super::avx512;
use super::cache::BLOCK_SIZE;
use super::tile::{CHUNK, Tile};
use super::{portable, softmax};
use crate::cpu::elementwise::cap_row;
use crate::cpu::isa::{Isa, per_isa};

impl Tile<'_> {
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

    /// Scores of some blocks become weights: the products of queries and cells become those of cells, by the scales where
    /// there are any.
    fn weigh(&self, isa: Isa, blocks: Range<usize>, scores: &mut [f32], sums: &mut [f32]) {
        let dim = self.kv.dim;
        let chunk = blocks.start * BLOCK_SIZE / CHUNK;
        let start = blocks.start * BLOCK_SIZE % CHUNK;
        let places = start..start + blocks.len() * BLOCK_SIZE;
        let cache = self.kv.cache;
        let [key_scales, value_scales] =
            [&cache.keys, &cache.values].map(|cells| self.kv.scales(cells, blocks.clone()));
        for (query, sums) in sums.chunks_exact_mut(dim + 2).enumerate() {
            let seen = self.seen_in(query, chunk);
            let place = |at: usize| at.clamp(start, places.end) - start;
            let (begin, end) = (place(seen.start), place(seen.end));
            let (top, sum) = sums[dim..].split_at_mut(1);
            let scores = &mut scores[query * CHUNK..][places.clone()];
            if let Some(scales) = &key_scales {
                multiply(isa, scores, scales);
            }
            let scale = match self.cap {
                Some(cap) => {
                    cap_row(isa, scores, self.scale / cap, cap);
                    1.0
                }
                None => self.scale,
            };
            softmax::weigh(isa, scores, begin, end, scale, &mut top[0], &mut sum[0]);
            if let Some(scales) = &value_scales {
                multiply(isa, scores, scales);
            }
        }
    }
}

per_isa! {
    /// `x *= by`, each value by its own.
    fn multiply(x: &mut [f32], by: &[f32]) {
        for (x, by) in x.iter_mut().zip(by) {
            *x *= by;
        }
    }
}
