//! One query head at a time, in plain Rust, and the softmax that all paths share.

use std::ops::Range;

use super::super::elementwise::exp;
use super::super::isa::per_isa;
use super::{KvHead, seen_in};
use crate::kv_cache::BLOCK_SIZE;

per_isa! {
    pub(super) fn head(
        q: &[f32],
        kv: &KvHead,
        begin: usize,
        end: usize,
        scores: &mut [[f32; BLOCK_SIZE]],
        out: &mut [f32],
    ) {
        let first = begin / BLOCK_SIZE;
        for (block, scores) in scores.iter_mut().enumerate().skip(first) {
            let mut sums = [0f32; BLOCK_SIZE];
            for (chunk, q) in q.chunks(16).enumerate() {
                let mut keys = [0f32; 16 * BLOCK_SIZE];
                let keys = &mut keys[..q.len() * BLOCK_SIZE];
                kv.cache.keys.read(kv.base(block) + chunk * 16 * BLOCK_SIZE, keys);
                for (q, keys) in q.iter().zip(keys.as_chunks::<BLOCK_SIZE>().0) {
                    for (sum, key) in sums.iter_mut().zip(keys) {
                        *sum = q.mul_add(*key, *sum);
                    }
                }
            }
            *scores = sums;
        }
        let scale = 1.0 / (kv.dim as f32).sqrt();
        let inverse = weights(&mut scores[first..], first * BLOCK_SIZE, begin, end, scale);
        for (chunk, out) in out.chunks_mut(64).enumerate() {
            let mut sums = [0f32; 64];
            let width = out.len();
            for (block, scores) in scores.iter().enumerate().skip(first) {
                for position in seen_in(block, begin, end) {
                    let mut values = [0f32; 64];
                    let at = kv.base(block) + position * kv.dim + chunk * 64;
                    kv.cache.values.read(at, &mut values[..width]);
                    for (sum, value) in sums.iter_mut().zip(&values[..width]) {
                        *sum = scores[position].mul_add(*value, *sum);
                    }
                }
            }
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = sum * inverse;
            }
        }
    }
}

per_isa! {
    pub(super) fn weights_of(
        scores: &mut [[f32; BLOCK_SIZE]],
        start: usize,
        seen: &Range<usize>,
        scale: f32,
        inverse: &mut f32,
    ) {
        *inverse = weights(scores, start, seen.start, seen.end, scale);
    }
}

/// In place: scores of positions from `start` on become unnormalised weights, 0 outside
/// `begin .. end`. Returns one over their sum.
#[inline(always)]
fn weights(
    scores: &mut [[f32; BLOCK_SIZE]],
    start: usize,
    begin: usize,
    end: usize,
    scale: f32,
) -> f32 {
    let mut top = [f32::NEG_INFINITY; BLOCK_SIZE];
    for (block, scores) in scores.iter_mut().enumerate() {
        for (lane, (score, top)) in scores.iter_mut().zip(&mut top).enumerate() {
            let position = start + block * BLOCK_SIZE + lane;
            let seen = position >= begin && position < end;
            *score = if seen { *score * scale } else { f32::NEG_INFINITY };
            // A NaN may be passed over here; its own weight is NaN, and so is the sum.
            *top = if *score <= *top { *top } else { *score };
        }
    }
    let top = top.iter().fold(f32::NEG_INFINITY, |top, v| if *v <= top { top } else { *v });
    let mut sums = [0f32; BLOCK_SIZE];
    for scores in scores.iter_mut() {
        for (score, sum) in scores.iter_mut().zip(&mut sums) {
            let unseen = *score == f32::NEG_INFINITY;
            *score = if unseen { 0.0 } else { exp(*score - top) };
            *sum += *score;
        }
    }
    1.0 / sums.iter().sum::<f32>()
}
