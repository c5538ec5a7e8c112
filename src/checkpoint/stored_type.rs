//! The types that tensors have in GGUF files: those that the kernels read, and those that are decoded to one of them as
//! a tensor is read. Layouts follow ggml.

use std::fmt;

use half::f16;
use pleach_kernels::DType;

/// A tensor's type in a file.
#[expect(non_camel_case_types, reason = "the names the files use")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StoredType {
    /// One of the kernels' own.
    Kept(DType),
    /// 2 bits, 4-bit scales and minima per 16 weights in blocks of 256.
    Q2_K,
    /// 3 bits, 6-bit scales per 16 weights in blocks of 256.
    Q3_K,
    /// 4 bits that choose one of 16 integers, a scale per 32 weights.
    IQ4_NL,
    /// The same integers, 6-bit scales per 32 weights in blocks of 256.
    IQ4_XS,
    /// Floats of 4 bits, a power of two as scale per 32 weights.
    MXFP4,
}

/// Types that are not read, by their number.
const UNREAD: [(u32, &str); 13] = [
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (40, "NVFP4"),
];

/// What the codes of IQ4_NL and IQ4_XS stand for.
const IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Twice what the codes of MXFP4 stand for.
const E2M1: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

impl StoredType {
    /// The type with this number.
    ///
    /// # Errors
    /// What the type is called, and which are read.
    pub(super) fn from_id(id: u32) -> Result<Self, String> {
        if let Some(dtype) = DType::from_ggml_id(id) {
            return Ok(Self::Kept(dtype));
        }
        Ok(match id {
            10 => Self::Q2_K,
            11 => Self::Q3_K,
            20 => Self::IQ4_NL,
            23 => Self::IQ4_XS,
            39 => Self::MXFP4,
            _ => {
                let name = UNREAD.iter().find(|(unread, _)| *unread == id);
                let name = name.map_or_else(String::new, |(_, name)| format!(" ({name})"));
                return Err(format!(
                    "ggml type {id}{name}; supported are F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K, Q3_K, \
                     Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS and MXFP4"
                ));
            }
        })
    }

    /// The format that its tensors have once they are read: one that holds every weight as it is, but for the
    /// rounding of [`decode`](Self::decode).
    pub(super) fn dtype(self) -> DType {
        match self {
            Self::Kept(dtype) => dtype,
            Self::Q3_K => DType::Q6_K,
            Self::Q2_K | Self::IQ4_NL | Self::IQ4_XS | Self::MXFP4 => DType::Q8_0,
        }
    }

    /// Weights in one block, and its bytes.
    fn block(self) -> (usize, usize) {
        match self {
            Self::Kept(dtype) => (dtype.block_size(), dtype.block_bytes()),
            Self::Q2_K => (256, 84),
            Self::Q3_K => (256, 110),
            Self::IQ4_NL => (32, 18),
            Self::IQ4_XS => (256, 136),
            Self::MXFP4 => (32, 17),
        }
    }

    /// Bytes of a tensor of this shape; `None` where its rows do not fill whole blocks or it overflows.
    pub(super) fn bytes_for(self, shape: &[usize]) -> Option<usize> {
        let (values, bytes) = self.block();
        let count = shape.iter().try_fold(1usize, |count, size| count.checked_mul(*size))?;
        let row = shape.last().copied().unwrap_or(1);
        row.is_multiple_of(values).then(|| (count / values).checked_mul(bytes)).flatten()
    }

    /// A tensor's bytes in the format of [`dtype`](Self::dtype).
    ///
    /// Q3_K and IQ4_NL keep every weight, and so does MXFP4 where its weights are multiples of 2^-24; others are rounded to
    /// such multiples. The scales of IQ4_XS are rounded to f16, and Q2_K is quantised anew.
    ///
    /// # Errors
    /// A scale is more than f16 holds, or no number.
    pub(super) fn decode(self, bytes: Vec<u8>) -> Result<Vec<u8>, String> {
        let to: fn(&[u8], &mut Vec<u8>) = match self {
            Self::Kept(_) => return Ok(bytes),
            Self::Q2_K => q2_k,
            Self::Q3_K => q3_k,
            Self::IQ4_NL => |block, out| q8_0(half(block, 0), codes(&block[2..], &IQ4), out),
            Self::IQ4_XS => iq4_xs,
            Self::MXFP4 => mxfp4,
        };
        let (values, size) = self.block();
        let dtype = self.dtype();
        let decoded = values / dtype.block_size() * dtype.block_bytes();
        let mut out = Vec::with_capacity(bytes.len() / size * decoded);
        bytes.chunks_exact(size).for_each(|block| to(block, &mut out));
        let scale = if dtype == DType::Q6_K { 208 } else { 0 };
        let mut blocks = out.chunks_exact(dtype.block_bytes());
        match blocks.position(|block| !half(block, scale).is_finite()) {
            None => Ok(out),
            Some(at) => Err(format!(
                "the scale of {self} weights from {} on is more than f16 holds, or no number",
                at * dtype.block_size()
            )),
        }
    }
}

impl fmt::Display for StoredType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kept(dtype) => write!(f, "{dtype:?}"),
            other => write!(f, "{other:?}"),
        }
    }
}

fn half(block: &[u8], at: usize) -> f16 {
    f16::from_le_bytes([block[at], block[at + 1]])
}

/// Appends a block of Q8_0.
fn q8_0(scale: f16, codes: [i8; 32], out: &mut Vec<u8>) {
    out.extend(scale.to_le_bytes());
    out.extend(codes.map(|code| code as u8));
}

/// What 32 codes of 4 bits stand for: the low halves of 16 bytes, then the high ones.
fn codes(bytes: &[u8], values: &[i8; 16]) -> [i8; 32] {
    std::array::from_fn(|i| values[usize::from(bytes[i % 16] >> (i / 16 * 4) & 15)])
}

fn iq4_xs(block: &[u8], out: &mut Vec<u8>) {
    let high = u16::from_le_bytes([block[2], block[3]]);
    for g in 0..8 {
        let low = block[4 + g / 2] >> (g % 2 * 4) & 15;
        let scale = i32::from(low) + i32::from(high >> (g * 2) & 3) * 16 - 32;
        let scale = half(block, 0).to_f32() * scale as f32;
        q8_0(f16::from_f32(scale), codes(&block[8 + g * 16..], &IQ4), out);
    }
}

fn mxfp4(block: &[u8], out: &mut Vec<u8>) {
    // Weights are multiples of 2^exponent. f16 holds those from -24 to 15; codes have room for three powers more.
    let exponent = i32::from(block[0]) - 128;
    let held = exponent.clamp(-24, 15);
    let factor = f32::exp2((exponent - held) as f32);
    let scale = if exponent > 18 { f16::INFINITY } else { f16::from_f32(f32::exp2(held as f32)) };
    let code = |code: i8| (f32::from(code) * factor).round_ties_even() as i8;
    q8_0(scale, codes(&block[1..], &E2M1).map(code), out);
}

fn q2_k(block: &[u8], out: &mut Vec<u8>) {
    let [scale, min] = [half(block, 80), half(block, 82)].map(f16::to_f32);
    let value = |i: usize| {
        let code = block[16 + i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3;
        let scales = block[i / 16];
        scale * f32::from(scales & 15) * f32::from(code) - min * f32::from(scales >> 4)
    };
    let values: [f32; 256] = std::array::from_fn(value);
    out.extend(DType::Q8_0.quantize(&values).expect("invariant: whole blocks"));
}

fn q3_k(block: &[u8], out: &mut Vec<u8>) {
    // A code of Q6_K is 32 above its weight's multiple of the scale, one of Q3_K is 4 above it.
    let code = |i: usize| {
        let low = block[32 + i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3;
        (low | (block[i % 32] >> (i / 32) & 1) << 2) + 28
    };
    for byte in 0..128 {
        let first = byte / 64 * 128 + byte % 64;
        out.push(code(first) & 15 | code(first + 64) << 4);
    }
    for byte in 0..64 {
        let first = byte / 32 * 128 + byte % 32;
        out.push((0..4).fold(0, |bits, g| bits | code(first + g * 32) >> 4 << (g * 2)));
    }
    let scales = &block[96..108];
    for g in 0..16 {
        let low = scales[g % 8] >> (g / 8 * 4) & 15;
        let high = scales[8 + g % 4] >> (g / 4 * 2) & 3;
        out.push((low | high << 4).wrapping_sub(32));
    }
    out.extend(&block[108..110]);
}
