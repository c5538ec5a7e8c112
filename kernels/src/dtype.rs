//! Weight formats: size, decoding, encoding. The reference for every kernel that reads weights.
//!
//! A quantised weight is a code `q` with a scale, `w = scale * (q - offset) + min`, where a format has an offset or a
//! minimum; [`DType::decode`] yields exactly that for every format, 32 values at a time. Layouts follow ggml.

use half::{bf16, f16};

use crate::cpu::isa::{Isa, per_isa};

/// Storage format of a weight matrix.
#[expect(non_camel_case_types, reason = "the names the files use")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    BF16,
    /// 8 bits, a scale per 32 weights.
    Q8_0,
    /// 4 bits, a scale per 32 weights, centred on 8.
    Q4_0,
    /// 4 bits, a scale and a minimum per 32 weights.
    Q4_1,
    /// 5 bits, a scale per 32 weights, centred on 16.
    Q5_0,
    /// 5 bits, a scale and a minimum per 32 weights.
    Q5_1,
    /// 4 bits, 6-bit scales and minima per 32 weights in blocks of 256.
    Q4_K,
    /// 5 bits, 6-bit scales and minima per 32 weights in blocks of 256.
    Q5_K,
    /// 6 bits, 8-bit scales per 16 weights in blocks of 256.
    Q6_K,
}

/// A scale or a minimum as formats have it: steps of a unit, or the unit itself where there is one step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Factor {
    /// What several factors may have in common.
    pub unit: f16,
    /// How many units it is.
    pub steps: i8,
}

impl Factor {
    const ZERO: Self = Self { unit: f16::ZERO, steps: 1 };

    /// Its value, exactly.
    #[must_use]
    pub(crate) fn value(self) -> f32 {
        self.unit.to_f32() * f32::from(self.steps)
    }
}

/// 32 quantised weights: `w[i] = scale[i / 16] * (code[i] - offset) + min`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Group {
    /// Unsigned codes.
    pub codes: [u8; 32],
    /// Scale of each half.
    pub scale: [Factor; 2],
    /// What is added; 0 where the format has no minima.
    pub min: Factor,
}

impl DType {
    /// Every format and its number in GGUF files.
    const GGML_IDS: [(Self, u32); 11] = [
        (Self::F32, 0),
        (Self::F16, 1),
        (Self::Q4_0, 2),
        (Self::Q4_1, 3),
        (Self::Q5_0, 6),
        (Self::Q5_1, 7),
        (Self::Q8_0, 8),
        (Self::Q4_K, 12),
        (Self::Q5_K, 13),
        (Self::Q6_K, 14),
        (Self::BF16, 30),
    ];

    /// The format with this number in GGUF files.
    #[must_use]
    pub fn from_ggml_id(id: u32) -> Option<Self> {
        Self::GGML_IDS.iter().find(|(_, known)| *known == id).map(|(dtype, _)| *dtype)
    }

    /// Its number in GGUF files.
    #[must_use]
    pub fn ggml_id(self) -> u32 {
        let (_, id) = Self::GGML_IDS.iter().find(|(dtype, _)| *dtype == self).expect("all listed");
        *id
    }

    /// Weights in one block, the unit of storage.
    #[must_use]
    pub fn block_size(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q8_0 | Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 => 32,
            Self::Q4_K | Self::Q5_K | Self::Q6_K => 256,
        }
    }

    /// Bytes of one block.
    #[must_use]
    pub fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q8_0 => 34,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q4_K => 144,
            Self::Q5_K => 176,
            Self::Q6_K => 210,
        }
    }

    /// Whether weights are integer codes with scales.
    #[must_use]
    pub fn is_quantized(self) -> bool {
        self.block_size() > 1
    }

    /// The code of a weight that is 0, or the minimum where the format has minima.
    ///
    /// # Panics
    /// If the format is not quantised.
    #[must_use]
    pub(crate) fn offset(self) -> u8 {
        match self {
            Self::Q8_0 => 128,
            Self::Q4_0 => 8,
            Self::Q5_0 => 16,
            Self::Q6_K => 32,
            Self::Q4_1 | Self::Q5_1 | Self::Q4_K | Self::Q5_K => 0,
            Self::F32 | Self::F16 | Self::BF16 => panic!("{self:?} has no codes"),
        }
    }

    /// Bytes of `values` weights, `None` where they do not fill whole blocks or overflow.
    #[must_use]
    pub fn bytes_for(self, values: usize) -> Option<usize> {
        values
            .is_multiple_of(self.block_size())
            .then(|| (values / self.block_size()).checked_mul(self.block_bytes()))
            .flatten()
    }

    /// Decodes `bytes` into `out`.
    ///
    /// # Panics
    /// If `bytes` is not exactly the encoding of `out.len()` values.
    pub fn dequantize(self, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(
            Some(bytes.len()),
            self.bytes_for(out.len()),
            "{self:?} bytes for {}",
            out.len()
        );
        match self {
            Self::F32 => {
                for (out, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *out = f32::from_le_bytes(*b);
                }
            }
            Self::F16 => {
                for (out, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *out = f16::from_le_bytes(*b).to_f32();
                }
            }
            Self::BF16 => {
                for (out, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *out = bf16::from_le_bytes(*b).to_f32();
                }
            }
            _ => {
                let mut chunks = out.as_chunks_mut::<32>().0.iter_mut();
                let offset = i16::from(self.offset());
                self.decode(bytes, |group| {
                    let out = chunks.next().expect("one chunk per group");
                    let (scale, min) = (group.scale.map(Factor::value), group.min.value());
                    for (i, out) in out.iter_mut().enumerate() {
                        let centred = f32::from(i16::from(group.codes[i]) - offset);
                        *out = scale[i / 16].mul_add(centred, min);
                    }
                });
            }
        }
    }

    /// Calls `emit` with every 32 quantised weights in order.
    ///
    /// # Panics
    /// If the format is not quantised.
    pub(crate) fn decode(self, bytes: &[u8], mut emit: impl FnMut(&Group)) {
        let unit = |b: &[u8], at: usize| f16::from_le_bytes([b[at], b[at + 1]]);
        let half = |b: &[u8], at: usize| Factor { unit: unit(b, at), steps: 1 };
        for b in bytes.chunks_exact(self.block_bytes()) {
            match self {
                Self::Q8_0 => {
                    let codes = std::array::from_fn(|i| b[2 + i] ^ 0x80);
                    emit(&Group { codes, scale: [half(b, 0); 2], min: Factor::ZERO });
                }
                Self::Q4_0 => {
                    let codes = nibbles(&b[2..]);
                    emit(&Group { codes, scale: [half(b, 0); 2], min: Factor::ZERO });
                }
                Self::Q4_1 => {
                    let codes = nibbles(&b[4..]);
                    emit(&Group { codes, scale: [half(b, 0); 2], min: half(b, 2) });
                }
                Self::Q5_0 => {
                    let codes = five_bits(&b[2..6], &b[6..]);
                    emit(&Group { codes, scale: [half(b, 0); 2], min: Factor::ZERO });
                }
                Self::Q5_1 => {
                    let codes = five_bits(&b[4..8], &b[8..]);
                    emit(&Group { codes, scale: [half(b, 0); 2], min: half(b, 2) });
                }
                Self::Q4_K | Self::Q5_K => {
                    let (parts, _) = b[16..].as_chunks::<32>();
                    let (high, low) = if self == Self::Q5_K {
                        (Some(&parts[0]), &parts[1..])
                    } else {
                        (None, parts)
                    };
                    for g in 0..8 {
                        let (scale, min) = k_scale(&b[4..16], g);
                        let mut codes = low[g / 2].map(|low| low >> (g % 2 * 4) & 15);
                        if let Some(high) = high {
                            for (code, high) in codes.iter_mut().zip(high) {
                                *code |= (high >> g & 1) << 4;
                            }
                        }
                        let scale = Factor { unit: unit(b, 0), steps: scale as i8 };
                        let min = Factor { unit: -unit(b, 2), steps: min as i8 };
                        emit(&Group { codes, scale: [scale; 2], min });
                    }
                }
                Self::Q6_K => {
                    let (parts, _) = b[..192].as_chunks::<32>();
                    for g in 0..8 {
                        let (part, quarter) = (g / 4, g % 4);
                        let (low, high) = (&parts[part * 2 + quarter % 2], &parts[4 + part]);
                        let mut codes = low.map(|low| low >> (quarter / 2 * 4) & 15);
                        for (code, high) in codes.iter_mut().zip(high) {
                            *code |= (high >> (quarter * 2) & 3) << 4;
                        }
                        let steps = [0, 1].map(|h| b[192 + g * 2 + h] as i8);
                        let scale = steps.map(|steps| Factor { unit: unit(b, 208), steps });
                        emit(&Group { codes, scale, min: Factor::ZERO });
                    }
                }
                Self::F32 | Self::F16 | Self::BF16 => panic!("{self:?} has no codes"),
            }
        }
    }

    /// The Q8_0 encoding of what `bytes` are in Q5_0: the same scales and codes, and so the same values.
    #[must_use]
    pub fn q5_0_as_q8_0(bytes: &[u8]) -> Vec<u8> {
        let mut wide = Vec::with_capacity(bytes.len() / 22 * 34);
        Self::Q5_0.decode(bytes, |group| {
            wide.extend(group.scale[0].unit.to_le_bytes());
            wide.extend(group.codes.map(|code| code.wrapping_sub(16)));
        });
        wide
    }

    /// Encodes `values` as Q8_0, Q4_0 or Q4_1 (or a float format); `None` for other formats or where
    /// the values do not fill whole blocks. The 4-bit scales minimise the squared error.
    #[must_use]
    pub fn quantize(self, values: &[f32]) -> Option<Vec<u8>> {
        let mut bytes = Vec::with_capacity(self.bytes_for(values.len())?);
        match self {
            Self::F32 => values.iter().for_each(|v| bytes.extend(v.to_le_bytes())),
            Self::F16 => values.iter().for_each(|v| bytes.extend(f16::from_f32(*v).to_le_bytes())),
            Self::BF16 => {
                values.iter().for_each(|v| bytes.extend(bf16::from_f32(*v).to_le_bytes()))
            }
            Self::Q8_0 | Self::Q4_0 | Self::Q4_1 => {
                for block in values.as_chunks::<32>().0 {
                    match self {
                        Self::Q8_0 => encode_q8_0(block, &mut bytes),
                        Self::Q4_0 => encode_q4_0(block, &mut bytes),
                        _ => encode_q4_1(block, &mut bytes),
                    }
                }
            }
            Self::Q5_0 | Self::Q5_1 | Self::Q4_K | Self::Q5_K | Self::Q6_K => return None,
        }
        Some(bytes)
    }
}

/// Low nibbles are values 0 to 15, high nibbles 16 to 31.
fn nibbles(b: &[u8]) -> [u8; 32] {
    let [b, ..] = b.as_chunks::<16>().0 else { panic!("{} bytes for 32 codes", b.len()) };
    std::array::from_fn(|i| b[i % 16] >> (i / 16 * 4) & 15)
}

/// Codes whose fifth bits stand apart, bit i that of value i; the low four are as in [`nibbles`].
fn five_bits(fifth: &[u8], low: &[u8]) -> [u8; 32] {
    let mut codes = nibbles(low);
    for (codes, fifth) in codes.as_chunks_mut::<8>().0.iter_mut().zip(fifth) {
        for (i, code) in codes.iter_mut().enumerate() {
            *code |= (fifth >> i & 1) << 4;
        }
    }
    codes
}

/// The 6-bit scale and minimum of sub-block `g` of a Q4_K or Q5_K block.
fn k_scale(s: &[u8], g: usize) -> (u8, u8) {
    if g < 4 {
        (s[g] & 63, s[g + 4] & 63)
    } else {
        (s[g + 4] & 15 | s[g - 4] >> 6 << 4, s[g + 4] >> 4 | s[g] >> 6 << 4)
    }
}

fn encode_q8_0(x: &[f32; 32], bytes: &mut Vec<u8>) {
    let max = x.iter().fold(0f32, |m, v| m.max(v.abs()));
    let d = f16::from_f32(max / 127.0);
    let inverse = if d.to_f32() > 0.0 { 1.0 / d.to_f32() } else { 0.0 };
    bytes.extend(d.to_le_bytes());
    bytes.extend(x.iter().map(|v| (v * inverse).round().clamp(-127.0, 127.0) as i8 as u8));
}

/// Least-squares fit of `x ~ d * (q - 8)`.
fn encode_q4_0(x: &[f32; 32], bytes: &mut Vec<u8>) {
    let (mut d, mut codes) = (0.0, [8u8; 32]);
    fit_q4_0(Isa::best(), x, &mut d);
    let d = f16::from_f32(d);
    round_q4_0(Isa::best(), x, d.to_f32(), &mut codes);
    bytes.extend(d.to_le_bytes());
    bytes.extend((0..16).map(|i| codes[i] | codes[i + 16] << 4));
}

/// Adding it rounds a small number to an integer, held in the low bits.
const ROUND: f32 = 12_582_912.0;

/// `x / d`, rounded and held to -8 ..= 7.
#[inline(always)]
fn q4_0(x: f32, inverse: f32) -> f32 {
    let q = (x * inverse + ROUND) - ROUND;
    let q = if q < -8.0 { -8.0 } else { q };
    if q > 7.0 { 7.0 } else { q }
}

per_isa! {
    /// Tries scales around the one that maps the extreme value to -8. For given codes the best scale is
    /// `xq / qq`, and it leaves an error of `xx - xq^2 / qq`.
    fn fit_q4_0(x: &[f32; 32], best: &mut f32) {
        let extreme = x.iter().fold(0f32, |m, v| if v.abs() > m.abs() { *v } else { m });
        if extreme == 0.0 || !extreme.is_finite() {
            return;
        }
        let mut gain = 0.0;
        for step in -4..=4 {
            let inverse = (-8.0 + 0.3 * step as f32) / extreme;
            let (mut xq, mut qq) = ([0f32; 16], [0f32; 16]);
            for half in x.as_chunks::<16>().0 {
                for ((v, xq), qq) in half.iter().zip(&mut xq).zip(&mut qq) {
                    let q = q4_0(*v, inverse);
                    *xq += v * q;
                    *qq += q * q;
                }
            }
            let (xq, qq) = (xq.iter().sum::<f32>(), qq.iter().sum::<f32>());
            if qq > 0.0 && xq * xq / qq > gain {
                gain = xq * xq / qq;
                *best = xq / qq;
            }
        }
    }
}

per_isa! {
    fn round_q4_0(x: &[f32; 32], d: f32, codes: &mut [u8; 32]) {
        if d == 0.0 {
            return;
        }
        let inverse = 1.0 / d;
        for (code, v) in codes.iter_mut().zip(x) {
            *code = (q4_0(*v, inverse) + 8.0) as i32 as u8;
        }
    }
}

/// Fit of `x ~ d * q + m` from the block's range.
fn encode_q4_1(x: &[f32; 32], bytes: &mut Vec<u8>) {
    let (low, high) =
        x.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(l, h), v| (l.min(*v), h.max(*v)));
    let d = f16::from_f32((high - low) / 15.0);
    let m = f16::from_f32(low);
    let inverse = if d.to_f32() > 0.0 { 1.0 / d.to_f32() } else { 0.0 };
    let code = |v: f32| ((v - m.to_f32()) * inverse).round().clamp(0.0, 15.0) as u8;
    bytes.extend(d.to_le_bytes());
    bytes.extend(m.to_le_bytes());
    bytes.extend((0..16).map(|i| code(x[i]) | code(x[i + 16]) << 4));
}

#[cfg(test)]
mod tests;
