//! The decoder on the default model: int8 against f32 arithmetic, and batch invariance to the bit.

use std::sync::{Arc, OnceLock};

use pleach::checkpoint::{Checkpoint, source};
use pleach::kv_cache::{BlockPool, BlockTable};
use pleach::model::{Decoder, Precision, Rows, Workspace};
use pleach_kernels::{CacheFormat, ThreadPool};

/// The opening of Pride and Prejudice (public domain).
const TEXT: &str = include_str!("../data/pride.txt");

const BLOCKS: usize = 128;

fn decoder(threads: usize, precision: Precision) -> Decoder {
    let source = source::DEFAULT_MODEL.parse::<source::Source>().unwrap();
    let path = source::resolve(&source, &source::default_cache_dir()).unwrap();
    let mut checkpoint = Checkpoint::open(&path).unwrap();
    Decoder::load_with(&mut checkpoint, &Arc::new(ThreadPool::new(threads)), precision).unwrap()
}

fn tokens() -> &'static [u32] {
    static TOKENS: OnceLock<Vec<u32>> = OnceLock::new();
    TOKENS.get_or_init(|| {
        let source = source::DEFAULT_MODEL.parse::<source::Source>().unwrap();
        let path = source::resolve(&source, &source::default_cache_dir()).unwrap();
        let tokenizer = Checkpoint::open(&path).unwrap().tokenizer.unwrap();
        let ids = tokenizer.encode(TEXT, false).unwrap().get_ids().to_vec();
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), TEXT, "the tokenizer loses text");
        ids
    })
}

/// Logits of every row of `tokens`, computed in chunks of the given sizes, repeated.
fn logits(decoder: &Decoder, tokens: &[u32], chunks: &[usize]) -> Vec<f32> {
    let mut pool = BlockPool::new(BLOCKS);
    let mut table = BlockTable::default();
    // Other blocks first, so that the sequence does not lie at the start of the cache.
    let mut other = BlockTable::default();
    assert!(other.reserve(100, &mut pool) && table.reserve(tokens.len(), &mut pool));
    let (mut cache, mut workspace) = (decoder.new_kv_cache(BLOCKS), Workspace::new());
    let mut out = Vec::new();
    let mut start = 0;
    for chunk in chunks.iter().cycle() {
        let end = (start + chunk).min(tokens.len());
        let mut rows = Rows::default();
        rows.push(&table, start, tokens[start..end].iter().copied(), end - start);
        out.extend_from_slice(decoder.forward(&rows, &mut cache, &mut workspace));
        start = end;
        if start == tokens.len() {
            break;
        }
    }
    out
}

fn arg_max(row: &[f32]) -> usize {
    (0..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best })
}

/// Negative log-likelihood of `next` under a row of logits, in nats.
fn surprise(row: &[f32], next: u32) -> f64 {
    let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|v| f64::from(v - top).exp()).sum();
    sum.ln() - f64::from(row[next as usize] - top)
}

/// Over 2,000 positions of real text the int8 path picks the same token as f32 arithmetic on the same
/// weights at 98 % of them, and its perplexity is within half a percent.
#[test]
fn int8_activations_keep_the_model() {
    let (int8, f32) = (decoder(2, Precision::AsStored), decoder(2, Precision::F32));
    let both = |chunk: &[u32]| [&int8, &f32].map(|decoder| logits(decoder, chunk, &[256]));
    let (agreement, perplexity) = compared(tokens().chunks_exact(256).take(8), both);
    println!("same arg-max at {agreement:.4}; perplexity {perplexity:?} (int8, f32)");
    assert!(agreement >= 0.98, "arg-max agreement {agreement}");
    assert!((perplexity[0] / perplexity[1] - 1.0).abs() < 0.005, "perplexity {perplexity:?}");
}

/// Keys and values of 8 bits pick the same token as those of 16 at 97 % of the positions, and the perplexity is within half
/// a percent.
#[test]
fn an_int8_cache_keeps_the_model() {
    let mut decoder = decoder(2, Precision::AsStored);
    let both = |chunk: &[u32]| {
        [CacheFormat::Int8, CacheFormat::F16].map(|format| {
            decoder.set_cache_format(format);
            logits(&decoder, chunk, &[256])
        })
    };
    let (agreement, perplexity) = compared(tokens().chunks_exact(512).take(4), both);
    println!("same arg-max at {agreement:.4}; perplexity {perplexity:?} (int8, f16)");
    assert!(agreement >= 0.97, "arg-max agreement {agreement}");
    assert!((perplexity[0] / perplexity[1] - 1.0).abs() < 0.005, "perplexity {perplexity:?}");
}

/// The share of positions, at least 2,000, at which two ways to compute logits say the same likeliest token, and the
/// perplexity of each.
fn compared<'a>(
    chunks: impl Iterator<Item = &'a [u32]>,
    mut both: impl FnMut(&[u32]) -> [Vec<f32>; 2],
) -> (f64, [f64; 2]) {
    let (mut same, mut count, mut surprises, mut nll) = (0, 0, 0, [0.0; 2]);
    for chunk in chunks {
        let [a, b] = both(chunk);
        let vocab = a.len() / chunk.len();
        for (i, (a, b)) in a.chunks(vocab).zip(b.chunks(vocab)).enumerate() {
            same += usize::from(arg_max(a) == arg_max(b));
            count += 1;
            if let Some(next) = chunk.get(i + 1) {
                nll[0] += surprise(a, *next);
                nll[1] += surprise(b, *next);
                surprises += 1;
            }
        }
    }
    assert!(count >= 2000, "{count} positions");
    (same as f64 / count as f64, nll.map(|nll| (nll / surprises as f64).exp()))
}

/// A sequence's logits do not depend on how it is cut, on other sequences, or on the threads.
#[test]
fn logits_do_not_depend_on_the_batch() {
    check_batches(CacheFormat::F16);
    check_batches(CacheFormat::Int8);
}

fn check_batches(format: CacheFormat) {
    let decoder = |threads| {
        let mut decoder = decoder(threads, Precision::AsStored);
        decoder.set_cache_format(format);
        decoder
    };
    let tokens = &tokens()[..150];
    let one = decoder(1);
    let expected = logits(&one, tokens, &[150]);
    for chunks in [&[1][..], &[7], &[64, 1, 5]] {
        assert!(logits(&one, tokens, chunks) == expected, "in chunks of {chunks:?}");
    }
    let three = decoder(3);
    assert!(logits(&three, tokens, &[33]) == expected, "with three threads");

    // Beside another sequence, with rejected rows in between that are overwritten later.
    let mut pool = BlockPool::new(BLOCKS);
    let (mut a, mut b) = (BlockTable::default(), BlockTable::default());
    assert!(a.reserve(40, &mut pool) && b.reserve(200, &mut pool) && a.reserve(160, &mut pool));
    let (mut cache, mut workspace) = (one.new_kv_cache(BLOCKS), Workspace::new());
    let vocab = one.head_rows();
    let mut start = 0;
    while start < tokens.len() {
        let end = (start + 4).min(tokens.len());
        let wrong: Vec<u32> = tokens[start..end].iter().copied().chain([9, 9, 9]).collect();
        let mut rows = Rows::default();
        rows.push(&b, start, tokens[start..end].iter().rev().copied(), 0);
        let len = wrong.len();
        rows.push(&a, start, wrong, len);
        let logits = one.forward(&rows, &mut cache, &mut workspace);
        let rows = end - start;
        assert!(
            logits[..rows * vocab] == expected[start * vocab..end * vocab],
            "rows from {start}"
        );
        start = end;
    }
}

/// A forward pass allocates nothing once its buffers have seen as many rows and positions.
#[test]
fn a_steady_step_allocates_nothing() {
    let tokens = &tokens()[..150];
    // With one thread, all kernels run on the thread that is counted.
    let decoder = decoder(1, Precision::AsStored);
    let mut pool = BlockPool::new(BLOCKS);
    let mut table = BlockTable::default();
    assert!(table.reserve(tokens.len(), &mut pool));
    let (mut cache, mut workspace) = (decoder.new_kv_cache(BLOCKS), Workspace::new());
    let mut rows = Rows::default();
    let mut step = |range: std::ops::Range<usize>| {
        let count = range.len();
        rows.clear();
        rows.push(&table, range.start, tokens[range].iter().copied(), count);
        let counted = allocation_counter::measure(|| {
            decoder.forward(&rows, &mut cache, &mut workspace);
        });
        counted.count_total
    };
    assert!(step(0..140) > 0, "the first pass makes the buffers");
    for start in 100..140 {
        assert_eq!(step(start..start + 1), 0, "one row at {start}");
        assert_eq!(step(start..start + 5), 0, "five rows at {start}");
    }
}
