//! Matrix product for training: f32 in, bf16 multiply, f32 accumulate, through AMX tiles or the dot
//! products of AVX-512 BF16 (Zen 4 and later, Cooper Lake).
//!
//! Owns the packing of both operands into tiles and the kernels. Serving never comes here; its
//! arithmetic is `cpu::matmul`. One call runs on one thread; training runs a call per worker.
//!
//! A tile holds 16 rows of 64 bytes. The left operand is packed as `[16 m][32 k]`, the right one in
//! pairs of k as `[16 k/2][16 n][2]`. One `tdpbf16ps` adds a 16 x 32 by 32 x 16 product to a 16 x 16
//! tile of sums, and its kernel keeps 2 x 2 such tiles in registers. One `vdpbf16ps` adds a pair of k
//! of one row to 16 sums, and its kernel keeps 8 rows of 32 sums.

use std::arch::x86_64::*;
use std::cell::RefCell;
use std::sync::OnceLock;

use crate::cpu::amx::{self, TileConfig};
use crate::cpu::mat_ref::MatRef;

/// What multiplies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kernel {
    Amx,
    Avx512,
}

impl Kernel {
    /// All that this machine has, best first.
    fn supported() -> Vec<Self> {
        let avx512 = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16");
        let all = [(Self::Amx, amx::bf16()), (Self::Avx512, avx512)];
        all.into_iter().filter(|(_, has)| *has).map(|(kernel, _)| kernel).collect()
    }

    fn best() -> Option<Self> {
        static BEST: OnceLock<Option<Kernel>> = OnceLock::new();
        *BEST.get_or_init(|| Self::supported().first().copied())
    }
}

/// Whether this machine multiplies bf16, and lets the process do it.
#[must_use]
pub fn available() -> bool {
    Kernel::best().is_some()
}

/// `c = a b`, or `c += a b` with `accumulate`; `c` is `[a.rows, b.cols]`, row-major and dense.
///
/// Operands are rounded to bf16, products are summed in f32 in a fixed order.
///
/// # Panics
/// If the shapes do not fit, or where [`available`] is false.
pub fn gemm(a: MatRef, b: MatRef, c: &mut [f32], accumulate: bool) {
    multiply_with(Kernel::best().expect("bf16 is not available"), a, b, c, accumulate);
}

fn multiply_with(kernel: Kernel, a: MatRef, b: MatRef, c: &mut [f32], accumulate: bool) {
    assert_eq!(a.cols, b.rows, "inner dimensions differ");
    assert_eq!(c.len(), a.rows * b.cols, "output length");
    let (m, n, k) = (a.rows, b.cols, a.cols);
    if m == 0 || n == 0 {
        return;
    }
    if k == 0 {
        if !accumulate {
            c.fill(0.0);
        }
        return;
    }
    thread_local! {
        static PACKED: RefCell<(Vec<Tile>, Vec<Tile>)> = const { RefCell::new((Vec::new(), Vec::new())) };
    }
    PACKED.with_borrow_mut(|(left, right)| {
        for first in (0..k).step_by(DEPTH) {
            let depth = (k - first).min(DEPTH);
            let (a_data, b_data) =
                (&a.data[first * a.col_stride..], &b.data[first * b.row_stride..]);
            // SAFETY: a `Kernel` exists only where AVX-512 F and BF16, and for AMX the permission to use
            // tiles, were found; `pack` fills a panel for every row and column of `c`.
            unsafe {
                pack(a_data, (m, a.row_stride), (depth, a.col_stride), a.col_stride != 1, left);
                pack(b_data, (n, b.col_stride), (depth, b.row_stride), b.row_stride == 1, right);
                let (k_tiles, accumulate) = (depth.div_ceil(32), accumulate || first > 0);
                match kernel {
                    Kernel::Amx => multiply_amx(left, right, k_tiles, n, c, accumulate),
                    Kernel::Avx512 => multiply_avx512(left, right, k_tiles, n, c, accumulate),
                }
            }
        }
    });
}

/// Inner length of one pass: a panel of the right operand, 32 wide, then stays in the nearest cache.
const DEPTH: usize = 1024;
/// Rows of the left operand that stay in the second cache while all of the right one passes.
const HEIGHT: usize = 256;

/// One AMX tile: 16 rows of 16 bf16 pairs.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Tile([__m512i; 16]);

/// Packs an operand into `[outer / 16, rounded up to even][k / 32]` tiles, zero beyond the edges.
///
/// `outer` and `inner` are (length, stride) of the axis that stays and of the axis summed over. A
/// tile is first read along whichever axis is contiguous: 16 rows of 16 pairs where k is, 16 pairs of
/// 16 columns where the outer axis is; the two layouts are transposes of each other.
///
/// # Safety
/// Needs AVX-512 F and BF16, and `data` must hold every element the lengths and strides name.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn pack(
    data: &[f32],
    outer: (usize, usize),
    inner: (usize, usize),
    transpose: bool,
    packed: &mut Vec<Tile>,
) {
    let k_tiles = inner.0.div_ceil(32);
    let outer_tiles = outer.0.div_ceil(32) * 2;
    packed.clear();
    packed.reserve(outer_tiles * k_tiles);
    for o in (0..outer_tiles).map(|tile| tile * 16) {
        for k in (0..k_tiles).map(|tile| tile * 32) {
            let mut rows = [_mm512_setzero_si512(); 16];
            for (i, row) in rows.iter_mut().enumerate() {
                let (lo, hi) = if inner.1 == 1 {
                    let at = (o + i) * outer.1 + k;
                    let left = if o + i < outer.0 { inner.0.saturating_sub(k) } else { 0 };
                    // SAFETY: `left` counts the elements of this row from `at` on.
                    unsafe { (load(data, at, left), load(data, at + 16, left.saturating_sub(16))) }
                } else {
                    let at = (k + 2 * i) * inner.1 + o;
                    let left = outer.0.saturating_sub(o);
                    let count = |row: usize| if row < inner.0 { left } else { 0 };
                    // SAFETY: `count` is the elements left in a row of k that exists, else 0.
                    unsafe {
                        let even = load(data, at, count(k + 2 * i));
                        (even, load(data, at + inner.1, count(k + 2 * i + 1)))
                    }
                };
                *row = if inner.1 == 1 { round_run(lo, hi) } else { round_pairs(lo, hi) };
            }
            packed.push(Tile(if transpose { transpose16(rows) } else { rows }));
        }
    }
}

/// Up to 16 values from `at` on, zero from `left` on.
///
/// # Safety
/// Needs AVX-512 F; `data[at..at + min(left, 16)]` must exist.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load(data: &[f32], at: usize, left: usize) -> __m512 {
    let mask = if left >= 16 { !0 } else { (1u16 << left) - 1 };
    debug_assert!(left == 0 || at + left.min(16) <= data.len());
    // SAFETY: masked-out lanes are not read, and the others exist by the caller's promise.
    unsafe { _mm512_maskz_loadu_ps(mask, data.as_ptr().wrapping_add(at)) }
}

/// 32 consecutive values as 16 pairs of bf16.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn round_run(lo: __m512, hi: __m512) -> __m512i {
    // SAFETY: both types are 512 plain bits.
    unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(hi, lo)) }
}

/// Lane i of the result is the pair (`even[i]`, `odd[i]`) in bf16.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn round_pairs(even: __m512, odd: __m512) -> __m512i {
    let widen = |x: __m512| {
        // SAFETY: both types are 256 plain bits.
        let half = unsafe { std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(x)) };
        _mm512_cvtepu16_epi32(half)
    };
    _mm512_or_si512(widen(even), _mm512_slli_epi32::<16>(widen(odd)))
}

/// Transposes a 16 x 16 matrix of 32-bit lanes.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose16(r: [__m512i; 16]) -> [__m512i; 16] {
    let mut a = [_mm512_setzero_si512(); 16];
    let mut b = a;
    for i in 0..8 {
        a[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        a[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    // Now b[4g + j] holds, in 128-bit lane l, column 4l + j of rows 4g .. 4g + 4.
    for g in 0..4 {
        for half in 0..2 {
            let (x, y) = (a[4 * g + half], a[4 * g + 2 + half]);
            b[4 * g + 2 * half] = _mm512_unpacklo_epi64(x, y);
            b[4 * g + 2 * half + 1] = _mm512_unpackhi_epi64(x, y);
        }
    }
    for j in 0..4 {
        let (w, x, y, z) = (b[j], b[4 + j], b[8 + j], b[12 + j]);
        let wx_even = _mm512_shuffle_i32x4::<0b10_00_10_00>(w, x);
        let wx_odd = _mm512_shuffle_i32x4::<0b11_01_11_01>(w, x);
        let yz_even = _mm512_shuffle_i32x4::<0b10_00_10_00>(y, z);
        let yz_odd = _mm512_shuffle_i32x4::<0b11_01_11_01>(y, z);
        a[j] = _mm512_shuffle_i32x4::<0b10_00_10_00>(wx_even, yz_even);
        a[4 + j] = _mm512_shuffle_i32x4::<0b10_00_10_00>(wx_odd, yz_odd);
        a[8 + j] = _mm512_shuffle_i32x4::<0b11_01_11_01>(wx_even, yz_even);
        a[12 + j] = _mm512_shuffle_i32x4::<0b11_01_11_01>(wx_odd, yz_odd);
    }
    a
}

/// Eight tiles of 16 rows of 64 bytes.
static FULL_TILES: TileConfig = TileConfig::new([(16, 64); 8]);

/// Multiplies packed operands of `k_tiles` tiles a panel into `c`, `n` columns wide.
///
/// # Safety
/// Needs AMX bf16 with its permission granted, and panels for every row and column of `c`.
#[target_feature(enable = "avx512f")]
unsafe fn multiply_amx(
    left: &[Tile],
    right: &[Tile],
    k_tiles: usize,
    n: usize,
    c: &mut [f32],
    accumulate: bool,
) {
    /// Sums of one 32 x 32 block of the result.
    #[repr(C, align(64))]
    struct Sums([[f32; 32]; 32]);
    let mut sums = Sums([[0.0; 32]; 32]);
    // SAFETY: by the caller's promise.
    unsafe { FULL_TILES.load() };
    let panels = || right.chunks_exact(2 * k_tiles).enumerate();
    let heights = left.chunks(HEIGHT / 16 * k_tiles).zip(c.chunks_mut(HEIGHT * n));
    for (left, c) in heights {
        for (column, right) in panels() {
            let width = (n - column * 32).min(32);
            for (block, left) in left.chunks_exact(2 * k_tiles).enumerate() {
                // SAFETY: each panel pointer has `k_tiles` tiles of 1,024 bytes behind it (the chunks
                // hold two panels), `sums` is 32 rows of 128 bytes, and the tile registers are clobbered.
                unsafe {
                    std::arch::asm!(
                        "tilezero tmm0",
                        "tilezero tmm1",
                        "tilezero tmm2",
                        "tilezero tmm3",
                        "2:",
                        "tileloadd tmm4, [{a0} + {row}*1]",
                        "tileloadd tmm6, [{b0} + {row}*1]",
                        "tdpbf16ps tmm0, tmm4, tmm6",
                        "tileloadd tmm7, [{b1} + {row}*1]",
                        "tdpbf16ps tmm1, tmm4, tmm7",
                        "tileloadd tmm5, [{a1} + {row}*1]",
                        "tdpbf16ps tmm2, tmm5, tmm6",
                        "tdpbf16ps tmm3, tmm5, tmm7",
                        "add {a0}, 1024",
                        "add {a1}, 1024",
                        "add {b0}, 1024",
                        "add {b1}, 1024",
                        "dec {k}",
                        "jnz 2b",
                        "tilestored [{c} + {row}*2], tmm0",
                        "tilestored [{c} + {row}*2 + 64], tmm1",
                        "tilestored [{c} + {row}*2 + 2048], tmm2",
                        "tilestored [{c} + {row}*2 + 2112], tmm3",
                        a0 = inout(reg) left.as_ptr() => _,
                        a1 = inout(reg) left.as_ptr().add(k_tiles) => _,
                        b0 = inout(reg) right.as_ptr() => _,
                        b1 = inout(reg) right.as_ptr().add(k_tiles) => _,
                        k = inout(reg) k_tiles => _,
                        c = in(reg) sums.0.as_mut_ptr(),
                        row = in(reg) 64usize,
                        out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                        out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                        options(nostack),
                    );
                }
                let rows = c.chunks_exact_mut(n).skip(block * 32);
                for (out, sums) in rows.zip(&sums.0) {
                    let out = &mut out[column * 32..][..width];
                    if accumulate {
                        out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum);
                    } else {
                        out.copy_from_slice(&sums[..width]);
                    }
                }
            }
        }
    }
    // SAFETY: as above.
    unsafe { amx::release() };
}

/// Rows of sums in registers.
const ROWS: usize = 8;

/// Multiplies packed operands of `k_tiles` tiles a panel into `c`, `n` columns wide.
///
/// # Safety
/// Needs AVX-512 F and BF16, and panels for every row and column of `c`.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn multiply_avx512(
    left: &[Tile],
    right: &[Tile],
    k_tiles: usize,
    n: usize,
    c: &mut [f32],
    accumulate: bool,
) {
    let heights = left.chunks(HEIGHT / 16 * k_tiles).zip(c.chunks_mut(HEIGHT * n));
    for (left, c) in heights {
        for (panel, right) in right.chunks_exact(2 * k_tiles).enumerate() {
            let column = panel * 32;
            let width = (n - column).min(32);
            let masks = [width.min(16), width.saturating_sub(16)].map(|w| ((1u32 << w) - 1) as u16);
            for (block, c) in c.chunks_mut(ROWS * n).enumerate() {
                let tiles = &left[block / 2 * k_tiles..][..k_tiles];
                let sums = block_sums(tiles, block % 2 * ROWS, right.split_at(k_tiles));
                for (c, sums) in c.chunks_exact_mut(n).zip(&sums) {
                    for ((half, mask), sum) in masks.into_iter().enumerate().zip(sums) {
                        let at = c.as_mut_ptr().wrapping_add(column + half * 16);
                        // SAFETY: the mask has as many lanes as the row has columns from `at` on.
                        unsafe {
                            let before =
                                _mm512_maskz_loadu_ps(if accumulate { mask } else { 0 }, at);
                            _mm512_mask_storeu_ps(at, mask, _mm512_add_ps(before, *sum));
                        }
                    }
                }
            }
        }
    }
}

/// Sums of 8 rows, from `first` on in their tiles, by two panels of 16 columns.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn block_sums(left: &[Tile], first: usize, right: (&[Tile], &[Tile])) -> [[__m512; 2]; ROWS] {
    // SAFETY: both types are 512 plain bits.
    let bf16 = |bits: __m512i| unsafe { std::mem::transmute::<__m512i, __m512bh>(bits) };
    let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
    for ((left, right0), right1) in left.iter().zip(right.0).zip(right.1) {
        // SAFETY: a tile is 16 rows of 16 pairs, and any bits are an i32.
        let rows = unsafe { &*left.0.as_ptr().cast::<[[i32; 16]; 16]>() };
        let rows: &[[i32; 16]] = &rows[first..first + ROWS];
        for pair in 0..16 {
            let (b0, b1) = (bf16(right0.0[pair]), bf16(right1.0[pair]));
            for (row, sums) in rows.iter().zip(&mut sums) {
                let a = bf16(_mm512_set1_epi32(row[pair]));
                sums[0] = _mm512_dpbf16_ps(sums[0], a, b0);
                sums[1] = _mm512_dpbf16_ps(sums[1], a, b1);
            }
        }
    }
    sums
}

#[cfg(test)]
mod tests;
