//! Decoding side by side with candle's own quantised Llama on the same file, in one run, in turns:
//! `cargo bench --bench against_candle`. Run on an idle machine.

use std::sync::Arc;
use std::time::Instant;

use candle_core::quantized::gguf_file;
use candle_core::{Device, Tensor};
use candle_transformers::models::quantized_llama::ModelWeights;
use pleach::checkpoint::{Checkpoint, source};
use pleach::kv_cache::{BlockPool, BlockTable, blocks_for};
use pleach::model::{Decoder, KvCache, Rows, Workspace};
use pleach::sampling::greedy_token;
use pleach_kernels::ThreadPool;

const CONTEXT: usize = 64;
const TOKENS: usize = 48;
const ROUNDS: usize = 5;
const VERIFIED: [usize; 3] = [2, 4, 8];

fn main() -> anyhow::Result<()> {
    let source = source::DEFAULT_MODEL.parse::<source::Source>()?;
    let path = source::resolve(&source, &source::default_cache_dir())?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let prompt: Vec<u32> = (0..CONTEXT as u32).map(|i| i * 331 % 49152).collect();

    let pool = Arc::new(ThreadPool::new(threads));
    let ours = Decoder::load(&mut Checkpoint::open(&path)?, &pool)?;
    let mut file = std::fs::File::open(&path)?;
    let content = gguf_file::Content::read(&mut file)?;
    let mut theirs = ModelWeights::from_gguf(content, &mut file, &Device::Cpu)?;

    let (mut fast, mut slow) = (Vec::new(), Vec::new());
    let mut verify = vec![(Vec::new(), Vec::new()); VERIFIED.len()];
    for _ in 0..ROUNDS {
        let mut sequence = Sequence::new(&ours);
        sequence.run(&prompt);
        fast.push(seconds(|| {
            let mut token = 1;
            for _ in 0..TOKENS {
                token = greedy_token(sequence.run(&[token])).expect("finite logits");
            }
        }));
        let input = |tokens: &[u32]| Tensor::new(tokens, &Device::Cpu)?.unsqueeze(0);
        theirs.forward(&input(&prompt)?, 0)?;
        let mut position = CONTEXT;
        slow.push(seconds(|| {
            let mut token = 1;
            for _ in 0..TOKENS {
                let mut step = || -> candle_core::Result<Vec<f32>> {
                    theirs.forward(&input(&[token])?, position)?.flatten_all()?.to_vec1()
                };
                token = greedy_token(&step().expect("candle computes")).expect("finite logits");
                position += 1;
            }
        }));
        for (rows, (ours_times, theirs_times)) in VERIFIED.iter().zip(&mut verify) {
            let tokens = &prompt[..*rows];
            let mut sequence = Sequence::new(&ours);
            sequence.run(&prompt);
            ours_times.push(seconds(|| drop(sequence.run(tokens).to_vec())));
            theirs.forward(&input(&prompt)?, 0)?;
            let tokens = input(tokens)?;
            theirs_times.push(seconds(|| drop(theirs.forward(&tokens, CONTEXT))));
        }
    }
    let speed = |times: &mut [f64]| TOKENS as f64 / median(times);
    let (fast, slow) = (speed(&mut fast), speed(&mut slow));
    println!("{threads} threads, {CONTEXT} tokens of context, median of {ROUNDS}");
    println!(
        "decode   pleach {fast:>7.1} tokens/s   candle {slow:>7.1} tokens/s   {:.2}x",
        fast / slow
    );
    for (rows, (ours, theirs)) in VERIFIED.iter().zip(&mut verify) {
        let (ours, theirs) = (median(ours) * fast, median(theirs) * slow);
        println!("{rows} rows   pleach {ours:>7.2} steps      candle {theirs:>7.2} steps");
    }
    Ok(())
}

/// One sequence of our decoder.
struct Sequence<'a> {
    decoder: &'a Decoder,
    table: BlockTable,
    cache: KvCache,
    workspace: Workspace,
    length: usize,
}

impl<'a> Sequence<'a> {
    fn new(decoder: &'a Decoder) -> Self {
        let blocks = blocks_for(CONTEXT + TOKENS + 16);
        let (mut pool, mut table) = (BlockPool::new(blocks), BlockTable::default());
        assert!(table.reserve(CONTEXT + TOKENS + 16, &mut pool));
        let cache = decoder.new_kv_cache(blocks);
        Self { decoder, table, cache, workspace: Workspace::new(), length: 0 }
    }

    /// Logits after the last token.
    fn run(&mut self, tokens: &[u32]) -> &[f32] {
        let mut rows = Rows::default();
        rows.push(&self.table, self.length, tokens.iter().copied(), tokens.len().min(8));
        self.length += tokens.len();
        let logits = self.decoder.forward(&rows, &mut self.cache, &mut self.workspace);
        &logits[logits.len() - self.decoder.head_rows()..]
    }
}

fn seconds(work: impl FnOnce()) -> f64 {
    let started = Instant::now();
    work();
    started.elapsed().as_secs_f64()
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
