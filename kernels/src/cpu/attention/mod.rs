//! Paged causal attention over a ragged batch.
//!
//! A row at position p attends to positions 0..=p of its own sequence. They are taken in chunks of 128
//! whose bounds depend on the position alone: each chunk has its own softmax, and chunks are merged from
//! the first one on (as FlashAttention does, <https://arxiv.org/abs/2205.14135>). So a row's bits depend
//! on nothing else, although rows of a sequence share the reading of its keys and values, and threads the
//! chunks of a row.
//!
//! Keys lie `[block, kv_head, head_dim, 16]`: the scores of a block's 16 positions are 16 lanes that
//! never have to be summed across. Values lie `[block, kv_head, 16, head_dim]`. Both are kept in half
//! precision, except beside f32 weights, or as codes of 8 bits with a scale for each head of a position, `[block, kv_head,
//! 16]`; sums are f32. Scales multiply no cell: those of keys multiply the scores, those of values the weights.

mod attend;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod cache;
mod cells;
mod portable;
mod shape;
mod softmax;
#[cfg(test)]
mod tests;
mod tile;

use std::cell::RefCell;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::cpu::activations::Activations;
use crate::cpu::grow::grow;
use crate::cpu::isa::Isa;
use crate::cpu::pool::ThreadPool;
use crate::cpu::shared_mut::SharedMut;
pub use cache::{BLOCK_SIZE, LayerCache};
pub use cells::CacheFormat;
pub use shape::AttentionShape;
use tile::{CHUNK, KvHead, Tile};

/// Rows of a sequence that pass over its keys and values together, at most.
const TILE_ROWS: usize = 16;
/// Tasks that are enough for a thread.
const TASKS: usize = 6;
/// Most memory for sums of chunks that several threads make, in floats.
const MAX_SHARED: usize = 1 << 22;

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
    let batch = AttentionBatch { shape, q, q_stride, cache, cu_seqlens_q, positions };
    attention_on(Isa::best(), pool, &batch, block_table, out);
}

/// The operands of one call.
struct AttentionBatch<'a> {
    shape: &'a AttentionShape,
    q: &'a [f32],
    q_stride: usize,
    cache: &'a LayerCache,
    cu_seqlens_q: &'a [u32],
    positions: &'a [u32],
}

impl AttentionBatch<'_> {
    /// Number of tiles: up to [`TILE_ROWS`] rows of one sequence each.
    fn tiles(&self) -> usize {
        self.cu_seqlens_q.windows(2).map(|pair| tiles_of(pair).0).sum()
    }

    /// A K/V head's share of the tile at `index`.
    fn tile<'t, 'b: 't>(
        &'t self,
        mut index: usize,
        kv_head: usize,
        block_table: &impl Fn(usize) -> &'b [u32],
    ) -> Tile<'t> {
        for (sequence, pair) in self.cu_seqlens_q.windows(2).enumerate() {
            let (tiles, rows) = tiles_of(pair);
            if index >= tiles {
                index -= tiles;
                continue;
            }
            let start = pair[0] as usize;
            let rows = start + rows * index / tiles..start + rows * (index + 1) / tiles;
            let (shape, dim) = (self.shape, self.shape.head_dim);
            let group = shape.heads / shape.kv_heads;
            let blocks = block_table(sequence);
            return Tile {
                kv: KvHead { cache: self.cache, blocks, index: kv_head, of: shape.kv_heads, dim },
                first_row: rows.start,
                positions: &self.positions[rows.clone()],
                window: shape.window,
                scale: shape.scale,
                cap: shape.cap,
                q: &self.q[rows.start * self.q_stride + kv_head * group * dim..],
                q_stride: self.q_stride,
                group,
            };
        }
        unreachable!("fewer tiles than asked for")
    }
}

/// Tiles and rows of a sequence between two bounds.
fn tiles_of(bounds: &[u32]) -> (usize, usize) {
    let rows = (bounds[1] - bounds[0]) as usize;
    (rows.div_ceil(TILE_ROWS), rows)
}

/// Memory of one thread: scores of a chunk, its sums, and those of all chunks.
type Scratch = [Vec<f32>; 3];

/// Sums of chunks that several threads make, and how many tasks of each tile are done.
#[derive(Default)]
struct Shared {
    sums: Vec<f32>,
    done: Vec<AtomicUsize>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
    static SHARED: RefCell<Shared> = RefCell::default();
}

fn attention_on<'b>(
    isa: Isa,
    pool: &ThreadPool,
    batch: &AttentionBatch,
    block_table: impl Fn(usize) -> &'b [u32] + Sync,
    out: &mut Activations,
) {
    let (shape, rows) = (batch.shape, batch.positions.len());
    let (dim, kv_heads) = (shape.head_dim, shape.kv_heads);
    let units = batch.tiles() * kv_heads;
    let most_queries = rows.min(TILE_ROWS) * shape.heads / kv_heads;
    let longest = batch.positions.iter().map(|position| *position as usize + 1).max().unwrap_or(0);
    let most_chunks = longest.div_ceil(CHUNK);
    let size = most_queries * (dim + 2);
    // Where there are few tiles, several tasks share the chunks of each, and the last one merges them.
    let fits = units * most_chunks * size <= MAX_SHARED;
    let wanted = (TASKS * pool.threads()).div_ceil(units.max(1)).min(most_chunks);
    let splits = if fits && pool.threads() > 1 { wanted.max(1) } else { 1 };
    SHARED.with_borrow_mut(|Shared { sums: shared, done }| {
        let shared = grow(shared, if splits > 1 { units * most_chunks * size } else { 0 });
        let shared = SharedMut::new(shared);
        done.clear();
        done.resize_with(units, AtomicUsize::default);
        out.fill_with(pool, rows, shape.heads * dim, kv_heads, |out| {
            pool.run(units * splits, &|task| {
                let (unit, split) = (task / splits, task % splits);
                let (tile, kv_head) = (unit / kv_heads, unit % kv_heads);
                let tile = batch.tile(tile, kv_head, &block_table);
                let (chunks, size) = (tile.chunks(), tile.queries() * (dim + 2));
                // SAFETY: only the task that computes the chunk has its sums, then only the last one.
                let shared = |chunk: usize| unsafe {
                    let index = unit * most_chunks + chunk - chunks.start;
                    shared.slice(index * most_queries * (dim + 2), size)
                };
                let share = |split| chunks.start + chunks.len() * split / splits;
                let own = share(split)..share(split + 1);
                SCRATCH.with_borrow_mut(|[scores, sums, merged]| {
                    let scores = grow(scores, tile.queries() * CHUNK);
                    let (sums, merged) = (grow(sums, size), grow(merged, size));
                    for chunk in own.clone() {
                        if splits > 1 {
                            tile.attend(isa, chunk, own.end, scores, shared(chunk));
                        } else {
                            tile.attend(isa, chunk, own.end, scores, sums);
                            tile.merge(isa, chunk, sums, merged);
                        }
                    }
                    if splits > 1 {
                        if done[unit].fetch_add(1, Ordering::AcqRel) + 1 < splits {
                            return;
                        }
                        for chunk in chunks.clone() {
                            tile.merge(isa, chunk, shared(chunk), merged);
                        }
                    }
                    for (row, sums) in merged.chunks_exact(tile.group * (dim + 2)).enumerate() {
                        // SAFETY: this task alone finishes the tile.
                        unsafe {
                            out.make(tile.first_row + row, kv_head, |out| divide(sums, dim, out));
                        }
                    }
                });
            });
        });
    });
}

/// Weighted sums of values over the sums of their weights, for the heads of one row.
fn divide(sums: &[f32], dim: usize, out: &mut [f32]) {
    for (sums, out) in sums.chunks_exact(dim + 2).zip(out.chunks_exact_mut(dim)) {
        let inverse = 1.0 / sums[dim + 1];
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = sum * inverse;
        }
    }
}
