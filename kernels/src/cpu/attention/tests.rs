//! Every path against f64 and against the others.

use half::f16;

use super::cache::BLOCK_SIZE;
use super::cells::{Cells, round, scale_of};
use super::*;
use crate::cpu::testing::Random;

const FORMATS: [CacheFormat; 3] = [CacheFormat::F32, CacheFormat::F16, CacheFormat::Int8];

/// What a cache holds of the keys, or the values, of one head of a position.
fn held(format: CacheFormat, x: &[f32]) -> Vec<f32> {
    match format {
        CacheFormat::F32 => x.to_vec(),
        CacheFormat::F16 => x.iter().map(|x| f16::from_f32(*x).to_f32()).collect(),
        CacheFormat::Int8 => {
            let scale = x.iter().fold(0f32, |largest, x| largest.max(x.abs())) / 127.0;
            x.iter().map(|x| (x / scale).round_ties_even() * scale).collect()
        }
    }
}

/// Makes what nobody has written NaN.
fn spoil(cache: &mut LayerCache) {
    for cells in [&mut cache.keys, &mut cache.values] {
        match cells {
            Cells::F16(cells) => cells.fill(f16::NAN),
            Cells::F32(cells) => cells.fill(f32::NAN),
            Cells::Int8 { codes, scales } => {
                codes.fill(-128);
                scales.fill(f32::NAN);
            }
        }
    }
}

/// Sequences of different lengths over shuffled blocks, some rows each, against f64.
#[test]
fn agrees_with_f64_on_ragged_batches() {
    let mut random = Random::new();
    for (heads, kv_heads, dim, window, scale, cap) in [
        (9, 3, 64, None, 0.125, None),
        (4, 4, 16, Some(5), 0.3, None),
        (7, 1, 48, None, 0.2, None),
        (6, 2, 80, None, 0.1, Some(1.5)),
        (2, 1, 32, Some(140), 0.5, Some(0.7)),
        (4, 1, 256, Some(140), 0.0625, None),
    ] {
        let shape = AttentionShape { heads, kv_heads, head_dim: dim, window, scale, cap };
        let lengths = [1usize, 16, 17, 70, 300, 129];
        let rows = [1usize, 3, 17, 9, 40, 2];
        let mut free: Vec<u32> = (0..64).collect();
        let tables: Vec<Vec<u32>> = lengths
            .iter()
            .map(|l| {
                (0..l.div_ceil(BLOCK_SIZE))
                    .map(|_| free.swap_remove(random.bits() as usize % free.len()))
                    .collect()
            })
            .collect();
        let (kv, width) = (kv_heads * dim, (heads + 2 * kv_heads) * dim);
        let mut inputs: Vec<Vec<f32>> = lengths.iter().map(|l| random.vec(l * width)).collect();
        let pool = ThreadPool::new(2);
        for format in FORMATS {
            let mut cache = LayerCache::new(64, &shape, format);
            spoil(&mut cache);
            for ((length, input), table) in lengths.iter().zip(&mut inputs).zip(&tables) {
                let slots: Vec<u32> =
                    (0..*length).map(|p| table[p / BLOCK_SIZE] * 16 + p as u32 % 16).collect();
                // First what a draft might have left there.
                let mut draft = random.vec(input.len()).iter().map(|x| x * 9.0).collect::<Vec<_>>();
                cache.write(&pool, &shape, None, &mut draft, width, &slots);
                cache.write(&pool, &shape, None, input, width, &slots);
            }
            let holds = |input: &Vec<f32>| {
                let heads = input.chunks_exact(dim);
                heads.flat_map(|head| held(format, head)).collect::<Vec<_>>()
            };
            let inputs: Vec<Vec<f32>> = inputs.iter().map(holds).collect();
            for ((length, input), table) in lengths.iter().zip(&inputs).zip(&tables) {
                let (mut keys, mut values) = (vec![0.0; kv], vec![0.0; kv]);
                for p in 0..*length {
                    let slot = table[p / BLOCK_SIZE] * 16 + p as u32 % 16;
                    cache.read(slot, dim, &mut keys, &mut values);
                    let row = &input[p * width + heads * dim..(p + 1) * width];
                    assert_eq!((&*keys, &*values), row.split_at(kv), "{format:?} {p}");
                }
            }
            let (mut cu, mut positions) = (vec![0u32], Vec::new());
            for (length, rows) in lengths.iter().zip(rows) {
                positions.extend((length - rows..*length).map(|p| p as u32));
                cu.push(positions.len() as u32);
            }
            let stride = heads * dim + 3;
            let q = random.vec(positions.len() * stride);
            let mut out = Activations::new();
            let table = |s: usize| tables[s].as_slice();
            paged_attention(&pool, &shape, &q, stride, &cache, &cu, &positions, table, &mut out);
            let out = out.values;
            for s in 0..lengths.len() {
                for row in cu[s] as usize..cu[s + 1] as usize {
                    let end = positions[row] as usize + 1;
                    let begin = window.map_or(0, |w| end.saturating_sub(w));
                    for h in 0..heads {
                        let kv_head = h / (heads / kv_heads);
                        let at = |p: usize, d: usize, v: usize| {
                            let at = p * width + heads * dim + v * kv + kv_head * dim + d;
                            f64::from(inputs[s][at])
                        };
                        let score = |p: usize| {
                            let q = &q[row * stride + h * dim..][..dim];
                            let products =
                                q.iter().enumerate().map(|(d, q)| f64::from(*q) * at(p, d, 0));
                            let score = products.sum::<f64>() * f64::from(scale);
                            cap.map_or(score, |cap| {
                                f64::from(cap) * (score / f64::from(cap)).tanh()
                            })
                        };
                        let scores: Vec<f64> = (begin..end).map(score).collect();
                        let total: f64 = scores.iter().map(|s| s.exp()).sum();
                        for d in 0..dim {
                            let want = (begin..end)
                                .map(|p| scores[p - begin].exp() / total * at(p, d, 1))
                                .sum::<f64>();
                            let got = f64::from(out[(row * heads + h) * dim + d]);
                            assert!((got - want).abs() < 2e-6, "{got} {want}");
                        }
                    }
                }
            }
            // The same bits on every path, whether threads share rows or not.
            let batch = AttentionBatch {
                shape: &shape,
                q: &q,
                q_stride: stride,
                cache: &cache,
                cu_seqlens_q: &cu,
                positions: &positions,
            };
            for isa in Isa::supported() {
                for threads in [1, 30] {
                    let mut other = Activations::new();
                    attention_on(isa, &ThreadPool::new(threads), &batch, table, &mut other);
                    assert_eq!(other.values, out, "{isa:?} {format:?} {threads} threads");
                }
            }
            // And for a row alone.
            for row in [0, 2, 30, positions.len() - 4] {
                let sequence = cu.partition_point(|start| *start as usize <= row) - 1;
                let mut alone = Activations::new();
                let (cu, q) = ([0, 1], &q[row * stride..][..stride]);
                let table = |_| tables[sequence].as_slice();
                let at = &positions[row..=row];
                paged_attention(&pool, &shape, q, stride, &cache, &cu, at, table, &mut alone);
                assert_eq!(alone.values, out[row * heads * dim..][..heads * dim], "row {row}");
            }
        }
    }
}

/// A NaN or an infinite value makes all that reads it NaN, and nothing else: rows before it and other sequences see it not,
/// although they share blocks of their tiles, or its block is theirs later.
#[test]
fn nan_in_a_row_reaches_it_and_later_rows_alone() {
    let shape = AttentionShape::new(3, 1, 16);
    for (format, bad) in [
        (CacheFormat::F16, f32::NAN),
        (CacheFormat::Int8, f32::NAN),
        (CacheFormat::Int8, f32::INFINITY),
    ] {
        for place in [3 * 16, 4 * 16] {
            let mut cache = LayerCache::new(2, &shape, format);
            let mut x = vec![0.5; 6 * 80];
            x[80 + place] = bad;
            let pool = ThreadPool::new(1);
            cache.write(&pool, &shape, None, &mut x, 80, &[0, 1, 2, 16, 17, 18]);
            let (q, blocks) = (vec![1.0; 6 * 48], [[0], [1]]);
            let table = |sequence: usize| &blocks[sequence][..];
            let attend = |cache: &LayerCache, isa| {
                let mut out = Activations::new();
                let (shape, positions) = (&shape, &[0, 1, 2, 0, 1, 2]);
                let cu_seqlens_q = &[0, 3, 6];
                let batch =
                    AttentionBatch { shape, q: &q, q_stride: 48, cache, cu_seqlens_q, positions };
                attention_on(isa, &pool, &batch, table, &mut out);
                out.values
            };
            let near = |values: &[f32]| values.iter().all(|v| (v - 0.5).abs() < 1e-6);
            for isa in Isa::supported() {
                let out = attend(&cache, isa);
                assert!(near(&out[..48]) && near(&out[3 * 48..]), "{isa:?} {format:?}");
                let nan = out[48..3 * 48].iter().filter(|v| v.is_nan()).count();
                // f16 cells stand alone; a scale is that of a whole row.
                let whole = place == 48 || format == CacheFormat::Int8;
                assert_eq!(nan, if whole { 2 * 48 } else { 2 * 3 }, "{isa:?} {format:?}");
            }
            cache.write(&pool, &shape, None, &mut [0.5; 80], 80, &[1]);
            for isa in Isa::supported() {
                assert!(near(&attend(&cache, isa)), "{isa:?} {format:?}: written over");
            }
        }
    }
}

/// Codes are the nearest, the same on every path, and of the whole range; small and odd rows keep what they can.
#[test]
fn codes_are_the_nearest_on_every_path() {
    let mut random = Random::new();
    for len in [1, 3, 16, 64, 77] {
        for size in [1.0, 1e-3, 3e37, 1e-30, 1e-36, 1e-42] {
            let x: Vec<f32> = random.vec(len).iter().map(|x| x * size).collect();
            let scale = scale_of(&x);
            let largest = x.iter().fold(0f32, |largest, x| largest.max(x.abs()));
            let mut codes = vec![99; len];
            round(Isa::best(), &x, scale, &mut codes);
            for (x, code) in x.iter().zip(&codes) {
                let error = (f32::from(*code) * scale - x).abs();
                assert!(error <= 0.500_01 * scale.max(largest / 127.0), "{x}: {code} of {scale}");
                let nearest = (x / scale).round_ties_even() as i8;
                assert_eq!(*code, nearest, "{x} of {scale}");
            }
            assert!(size < 1e-35 || codes.iter().any(|code| code.unsigned_abs() == 127));
            for isa in Isa::supported() {
                let mut other = vec![99; len];
                round(isa, &x, scale, &mut other);
                assert_eq!(other, codes, "{isa:?}");
            }
        }
    }
    for isa in Isa::supported() {
        let mut codes = [99; 6];
        round(isa, &[0.5, 1.5, -2.5, 126.5, -0.0, 127.0], 1.0, &mut codes);
        assert_eq!(codes, [0, 2, -2, 126, 0, 127], "{isa:?}");
        round(isa, &[0.0; 6], scale_of(&[0.0; 6]), &mut codes);
        assert_eq!(codes, [0; 6], "{isa:?}");
    }
    assert!(scale_of(&[1.0, -f32::NAN, f32::INFINITY]).is_nan());
    assert_eq!(scale_of(&[1.0, f32::NEG_INFINITY]), f32::INFINITY);
    assert_eq!(scale_of(&[]), f32::MIN_POSITIVE);
}

/// Attention over codes of 8 bits is as far from that over f32 as half a step of every key and value takes it, at most.
#[test]
fn int8_is_near() {
    let mut random = Random::new();
    let (heads, kv_heads, dim, length) = (6, 2, 64, 333);
    let shape = AttentionShape::new(heads, kv_heads, dim);
    let width = (heads + 2 * kv_heads) * dim;
    let pool = ThreadPool::new(2);
    let mut input = random.vec(length * width);
    let blocks: Vec<u32> = (0..length.div_ceil(BLOCK_SIZE) as u32).rev().collect();
    let slots: Vec<u32> =
        (0..length).map(|p| blocks[p / BLOCK_SIZE] * 16 + p as u32 % 16).collect();
    let (rows, positions) = ([0, length as u32], (0..length as u32).collect::<Vec<_>>());
    let [exact, near] = [CacheFormat::F32, CacheFormat::Int8].map(|format| {
        let mut cache = LayerCache::new(blocks.len(), &shape, format);
        cache.write(&pool, &shape, None, &mut input, width, &slots);
        let (mut out, table) = (Activations::new(), |_| &blocks[..]);
        paged_attention(&pool, &shape, &input, width, &cache, &rows, &positions, table, &mut out);
        out.values
    });
    let largest = input.iter().fold(0f32, |largest, x| largest.max(x.abs()));
    let step = largest / 254.0;
    let (mut total, mut most) = (0.0, 0f32);
    for row in 0..length {
        for head in 0..heads {
            let q = &input[row * width + head * dim..][..dim];
            // A score is off by no more, so weights by no more than a factor of its exponential, twice.
            let score = q.iter().map(|q| q.abs()).sum::<f32>() * step * shape.scale;
            let bound = step + 2.0 * largest * ((2.0 * score).exp() - 1.0);
            let at = (row * heads + head) * dim;
            for (exact, near) in exact[at..][..dim].iter().zip(&near[at..][..dim]) {
                let error = (exact - near).abs();
                assert!(error <= bound, "{exact} and {near}, within {bound}");
                total += f64::from(error * error);
                most = most.max(error);
            }
        }
    }
    let mean = (total / exact.len() as f64).sqrt();
    assert!(mean < 1e-3 && most < 8e-3, "{mean} {most}");
}

/// A block of int8 takes the bytes of its codes and scales.
#[test]
fn bytes_of_a_block() {
    let shape = AttentionShape::new(9, 3, 64);
    let bytes = |format| LayerCache::bytes(5, &shape, format);
    assert_eq!(FORMATS.map(bytes), [4 * 64, 2 * 64, 64 + 4].map(|row| 2 * 5 * 3 * 16 * row));
}
