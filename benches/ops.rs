//! The kernels one by one, on SmolLM2-135M's shapes. Run on an idle machine:
//! `cargo bench --bench ops`. GB/s count the weights or the cache that is read. An item is a
//! floating-point operation; two of them take one int8 product, and a quarter more for the wide groups of
//! activations. Both are to be held against the ceilings printed first.

use std::sync::LazyLock;

use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use pleach_kernels::{
    Activation, Activations, AttentionShape, CacheFormat, Ceilings, DType, Gated, LayerCache,
    PackedMatrix, SUMMED, ThreadPool, argmax, gated_product, matmul, matmul_add, paged_attention,
    race, rms_norm_quantized, weigh,
};

static POOL: LazyLock<ThreadPool> =
    LazyLock::new(|| ThreadPool::new(std::thread::available_parallelism().map_or(1, usize::from)));

fn main() {
    let Ceilings { read, copy, int8 } = Ceilings::measure(&POOL);
    println!(
        "ceilings of this machine: {:.1} GB/s read, {:.1} GB/s copied, {:.0} G int8 products/s\n",
        read / 1e9,
        copy / 1e9,
        int8 / 1e9,
    );
    divan::main();
}

fn values(len: usize) -> Vec<f32> {
    let mut random = fastrand::Rng::with_seed(len as u64);
    (0..len).map(|_| random.f32() - 0.5).collect()
}

/// Any bytes: what they say does not change how long it takes.
fn noise(dtype: DType, values: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(values as u64);
    let bytes = dtype.bytes_for(values).expect("whole blocks");
    (0..bytes).map(|_| random.u8(..)).collect()
}

/// Enough matrices that they cannot stay in the cache, as in a whole model.
fn matrices(dtype: DType, out: usize, inner: usize) -> Vec<PackedMatrix> {
    let bytes = dtype.quantize(&values(out * inner)).unwrap_or_else(|| noise(dtype, out * inner));
    let one = PackedMatrix::pack(dtype, out, inner, &bytes).expect("sizes fit");
    let count = (200_000_000 / one.bytes()).clamp(1, 64);
    vec![one; count]
}

fn product(bencher: Bencher, dtype: DType, (out, inner): (usize, usize), rows: usize) {
    let matrices = matrices(dtype, out, inner);
    let mut x = Activations::new();
    x.set(&POOL, &values(rows * inner), rows, inner);
    let mut y = vec![0.0; rows * out];
    let mut next = 0;
    bencher
        .counter(BytesCount::new(matrices[0].bytes()))
        .counter(ItemsCount::new(2 * rows * out * inner))
        .bench_local(|| {
            next = (next + 1) % matrices.len();
            matmul(&POOL, &[&matrices[next]], &x, black_box(&mut y), out);
        });
}

const ROWS: [usize; 9] = [1, 2, 3, 4, 5, 8, 16, 32, 512];

#[divan::bench(args = ROWS)]
fn matmul_q4_1_1536_by_576(bencher: Bencher, rows: usize) {
    product(bencher, DType::Q4_1, (1536, 576), rows);
}

#[divan::bench(args = ROWS)]
fn matmul_q4_0_576_by_1536(bencher: Bencher, rows: usize) {
    product(bencher, DType::Q4_0, (576, 1536), rows);
}

#[divan::bench(args = [1, 2, 4, 8, 16, 32])]
fn matmul_q8_0_head(bencher: Bencher, rows: usize) {
    product(bencher, DType::Q8_0, (49152, 576), rows);
}

/// Rows of products with matrices as of models of 8 billion weights.
const LARGE_ROWS: [usize; 4] = [1, 4, 8, 16];

#[divan::bench(args = LARGE_ROWS)]
fn matmul_q4_k_4096_by_4096(bencher: Bencher, rows: usize) {
    product(bencher, DType::Q4_K, (4096, 4096), rows);
}

#[divan::bench(args = LARGE_ROWS)]
fn matmul_q5_k_4096_by_4096(bencher: Bencher, rows: usize) {
    product(bencher, DType::Q5_K, (4096, 4096), rows);
}

#[divan::bench(args = LARGE_ROWS)]
fn matmul_q6_k_4096_by_4096(bencher: Bencher, rows: usize) {
    product(bencher, DType::Q6_K, (4096, 4096), rows);
}

/// A matrix of a file laid out for the kernels, by all threads. GB/s count the file.
#[divan::bench(args = [DType::Q8_0, DType::Q4_K, DType::Q5_K, DType::Q6_K])]
fn pack_4096_by_4096(bencher: Bencher, dtype: DType) {
    let bytes = noise(dtype, 4096 * 4096);
    bencher.counter(BytesCount::new(bytes.len())).bench_local(|| {
        PackedMatrix::pack_on(&POOL, dtype, 4096, 4096, &bytes).expect("sizes fit")
    });
}

/// Rows and the context before them.
const ATTENTION: [(usize, usize); 10] = [
    (1, 64),
    (1, 512),
    (1, 1024),
    (1, 2048),
    (4, 64),
    (4, 1024),
    (8, 64),
    (8, 1024),
    (8, 2048),
    (512, 512),
];

#[divan::bench(args = ATTENTION)]
fn attention(bencher: Bencher, sizes: (usize, usize)) {
    attend(bencher, sizes, CacheFormat::F16);
}

#[divan::bench(args = ATTENTION)]
fn attention_int8(bencher: Bencher, sizes: (usize, usize)) {
    attend(bencher, sizes, CacheFormat::Int8);
}

/// Rows of one sequence after a context. GB/s count its keys and values.
fn attend(bencher: Bencher, (rows, context): (usize, usize), format: CacheFormat) {
    let shape = AttentionShape::new(9, 3, 64);
    let length = context + rows;
    let blocks: Vec<u32> = (0..length.div_ceil(16) as u32).collect();
    let mut cache = LayerCache::new(blocks.len(), &shape, format);
    let stride = 15 * 64;
    let mut x = values(length * stride);
    let slots: Vec<u32> = (0..length as u32).collect();
    cache.write(&POOL, &shape, None, &mut x, stride, &slots);
    let positions: Vec<u32> = (context as u32..length as u32).collect();
    let mut out = Activations::new();
    let seen: usize = positions.iter().map(|p| *p as usize + 1).sum();
    bencher
        .counter(BytesCount::new(LayerCache::bytes(1, &shape, format) * length / 16))
        .counter(ItemsCount::new(seen * 4 * 9 * 64))
        .bench_local(|| {
            paged_attention(
                &POOL,
                &shape,
                &x[..rows * stride],
                stride,
                &cache,
                &[0, rows as u32],
                &positions,
                |_| &blocks,
                black_box(&mut out),
            );
        });
}

#[divan::bench(args = [1, 8, 512])]
fn norm_and_quantise(bencher: Bencher, rows: usize) {
    let (x, w) = (values(rows * 576), values(576));
    let mut quantised = Activations::new();
    bencher.counter(BytesCount::new(x.len() * 4)).bench_local(|| {
        rms_norm_quantized(&POOL, &x, rows, |row| row, &w, 1e-5, black_box(&mut quantised));
    });
}

fn gate_up(weights: [&PackedMatrix; 2]) -> Gated<'_> {
    let additions = Default::default();
    Gated { activation: Activation::Silu, weights, biases: [None; 2], additions }
}

/// Gate and up of a feed-forward layer, whose outputs become the operand of the next product.
#[divan::bench(args = ROWS)]
fn gated_q4_1(bencher: Bencher, rows: usize) {
    let matrices = matrices(DType::Q4_1, 1536, 576);
    let mut x = Activations::new();
    x.set(&POOL, &values(rows * 576), rows, 576);
    let (mut y, mut next) = (Activations::new(), 0);
    bencher
        .counter(BytesCount::new(2 * matrices[0].bytes()))
        .counter(ItemsCount::new(4 * rows * 1536 * 576))
        .bench_local(|| {
            next = (next + 2) % (matrices.len() - 1);
            let weights = [&matrices[next], &matrices[next + 1]];
            let gated = gate_up(weights);
            gated_product(&POOL, &gated, &x, black_box(&mut y));
        });
}

/// A pass over all matrices of SmolLM2-135M, with norms and gates, without attention.
#[divan::bench(args = [1, 2, 3, 4, 5, 8, 16, 32], sample_count = 200)]
fn pass(bencher: Bencher, rows: usize) {
    const BLOCKS: usize = 30;
    let square = matrices(DType::Q4_1, 576, 576);
    let kv = matrices(DType::Q4_1, 192, 576);
    let wide = matrices(DType::Q4_1, 1536, 576);
    let down = matrices(DType::Q4_1, 576, 1536);
    let head = &matrices(DType::Q8_0, 49152, 576)[0];
    let norm = vec![1.0; 576];
    let (start, attended) = (values(rows * 576), values(rows * 576));
    let (mut x, mut y) = (Activations::new(), Activations::new());
    let (mut qkv, mut logits) = (vec![0.0; rows * 960], vec![0.0; rows * 49152]);
    let block = 2 * square[0].bytes() + 2 * kv[0].bytes() + 3 * wide[0].bytes();
    bencher.counter(BytesCount::new(BLOCKS * block + head.bytes())).bench_local(|| {
        let mut hidden = start.clone();
        for i in 0..BLOCKS {
            rms_norm_quantized(&POOL, &hidden, rows, |row| row, &norm, 1e-5, &mut x);
            let weights = [&square[2 * i], &kv[2 * i], &kv[2 * i + 1]];
            matmul(&POOL, &weights, &x, &mut qkv, 960);
            x.set(&POOL, &attended, rows, 576);
            matmul_add(&POOL, &square[2 * i + 1], &x, &mut hidden, 576);
            rms_norm_quantized(&POOL, &hidden, rows, |row| row, &norm, 1e-5, &mut x);
            let weights = [&wide[2 * i], &wide[2 * i + 1]];
            let gated = gate_up(weights);
            gated_product(&POOL, &gated, &x, &mut y);
            matmul_add(&POOL, &down[i], &y, &mut hidden, 576);
        }
        rms_norm_quantized(&POOL, &hidden, rows, |row| row, &norm, 1e-5, &mut x);
        matmul(&POOL, &[head], &x, black_box(&mut logits), 49152);
    });
}

/// Tokens that SmolLM2 and Qwen3 know.
const VOCABULARIES: [usize; 2] = [49_152, 151_936];

/// Logits between -10 and 10.
fn logits(tokens: usize) -> Vec<f32> {
    values(tokens).iter().map(|value| 20.0 * value).collect()
}

#[divan::bench(args = VOCABULARIES)]
fn likeliest_token(bencher: Bencher, tokens: usize) {
    let logits = logits(tokens);
    bencher.counter(BytesCount::new(4 * tokens)).bench_local(|| argmax(black_box(&logits)));
}

#[divan::bench(args = VOCABULARIES)]
fn weights_of_tokens(bencher: Bencher, tokens: usize) {
    let logits = logits(tokens);
    let (mut weights, mut sums) = (vec![0.0; tokens], vec![0.0; tokens.div_ceil(SUMMED)]);
    bencher.counter(BytesCount::new(8 * tokens)).bench_local(|| {
        weigh(&logits, 10.0, 1.0, 1e-13, black_box(&mut weights), &mut sums);
    });
}

/// A draw with a number for each token.
#[divan::bench(args = VOCABULARIES)]
fn race_of_tokens(bencher: Bencher, tokens: usize) {
    let weights: Vec<f32> = logits(tokens).iter().map(|logit| (logit - 10.0).exp()).collect();
    let mut key = 0;
    bencher.counter(BytesCount::new(4 * tokens)).bench_local(|| {
        key += 1;
        race(black_box(&weights), None, key)
    });
}

/// One thread, as training runs it.
#[cfg(target_arch = "x86_64")]
#[divan::bench(args = [(1536, 576, 3072), (1536, 1536, 576), (3072, 1536, 576)])]
fn gemm_bf16(bencher: Bencher, (m, k, n): (usize, usize, usize)) {
    use pleach_kernels::MatRef;
    use pleach_kernels::training::gemm;
    if !gemm::available() {
        eprintln!("SKIPPED: no AMX bf16 on this machine");
        return;
    }
    let (a, b) = (values(m * k), values(k * n));
    let mut c = vec![0.0; m * n];
    bencher.counter(ItemsCount::new(2 * m * n * k)).bench_local(|| {
        let (a, b) = (MatRef::new(&a, m, k, k), MatRef::new(&b, k, n, n));
        gemm::gemm(a, b, black_box(&mut c));
    });
}

/// A job whose tasks do nothing: what it costs to hand tasks to the threads and to wait for them.
#[divan::bench(args = [2, 12])]
fn empty_job(bencher: Bencher, tasks: usize) {
    bencher.bench_local(|| {
        POOL.run(black_box(tasks), &|task| {
            black_box(task);
        });
    });
}
