//! Weights of quantised folders, decoded to formats that the kernels read.

use half::{bf16, f16};
use pleach_kernels::DType;

/// The value of a float of 8 bits with 4 of exponent and 3 of mantissa.
fn e4m3(bits: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(bits >> 3 & 15), f32::from(bits & 7));
    let size = match (exponent, bits & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa * f32::exp2(-9.0),
        _ => (8.0 + mantissa) * f32::exp2((exponent - 10) as f32),
    };
    if bits & 128 == 0 { size } else { -size }
}

/// Weights of e4m3 in rows of `width`, times the scale of their place, as bf16.
pub(super) fn fp8(weights: &[u8], width: usize, scale: impl Fn(usize, usize) -> f32) -> Vec<u8> {
    let values: [f32; 256] = std::array::from_fn(|bits| e4m3(bits as u8));
    let rows = weights.chunks(width.max(1)).enumerate();
    rows.flat_map(|(row, weights)| {
        let scale = &scale;
        let weight = move |(at, bits): (usize, &u8)| values[usize::from(*bits)] * scale(row, at);
        weights.iter().enumerate().map(weight).flat_map(|v| bf16::from_f32(v).to_le_bytes())
    })
    .collect()
}

/// A matrix whose codes of 4 bits lie in words of 8.
pub(super) struct Packed<'a> {
    /// Codes and zeros.
    pub(super) words: [&'a [u8]; 2],
    /// Scales of all outputs, group by group.
    pub(super) scales: &'a [f16],
    /// The group of each input.
    pub(super) groups: &'a [usize],
    pub(super) outputs: usize,
}

/// Where 8 neighbouring outputs lie in a word of AWQ.
const AWQ: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

fn nibble(words: &[u8], word: usize, at: usize) -> u8 {
    words[word * 4 + at / 2] >> (at % 2 * 4) & 15
}

impl Packed<'_> {
    /// As Q8_0, from GPTQ's layout.
    pub(super) fn gptq(&self, zeros_less_one: bool) -> Vec<u8> {
        let [codes, zeros] = self.words;
        let words = self.outputs / 8;
        self.q8_0(
            |input, output| nibble(codes, input / 8 * self.outputs + output, input % 8),
            |group, output| {
                let zero = nibble(zeros, group * words + output / 8, output % 8);
                if zeros_less_one { (zero + 1) & 15 } else { zero }
            },
        )
    }

    /// As Q8_0, from AWQ's layout.
    pub(super) fn awq(&self) -> Vec<u8> {
        let [codes, zeros] = self.words;
        let words = self.outputs / 8;
        self.q8_0(
            |input, output| nibble(codes, input * words + output / 8, AWQ[output % 8]),
            |group, output| nibble(zeros, group * words + output / 8, AWQ[output % 8]),
        )
    }

    /// Every weight as it is, where the 32 inputs of a block are of one group; quantised anew where they are not.
    fn q8_0(
        &self,
        code: impl Fn(usize, usize) -> u8,
        zero: impl Fn(usize, usize) -> u8,
    ) -> Vec<u8> {
        let size = DType::Q8_0.block_bytes();
        let row = self.groups.len() / 32 * size;
        let mut out = vec![0; self.outputs * row];
        for (block, groups) in self.groups.as_chunks::<32>().0.iter().enumerate() {
            for output in 0..self.outputs {
                let steps: [i8; 32] = std::array::from_fn(|i| {
                    code(block * 32 + i, output) as i8 - zero(groups[i], output) as i8
                });
                let scale = |group: usize| self.scales[group * self.outputs + output];
                let place = &mut out[output * row + block * size..][..size];
                if groups.iter().all(|group| *group == groups[0]) {
                    place[..2].copy_from_slice(&scale(groups[0]).to_le_bytes());
                    place[2..].copy_from_slice(&steps.map(|step| step as u8));
                } else {
                    let value = |i: usize| f32::from(steps[i]) * scale(groups[i]).to_f32();
                    let values: [f32; 32] = std::array::from_fn(value);
                    let bytes = DType::Q8_0.quantize(&values).expect("invariant: one block");
                    place.copy_from_slice(&bytes);
                }
            }
        }
        out
    }
}
