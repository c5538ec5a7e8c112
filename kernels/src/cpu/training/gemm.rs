//! Matrix product for training: f32 in, bf16 multiply, f32 accumulate, through AMX tiles or the dot
//! products of AVX-512 BF16 (Zen 4 and later, Cooper Lake).
//!
//! Owns the packing of both operands into tiles and the kernels. Serving never comes here; its
//! arithmetic is `cpu::matmul`. One call runs on one thread; training shares rows of `c` among its threads.
//!
//! A tile holds 16 rows of 64 bytes. The left operand is packed as `[16 m][32 k]`, the right one in
//! pairs of k as `[16 k/2][16 n][2]`. One `tdpbf16ps` adds a 16 x 32 by 32 x 16 product to a 16 x 16
//! tile of sums, and its kernel keeps 2 x 2 such tiles in registers. One `vdpbf16ps` adds a pair of k
//! of one row to 16 sums, and its kernel keeps 8 rows of 32 sums.

mod pack;
mod panels;

use std::cell::RefCell;
use std::sync::OnceLock;

use crate::cpu::amx;
use crate::cpu::mat_ref::MatRef;
use pack::{Tile, pack};
use panels::{Columns, Panel};

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

/// `c = a b`; `c` is `[a.rows, b.cols]`, row-major and dense.
///
/// Operands are rounded to bf16, products are summed in f32 in a fixed order.
///
/// # Panics
/// If the shapes do not fit, or where [`available`] is false.
pub fn gemm(a: MatRef, b: MatRef, c: &mut [f32]) {
    multiply_with(best(), a, &Right::Matrix(b), c, false);
}

/// [`gemm`] with a right operand that is packed already: the same bits.
///
/// # Panics
/// As [`gemm`].
pub fn gemm_packed(a: MatRef, b: &Packed, c: &mut [f32]) {
    multiply_with(best(), a, &Right::Packed(b), c, false);
}

fn best() -> Kernel {
    Kernel::best().expect("bf16 is not available")
}

/// A right operand in bf16, packed once for many products.
pub struct Packed {
    rows: usize,
    cols: usize,
    /// Tiles of every [`DEPTH`] rows.
    pieces: Vec<Vec<Tile>>,
}

impl Packed {
    /// Packs a matrix.
    ///
    /// # Panics
    /// Where [`available`] is false.
    #[must_use]
    pub fn new(b: MatRef) -> Self {
        assert!(available(), "bf16 is not available");
        let mut pieces = Vec::new();
        for first in (0..b.rows).step_by(DEPTH) {
            let mut tiles = Vec::new();
            // SAFETY: bf16 and AVX-512 F were found.
            unsafe { pack_right(b, first, &mut tiles) };
            pieces.push(tiles);
        }
        Self { rows: b.rows, cols: b.cols, pieces }
    }
}

enum Right<'a> {
    Matrix(MatRef<'a>),
    Packed(&'a Packed),
}

/// `c = a b`, or `c += a b` with `accumulate`.
fn multiply_with(kernel: Kernel, a: MatRef, b: &Right, c: &mut [f32], accumulate: bool) {
    let (k, n) = match b {
        Right::Matrix(b) => (b.rows, b.cols),
        Right::Packed(b) => (b.rows, b.cols),
    };
    assert_eq!(a.cols, k, "inner dimensions differ");
    assert_eq!(c.len(), a.rows * n, "output length");
    if a.rows == 0 || n == 0 {
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
    PACKED.with_borrow_mut(|(left, own)| {
        for (piece, first) in (0..k).step_by(DEPTH).enumerate() {
            let (k_tiles, accumulate) =
                ((k - first).min(DEPTH).div_ceil(32), accumulate || first > 0);
            let right = match b {
                Right::Matrix(b) => {
                    // SAFETY: as below.
                    unsafe { pack_right(*b, first, own) };
                    &own[..]
                }
                Right::Packed(b) => &b.pieces[piece],
            };
            for (row, c) in (0..a.rows).step_by(HEIGHT).zip(c.chunks_mut(HEIGHT * n)) {
                // SAFETY: a `Kernel` exists only where AVX-512 F and BF16, and for AMX the permission to use
                // tiles, were found; a panel is packed for every row and column of `c`.
                unsafe {
                    pack_left(a, row, first, left);
                    multiply(kernel, &[Panel { left, right, k_tiles }], n, c, accumulate);
                }
            }
        }
    });
}

/// `t = x u` and `y = x w + t v`, the same bits as three calls of [`gemm`], while what they share is near.
///
/// # Panics
/// If the shapes do not fit or have no columns to sum over, or where [`available`] is false.
pub fn gemm_adapted(x: MatRef, w: &Packed, factors: [&Packed; 2], t: &mut [f32], y: &mut [f32]) {
    adapted_with(best(), x, w, factors, t, y);
}

fn adapted_with(
    kernel: Kernel,
    x: MatRef,
    w: &Packed,
    [u, v]: [&Packed; 2],
    t: &mut [f32],
    y: &mut [f32],
) {
    let (k, rank, n) = (w.rows, u.cols, w.cols);
    assert!(x.cols == k && u.rows == k && v.rows == rank && v.cols == n, "shapes differ");
    assert!(t.len() == x.rows * rank && y.len() == x.rows * n, "output lengths");
    assert!(k > 0 && rank > 0 && n > 0, "nothing to sum over");
    let (mut left, mut low) = (Vec::new(), vec![Vec::new(); v.pieces.len()]);
    let blocks = t.chunks_mut(HEIGHT * rank).zip(y.chunks_mut(HEIGHT * n));
    for (row, (t, y)) in (0..x.rows).step_by(HEIGHT).zip(blocks) {
        for (piece, first) in (0..k).step_by(DEPTH).enumerate() {
            let k_tiles = (k - first).min(DEPTH).div_ceil(32);
            // SAFETY: as in `multiply_with`.
            unsafe {
                pack_left(x, row, first, &mut left);
                let of = |right| Panel { left: &left, right, k_tiles };
                multiply(kernel, &[of(&u.pieces[piece])], rank, t, first > 0);
                let mut panels = vec![of(&w.pieces[piece])];
                if piece + 1 == w.pieces.len() {
                    let t = MatRef::new(t, t.len() / rank, rank, rank);
                    for (low, first) in low.iter_mut().zip((0..rank).step_by(DEPTH)) {
                        pack_left(t, 0, first, low);
                    }
                    panels.extend(low.iter().zip(&v.pieces).enumerate().map(
                        |(at, (left, right))| {
                            let k_tiles = (rank - at * DEPTH).min(DEPTH).div_ceil(32);
                            Panel { left, right, k_tiles }
                        },
                    ));
                }
                multiply(kernel, &panels, n, y, first > 0);
            }
        }
    }
}

/// Multiplies packed operands into `c`, `n` columns wide, and sums over all `operands`: 32 columns of all of them, while
/// those of `c` are near, before the next.
///
/// # Safety
/// Needs what the kernel needs, and tiles for every row and column of `c`.
unsafe fn multiply(kernel: Kernel, operands: &[Panel], n: usize, c: &mut [f32], accumulate: bool) {
    // SAFETY: by the caller's promise.
    unsafe {
        if kernel == Kernel::Amx {
            panels::begin_amx();
        }
        for (panel, first) in (0..n).step_by(32).enumerate() {
            for (at, operand) in operands.iter().enumerate() {
                let width = 2 * operand.k_tiles;
                let operand = Panel { right: &operand.right[panel * width..][..width], ..*operand };
                let mut columns = Columns { c, n, first, accumulate: accumulate || at > 0 };
                match kernel {
                    Kernel::Amx => panels::amx(operand, &mut columns),
                    Kernel::Avx512 => panels::avx512(operand, &mut columns),
                }
            }
        }
        if kernel == Kernel::Amx {
            panels::end_amx();
        }
    }
}

/// Packs rows `first ..` of a right operand, [`DEPTH`] at most.
///
/// # Safety
/// Needs AVX-512 F and BF16.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn pack_right(b: MatRef, first: usize, packed: &mut Vec<Tile>) {
    let (data, depth) = (&b.data[first * b.row_stride..], (b.rows - first).min(DEPTH));
    // SAFETY: a `MatRef` holds every element that its shape names.
    unsafe {
        pack(data, (b.cols, b.col_stride), (depth, b.row_stride), b.row_stride == 1, packed);
    }
}

/// Packs rows `row ..` of a left operand, [`HEIGHT`] at most, and columns `first ..`, [`DEPTH`] at most.
///
/// # Safety
/// Needs AVX-512 F and BF16.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn pack_left(a: MatRef, row: usize, first: usize, packed: &mut Vec<Tile>) {
    let data = &a.data[row * a.row_stride + first * a.col_stride..];
    let (height, depth) = ((a.rows - row).min(HEIGHT), (a.cols - first).min(DEPTH));
    // SAFETY: as above.
    unsafe {
        pack(data, (height, a.row_stride), (depth, a.col_stride), a.col_stride != 1, packed);
    }
}

/// Inner length of one pass: a panel of the right operand, 32 wide, then stays in the nearest cache.
const DEPTH: usize = 1024;
/// Rows of the left operand that are packed at a time, and stay in the second cache while all of the right one passes.
const HEIGHT: usize = 256;

#[cfg(test)]
mod tests;
