//! Weight matrices, laid out once for the kernels, in panels of 16 outputs.

pub(crate) mod codes;
mod panels;
mod scales;

use std::borrow::Cow;

use half::{bf16, f16};

use crate::cpu::pool::ThreadPool;
use crate::cpu::quantize::BLOCK;
use crate::cpu::shared_mut::SharedMut;
use crate::dtype::DType;
use panels::float_panels;
pub(crate) use panels::{FloatPanels, IntPanels, Line, PANEL, Panels};
pub(crate) use scales::Scales;

/// A weight matrix or vector that the kernels cannot take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpsError {
    /// The data does not have the size its shape asks for.
    #[error("a {dtype:?} matrix of {out_features} x {in_features} does not take {bytes} bytes")]
    Size {
        /// Storage format.
        dtype: DType,
        /// Rows.
        out_features: usize,
        /// Columns.
        in_features: usize,
        /// Bytes given.
        bytes: usize,
    },
}

/// `[out_features, in_features]` weights in the kernels' layout; values exactly those of the file.
#[derive(Debug, Clone)]
pub struct PackedMatrix {
    pub(crate) out_features: usize,
    pub(crate) in_features: usize,
    pub(crate) panels: Panels,
    dtype: DType,
}

impl PackedMatrix {
    /// Packs a row-major matrix stored as `dtype`.
    ///
    /// # Errors
    /// [`OpsError::Size`] where `bytes` does not fit the shape, or rows are not whole blocks.
    pub fn pack(
        dtype: DType,
        out_features: usize,
        in_features: usize,
        bytes: &[u8],
    ) -> Result<Self, OpsError> {
        Self::pack_on(&ThreadPool::new(1), dtype, out_features, in_features, bytes)
    }

    /// As [`pack`](Self::pack), by all threads of a pool: each its share of neighbouring panels.
    ///
    /// # Errors
    /// As [`pack`](Self::pack).
    pub fn pack_on(
        pool: &ThreadPool,
        dtype: DType,
        out_features: usize,
        in_features: usize,
        bytes: &[u8],
    ) -> Result<Self, OpsError> {
        let error = OpsError::Size { dtype, out_features, in_features, bytes: bytes.len() };
        let row_bytes = dtype.bytes_for(in_features).ok_or_else(|| error.clone())?;
        if out_features == 0
            || in_features == 0
            || row_bytes.checked_mul(out_features) != Some(bytes.len())
        {
            return Err(error);
        }
        let row = |n: usize| &bytes[n * row_bytes..][..row_bytes];
        let (n, k) = (out_features, in_features);
        let panels = match dtype {
            DType::F32 => Panels::Float(FloatPanels::F32(float_panels(pool, n, k, |n, k| {
                f32::from_le_bytes(row(n).as_chunks().0[k])
            }))),
            DType::F16 => Panels::Float(FloatPanels::F16(float_panels(pool, n, k, |n, k| {
                f16::from_le_bytes(row(n).as_chunks().0[k])
            }))),
            DType::BF16 => Panels::Float(FloatPanels::BF16(float_panels(pool, n, k, |n, k| {
                bf16::from_le_bytes(row(n).as_chunks().0[k])
            }))),
            _ => Panels::Int(IntPanels::pack(pool, dtype, n, k, row)),
        };
        Ok(Self { out_features, in_features, panels, dtype })
    }

    /// Memory that a matrix stored as `dtype` takes when it is packed.
    #[must_use]
    pub fn packed_bytes(dtype: DType, out_features: usize, in_features: usize) -> usize {
        let panels = out_features.div_ceil(PANEL);
        match dtype {
            DType::F32 => panels * PANEL * in_features * size_of::<f32>(),
            DType::F16 | DType::BF16 => panels * PANEL * in_features * size_of::<f16>(),
            _ => {
                let blocks = dtype.block_size() / BLOCK;
                panels * (in_features / BLOCK / blocks) * IntPanels::zeroed(dtype, blocks).bytes()
            }
        }
    }

    /// Packs f32 values.
    ///
    /// # Errors
    /// As [`pack`](Self::pack).
    pub fn from_f32(out_features: usize, in_features: usize, w: &[f32]) -> Result<Self, OpsError> {
        let bytes: Cow<[u8]> = if cfg!(target_endian = "little") {
            bytemuck::cast_slice(w).into()
        } else {
            w.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>().into()
        };
        Self::pack(DType::F32, out_features, in_features, &bytes)
    }

    /// Rows of the matrix.
    #[must_use]
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// Columns of the matrix.
    #[must_use]
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// The format the weights came in.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Memory it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match &self.panels {
            Panels::Int(p) => p.bytes(),
            Panels::Float(FloatPanels::F32(p)) => size_of_val(&**p),
            Panels::Float(FloatPanels::F16(p)) => size_of_val(&**p),
            Panels::Float(FloatPanels::BF16(p)) => size_of_val(&**p),
        }
    }

    /// The values of row `index`.
    ///
    /// # Panics
    /// If there is no such row, or `out` is not `in_features` long.
    pub fn row(&self, index: usize, out: &mut [f32]) {
        assert!(index < self.out_features, "row {index} of {}", self.out_features);
        assert_eq!(out.len(), self.in_features, "row length");
        let (panel, lane) = (index / PANEL, index % PANEL);
        let base = panel * self.in_features;
        let floats = base..base + self.in_features;
        match &self.panels {
            Panels::Float(FloatPanels::F32(p)) => {
                out.iter_mut().zip(&p[floats]).for_each(|(out, w)| *out = w[lane]);
            }
            Panels::Float(FloatPanels::F16(p)) => {
                out.iter_mut().zip(&p[floats]).for_each(|(out, w)| *out = w[lane].to_f32());
            }
            Panels::Float(FloatPanels::BF16(p)) => {
                out.iter_mut().zip(&p[floats]).for_each(|(out, w)| *out = w[lane].to_f32());
            }
            Panels::Int(p) => p.row(base / BLOCK, lane, out),
        }
    }

    /// Its values rounded to a format of [`DType::quantize`]; `None` for others, and where rows are not whole blocks.
    #[must_use]
    pub fn rounded(&self, dtype: DType) -> Option<Self> {
        let row_bytes = dtype.bytes_for(self.in_features)?;
        let mut bytes = Vec::with_capacity(row_bytes * self.out_features);
        let mut row = vec![0.0; self.in_features];
        for index in 0..self.out_features {
            self.row(index, &mut row);
            bytes.extend(dtype.quantize(&row)?);
        }
        Self::pack(dtype, self.out_features, self.in_features, &bytes).ok()
    }

    /// The matrix of the given rows, in that order, with the same values.
    ///
    /// # Panics
    /// If a row does not exist.
    #[must_use]
    pub fn select_rows(&self, rows: &[u32]) -> Self {
        let out_features = rows.len();
        let source = |n: usize| {
            let row = rows[n] as usize;
            assert!(row < self.out_features, "row {row} of {}", self.out_features);
            (row / PANEL * self.in_features, row % PANEL)
        };
        // Few rows: threads would be of little use.
        let (pool, cols) = (&ThreadPool::new(1), self.in_features);
        let panels = match &self.panels {
            Panels::Float(FloatPanels::F32(p)) => {
                Panels::Float(FloatPanels::F32(float_panels(pool, out_features, cols, |n, k| {
                    let (base, lane) = source(n);
                    p[base + k][lane]
                })))
            }
            Panels::Float(FloatPanels::F16(p)) => {
                Panels::Float(FloatPanels::F16(float_panels(pool, out_features, cols, |n, k| {
                    let (base, lane) = source(n);
                    p[base + k][lane]
                })))
            }
            Panels::Float(FloatPanels::BF16(p)) => {
                Panels::Float(FloatPanels::BF16(float_panels(pool, out_features, cols, |n, k| {
                    let (base, lane) = source(n);
                    p[base + k][lane]
                })))
            }
            Panels::Int(p) => {
                let blocks = cols / BLOCK;
                let mut selected = p.empty(out_features.div_ceil(PANEL) * blocks);
                for n in 0..out_features {
                    let (base, lane) = source(n);
                    let to = (n / PANEL * blocks, n % PANEL);
                    selected.copy_row(to, p, (base / BLOCK, lane), blocks);
                }
                Panels::Int(selected)
            }
        };
        Self { out_features, in_features: self.in_features, panels, dtype: self.dtype }
    }
}

/// The rows of `tokens`, side by side: `out` is `[tokens.len(), in_features]`.
///
/// # Panics
/// If there is no such row, or `out` has another size.
pub fn embed(pool: &ThreadPool, table: &PackedMatrix, tokens: &[u32], out: &mut [f32]) {
    let width = table.in_features;
    assert_eq!(out.len(), tokens.len() * width, "{} rows of {width}", tokens.len());
    let out = SharedMut::new(out);
    pool.run(tokens.len(), &|row| {
        // SAFETY: each task has its own row.
        table.row(tokens[row] as usize, unsafe { out.slice(row * width, width) });
    });
}

#[cfg(test)]
mod tests;
