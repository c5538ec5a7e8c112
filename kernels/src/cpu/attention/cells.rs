//! Keys or values as they are held.

use bytemuck::zeroed_vec;
use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::cpu::isa::{Isa, per_isa};
use crate::cpu::shared_mut::SharedMut;

/// How keys and values are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheFormat {
    /// IEEE half precision.
    F16,
    /// IEEE single precision.
    F32,
    /// Codes of 8 bits, and an f32 scale for each head of a position.
    Int8,
}

impl CacheFormat {
    /// Bytes of the keys, or the values, of one head of a position.
    pub(super) const fn bytes(self, head_dim: usize) -> usize {
        match self {
            Self::F16 => head_dim * size_of::<f16>(),
            Self::F32 => head_dim * size_of::<f32>(),
            Self::Int8 => head_dim + size_of::<f32>(),
        }
    }
}

/// Keys or values of rows: a row is one head of a position.
#[derive(Debug)]
pub(super) enum Cells {
    F16(Vec<f16>),
    F32(Vec<f32>),
    Int8 {
        codes: Vec<i8>,
        /// Of each row. NaN or infinite where a value of it is: then its codes are 0, and all that is read of it is NaN.
        scales: Vec<f32>,
    },
}

impl Cells {
    /// Zeros, which take no memory before they are written to.
    pub(super) fn new(format: CacheFormat, rows: usize, head_dim: usize) -> Self {
        let len = rows * head_dim;
        match format {
            CacheFormat::F16 => Self::F16(zeroed_vec(len)),
            CacheFormat::F32 => Self::F32(zeroed_vec(len)),
            CacheFormat::Int8 => Self::Int8 { codes: zeroed_vec(len), scales: zeroed_vec(rows) },
        }
    }

    /// `out.len()` cells from `at` on. Where there are [`scales`](Self::scales), they are still to be multiplied by them.
    #[inline(always)]
    pub(super) fn read(&self, at: usize, out: &mut [f32]) {
        match self {
            Self::F16(cells) => cells[at..][..out.len()].convert_to_f32_slice(out),
            Self::F32(cells) => out.copy_from_slice(&cells[at..][..out.len()]),
            Self::Int8 { codes, .. } => {
                let codes = &codes[at..][..out.len()];
                for (out, code) in out.iter_mut().zip(codes) {
                    *out = f32::from(*code);
                }
            }
        }
    }

    /// What the cells of each row are multiplied by, where they are.
    #[inline(always)]
    pub(super) fn scales(&self) -> Option<&[f32]> {
        match self {
            Self::F16(_) | Self::F32(_) => None,
            Self::Int8 { scales, .. } => Some(scales),
        }
    }

    pub(super) fn shared(&mut self) -> SharedCells<'_> {
        match self {
            Self::F16(cells) => SharedCells::F16(SharedMut::new(cells)),
            Self::F32(cells) => SharedCells::F32(SharedMut::new(cells)),
            Self::Int8 { codes, scales } => {
                SharedCells::Int8 { codes: SharedMut::new(codes), scales: SharedMut::new(scales) }
            }
        }
    }
}

/// Cells that the tasks of one job write to.
pub(super) enum SharedCells<'a> {
    F16(SharedMut<'a, f16>),
    F32(SharedMut<'a, f32>),
    Int8 { codes: SharedMut<'a, i8>, scales: SharedMut<'a, f32> },
}

impl SharedCells<'_> {
    /// Writes `x` to a row, which is every `step`th cell from `at` on.
    ///
    /// # Safety
    /// No other task may write to this row.
    pub(super) unsafe fn write(&self, row: usize, at: usize, step: usize, x: &[f32]) {
        /// Values that are rounded at a time.
        const PIECE: usize = 64;
        match self {
            Self::F16(cells) => {
                let mut half = [f16::ZERO; PIECE];
                for (piece, x) in x.chunks(PIECE).enumerate() {
                    half[..x.len()].convert_from_f32_slice(x);
                    for (i, half) in half[..x.len()].iter().enumerate() {
                        // SAFETY: by the caller's promise.
                        unsafe { *cells.element(at + (piece * PIECE + i) * step) = *half };
                    }
                }
            }
            Self::F32(cells) => {
                for (i, x) in x.iter().enumerate() {
                    // SAFETY: by the caller's promise.
                    unsafe { *cells.element(at + i * step) = *x };
                }
            }
            Self::Int8 { codes, scales } => {
                let (isa, scale) = (Isa::best(), scale_of(x));
                // SAFETY: by the caller's promise.
                unsafe { *scales.element(row) = scale };
                let mut rounded = [0; PIECE];
                for (piece, x) in x.chunks(PIECE).enumerate() {
                    round(isa, x, scale, &mut rounded);
                    for (i, code) in rounded[..x.len()].iter().enumerate() {
                        // SAFETY: by the caller's promise.
                        unsafe { *codes.element(at + (piece * PIECE + i) * step) = *code };
                    }
                }
            }
        }
    }
}

/// The scale of a row whose largest code is 127: NaN where a value is, infinite where one is. Rows of next to nothing have
/// smaller codes, since a scale below the normal numbers would be too far from a 127th of the largest value.
pub(super) fn scale_of(x: &[f32]) -> f32 {
    // Of values without a sign, bits have the order of what they say, and NaN comes last.
    let largest = x.iter().map(|x| x.abs().to_bits()).max().unwrap_or(0);
    let scale = f32::from_bits(largest) / 127.0;
    if scale < f32::MIN_POSITIVE { f32::MIN_POSITIVE } else { scale }
}

per_isa! {
    /// The nearest codes to `x / scale`, even ones where two are as near; 0 where that is no number.
    pub(super) fn round(x: &[f32], scale: f32, codes: &mut [i8]) {
        /// Adding 1.5 * 2^23 rounds to an integer.
        const ROUND: f32 = 12_582_912.0;
        for (code, x) in codes.iter_mut().zip(x) {
            *code = (x / scale + ROUND - ROUND) as i8;
        }
    }
}
