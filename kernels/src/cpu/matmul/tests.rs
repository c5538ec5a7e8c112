//! Every path against f64 and against the plain one.

use super::gated::gated_product_on;
use super::*;
use crate::DType;
use crate::cpu::gate::{Activation, gate_row};
use crate::cpu::testing::{QUANTIZED, Random};

/// Random bytes are valid codes; scales are set to small half-precision numbers.
fn random_matrix(dtype: DType, out: usize, cols: usize, random: &mut Random) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..dtype.bytes_for(out * cols).expect("whole blocks"))
        .map(|_| random.bits() as u8)
        .collect();
    for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
        let mut put = |at: usize, v: f32| {
            block[at..at + 2].copy_from_slice(&half::f16::from_f32(v).to_le_bytes());
        };
        match dtype {
            DType::Q8_0 | DType::Q4_0 | DType::Q5_0 => put(0, random.value() * 0.1),
            DType::Q4_1 | DType::Q5_1 | DType::Q4_K | DType::Q5_K => {
                put(0, random.value() * 0.1);
                put(2, random.value() * 0.1);
            }
            DType::Q6_K => put(208, random.value() * 0.1),
            _ => {}
        }
    }
    bytes
}

fn run(isa: Isa, threads: usize, w: &PackedMatrix, x: &[f32], rows: usize) -> Vec<f32> {
    let pool = ThreadPool::new(threads);
    let mut a = Activations::new();
    a.set(&pool, x, rows, w.in_features());
    // Beside another matrix, in rows with room to spare.
    let before = PackedMatrix::from_f32(3, w.in_features(), &vec![1.0; 3 * w.in_features()]);
    let before = before.expect("fits");
    let stride = w.out_features() + 5;
    let mut out = vec![f32::NAN; rows * stride];
    matmul_on(isa, &pool, &[&before, w], &a, &mut out, stride, false);
    let mut twice = out.clone();
    matmul_on(isa, &pool, &[&before, w], &a, &mut twice, stride, true);
    let doubled = |(twice, once): (&f32, &f32)| *twice == 2.0 * once || once.is_nan();
    assert!(twice.iter().zip(&out).all(doubled), "adding to the output");
    assert!(out.chunks(stride).all(|row| row[stride - 2..].iter().all(|v| v.is_nan())));
    out.chunks(stride).flat_map(|row| row[3..stride - 2].to_vec()).collect()
}

#[test]
fn quantized_weights_agree_with_f64_and_between_paths() {
    let mut random = Random::new();
    for dtype in QUANTIZED {
        let mut rows = |least| least + random.bits() as usize % 16;
        let shapes = [
            (1, 256, 1),
            (16, 512, 3),
            (37, 768, 9),
            (50, 256, 21),
            (20, 256, 6),
            (33, 256, 8),
            (48, 256, rows(1)),
            (90, 256, rows(17)),
            (90, 256, rows(17)),
        ];
        for (out, cols, rows) in shapes {
            let cols = if dtype.block_size() == 32 { cols + 32 } else { cols };
            let bytes = random_matrix(dtype, out, cols, &mut random);
            let mut dense = vec![f32::NAN; out * cols];
            dtype.dequantize(&bytes, &mut dense);
            let w = PackedMatrix::pack_on(&ThreadPool::new(3), dtype, out, cols, &bytes);
            let w = w.expect("fits");
            let mut row = vec![f32::NAN; cols];
            for n in 0..out {
                w.row(n, &mut row);
                assert_eq!(row, dense[n * cols..][..cols], "{dtype:?} row {n}");
            }
            // Some values stick out, as they do behind norms.
            let mut x = random.vec(rows * cols);
            x.iter_mut().step_by(7).for_each(|v| *v *= 20.0);
            let plain = run(Isa::Plain, 1, &w, &x, rows);
            // The exact product with the rounded activations.
            let mut a = Activations::new();
            a.set(&ThreadPool::new(1), &x, rows, cols);
            for r in 0..rows {
                for n in 0..out {
                    let terms = (0..cols).map(|k| {
                        let scale = a.scales[a.place(r, k / 32)];
                        let x = f64::from(a.steps(r, k)) * f64::from(scale);
                        x * f64::from(dense[n * cols + k])
                    });
                    let (sum, size) = terms.fold((0.0, 0.0), |(s, m), t| (s + t, m + t.abs()));
                    let got = f64::from(plain[r * out + n]);
                    assert!((got - sum).abs() <= 1e-4 * size + 1e-6, "{dtype:?}: {got} {sum}");
                }
            }
            for isa in Isa::supported() {
                for threads in [1, 3] {
                    let got = run(isa, threads, &w, &x, rows);
                    assert_eq!(got, plain, "{dtype:?} {isa:?}");
                }
            }
            // A row alone.
            let x = &x[(rows - 1) * cols..];
            let last = run(Isa::best(), 1, &w, x, 1);
            assert_eq!(last, plain[(rows - 1) * out..], "{dtype:?} alone");
        }
    }
}

#[test]
fn float_weights_agree_with_f64_and_between_paths() {
    let mut random = Random::new();
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        for (out, cols, rows) in [(1, 1, 1), (33, 67, 9), (20, 576, 2)] {
            let bytes = dtype.quantize(&random.vec(out * cols)).expect("float");
            let mut dense = vec![f32::NAN; out * cols];
            dtype.dequantize(&bytes, &mut dense);
            let w = PackedMatrix::pack(dtype, out, cols, &bytes).expect("fits");
            // Some values stick out, as they do behind norms.
            let mut x = random.vec(rows * cols);
            x.iter_mut().step_by(7).for_each(|v| *v *= 20.0);
            let plain = run(Isa::Plain, 1, &w, &x, rows);
            for (at, got) in plain.iter().enumerate() {
                let (r, n) = (at / out, at % out);
                let terms =
                    (0..cols).map(|k| f64::from(x[r * cols + k]) * f64::from(dense[n * cols + k]));
                let (sum, size) = terms.fold((0.0, 0.0), |(s, m), t| (s + t, m + t.abs()));
                assert!(
                    (f64::from(*got) - sum).abs() <= 1e-6 * size + 1e-9,
                    "{dtype:?} {got} {sum}"
                );
            }
            for isa in Isa::supported() {
                assert_eq!(run(isa, 2, &w, &x, rows), plain, "{dtype:?} {isa:?}");
            }
        }
    }
}

#[test]
fn selected_rows_keep_their_values() {
    let mut random = Random::new();
    for dtype in QUANTIZED.into_iter().chain([DType::F32, DType::F16, DType::BF16]) {
        let bytes = match dtype.quantize(&random.vec(40 * 256)) {
            Some(bytes) => bytes,
            None => random_matrix(dtype, 40, 256, &mut random),
        };
        let w = PackedMatrix::pack(dtype, 40, 256, &bytes).expect("fits");
        let ids: Vec<u32> = (0..19).map(|_| random.bits() as u32 % 40).collect();
        let s = w.select_rows(&ids);
        let (mut a, mut b) = ([0f32; 256], [1f32; 256]);
        for (i, id) in ids.iter().enumerate() {
            w.row(*id as usize, &mut a);
            s.row(i, &mut b);
            assert_eq!(a, b, "{dtype:?}");
        }
        let x = random.vec(256);
        let (all, some) = (run(Isa::best(), 1, &w, &x, 1), run(Isa::best(), 1, &s, &x, 1));
        assert!(ids.iter().zip(&some).all(|(id, v)| all[*id as usize] == *v), "{dtype:?}");
    }
}

#[test]
fn nan_stays_in_its_row() {
    let mut random = Random::new();
    for dtype in [DType::Q4_1, DType::Q8_0, DType::F32] {
        let w =
            PackedMatrix::pack(dtype, 16, 64, &dtype.quantize(&random.vec(16 * 64)).expect("ok"))
                .expect("fits");
        let mut x = random.vec(3 * 64);
        x[64 + 7] = f32::NAN;
        let out = run(Isa::best(), 1, &w, &x, 3);
        assert!(out[16..32].iter().all(|v| v.is_nan()), "{dtype:?}");
        assert!(out[..16].iter().chain(&out[32..]).all(|v| v.is_finite()), "{dtype:?}");
    }
}

#[test]
fn wrong_sizes_are_errors() {
    for (dtype, out, cols, bytes) in [
        (DType::Q4_0, 1, 33, 18),
        (DType::Q4_0, 2, 32, 18),
        (DType::F32, 0, 4, 0),
        (DType::F32, usize::MAX, 4, 16),
    ] {
        let error =
            PackedMatrix::pack(dtype, out, cols, &vec![0; bytes]).expect_err("does not fit");
        assert!(error.to_string().contains(&format!("{dtype:?}")));
    }
}

/// Gate and up in one job, against the two products and the gate one after the other, to the bit.
#[test]
fn gated_products_are_products_behind_a_gate() {
    let mut random = Random::new();
    for (inner, cols, rows) in [(96, 64, 1), (160, 32, 3), (32, 64, 9), (64, 96, 40), (49, 32, 5)] {
        for dtype in [DType::Q4_1, DType::Q8_0, DType::F32] {
            let mut matrix = || {
                let values = random.vec(inner * cols);
                let bytes = match dtype.quantize(&values) {
                    Some(bytes) => bytes,
                    None => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
                };
                PackedMatrix::pack(dtype, inner, cols, &bytes).expect("fits")
            };
            let [gate, up] = [matrix(), matrix()];
            let bias = random.vec(inner);
            let mut x = Activations::new();
            x.set(&ThreadPool::new(1), &random.vec(rows * cols), rows, cols);
            for isa in Isa::supported() {
                let pool = ThreadPool::new(1 + random.bits() as usize % 3);
                let mut both = vec![0.0; rows * 2 * inner];
                matmul_on(isa, &pool, &[&gate, &up], &x, &mut both, 2 * inner, false);
                let mut want = vec![0.0; rows * inner];
                for (want, both) in want.chunks_mut(inner).zip(both.chunks_mut(2 * inner)) {
                    both[inner..].iter_mut().zip(&bias).for_each(|(v, bias)| *v += bias);
                    gate_row(isa, Activation::Silu, &both[..inner], &both[inner..], want);
                }
                let (mut got, mut operand) = (Activations::new(), Activations::new());
                operand.set(&pool, &want, rows, inner);
                let gated = Gated {
                    activation: Activation::Silu,
                    weights: [&gate, &up],
                    biases: [None, Some(&bias)],
                    additions: Default::default(),
                };
                gated_product_on(isa, &pool, &gated, &x, &mut got);
                assert_eq!(got.values, want, "{isa:?} {dtype:?} {inner} x {cols}, {rows} rows");
                for row in (0..rows).filter(|_| inner % 32 == 0) {
                    for col in 0..inner {
                        assert_eq!(got.steps(row, col), operand.steps(row, col));
                    }
                    for at in (0..inner / 32).map(|block| got.place(row, block)) {
                        assert_eq!(got.scales[at], operand.scales[at]);
                        assert_eq!(got.scaled_sums[at], operand.scaled_sums[at]);
                        assert_eq!(got.sums_of(at), operand.sums_of(at));
                        assert_eq!(got.wide[at], operand.wide[at]);
                    }
                }
            }
        }
    }
}
