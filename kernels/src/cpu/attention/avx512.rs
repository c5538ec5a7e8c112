//! Scores and weighted sums for AVX-512: up to six queries and four registers of keys or values side by
//! side, so that sums wait for no other and what is read and widened serves all of them.

use std::arch::x86_64::*;
use std::array;
use std::ops::Range;

use bytemuck::cast_slice;

use super::cache::BLOCK_SIZE;
use super::cells::Cells;
use super::tile::{CHUNK, Tile};
use crate::cpu::isa::Isa;

/// Queries side by side, at most.
const QUERIES: usize = 6;
/// Blocks of keys side by side, or registers of values, at most.
const SIDE: usize = 4;
/// Blocks of a chunk.
const BLOCKS: usize = CHUNK / BLOCK_SIZE;

/// Bytes of a cell: a kernel reads cells of f16, or codes of 8 bits.
const F16: usize = 2;
const INT8: usize = 1;
/// Bytes of a line of the processor's caches.
const LINE: usize = 64;

/// One chunk of a tile, and where its keys and values lie. Exists only where there is AVX-512, the cache is
/// f16 or int8 and a head is whole registers.
pub(super) struct Pieces<'a> {
    tile: &'a Tile<'a>,
    blocks: Range<usize>,
    /// Bytes of a cell.
    cell: usize,
    /// In order of use: the keys of each block, `[dim, 16]`, the values of each, `[16, dim]`, and the keys
    /// of the blocks that come next. While one is in use, the one `SIDE` behind it is fetched.
    pieces: [*const u8; 2 * BLOCKS + SIDE],
}

/// Calls a kernel with constants for the bytes of a cell and the numbers of queries and of registers side by side.
macro_rules! with_constants {
    ($cell:expr, $queries:expr, $side:expr, $kernel:ident $arguments:tt) => {
        with_constants!(@ $cell, $queries, $side, $kernel $arguments, 1 2 3 4 5 6)
    };
    (@ $cell:expr, $queries:expr, $side:expr, $kernel:ident $arguments:tt, $($n:literal)*) => {
        match ($cell, $queries, $side) {
            $(
                (F16, $n, 1) => $kernel::<F16, $n, 1> $arguments,
                (F16, $n, 2) => $kernel::<F16, $n, 2> $arguments,
                (F16, $n, 4) => $kernel::<F16, $n, 4> $arguments,
                (INT8, $n, 1) => $kernel::<INT8, $n, 1> $arguments,
                (INT8, $n, 2) => $kernel::<INT8, $n, 2> $arguments,
                (INT8, $n, 4) => $kernel::<INT8, $n, 4> $arguments,
            )*
            other => unreachable!("{other:?}: no such cells, or not side by side"),
        }
    };
}

impl<'a> Pieces<'a> {
    /// The chunk of the tile that has `blocks`; the same thread goes on with the blocks before `end`.
    pub(super) fn new(isa: Isa, tile: &'a Tile, blocks: Range<usize>, end: usize) -> Option<Self> {
        let wide = matches!(isa, Isa::AmxInt8 | Isa::Avx512Vnni);
        let (cell, keys, values): (_, &[u8], &[u8]) =
            match (&tile.kv.cache.keys, &tile.kv.cache.values) {
                (Cells::F16(keys), Cells::F16(values)) => {
                    (F16, cast_slice(keys), cast_slice(values))
                }
                (Cells::Int8 { codes: keys, .. }, Cells::Int8 { codes: values, .. }) => {
                    (INT8, cast_slice(keys), cast_slice(values))
                }
                _ => return None,
            };
        if !wide || !tile.kv.dim.is_multiple_of(16) {
            return None;
        }
        let size = tile.kv.dim * BLOCK_SIZE * cell;
        let count = blocks.len();
        let pieces = array::from_fn(|i| {
            let (cells, block) = match i {
                i if i < count => (keys, blocks.start + i),
                i if i < 2 * count => (values, blocks.start + i - count),
                i => (keys, (blocks.end + i - 2 * count).min(end - 1)),
            };
            cells[tile.kv.base(block) * cell..][..size].as_ptr()
        });
        Some(Self { tile, blocks, cell, pieces })
    }

    /// Place of the first block in the chunk.
    fn start(&self) -> usize {
        self.blocks.start * BLOCK_SIZE % CHUNK
    }

    /// As [`portable::scores`](super::portable::scores).
    pub(super) fn scores(&self, scores: &mut [f32]) {
        let mut block = 0;
        while block < self.blocks.len() {
            let side = side_by_side(self.blocks.len() - block);
            for queries in groups(self.tile.queries()) {
                let first = queries.start;
                // SAFETY: `self` exists, so there is AVX-512; `side` blocks follow.
                unsafe {
                    with_constants!(
                        self.cell,
                        queries.len(),
                        side,
                        dots(self, first, block, scores)
                    );
                }
            }
            block += side;
        }
    }

    /// As [`portable::sums`](super::portable::sums).
    pub(super) fn sums(&self, weights: &[f32], sums: &mut [f32]) {
        let registers = self.tile.kv.dim / 16;
        let mut column = 0;
        while column < registers {
            let side = side_by_side(registers - column);
            for queries in groups(self.tile.queries()) {
                let first = queries.start;
                // SAFETY: `self` exists, so there is AVX-512; `side` registers follow.
                unsafe {
                    with_constants!(
                        self.cell,
                        queries.len(),
                        side,
                        weighted(self, first, column * 16, weights, sums)
                    );
                }
            }
            column += side;
        }
    }
}

fn side_by_side(left: usize) -> usize {
    match left {
        1 => 1,
        2 | 3 => 2,
        _ => SIDE,
    }
}

/// Queries in groups of almost the same size.
fn groups(queries: usize) -> impl Iterator<Item = Range<usize>> {
    let count = queries.div_ceil(QUERIES);
    (0..count).map(move |i| queries * i / count..queries * (i + 1) / count)
}

/// 16 cells of `CELL` bytes as floats.
///
/// # Safety
/// Needs AVX-512 F; the cells must exist.
#[inline]
#[target_feature(enable = "avx512f,fma")]
unsafe fn widen<const CELL: usize>(cells: *const u8) -> __m512 {
    // SAFETY: by the caller's promise.
    unsafe {
        match CELL {
            F16 => _mm512_cvtph_ps(_mm256_loadu_si256(cells.cast())),
            _ => _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(cells.cast()))),
        }
    }
}

/// Scores of `G` queries and `B` blocks.
///
/// # Safety
/// Needs AVX-512 F; the queries and blocks must exist.
#[target_feature(enable = "avx512f,fma")]
unsafe fn dots<const CELL: usize, const G: usize, const B: usize>(
    chunk: &Pieces,
    first: usize,
    block: usize,
    scores: &mut [f32],
) {
    let q: [*const f32; G] = array::from_fn(|i| chunk.tile.query(first + i).as_ptr());
    let keys: [*const u8; B] = array::from_fn(|i| chunk.pieces[block + i]);
    let ahead: [*const u8; B] = array::from_fn(|i| chunk.pieces[block + SIDE + i]);
    let mut sums = [[_mm512_setzero_ps(); B]; G];
    let row_bytes = BLOCK_SIZE * CELL;
    // So many rows of keys are a line: 2 or 4, and `dim` is a multiple of 16.
    let rows = LINE / row_bytes;
    for start in (0..chunk.tile.kv.dim).step_by(rows) {
        if first == 0 {
            for ahead in ahead {
                _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(start * row_bytes).cast());
            }
        }
        for d in start..start + rows {
            // SAFETY: a query has `dim` values, and a block `dim` rows of 16 keys.
            unsafe {
                let keys: [__m512; B] =
                    array::from_fn(|i| widen::<CELL>(keys[i].add(d * row_bytes)));
                for (sums, q) in sums.iter_mut().zip(q) {
                    let q = _mm512_set1_ps(*q.add(d));
                    for (sum, keys) in sums.iter_mut().zip(keys) {
                        *sum = _mm512_fmadd_ps(q, keys, *sum);
                    }
                }
            }
        }
    }
    for (query, sums) in sums.iter().enumerate() {
        let at = (first + query) * CHUNK + chunk.start() + block * BLOCK_SIZE;
        for (sum, scores) in sums.iter().zip(scores[at..][..B * BLOCK_SIZE].chunks_exact_mut(16)) {
            // SAFETY: 16 floats.
            unsafe { _mm512_storeu_ps(scores.as_mut_ptr(), *sum) };
        }
    }
}

/// Sums of `16 W` columns of values for `G` queries.
///
/// # Safety
/// Needs AVX-512 F; the queries and columns must exist.
#[target_feature(enable = "avx512f,fma")]
unsafe fn weighted<const CELL: usize, const G: usize, const W: usize>(
    chunk: &Pieces,
    first: usize,
    column: usize,
    weights: &[f32],
    out: &mut [f32],
) {
    let (tile, count, start) = (chunk.tile, chunk.blocks.len(), chunk.start());
    let index = chunk.blocks.start * BLOCK_SIZE / CHUNK;
    // SAFETY, for all rows: a block has 16 rows of `dim` values, of which `16 W` columns follow `column`;
    // there are weights for all positions of a chunk.
    let row_bytes = tile.kv.dim * CELL;
    let weights: [&[f32]; G] = array::from_fn(|i| &weights[(first + i) * CHUNK..][..CHUNK]);
    let seen: [Range<usize>; G] = array::from_fn(|i| tile.seen_in(first + i, index));
    // Positions that all queries see; what only others see may be anything, NaN too.
    let any = start..start + count * BLOCK_SIZE;
    let all =
        seen.iter().fold(any.clone(), |all, seen| all.start.max(seen.start)..all.end.min(seen.end));
    let all = if all.is_empty() { any.end..any.end } else { all };
    let mut sums = [[_mm512_setzero_ps(); W]; G];
    let values = |position: usize| {
        let place = position - start;
        let values = chunk.pieces[count + place / BLOCK_SIZE].wrapping_add(column * CELL);
        values.wrapping_add(place % BLOCK_SIZE * row_bytes)
    };
    for position in any.start..all.start {
        let sees = |query: usize| seen[query].contains(&position);
        // SAFETY: see above.
        unsafe { add_row::<CELL, G, W>(&mut sums, values(position), &weights, position, sees) };
    }
    // A copy, which stays in registers.
    let mut own = sums;
    for block in 0..count {
        let place = start + block * BLOCK_SIZE;
        let ahead = chunk.pieces[count + block + SIDE].wrapping_add(column * CELL);
        for position in place.max(all.start)..(place + BLOCK_SIZE).min(all.end) {
            if first == 0 {
                let ahead = ahead.wrapping_add((position - place) * row_bytes);
                for line in 0..(W * 16 * CELL).div_ceil(LINE) {
                    _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(line * LINE).cast());
                }
            }
            // SAFETY: see above.
            unsafe {
                add_row::<CELL, G, W>(&mut own, values(position), &weights, position, |_| true)
            };
        }
    }
    sums = own;
    for position in all.end..any.end {
        let sees = |query: usize| seen[query].contains(&position);
        // SAFETY: see above.
        unsafe { add_row::<CELL, G, W>(&mut sums, values(position), &weights, position, sees) };
    }
    for (query, sums) in sums.iter().enumerate() {
        let at = (first + query) * (tile.kv.dim + 2) + column;
        for (sum, out) in sums.iter().zip(out[at..][..16 * W].chunks_exact_mut(16)) {
            // SAFETY: 16 floats.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr(), *sum) };
        }
    }
}

/// Adds the weighted values of one position to the sums of the queries that see it.
///
/// # Safety
/// Needs AVX-512 F; `16 W` values, and a weight for every query, must exist.
#[inline]
#[target_feature(enable = "avx512f,fma")]
unsafe fn add_row<const CELL: usize, const G: usize, const W: usize>(
    sums: &mut [[__m512; W]; G],
    values: *const u8,
    weights: &[&[f32]; G],
    position: usize,
    sees: impl Fn(usize) -> bool,
) {
    // SAFETY: by the caller's promise.
    unsafe {
        let values: [__m512; W] = array::from_fn(|i| widen::<CELL>(values.add(i * 16 * CELL)));
        for (query, sums) in sums.iter_mut().enumerate() {
            if sees(query) {
                let weight = _mm512_set1_ps(*weights[query].get_unchecked(position));
                for (sum, values) in sums.iter_mut().zip(values) {
                    *sum = _mm512_fmadd_ps(weight, values, *sum);
                }
            }
        }
    }
}
