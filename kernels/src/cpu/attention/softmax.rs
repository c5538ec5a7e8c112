//! The softmax of one chunk of positions, and how chunks are merged.

use super::cache::BLOCK_SIZE;
use crate::cpu::isa::per_isa;
use crate::cpu::lanes::exp;
use crate::cpu::lanes::fold_lanes;

per_isa! {
    /// In place: scores become unnormalised weights, `exp(scale * score - top)` with a `scale` above 0, 0 outside
    /// `begin .. end`. `top` is the largest scaled score and `sum` that of the weights.
    pub(super) fn weigh(
        scores: &mut [f32],
        begin: usize,
        end: usize,
        scale: f32,
        top: &mut f32,
        sum: &mut f32,
    ) {
        scores[..begin].fill(f32::NEG_INFINITY);
        scores[end..].fill(f32::NEG_INFINITY);
        let mut tops = [f32::NEG_INFINITY; BLOCK_SIZE];
        let blocks = scores.as_chunks_mut::<BLOCK_SIZE>().0;
        for scores in blocks.iter_mut() {
            for (score, top) in scores.iter_mut().zip(&mut tops) {
                *score *= scale;
                // A NaN is passed over here; its own weight is NaN, and so is the sum.
                *top = if *score > *top { *score } else { *top };
            }
        }
        *top = fold_lanes(tops, |a, b| if a > b { a } else { b });
        let mut sums = [0f32; BLOCK_SIZE];
        for scores in blocks {
            for (score, sum) in scores.iter_mut().zip(&mut sums) {
                let unseen = *score == f32::NEG_INFINITY;
                *score = if unseen { 0.0 } else { exp(*score - *top) };
                *sum += *score;
            }
        }
        *sum = fold_lanes(sums, |a, b| a + b);
    }
}

per_isa! {
    /// Adds the sums of a chunk to those of the chunks before it. Both are weighted sums of values, then
    /// the top and the sum of [`weigh`].
    pub(super) fn merge(sums: &mut [f32], chunk: &[f32]) {
        let (values, rest) = sums.split_at_mut(sums.len() - 2);
        let (chunk, chunk_rest) = chunk.split_at(values.len());
        let (a, b) = (rest[0], chunk_rest[0]);
        let top = if a <= b { b } else { a };
        let (old, new) = (exp(a - top), exp(b - top));
        for (value, chunk) in values.iter_mut().zip(chunk) {
            *value = new.mul_add(*chunk, old * *value);
        }
        rest[0] = top;
        rest[1] = new.mul_add(chunk_rest[1], old * rest[1]);
    }
}
