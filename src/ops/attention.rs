//! Paged causal attention over a ragged batch.
//!
//! A row at position p attends to positions 0..=p of its own sequence, block after block from the
//! first one on, so its bits depend on nothing else. Keys lie `[block, kv_head, head_dim, 16]`: the
//! scores of a block's 16 positions are 16 lanes that never have to be summed across. Values lie
//! `[block, kv_head, 16, head_dim]`.

use std::cell::RefCell;

use super::ThreadPool;
use super::elementwise::exp;
use super::isa::{Isa, per_isa};
use super::shared_mut::SharedMut;
use crate::kv_cache::BLOCK_SIZE;

/// Shape and constants of one attention layer.
#[derive(Debug, Clone, Copy)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Positions a row attends to, itself included; all where `None`.
    pub window: Option<usize>,
}

/// Keys and values of one layer for all blocks of the pool.
#[derive(Debug)]
pub struct LayerCache {
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl LayerCache {
    /// Room for `num_blocks` blocks.
    #[must_use]
    pub fn new(num_blocks: usize, shape: &AttentionShape) -> Self {
        let len = num_blocks * shape.kv_heads * shape.head_dim * BLOCK_SIZE;
        Self { keys: vec![0.0; len], values: vec![0.0; len] }
    }

    /// Writes the keys and values of rows into their slots. `x` has rows of `stride` values with all
    /// keys at `key_offset` and all values at `value_offset`.
    ///
    /// # Panics
    /// If a slot lies outside the cache.
    pub fn write(
        &mut self,
        shape: &AttentionShape,
        x: &[f32],
        stride: usize,
        key_offset: usize,
        value_offset: usize,
        slots: &[u32],
    ) {
        let dim = shape.head_dim;
        for (row, slot) in x.chunks_exact(stride).zip(slots) {
            let (block, position) = (*slot as usize / BLOCK_SIZE, *slot as usize % BLOCK_SIZE);
            for head in 0..shape.kv_heads {
                let base = (block * shape.kv_heads + head) * dim * BLOCK_SIZE;
                let keys = &mut self.keys[base..][..dim * BLOCK_SIZE];
                for (lanes, key) in keys
                    .as_chunks_mut::<BLOCK_SIZE>()
                    .0
                    .iter_mut()
                    .zip(&row[key_offset + head * dim..])
                {
                    lanes[position] = *key;
                }
                self.values[base + position * dim..][..dim]
                    .copy_from_slice(&row[value_offset + head * dim..][..dim]);
            }
        }
    }
}

/// Attention of all rows: `q` has rows of `q_stride` values with the query heads first, `out` is
/// `[rows, heads * head_dim]`. `cu_seqlens_q` gives the first row of each sequence and the number of
/// rows; `block_tables` the blocks of each.
///
/// # Panics
/// If a block table does not cover a row's position.
#[expect(clippy::too_many_arguments, reason = "the operands of one kernel")]
pub fn paged_attention(
    pool: &ThreadPool,
    shape: &AttentionShape,
    q: &[f32],
    q_stride: usize,
    cache: &LayerCache,
    cu_seqlens_q: &[u32],
    positions: &[u32],
    block_tables: &[&[u32]],
    out: &mut [f32],
) {
    let (dim, width) = (shape.head_dim, shape.heads * shape.head_dim);
    assert_eq!(out.len(), positions.len() * width, "output rows");
    let group = shape.heads / shape.kv_heads;
    let isa = Isa::best();
    let out = SharedMut::new(out);
    pool.run(positions.len() * shape.kv_heads, &|task| {
        thread_local!(static SCORES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) });
        let (row, kv_head) = (task / shape.kv_heads, task % shape.kv_heads);
        let sequence = cu_seqlens_q.partition_point(|start| *start as usize <= row) - 1;
        let end = positions[row] as usize + 1;
        let begin = shape.window.map_or(0, |window| end.saturating_sub(window));
        let blocks = &block_tables[sequence][..end.div_ceil(BLOCK_SIZE)];
        let first_head = kv_head * group;
        let q = &q[row * q_stride + first_head * dim..][..group * dim];
        // SAFETY: each task has its own heads of its own row.
        let out = unsafe { out.slice(row * width + first_head * dim, group * dim) };
        SCORES.with_borrow_mut(|scores| {
            scores.resize(scores.len().max(blocks.len() * BLOCK_SIZE), 0.0);
            for (q, out) in q.chunks_exact(dim).zip(out.chunks_exact_mut(dim)) {
                let panel = KvHead { cache, blocks, index: kv_head, of: shape.kv_heads, dim };
                head(isa, q, &panel, begin, end, scores, out);
            }
        });
    });
}

/// One K/V head of one sequence.
struct KvHead<'a> {
    cache: &'a LayerCache,
    blocks: &'a [u32],
    index: usize,
    of: usize,
    dim: usize,
}

impl KvHead<'_> {
    #[inline(always)]
    fn base(&self, block: usize) -> usize {
        (self.blocks[block] as usize * self.of + self.index) * self.dim * BLOCK_SIZE
    }
}

per_isa! {
    fn head(q: &[f32], kv: &KvHead, begin: usize, end: usize, scores: &mut [f32], out: &mut [f32]) {
        let first_block = begin / BLOCK_SIZE;
        let scale = 1.0 / (kv.dim as f32).sqrt();
        let scores = &mut scores[..kv.blocks.len() * BLOCK_SIZE];
        let mut top = f32::NEG_INFINITY;
        for (block, scores) in scores.as_chunks_mut::<BLOCK_SIZE>().0.iter_mut().enumerate().skip(first_block) {
            let keys = &kv.cache.keys[kv.base(block)..][..kv.dim * BLOCK_SIZE];
            let mut sums = [0f32; BLOCK_SIZE];
            for (q, keys) in q.iter().zip(keys.as_chunks::<BLOCK_SIZE>().0) {
                for (sum, key) in sums.iter_mut().zip(keys) {
                    *sum = q.mul_add(*key, *sum);
                }
            }
            for (lane, (score, sum)) in scores.iter_mut().zip(sums).enumerate() {
                let position = block * BLOCK_SIZE + lane;
                let seen = position >= begin && position < end;
                *score = if seen { sum * scale } else { f32::NEG_INFINITY };
                // Written so that NaN is kept: a comparison with NaN is false.
                top = if *score <= top { top } else { *score };
            }
        }
        let mut sums = [0f32; BLOCK_SIZE];
        for scores in scores.as_chunks_mut::<BLOCK_SIZE>().0.iter_mut().skip(first_block) {
            for (score, sum) in scores.iter_mut().zip(&mut sums) {
                let unseen = *score == f32::NEG_INFINITY;
                *score = if unseen { 0.0 } else { exp(*score - top) };
                *sum += *score;
            }
        }
        let inverse = 1.0 / sums.iter().sum::<f32>();
        out.fill(0.0);
        for (chunk, out) in out.chunks_mut(64).enumerate() {
            let mut sums = [0f32; 64];
            let width = out.len();
            for (block, scores) in scores.as_chunks::<BLOCK_SIZE>().0.iter().enumerate().skip(first_block) {
                let values = &kv.cache.values[kv.base(block)..][..kv.dim * BLOCK_SIZE];
                let block_start = block * BLOCK_SIZE;
                let seen = begin.max(block_start) - block_start..(end - block_start).min(BLOCK_SIZE);
                for position in seen {
                    let weight = scores[position];
                    let values = &values[position * kv.dim + chunk * 64..][..width];
                    if let Ok(values) = <&[f32; 64]>::try_from(values) {
                        for (sum, value) in sums.iter_mut().zip(values) {
                            *sum = weight.mul_add(*value, *sum);
                        }
                    } else {
                        for (sum, value) in sums.iter_mut().zip(values) {
                            *sum = weight.mul_add(*value, *sum);
                        }
                    }
                }
            }
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = sum * inverse;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::Random;

    /// Sequences of different lengths over shuffled blocks, some rows each, against f64.
    #[test]
    fn agrees_with_f64_on_ragged_batches() {
        let mut random = Random::new();
        for (heads, kv_heads, dim, window) in
            [(9, 3, 64, None), (4, 4, 16, Some(5)), (6, 2, 80, None), (2, 1, 32, Some(40))]
        {
            let shape = AttentionShape { heads, kv_heads, head_dim: dim, window };
            let lengths = [1usize, 16, 17, 70];
            let rows = [1usize, 3, 17, 9];
            let mut free: Vec<u32> = (0..32).collect();
            let tables: Vec<Vec<u32>> = lengths
                .iter()
                .map(|l| {
                    (0..l.div_ceil(BLOCK_SIZE))
                        .map(|_| free.swap_remove(random.bits() as usize % free.len()))
                        .collect()
                })
                .collect();
            let mut cache = LayerCache::new(32, &shape);
            cache.keys.fill(f32::NAN);
            cache.values.fill(f32::NAN);
            let kv = kv_heads * dim;
            let inputs: Vec<Vec<f32>> = lengths.iter().map(|l| random.vec(l * 2 * kv)).collect();
            for ((length, input), table) in lengths.iter().zip(&inputs).zip(&tables) {
                let slots: Vec<u32> =
                    (0..*length).map(|p| table[p / BLOCK_SIZE] * 16 + p as u32 % 16).collect();
                cache.write(&shape, input, 2 * kv, 0, kv, &slots);
            }
            let (mut cu, mut positions) = (vec![0u32], Vec::new());
            for (length, rows) in lengths.iter().zip(rows) {
                positions.extend((length - rows..*length).map(|p| p as u32));
                cu.push(positions.len() as u32);
            }
            let stride = heads * dim + 3;
            let q = random.vec(positions.len() * stride);
            let mut out = vec![f32::NAN; positions.len() * heads * dim];
            let tables: Vec<&[u32]> = tables.iter().map(Vec::as_slice).collect();
            let pool = ThreadPool::new(2);
            paged_attention(&pool, &shape, &q, stride, &cache, &cu, &positions, &tables, &mut out);
            for s in 0..lengths.len() {
                for row in cu[s] as usize..cu[s + 1] as usize {
                    let end = positions[row] as usize + 1;
                    let begin = window.map_or(0, |w| end.saturating_sub(w));
                    for h in 0..heads {
                        let kv_head = h / (heads / kv_heads);
                        let at = |p: usize, d: usize, v: usize| {
                            f64::from(inputs[s][p * 2 * kv + v * kv + kv_head * dim + d])
                        };
                        let scores: Vec<f64> = (begin..end)
                            .map(|p| {
                                (0..dim)
                                    .map(|d| f64::from(q[row * stride + h * dim + d]) * at(p, d, 0))
                                    .sum::<f64>()
                                    / (dim as f64).sqrt()
                            })
                            .collect();
                        let total: f64 = scores.iter().map(|s| s.exp()).sum();
                        for d in 0..dim {
                            let want = (begin..end)
                                .map(|p| scores[p - begin].exp() / total * at(p, d, 1))
                                .sum::<f64>();
                            let got = f64::from(out[(row * heads + h) * dim + d]);
                            assert!((got - want).abs() < 2e-6, "{got} {want}");
                        }
                    }
                }
            }
            // One row alone gives the same bits.
            let row = positions.len() - 4;
            let mut alone = vec![f32::NAN; heads * dim];
            let (cu, table) = ([0, 1], [tables[3]]);
            let q = &q[row * stride..][..stride];
            paged_attention(
                &pool,
                &shape,
                q,
                stride,
                &cache,
                &cu,
                &positions[row..=row],
                &table,
                &mut alone,
            );
            assert_eq!(alone, out[row * heads * dim..][..heads * dim]);
        }
    }

    #[test]
    fn nan_in_a_key_reaches_the_output() {
        let shape = AttentionShape { heads: 1, kv_heads: 1, head_dim: 16, window: None };
        let mut cache = LayerCache::new(1, &shape);
        let mut x = vec![0.5; 3 * 32];
        x[32] = f32::NAN;
        cache.write(&shape, &x, 32, 0, 16, &[0, 1, 2]);
        let mut out = vec![0.0; 16];
        let pool = ThreadPool::new(1);
        paged_attention(&pool, &shape, &[1.0; 16], 16, &cache, &[0, 1], &[2], &[&[0]], &mut out);
        assert!(out.iter().all(|v| v.is_nan()));
    }
}
