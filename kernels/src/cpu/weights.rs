//! Weight matrices, laid out once for the kernels.
//!
//! Outputs stand in panels of 16. Quantised: for each block of 32 inputs, groups of 4 inputs x 16
//! outputs, one byte a code, so that one 64-byte register feeds an integer dot product of 4 inputs for
//! 16 outputs; 4-bit codes share a byte, group g in the low and group g + 4 in the high half. Scales
//! and minima stand beside, 16 a block. Float: 16 outputs a row of k.

use std::borrow::Cow;

use half::{bf16, f16};

use crate::cpu::pool::ThreadPool;
use crate::cpu::quantize::BLOCK;
use crate::cpu::shared_mut::SharedMut;
use crate::dtype::DType;

/// Outputs per panel.
pub(crate) const PANEL: usize = 16;

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

/// 64 bytes, aligned to a cache line.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [u8; 64]);

// SAFETY: 64 plain bytes without padding.
unsafe impl bytemuck::Zeroable for Line {}
// SAFETY: as above.
unsafe impl bytemuck::Pod for Line {}

/// Scales or minima, `[panels, blocks (x 2 halves), 16]`.
#[derive(Debug, Clone)]
pub(crate) enum Scales {
    /// Where the file has half precision.
    F16(Vec<u16>),
    F32(Vec<f32>),
}

impl Scales {
    fn get(&self, index: usize) -> f32 {
        match self {
            Self::F16(v) => f16::from_bits(v[index]).to_f32(),
            Self::F32(v) => v[index],
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::F16(v) => size_of_val(v.as_slice()),
            Self::F32(v) => size_of_val(v.as_slice()),
        }
    }

    fn filled(f16: bool, len: usize) -> Self {
        if f16 { Self::F16(vec![0; len]) } else { Self::F32(vec![0.0; len]) }
    }

    fn set(&mut self, index: usize, value: f32) {
        match self {
            Self::F16(v) => v[index] = f16::from_f32(value).to_bits(),
            Self::F32(v) => v[index] = value,
        }
    }
}

/// Integer panels: `w = scale * (code - offset) + min`.
#[derive(Debug, Clone)]
pub(crate) struct IntPanels {
    /// `[panels, blocks, 4 or 8]` lines.
    pub(crate) codes: Vec<Line>,
    pub(crate) eight_bit: bool,
    /// Scales per half block (16 inputs) instead of per block.
    pub(crate) half_blocks: bool,
    pub(crate) offset: i32,
    pub(crate) scales: Scales,
    pub(crate) mins: Option<Scales>,
}

/// Float panels, `[panels, in_features, 16]`.
#[derive(Debug, Clone)]
pub(crate) enum FloatPanels {
    F32(Vec<[f32; PANEL]>),
    F16(Vec<[f16; PANEL]>),
    BF16(Vec<[bf16; PANEL]>),
}

#[derive(Debug, Clone)]
pub(crate) enum Panels {
    Int(IntPanels),
    Float(FloatPanels),
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
        let error = OpsError::Size { dtype, out_features, in_features, bytes: bytes.len() };
        let row_bytes = dtype.bytes_for(in_features).ok_or_else(|| error.clone())?;
        if out_features == 0
            || in_features == 0
            || row_bytes.checked_mul(out_features) != Some(bytes.len())
        {
            return Err(error);
        }
        let row = |n: usize| &bytes[n * row_bytes..][..row_bytes];
        let panels = match dtype {
            DType::F32 => {
                Panels::Float(FloatPanels::F32(float_panels(out_features, in_features, |n, k| {
                    f32::from_le_bytes(row(n).as_chunks().0[k])
                })))
            }
            DType::F16 => {
                Panels::Float(FloatPanels::F16(float_panels(out_features, in_features, |n, k| {
                    f16::from_le_bytes(row(n).as_chunks().0[k])
                })))
            }
            DType::BF16 => {
                Panels::Float(FloatPanels::BF16(float_panels(out_features, in_features, |n, k| {
                    bf16::from_le_bytes(row(n).as_chunks().0[k])
                })))
            }
            _ => Panels::Int(IntPanels::pack(dtype, out_features, in_features, row)),
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
            _ => panels * (in_features / BLOCK) * IntPanels::of(dtype).empty(1).bytes(),
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
            Panels::Float(FloatPanels::F32(p)) => size_of_val(p.as_slice()),
            Panels::Float(FloatPanels::F16(p)) => size_of_val(p.as_slice()),
            Panels::Float(FloatPanels::BF16(p)) => size_of_val(p.as_slice()),
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
            Panels::Int(p) => {
                // 16 inputs have one scale and one minimum.
                for (half, out) in out.chunks_exact_mut(BLOCK / 2).enumerate() {
                    let (block, k) = (base / BLOCK + half / 2, half % 2 * BLOCK / 2);
                    let scale = p.scales.get(p.scale_index(block, k) + lane);
                    let min = p.mins.as_ref();
                    let min = min.map_or(0.0, |m| m.get(p.scale_index(block, k) + lane));
                    for (i, out) in out.iter_mut().enumerate() {
                        let centred = (i32::from(p.code(block, k + i, lane)) - p.offset) as f32;
                        *out = scale.mul_add(centred, min);
                    }
                }
            }
        }
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
        let panels =
            match &self.panels {
                Panels::Float(FloatPanels::F32(p)) => Panels::Float(FloatPanels::F32(
                    float_panels(out_features, self.in_features, |n, k| {
                        let (base, lane) = source(n);
                        p[base + k][lane]
                    }),
                )),
                Panels::Float(FloatPanels::F16(p)) => Panels::Float(FloatPanels::F16(
                    float_panels(out_features, self.in_features, |n, k| {
                        let (base, lane) = source(n);
                        p[base + k][lane]
                    }),
                )),
                Panels::Float(FloatPanels::BF16(p)) => Panels::Float(FloatPanels::BF16(
                    float_panels(out_features, self.in_features, |n, k| {
                        let (base, lane) = source(n);
                        p[base + k][lane]
                    }),
                )),
                Panels::Int(p) => {
                    let blocks = self.in_features / BLOCK;
                    let mut selected = p.empty(out_features.div_ceil(PANEL) * blocks);
                    for n in 0..out_features {
                        let (base, lane) = source(n);
                        for b in 0..blocks {
                            let (from, to) = (base / BLOCK + b, n / PANEL * blocks + b);
                            let codes = std::array::from_fn(|k| p.code(from, k, lane));
                            selected.set_codes(to, n % PANEL, &codes);
                            for k in (0..BLOCK).step_by(BLOCK / 2) {
                                let (at, into) = (p.scale_index(from, k), p.scale_index(to, k));
                                selected.scales.set(into + n % PANEL, p.scales.get(at + lane));
                                if let (Some(to), Some(from)) = (&mut selected.mins, &p.mins) {
                                    to.set(into + n % PANEL, from.get(at + lane));
                                }
                            }
                        }
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

fn float_panels<T: Default + Copy>(
    out_features: usize,
    in_features: usize,
    get: impl Fn(usize, usize) -> T,
) -> Vec<[T; PANEL]> {
    let mut panels = Vec::with_capacity(out_features.div_ceil(PANEL) * in_features);
    for start in (0..out_features).step_by(PANEL) {
        for k in 0..in_features {
            panels.push(std::array::from_fn(|lane| {
                let n = start + lane;
                if n < out_features { get(n, k) } else { T::default() }
            }));
        }
    }
    panels
}

impl IntPanels {
    /// Panels of a format, without any block.
    fn of(dtype: DType) -> Self {
        let (eight_bit, offset, has_min, f16) = match dtype {
            DType::Q8_0 => (true, 128, false, true),
            DType::Q4_0 => (false, 8, false, true),
            DType::Q4_1 => (false, 0, true, true),
            DType::Q4_K => (false, 0, true, false),
            DType::Q5_K => (true, 0, true, false),
            DType::Q6_K => (true, 32, false, false),
            DType::F32 | DType::F16 | DType::BF16 => unreachable!("float formats have no codes"),
        };
        Self {
            codes: Vec::new(),
            eight_bit,
            half_blocks: dtype == DType::Q6_K,
            offset,
            scales: Scales::filled(f16, 0),
            mins: has_min.then(|| Scales::filled(f16, 0)),
        }
    }

    fn bytes(&self) -> usize {
        size_of_val(self.codes.as_slice())
            + self.scales.bytes()
            + self.mins.as_ref().map_or(0, Scales::bytes)
    }

    fn pack<'a>(
        dtype: DType,
        out_features: usize,
        in_features: usize,
        row: impl Fn(usize) -> &'a [u8],
    ) -> Self {
        let blocks = in_features / BLOCK;
        let mut packed = Self::of(dtype).empty(out_features.div_ceil(PANEL) * blocks);
        for n in 0..out_features {
            let mut block = n / PANEL * blocks;
            dtype.decode(row(n), |group| {
                packed.set_codes(block, n % PANEL, &group.codes);
                for half in 0..1 + usize::from(packed.half_blocks) {
                    let at = packed.scale_index(block, half * BLOCK / 2) + n % PANEL;
                    packed.scales.set(at, group.scale[half]);
                    if let Some(mins) = &mut packed.mins {
                        mins.set(at, group.min[half]);
                    }
                }
                block += 1;
            });
        }
        packed
    }

    /// Zeroed panels of `blocks` blocks in the same format.
    fn empty(&self, blocks: usize) -> Self {
        let scales = blocks * PANEL * (1 + usize::from(self.half_blocks));
        let f16 = matches!(self.scales, Scales::F16(_));
        Self {
            codes: vec![Line([0; 64]); blocks * self.lines()],
            scales: Scales::filled(f16, scales),
            mins: self.mins.as_ref().map(|_| Scales::filled(f16, scales)),
            ..*self
        }
    }

    /// Lines of codes per block.
    pub(crate) fn lines(&self) -> usize {
        if self.eight_bit { 8 } else { 4 }
    }

    /// Index of lane 0's scale for input `k` of a block.
    fn scale_index(&self, block: usize, k: usize) -> usize {
        if self.half_blocks { (block * 2 + k / 16) * PANEL } else { block * PANEL }
    }

    /// Line, byte and shift of a code.
    fn place(&self, block: usize, k: usize, lane: usize) -> (usize, usize, u32) {
        let (group, byte) = (k / 4, lane * 4 + k % 4);
        if self.eight_bit {
            (block * 8 + group, byte, 0)
        } else {
            (block * 4 + group % 4, byte, 4 * (group as u32 / 4))
        }
    }

    fn code(&self, block: usize, k: usize, lane: usize) -> u8 {
        let (line, byte, shift) = self.place(block, k, lane);
        let mask = if self.eight_bit { 0xff } else { 0x0f };
        self.codes[line].0[byte] >> shift & mask
    }

    /// Sets the codes of one output in a block of zeros.
    fn set_codes(&mut self, block: usize, lane: usize, codes: &[u8; BLOCK]) {
        let (count, at) = (self.lines(), lane * 4);
        let lines = &mut self.codes[block * count..][..count];
        for (group, codes) in codes.as_chunks::<4>().0.iter().enumerate() {
            let bytes = &mut lines[group % count].0[at..at + 4];
            // With four bits a code, groups 4 to 7 are the high halves.
            let shift = 4 * (group / count);
            bytes.iter_mut().zip(codes).for_each(|(byte, code)| *byte |= code << shift);
        }
    }
}

#[cfg(test)]
mod tests;
