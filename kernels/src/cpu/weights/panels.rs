//! Panels of 16 outputs, the layout of weights.
//!
//! Quantised: for each block of 32 inputs, groups of 4 inputs x 16 outputs, one byte a code, so that one 64-byte register
//! feeds an integer dot product of 4 inputs for 16 outputs; 4-bit codes share a byte, group g in the low and group g + 4
//! in the high half. Scales and minima stand beside, 16 a block. Float: 16 outputs a row of k.

use bytemuck::Pod;
use half::{bf16, f16};

use crate::cpu::quantize::BLOCK;
use crate::cpu::store::Store;
use crate::dtype::DType;

/// Outputs per panel.
pub(crate) const PANEL: usize = 16;

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
    F16(Store<u16>),
    F32(Store<f32>),
}

impl Scales {
    pub(super) fn get(&self, index: usize) -> f32 {
        match self {
            Self::F16(v) => f16::from_bits(v[index]).to_f32(),
            Self::F32(v) => v[index],
        }
    }

    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::F16(v) => size_of_val(&**v),
            Self::F32(v) => size_of_val(&**v),
        }
    }

    fn filled(f16: bool, len: usize) -> Self {
        if f16 { Self::F16(Store::zeroed(len)) } else { Self::F32(Store::zeroed(len)) }
    }

    pub(super) fn set(&mut self, index: usize, value: f32) {
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
    pub(crate) codes: Store<Line>,
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
    F32(Store<[f32; PANEL]>),
    F16(Store<[f16; PANEL]>),
    BF16(Store<[bf16; PANEL]>),
}

#[derive(Debug, Clone)]
pub(crate) enum Panels {
    Int(IntPanels),
    Float(FloatPanels),
}

/// Panels of `out_features` rows and `in_features` columns, whose values `get` gives by row and column.
pub(super) fn float_panels<T: Pod>(
    out_features: usize,
    in_features: usize,
    get: impl Fn(usize, usize) -> T,
) -> Store<[T; PANEL]> {
    let mut panels: Store<[T; PANEL]> = Store::zeroed(out_features.div_ceil(PANEL) * in_features);
    for (panel, rows) in panels.chunks_exact_mut(in_features).enumerate() {
        let count = (out_features - panel * PANEL).min(PANEL);
        for (k, row) in rows.iter_mut().enumerate() {
            for (lane, value) in row[..count].iter_mut().enumerate() {
                *value = get(panel * PANEL + lane, k);
            }
        }
    }
    panels
}

impl IntPanels {
    /// Panels of a format, without any block.
    pub(super) fn of(dtype: DType) -> Self {
        let (eight_bit, offset, has_min, f16) = match dtype {
            DType::Q8_0 => (true, 128, false, true),
            DType::Q4_0 => (false, 8, false, true),
            DType::Q4_1 => (false, 0, true, true),
            DType::Q5_0 => (true, 16, false, true),
            DType::Q5_1 => (true, 0, true, true),
            DType::Q4_K => (false, 0, true, false),
            DType::Q5_K => (true, 0, true, false),
            DType::Q6_K => (true, 32, false, false),
            DType::F32 | DType::F16 | DType::BF16 => unreachable!("float formats have no codes"),
        };
        Self {
            codes: Store::zeroed(0),
            eight_bit,
            half_blocks: dtype == DType::Q6_K,
            offset,
            scales: Scales::filled(f16, 0),
            mins: has_min.then(|| Scales::filled(f16, 0)),
        }
    }

    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.codes)
            + self.scales.bytes()
            + self.mins.as_ref().map_or(0, Scales::bytes)
    }

    pub(super) fn pack<'a>(
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
    pub(super) fn empty(&self, blocks: usize) -> Self {
        let scales = blocks * PANEL * (1 + usize::from(self.half_blocks));
        let f16 = matches!(self.scales, Scales::F16(_));
        Self {
            codes: Store::zeroed(blocks * self.lines()),
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
    pub(super) fn scale_index(&self, block: usize, k: usize) -> usize {
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

    pub(super) fn code(&self, block: usize, k: usize, lane: usize) -> u8 {
        let (line, byte, shift) = self.place(block, k, lane);
        let mask = if self.eight_bit { 0xff } else { 0x0f };
        self.codes[line].0[byte] >> shift & mask
    }

    /// Sets the codes of one output in a block of zeros.
    pub(super) fn set_codes(&mut self, block: usize, lane: usize, codes: &[u8; BLOCK]) {
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
