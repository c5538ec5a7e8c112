//! Weight formats: size, decoding, encoding. The reference for every kernel that reads weights.
//!
//! A quantised weight is a code `q` with a scale and an offset, `w = scale * q + min`; [`DType::decode`]
//! yields exactly that for every format, 32 values at a time. Layouts follow ggml.

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

/// 32 quantised weights: `w[i] = scale[i / 16] * code[i] + min[i / 16]`.
#[derive(Debug, Clone, Copy)]
pub struct Group {
    /// Unsigned codes.
    pub codes: [u8; 32],
    /// Scale of each half.
    pub scale: [f32; 2],
    /// Value of code 0 in each half.
    pub min: [f32; 2],
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
                self.decode(bytes, |group| {
                    let out = chunks.next().expect("one chunk per group");
                    for (i, out) in out.iter_mut().enumerate() {
                        let half = i / 16;
                        *out =
                            group.scale[half].mul_add(f32::from(group.codes[i]), group.min[half]);
                    }
                });
            }
        }
    }

    /// Calls `emit` with every 32 quantised weights in order.
    ///
    /// # Panics
    /// If the format is not quantised.
    pub fn decode(self, bytes: &[u8], mut emit: impl FnMut(&Group)) {
        let half = |b: &[u8], at: usize| f16::from_le_bytes([b[at], b[at + 1]]).to_f32();
        for b in bytes.chunks_exact(self.block_bytes()) {
            match self {
                Self::Q8_0 => {
                    let d = half(b, 0);
                    let codes = std::array::from_fn(|i| b[2 + i] ^ 0x80);
                    emit(&Group { codes, scale: [d; 2], min: [-128.0 * d; 2] });
                }
                Self::Q4_0 => {
                    let d = half(b, 0);
                    emit(&Group { codes: nibbles(&b[2..]), scale: [d; 2], min: [-8.0 * d; 2] });
                }
                Self::Q4_1 => {
                    let (d, m) = (half(b, 0), half(b, 2));
                    emit(&Group { codes: nibbles(&b[4..]), scale: [d; 2], min: [m; 2] });
                }
                Self::Q5_0 => {
                    let d = half(b, 0);
                    let codes = five_bits(&b[2..6], &b[6..]);
                    emit(&Group { codes, scale: [d; 2], min: [-16.0 * d; 2] });
                }
                Self::Q5_1 => {
                    let (d, m) = (half(b, 0), half(b, 2));
                    let codes = five_bits(&b[4..8], &b[8..]);
                    emit(&Group { codes, scale: [d; 2], min: [m; 2] });
                }
                Self::Q4_K | Self::Q5_K => {
                    let (d, dmin) = (half(b, 0), half(b, 2));
                    let (high, low) = if self == Self::Q5_K {
                        (Some(&b[16..48]), &b[48..])
                    } else {
                        (None, &b[16..])
                    };
                    for g in 0..8 {
                        let (scale, min) = k_scale(&b[4..16], g);
                        let codes = std::array::from_fn(|i| {
                            let nibble = low[g / 2 * 32 + i] >> (g % 2 * 4) & 15;
                            nibble | high.map_or(0, |high| (high[i] >> g & 1) << 4)
                        });
                        let (scale, min) = (d * f32::from(scale), -dmin * f32::from(min));
                        emit(&Group { codes, scale: [scale; 2], min: [min; 2] });
                    }
                }
                Self::Q6_K => {
                    let d = half(b, 208);
                    for g in 0..8 {
                        let (part, quarter) = (g / 4, g % 4);
                        let low = &b[part * 64 + quarter % 2 * 32..];
                        let high = &b[128 + part * 32..];
                        let codes = std::array::from_fn(|i| {
                            (low[i] >> (quarter / 2 * 4) & 15) | (high[i] >> (quarter * 2) & 3) << 4
                        });
                        let scale = [0, 1].map(|h| d * f32::from(b[192 + g * 2 + h] as i8));
                        emit(&Group { codes, scale, min: scale.map(|s| -32.0 * s) });
                    }
                }
                Self::F32 | Self::F16 | Self::BF16 => panic!("{self:?} has no codes"),
            }
        }
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
    std::array::from_fn(|i| b[i % 16] >> (i / 16 * 4) & 15)
}

/// Codes whose fifth bits stand apart, bit i that of value i; the low four are as in [`nibbles`].
fn five_bits(fifth: &[u8], low: &[u8]) -> [u8; 32] {
    let nibbles = nibbles(low);
    std::array::from_fn(|i| nibbles[i] | (fifth[i / 8] >> (i % 8) & 1) << 4)
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
mod tests {
    use super::*;
    use crate::cpu::testing::Random;

    #[test]
    fn quantize_comes_back_close() {
        let mut random = Random::new();
        let x = random.vec(32 * 9);
        for (dtype, tolerance) in [
            (DType::F32, 0.0),
            (DType::F16, 1e-3),
            (DType::BF16, 1e-2),
            (DType::Q8_0, 0.005),
            (DType::Q4_0, 0.15),
            (DType::Q4_1, 0.08),
        ] {
            let bytes = dtype.quantize(&x).expect("supported");
            let mut back = vec![f32::NAN; x.len()];
            dtype.dequantize(&bytes, &mut back);
            for (a, b) in x.iter().zip(&back) {
                assert!((a - b).abs() <= tolerance, "{dtype:?}: {a} {b}");
            }
        }
        assert_eq!(DType::Q8_0.quantize(&x[..33]), None);
        let zeros = DType::Q4_0.quantize(&[0.0; 32]).expect("supported");
        let mut back = [f32::NAN; 32];
        DType::Q4_0.dequantize(&zeros, &mut back);
        assert_eq!(back, [0.0; 32]);
    }

    /// The worked layouts of the 5-bit formats: two codes set, everything else zero.
    #[test]
    fn five_bit_codes_have_their_fifth_bits_apart() {
        let half = |v: f32| f16::from_f32(v).to_le_bytes();
        let mut block = [0u8; 24];
        block[..2].copy_from_slice(&half(0.5));
        block[2..4].copy_from_slice(&half(-3.0));
        block[4 + 2] = 1 << 3; // the fifth bit of value 19
        block[8 + 3] = 9 << 4 | 6; // the low bits of values 19 and 3
        let mut out = [f32::NAN; 32];
        DType::Q5_1.dequantize(&block, &mut out);
        assert_eq!((out[3], out[19], out[0]), (0.0, 9.5, -3.0));
        let centred = [&block[..2], &block[4..]].concat();
        DType::Q5_0.dequantize(&centred, &mut out);
        assert_eq!((out[3], out[19], out[0]), (-5.0, 4.5, -8.0));
    }

    /// The worked layouts of the K-quants: one weight set, everything else zero.
    #[test]
    fn k_quants_put_each_weight_in_its_place() {
        let one = f16::ONE.to_le_bytes();
        let mut q4 = [0u8; 144];
        q4[..2].copy_from_slice(&one);
        q4[4 + 1] = 3; // scale of sub-block 1
        q4[16 + 5] = 7 << 4; // its sixth code
        let mut out = [f32::NAN; 256];
        DType::Q4_K.dequantize(&q4, &mut out);
        assert_eq!((out[37], out.iter().filter(|v| **v != 0.0).count()), (21.0, 1));

        let mut q6 = [0u8; 210];
        q6[208..].copy_from_slice(&one);
        q6[192 + 9] = 2; // scale of weights 144..160
        q6[64 + 16] = 5; // low bits of weight 144
        q6[128 + 32 + 16] = 2; // and its high bits
        DType::Q6_K.dequantize(&q6, &mut out);
        assert_eq!(out[144], 2.0 * (37.0 - 32.0));
        assert_eq!(out[145], 2.0 * -32.0);
    }
}
