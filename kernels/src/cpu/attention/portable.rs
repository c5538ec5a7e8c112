//! Scores and weighted sums in plain Rust: the reference of the others, and good for any width.

use std::ops::Range;

use super::cache::BLOCK_SIZE;
use super::tile::{CHUNK, Tile};
use crate::cpu::isa::per_isa;

/// Rows of keys, and columns of values, that are widened to f32 at a time.
const WIDE: usize = 16;

per_isa! {
    /// Scores of all queries for the positions of `blocks`, at their places in the chunk: `scores` is
    /// `[queries, CHUNK]`.
    pub(super) fn scores(tile: &Tile, blocks: Range<usize>, scores: &mut [f32]) {
        for block in blocks {
            let place = block * BLOCK_SIZE % CHUNK;
            for start in (0..tile.kv.dim).step_by(WIDE) {
                let width = (tile.kv.dim - start).min(WIDE);
                let mut keys = [0f32; WIDE * BLOCK_SIZE];
                let keys = &mut keys[..width * BLOCK_SIZE];
                tile.kv.cache.keys.read(tile.kv.base(block) + start * BLOCK_SIZE, keys);
                for query in 0..tile.queries() {
                    let q = &tile.query(query)[start..][..width];
                    let scores = &mut scores[query * CHUNK + place..][..BLOCK_SIZE];
                    let mut sums = [0f32; BLOCK_SIZE];
                    if start > 0 {
                        sums.copy_from_slice(scores);
                    }
                    for (q, keys) in q.iter().zip(keys.as_chunks::<BLOCK_SIZE>().0) {
                        for (sum, key) in sums.iter_mut().zip(keys) {
                            *sum = q.mul_add(*key, *sum);
                        }
                    }
                    scores.copy_from_slice(&sums);
                }
            }
        }
    }
}

per_isa! {
    /// Weighted sums of the values of `blocks` for all queries, `[queries, dim + 2]`; the last two of
    /// each stay.
    pub(super) fn sums(tile: &Tile, blocks: Range<usize>, weights: &[f32], sums: &mut [f32]) {
        let (dim, chunk) = (tile.kv.dim, blocks.start * BLOCK_SIZE / CHUNK);
        for sums in sums.chunks_exact_mut(dim + 2) {
            sums[..dim].fill(0.0);
        }
        for block in blocks {
            let place = block * BLOCK_SIZE % CHUNK;
            for start in (0..dim).step_by(WIDE) {
                let width = (dim - start).min(WIDE);
                let mut values = [[0f32; WIDE]; BLOCK_SIZE];
                for (position, values) in values.iter_mut().enumerate() {
                    let at = tile.kv.base(block) + position * dim + start;
                    tile.kv.cache.values.read(at, &mut values[..width]);
                }
                for (query, sums) in sums.chunks_exact_mut(dim + 2).enumerate() {
                    let seen = tile.seen_in(query, chunk);
                    let seen = seen.start.max(place)..seen.end.min(place + BLOCK_SIZE);
                    let mut wide = [0f32; WIDE];
                    wide[..width].copy_from_slice(&sums[start..][..width]);
                    for position in seen {
                        let weight = weights[query * CHUNK + position];
                        for (sum, value) in wide.iter_mut().zip(&values[position - place]) {
                            *sum = weight.mul_add(*value, *sum);
                        }
                    }
                    sums[start..][..width].copy_from_slice(&wide[..width]);
                }
            }
        }
    }
}
