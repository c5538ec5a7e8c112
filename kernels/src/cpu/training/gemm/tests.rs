use super::*;

fn random(len: usize, seed: &mut u64) -> Vec<f32> {
    (0..len)
        .map(|_| {
            *seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (*seed >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

fn reference(a: MatRef, b: MatRef) -> Vec<f64> {
    let at = |m: &MatRef, r: usize, c: usize| {
        let x = m.data[r * m.row_stride + c * m.col_stride];
        f64::from(half::bf16::from_f32(x).to_f32())
    };
    let mut c = vec![0.0; a.rows * b.cols];
    for i in 0..a.rows {
        for j in 0..b.cols {
            c[i * b.cols + j] = (0..a.cols).map(|k| at(&a, i, k) * at(&b, k, j)).sum();
        }
    }
    c
}

/// Every combination of contiguous axes, at sizes around the tile borders, against f64.
#[test]
fn agrees_with_the_reference() {
    if !available() {
        eprintln!("SKIPPED: no bf16 on this machine");
        return;
    }
    let mut seed = std::time::UNIX_EPOCH.elapsed().map_or(1, |t| t.as_nanos() as u64);
    println!("seed {seed}");
    for (m, n, k) in [
        (1, 1, 1),
        (16, 16, 32),
        (33, 17, 31),
        (5, 70, 64),
        (64, 96, 576),
        (47, 100, 65),
        (270, 40, 1100),
    ] {
        for layout in 0..4 {
            let (x, y) = (random(m * k, &mut seed), random(k * n, &mut seed));
            let a = if layout & 1 == 0 {
                MatRef::new(&x, m, k, k)
            } else {
                MatRef::new(&x, k, m, m).t()
            };
            let b = if layout & 2 == 0 {
                MatRef::new(&y, k, n, n)
            } else {
                MatRef::new(&y, n, k, k).t()
            };
            let expected = reference(a, b);
            for kernel in Kernel::supported() {
                let what = format!("{kernel:?} {m}x{n}x{k} layout {layout}");
                let mut c = vec![f32::NAN; m * n];
                multiply_with(kernel, a, &Right::Matrix(b), &mut c, false);
                for (got, want) in c.iter().zip(&expected) {
                    assert!((f64::from(*got) - want).abs() < 1e-4, "{what}: {got} {want}");
                }
                let (packed, mut same) = (Packed::new(b), vec![f32::NAN; m * n]);
                multiply_with(kernel, a, &Right::Packed(&packed), &mut same, false);
                assert!(c == same, "{what}, packed");
                multiply_with(kernel, a, &Right::Matrix(b), &mut c, true);
                for (got, want) in c.iter().zip(&expected) {
                    assert!((f64::from(*got) - 2.0 * want).abs() < 2e-4, "{what}, sum");
                }
            }
        }
    }
}

#[test]
fn nan_is_not_hidden() {
    let mut x = vec![1.0; 40 * 40];
    x[41] = f32::NAN;
    let y = vec![1.0; 40 * 40];
    let (a, b) = (MatRef::new(&x, 40, 40, 40), MatRef::new(&y, 40, 40, 40));
    for kernel in Kernel::supported() {
        let mut c = vec![0.0; 40 * 40];
        multiply_with(kernel, a, &Right::Matrix(b), &mut c, false);
        assert!(c[40..80].iter().all(|v| v.is_nan()) && c[..40].iter().all(|v| *v == 40.0));
    }
}

/// What low-rank additions share gives the bits of separate products.
#[test]
fn adapted_products_are_three() {
    if !available() {
        return;
    }
    let mut seed = 5;
    for (m, n, k, rank) in [(1, 1, 1, 1), (300, 70, 64, 16), (40, 17, 1100, 48), (5, 40, 33, 1030)]
    {
        let [x, w, u, v] = [m * k, n * k, rank * k, n * rank].map(|len| random(len, &mut seed));
        let (x, w) = (MatRef::new(&x, m, k, k), MatRef::new(&w, n, k, k).t());
        let (u, v) = (MatRef::new(&u, rank, k, k).t(), MatRef::new(&v, rank, n, n));
        for kernel in Kernel::supported() {
            let (mut low, mut wanted) = (vec![0.0; m * rank], vec![0.0; m * n]);
            multiply_with(kernel, x, &Right::Matrix(u), &mut low, false);
            multiply_with(kernel, x, &Right::Matrix(w), &mut wanted, false);
            let left = MatRef::new(&low, m, rank, rank);
            multiply_with(kernel, left, &Right::Matrix(v), &mut wanted, true);
            let (mut t, mut y) = (vec![f32::NAN; m * rank], vec![f32::NAN; m * n]);
            adapted_with(
                kernel,
                x,
                &Packed::new(w),
                [&Packed::new(u), &Packed::new(v)],
                &mut t,
                &mut y,
            );
            assert!(t == low && y == wanted, "{kernel:?} {m}x{n}x{k}, {rank}");
        }
    }
}
