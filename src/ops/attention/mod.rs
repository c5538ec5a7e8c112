//! Paged causal attention over a ragged batch.
//!
//! A row at position p attends to positions 0..=p of its own sequence, block after block from the
//! first one on, so its bits depend on nothing else. Keys lie `[block, kv_head, head_dim, 16]`: the
//! scores of a block's 16 positions are 16 lanes that never have to be summed across. Values lie
//! `[block, kv_head, 16, head_dim]`. Both are kept in half precision, except beside f32 weights; sums are
//! f32.

#[cfg(target_arch = "x86_64")]
mod avx512;
mod cache;
mod plain;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::ops::Range;

use super::ThreadPool;
use super::activations::Activations;
use super::isa::Isa;
use crate::kv_cache::BLOCK_SIZE;
use cache::Cells;
pub use cache::{CacheFormat, LayerCache};

/// Query heads computed side by side.
const GROUP: usize = 4;

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

/// Attention of all rows: `q` has rows of `q_stride` values with the query heads first, `out` takes
/// `[rows, heads * head_dim]`. `cu_seqlens_q` gives the first row of each sequence and the number of
/// rows; `block_table` the blocks of a sequence.
///
/// # Panics
/// If a block table does not cover a row's position.
#[expect(clippy::too_many_arguments, reason = "the operands of one kernel")]
pub fn paged_attention<'a>(
    pool: &ThreadPool,
    shape: &AttentionShape,
    q: &[f32],
    q_stride: usize,
    cache: &LayerCache,
    cu_seqlens_q: &[u32],
    positions: &[u32],
    block_table: impl Fn(usize) -> &'a [u32] + Sync,
    out: &mut Activations,
) {
    let (isa, dim, rows) = (Isa::best(), shape.head_dim, positions.len());
    let group = shape.heads / shape.kv_heads;
    out.fill(pool, rows, shape.heads * dim, shape.kv_heads, false, &|row, kv_head, out| {
        thread_local!(static SCORES: RefCell<Vec<[f32; BLOCK_SIZE]>> = const { RefCell::new(Vec::new()) });
        let sequence = cu_seqlens_q.partition_point(|start| *start as usize <= row) - 1;
        let end = positions[row] as usize + 1;
        let begin = shape.window.map_or(0, |window| end.saturating_sub(window));
        let blocks = &block_table(sequence)[..end.div_ceil(BLOCK_SIZE)];
        let q = &q[row * q_stride + kv_head * group * dim..][..group * dim];
        SCORES.with_borrow_mut(|scores| {
            let kv = KvHead { cache, blocks, index: kv_head, of: shape.kv_heads, dim };
            scores.resize(scores.len().max(GROUP * blocks.len()), [0.0; BLOCK_SIZE]);
            for (q, out) in q.chunks(GROUP * dim).zip(out.chunks_mut(GROUP * dim)) {
                let count = q.len() / dim;
                let scores = &mut scores[..count * blocks.len()];
                match count {
                    1 => heads::<1>(isa, q, &kv, begin..end, scores, out),
                    2 => heads::<2>(isa, q, &kv, begin..end, scores, out),
                    3 => heads::<3>(isa, q, &kv, begin..end, scores, out),
                    _ => heads::<4>(isa, q, &kv, begin..end, scores, out),
                }
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
    /// Where a block's keys, `[dim, 16]`, and its values, `[16, dim]`, begin.
    #[inline(always)]
    fn base(&self, block: usize) -> usize {
        (self.blocks[block] as usize * self.of + self.index) * self.dim * BLOCK_SIZE
    }
}

/// `G` query heads that share one K/V head. Side by side where the instruction set has room for their
/// sums, else one by one; the order of each sum is the same.
fn heads<const G: usize>(
    isa: Isa,
    q: &[f32],
    kv: &KvHead,
    seen: Range<usize>,
    scores: &mut [[f32; BLOCK_SIZE]],
    out: &mut [f32],
) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::AmxInt8 | Isa::Avx512Vnni if kv.dim.is_multiple_of(16) => {
            // SAFETY: the set was detected, and the width is whole registers.
            unsafe {
                match &kv.cache.keys {
                    Cells::F16(_) => avx512::heads::<G, true>(q, kv, seen, scores, out),
                    Cells::F32(_) => avx512::heads::<G, false>(q, kv, seen, scores, out),
                }
            }
        }
        _ => {
            let scores = &mut scores[..kv.blocks.len()];
            for (q, out) in q.chunks_exact(kv.dim).zip(out.chunks_exact_mut(kv.dim)) {
                plain::head(isa, q, kv, seen.start, seen.end, scores, out);
            }
        }
    }
}

/// Positions of a block, counted within it, that lie in `begin .. end`.
#[inline(always)]
fn seen_in(block: usize, begin: usize, end: usize) -> Range<usize> {
    let start = block * BLOCK_SIZE;
    begin.max(start) - start..(end - start).min(BLOCK_SIZE)
}
