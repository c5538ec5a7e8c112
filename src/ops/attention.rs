//! Paged causal attention over a ragged batch.
//!
//! A row at position p attends to positions 0..=p of its own sequence, block after block from the
//! first one on, so its bits depend on nothing else. Keys lie `[block, kv_head, head_dim, 16]`: the
//! scores of a block's 16 positions are 16 lanes that never have to be summed across. Values lie
//! `[block, kv_head, 16, head_dim]`. Both are kept in half precision, except beside f32 weights; sums are
//! f32.

use std::cell::RefCell;
use std::ops::Range;

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::activations::Activations;
use super::elementwise::exp;
use super::isa::{Isa, per_isa};
use super::shared_mut::SharedMut;
use super::{RopeTable, ThreadPool};
use crate::kv_cache::BLOCK_SIZE;

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
enum Cells {
    F16(Vec<f16>),
    F32(Vec<f32>),
}

impl Cells {
    fn new(format: CacheFormat, len: usize) -> Self {
        match format {
            CacheFormat::F16 => Self::F16(vec![f16::ZERO; len]),
            CacheFormat::F32 => Self::F32(vec![0.0; len]),
        }
    }

    /// `out.len()` values from `at` on.
    #[inline(always)]
    fn read(&self, at: usize, out: &mut [f32]) {
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
                        unsafe { cells.set(at + (chunk * 64 + i) * step, *half) };
                    }
                }
            }
            Self::F32(cells) => {
                for (i, x) in x.iter().enumerate() {
                    // SAFETY: by the caller's promise.
                    unsafe { cells.set(at + i * step, *x) };
                }
            }
        }
    }
}

/// Keys and values of one layer for all blocks of the pool.
#[derive(Debug)]
pub struct LayerCache {
    keys: Cells,
    values: Cells,
}

impl LayerCache {
    /// Room for `num_blocks` blocks.
    #[must_use]
    pub fn new(num_blocks: usize, shape: &AttentionShape, format: CacheFormat) -> Self {
        let len = num_blocks * shape.kv_heads * shape.head_dim * BLOCK_SIZE;
        Self { keys: Cells::new(format, len), values: Cells::new(format, len) }
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
                head(isa, q, kv, seen.start, seen.end, scores, out);
            }
        }
    }
}

per_isa! {
    fn head(
        q: &[f32],
        kv: &KvHead,
        begin: usize,
        end: usize,
        scores: &mut [[f32; BLOCK_SIZE]],
        out: &mut [f32],
    ) {
        let first = begin / BLOCK_SIZE;
        for (block, scores) in scores.iter_mut().enumerate().skip(first) {
            let mut sums = [0f32; BLOCK_SIZE];
            for (chunk, q) in q.chunks(16).enumerate() {
                let mut keys = [0f32; 16 * BLOCK_SIZE];
                let keys = &mut keys[..q.len() * BLOCK_SIZE];
                kv.cache.keys.read(kv.base(block) + chunk * 16 * BLOCK_SIZE, keys);
                for (q, keys) in q.iter().zip(keys.as_chunks::<BLOCK_SIZE>().0) {
                    for (sum, key) in sums.iter_mut().zip(keys) {
                        *sum = q.mul_add(*key, *sum);
                    }
                }
            }
            *scores = sums;
        }
        let scale = 1.0 / (kv.dim as f32).sqrt();
        let inverse = weights(&mut scores[first..], first * BLOCK_SIZE, begin, end, scale);
        for (chunk, out) in out.chunks_mut(64).enumerate() {
            let mut sums = [0f32; 64];
            let width = out.len();
            for (block, scores) in scores.iter().enumerate().skip(first) {
                for position in seen_in(block, begin, end) {
                    let mut values = [0f32; 64];
                    let at = kv.base(block) + position * kv.dim + chunk * 64;
                    kv.cache.values.read(at, &mut values[..width]);
                    for (sum, value) in sums.iter_mut().zip(&values[..width]) {
                        *sum = scores[position].mul_add(*value, *sum);
                    }
                }
            }
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = sum * inverse;
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

per_isa! {
    fn weights_of(
        scores: &mut [[f32; BLOCK_SIZE]],
        start: usize,
        seen: &Range<usize>,
        scale: f32,
        inverse: &mut f32,
    ) {
        *inverse = weights(scores, start, seen.start, seen.end, scale);
    }
}

/// In place: scores of positions from `start` on become unnormalised weights, 0 outside
/// `begin .. end`. Returns one over their sum.
#[inline(always)]
fn weights(
    scores: &mut [[f32; BLOCK_SIZE]],
    start: usize,
    begin: usize,
    end: usize,
    scale: f32,
) -> f32 {
    let mut top = [f32::NEG_INFINITY; BLOCK_SIZE];
    for (block, scores) in scores.iter_mut().enumerate() {
        for (lane, (score, top)) in scores.iter_mut().zip(&mut top).enumerate() {
            let position = start + block * BLOCK_SIZE + lane;
            let seen = position >= begin && position < end;
            *score = if seen { *score * scale } else { f32::NEG_INFINITY };
            // A NaN may be passed over here; its own weight is NaN, and so is the sum.
            *top = if *score <= *top { *top } else { *score };
        }
    }
    let top = top.iter().fold(f32::NEG_INFINITY, |top, v| if *v <= top { top } else { *v });
    let mut sums = [0f32; BLOCK_SIZE];
    for scores in scores.iter_mut() {
        for (score, sum) in scores.iter_mut().zip(&mut sums) {
            let unseen = *score == f32::NEG_INFINITY;
            *score = if unseen { 0.0 } else { exp(*score - top) };
            *sum += *score;
        }
    }
    1.0 / sums.iter().sum::<f32>()
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;
    use std::ops::Range;

    use super::{BLOCK_SIZE, Cells, Isa, KvHead, seen_in, weights_of};

    /// 16 cells, `at` behind the first.
    ///
    /// # Safety
    /// Needs AVX-512 F; the cells must exist and be f16 if `HALF`, else f32.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load<const HALF: bool>(cells: *const u8, at: usize) -> __m512 {
        // SAFETY: by the caller's promise.
        unsafe {
            if HALF {
                _mm512_cvtph_ps(_mm256_loadu_si256(cells.add(2 * at).cast()))
            } else {
                _mm512_loadu_ps(cells.add(4 * at).cast())
            }
        }
    }

    /// The `len` cells from `at` on.
    fn cells(cells: &Cells, at: usize, len: usize) -> *const u8 {
        match cells {
            Cells::F16(cells) => cells[at..][..len].as_ptr().cast(),
            Cells::F32(cells) => cells[at..][..len].as_ptr().cast(),
        }
    }

    /// # Safety
    /// Needs AVX-512 F; `kv.dim` must be a multiple of 16, `q` and `out` hold `G` heads of it. `HALF` tells
    /// whether the cache holds f16.
    #[target_feature(enable = "avx512f,fma")]
    pub(super) unsafe fn heads<const G: usize, const HALF: bool>(
        q: &[f32],
        kv: &KvHead,
        seen: Range<usize>,
        scores: &mut [[f32; BLOCK_SIZE]],
        out: &mut [f32],
    ) {
        let blocks = kv.blocks.len();
        let first = seen.start / BLOCK_SIZE;
        assert!(q.len() == G * kv.dim && out.len() == q.len() && scores.len() == G * blocks);
        for block in (first..blocks).step_by(2) {
            // An odd last block is computed twice.
            let pair = [block, (block + 1).min(blocks - 1)];
            let size = kv.dim * BLOCK_SIZE;
            let keys = pair.map(|block| cells(&kv.cache.keys, kv.base(block), size));
            let mut sums = [[_mm512_setzero_ps(); 2]; G];
            for d in 0..kv.dim {
                // SAFETY: `dim` lines of 16 keys a block, `G` heads of `dim` values.
                unsafe {
                    let low = load::<HALF>(keys[0], d * BLOCK_SIZE);
                    let high = load::<HALF>(keys[1], d * BLOCK_SIZE);
                    for (head, sums) in sums.iter_mut().enumerate() {
                        let q = _mm512_set1_ps(*q.get_unchecked(head * kv.dim + d));
                        sums[0] = _mm512_fmadd_ps(q, low, sums[0]);
                        sums[1] = _mm512_fmadd_ps(q, high, sums[1]);
                    }
                }
            }
            for (head, sums) in sums.iter().enumerate() {
                for (block, sums) in pair.iter().zip(sums) {
                    let scores = &mut scores[head * blocks + block];
                    // SAFETY: 16 floats.
                    unsafe { _mm512_storeu_ps(scores.as_mut_ptr(), *sums) };
                }
            }
        }
        let scale = 1.0 / (kv.dim as f32).sqrt();
        let mut inverse = [0f32; G];
        for (scores, inverse) in scores.chunks_mut(blocks).zip(&mut inverse) {
            let start = first * BLOCK_SIZE;
            weights_of(Isa::Avx512Vnni, &mut scores[first..], start, &seen, scale, inverse);
        }
        for start in (0..kv.dim).step_by(64) {
            // SAFETY: the features are there; the columns lie within the head.
            unsafe {
                match (kv.dim - start) / 16 {
                    1 => columns::<G, 1, HALF>(kv, &seen, scores, &inverse, start, out),
                    2 => columns::<G, 2, HALF>(kv, &seen, scores, &inverse, start, out),
                    3 => columns::<G, 3, HALF>(kv, &seen, scores, &inverse, start, out),
                    _ => columns::<G, 4, HALF>(kv, &seen, scores, &inverse, start, out),
                }
            }
        }
    }

    /// Weighted sums of `16 W` columns of the values.
    ///
    /// # Safety
    /// As [`heads`]; `start + 16 W` must not exceed the head.
    #[target_feature(enable = "avx512f,fma")]
    unsafe fn columns<const G: usize, const W: usize, const HALF: bool>(
        kv: &KvHead,
        seen: &Range<usize>,
        scores: &[[f32; BLOCK_SIZE]],
        inverse: &[f32; G],
        start: usize,
        out: &mut [f32],
    ) {
        let blocks = kv.blocks.len();
        let mut sums = [[_mm512_setzero_ps(); W]; G];
        for block in seen.start / BLOCK_SIZE..blocks {
            let values = cells(&kv.cache.values, kv.base(block), kv.dim * BLOCK_SIZE);
            for position in seen_in(block, seen.start, seen.end) {
                // SAFETY: 16 rows of `dim` values a block, and 16 weights for each head.
                unsafe {
                    let row = position * kv.dim + start;
                    let mut columns = [_mm512_setzero_ps(); W];
                    for (i, column) in columns.iter_mut().enumerate() {
                        *column = load::<HALF>(values, row + i * 16);
                    }
                    for (head, sums) in sums.iter_mut().enumerate() {
                        let weight = scores.get_unchecked(head * blocks + block)[position];
                        let weight = _mm512_set1_ps(weight);
                        for (sum, column) in sums.iter_mut().zip(columns) {
                            *sum = _mm512_fmadd_ps(weight, column, *sum);
                        }
                    }
                }
            }
        }
        for (head, (sums, inverse)) in sums.iter().zip(inverse).enumerate() {
            for (i, sum) in sums.iter().enumerate() {
                let out = &mut out[head * kv.dim + start + i * 16..][..16];
                let sum = _mm512_mul_ps(*sum, _mm512_set1_ps(*inverse));
                // SAFETY: 16 floats.
                unsafe { _mm512_storeu_ps(out.as_mut_ptr(), sum) };
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
            let (kv, width) = (kv_heads * dim, (heads + 2 * kv_heads) * dim);
            let mut inputs: Vec<Vec<f32>> = lengths.iter().map(|l| random.vec(l * width)).collect();
            let pool = ThreadPool::new(2);
            for format in [CacheFormat::F32, CacheFormat::F16] {
                let mut cache = LayerCache::new(32, &shape, format);
                for cells in [&mut cache.keys, &mut cache.values] {
                    match cells {
                        Cells::F16(cells) => cells.fill(f16::NAN),
                        Cells::F32(cells) => cells.fill(f32::NAN),
                    }
                }
                for ((length, input), table) in lengths.iter().zip(&mut inputs).zip(&tables) {
                    if format == CacheFormat::F16 {
                        input.iter_mut().for_each(|v| *v = f16::from_f32(*v).to_f32());
                    }
                    let slots: Vec<u32> =
                        (0..*length).map(|p| table[p / BLOCK_SIZE] * 16 + p as u32 % 16).collect();
                    cache.write(&pool, &shape, None, input, width, &slots);
                }
                let (mut cu, mut positions) = (vec![0u32], Vec::new());
                for (length, rows) in lengths.iter().zip(rows) {
                    positions.extend((length - rows..*length).map(|p| p as u32));
                    cu.push(positions.len() as u32);
                }
                let stride = heads * dim + 3;
                let q = random.vec(positions.len() * stride);
                let mut out = Activations::new();
                let table = |s: usize| tables[s].as_slice();
                paged_attention(
                    &pool, &shape, &q, stride, &cache, &cu, &positions, table, &mut out,
                );
                let out = out.values;
                for s in 0..lengths.len() {
                    for row in cu[s] as usize..cu[s + 1] as usize {
                        let end = positions[row] as usize + 1;
                        let begin = window.map_or(0, |w| end.saturating_sub(w));
                        for h in 0..heads {
                            let kv_head = h / (heads / kv_heads);
                            let at = |p: usize, d: usize, v: usize| {
                                let at = p * width + heads * dim + v * kv + kv_head * dim + d;
                                f64::from(inputs[s][at])
                            };
                            let scores: Vec<f64> = (begin..end)
                                .map(|p| {
                                    (0..dim)
                                        .map(|d| {
                                            f64::from(q[row * stride + h * dim + d]) * at(p, d, 0)
                                        })
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
                let mut alone = Activations::new();
                let (cu, q, positions) =
                    ([0, 1], &q[row * stride..][..stride], &positions[row..=row]);
                let table = |_| tables[3].as_slice();
                paged_attention(
                    &pool, &shape, q, stride, &cache, &cu, positions, table, &mut alone,
                );
                assert_eq!(alone.values, out[row * heads * dim..][..heads * dim]);
                // The path without wide registers gives the same bits.
                for (head, expected) in alone.values.chunks(dim).enumerate() {
                    let end = positions[0] as usize + 1;
                    let begin = window.map_or(0, |w| end.saturating_sub(w));
                    let blocks = &tables[3][..end.div_ceil(BLOCK_SIZE)];
                    let index = head / (heads / kv_heads);
                    let kv = KvHead { cache: &cache, blocks, index, of: kv_heads, dim };
                    for isa in Isa::supported() {
                        let mut scores = vec![[0.0; BLOCK_SIZE]; blocks.len()];
                        let mut got = vec![f32::NAN; dim];
                        let q = &q[head * dim..][..dim];
                        super::head(isa, q, &kv, begin, end, &mut scores, &mut got);
                        assert_eq!(got, expected, "{isa:?} {format:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn nan_in_a_key_reaches_the_output() {
        let shape = AttentionShape { heads: 1, kv_heads: 1, head_dim: 16, window: None };
        let mut cache = LayerCache::new(1, &shape, CacheFormat::F16);
        let mut x = vec![0.5; 3 * 48];
        x[48 + 16] = f32::NAN;
        let pool = ThreadPool::new(1);
        cache.write(&pool, &shape, None, &mut x, 48, &[0, 1, 2]);
        let mut out = Activations::new();
        let table = |_| &[0][..];
        paged_attention(&pool, &shape, &[1.0; 16], 16, &cache, &[0, 1], &[2], table, &mut out);
        let out = out.values;
        assert!(out.iter().all(|v| v.is_nan()));
    }
}
