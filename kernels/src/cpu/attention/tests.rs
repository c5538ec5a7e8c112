//! Every path against f64 and against the others.

use half::f16;

use super::cache::BLOCK_SIZE;
use super::cache::Cells;
use super::*;
use crate::cpu::testing::Random;

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
        for format in [CacheFormat::F32, CacheFormat::F16] {
            let mut cache = LayerCache::new(64, &shape, format);
            for cells in [&mut cache.keys, &mut cache.values] {
                match cells {
                    Cells::F16(cells) => cells.fill(f16::NAN),
                    Cells::F32(cells) => cells.fill(f32::NAN),
                }
            }
            for ((length, input), table) in lengths.iter().zip(&mut inputs).zip(&tables) {
                if format == CacheFormat::F16 {
                    input.iter_mut().for_each(|v| *v = f16::from_f32(*v).to_f32());
                }
                let slots: Vec<u32> =
                    (0..*length).map(|p| table[p / BLOCK_SIZE] * 16 + p as u32 % 16).collect();
                cache.write(&pool, &shape, None, input, width, &slots);
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

#[test]
fn nan_in_a_row_reaches_it_and_later_rows_alone() {
    let shape = AttentionShape::new(3, 1, 16);
    for place in [3 * 16, 4 * 16] {
        let mut cache = LayerCache::new(1, &shape, CacheFormat::F16);
        let mut x = vec![0.5; 3 * 80];
        x[80 + place] = f32::NAN;
        let pool = ThreadPool::new(1);
        cache.write(&pool, &shape, None, &mut x, 80, &[0, 1, 2]);
        let (q, table) = (vec![1.0; 3 * 48], |_| &[0][..]);
        for isa in Isa::supported() {
            let mut out = Activations::new();
            let (shape, cache, positions) = (&shape, &cache, &[0, 1, 2]);
            let cu_seqlens_q = &[0, 3];
            let batch =
                AttentionBatch { shape, q: &q, q_stride: 48, cache, cu_seqlens_q, positions };
            attention_on(isa, &pool, &batch, table, &mut out);
            assert!(out.values[..48].iter().all(|v| *v == 0.5), "{isa:?}");
            let nan = out.values[48..].iter().filter(|v| v.is_nan()).count();
            assert_eq!(nan, if place == 48 { 2 * 48 } else { 2 * 3 }, "{isa:?}");
        }
    }
}
