//! Codes of a block of 32 inputs and 16 outputs: as many lines as a code has bits.
//!
//! Eight bits: a line for each group of 4 inputs, a byte a code. Fewer: four lines of the four lower bits, group g in the
//! low and group g + 4 in the high halves of bytes, and behind them lines of the upper bits: one whose bytes hold a bit
//! of every group, or two whose bytes hold two bits of four groups each, first group lowest.

use super::panels::{Line, PANEL};
use crate::cpu::quantize::{BLOCK, GROUP};

/// Groups of a block.
const GROUPS: usize = BLOCK / GROUP;

/// The bits `mask` of every byte of a word.
const fn in_each_byte(mask: u8) -> u32 {
    u32::from_ne_bytes([mask; 4])
}

/// Where the bits of a group above its lower four are: the line, the shift, and their mask, of `upper` bits.
fn upper_place(upper: usize, group: usize) -> (usize, usize, u32) {
    let per_line = GROUPS / upper;
    (GROUPS / 2 + group / per_line, upper * (group % per_line), in_each_byte((1 << upper) - 1))
}

/// Sets the codes of one output in lines of zeros.
pub(super) fn set(lines: &mut [Line], lane: usize, codes: &[u8; BLOCK]) {
    let bits = lines.len();
    let mut words = [0u32; GROUPS];
    for (group, codes) in codes.as_chunks().0.iter().enumerate() {
        let codes = u32::from_le_bytes(*codes);
        if bits == GROUPS {
            words[group] = codes;
            continue;
        }
        words[group % 4] |= (codes & in_each_byte(15)) << (4 * (group / 4));
        if bits > 4 {
            let (line, shift, mask) = upper_place(bits - 4, group);
            words[line] |= (codes >> 4 & mask) << shift;
        }
    }
    for (line, word) in lines.iter_mut().zip(words) {
        *word_of(line, lane) = word.to_le_bytes();
    }
}

/// The codes of one output.
pub(crate) fn get(lines: &[Line], lane: usize) -> [u8; BLOCK] {
    let bits = lines.len();
    let word = |line: usize| u32::from_le_bytes(lines[line].0.as_chunks().0[lane]);
    let mut codes = [0; BLOCK];
    for (group, codes) in codes.as_chunks_mut().0.iter_mut().enumerate() {
        let mut of_group = if bits == GROUPS {
            word(group)
        } else {
            word(group % 4) >> (4 * (group / 4)) & in_each_byte(15)
        };
        if (5..GROUPS).contains(&bits) {
            let (line, shift, mask) = upper_place(bits - 4, group);
            of_group |= (word(line) >> shift & mask) << 4;
        }
        *codes = of_group.to_le_bytes();
    }
    codes
}

/// Copies the codes of one output.
pub(super) fn copy(to: &mut [Line], to_lane: usize, from: &[Line], from_lane: usize) {
    for (to, from) in to.iter_mut().zip(from) {
        *word_of(to, to_lane) = from.0.as_chunks().0[from_lane];
    }
}

/// The bytes of one output.
fn word_of(line: &mut Line, lane: usize) -> &mut [u8; 64 / PANEL] {
    &mut line.0.as_chunks_mut().0[lane]
}
