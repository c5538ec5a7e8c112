//! What a CUDA device does: matrix products against its memory's bandwidth, and the engine on a model of random
//! weights. `kernels/cuda/gpu-check.sh` runs it.
//!
//! The standalone draft is the target's first blocks, and the target's other blocks add nothing: they cost what they cost,
//! and every draft token is accepted. The attached one is the target's last blocks behind random projections: what a step
//! of it costs.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, ensure};
use clap::Parser;
use pleach::checkpoint::Checkpoint;
use pleach::checkpoint::write::{gguf_file, json_file};
use pleach::engine::{Engine, EngineConfig, Request};
use pleach::model::{
    CudaDecoder, CudaDraft, CudaRunner, Design, Drafter, Family, Forward, ModelConfig, RopeConfig,
    RopeScaling, tensor_names,
};
use pleach_kernels::DType;
use pleach_kernels::cuda::{Device, KvFormat, Tensor, Weights};
use serde_json::{Map, Value, json};

#[path = "../tests/support/random_model.rs"]
mod random_model;
use random_model::{random_tensor, write_attached};

/// Measures a CUDA device.
#[derive(Debug, Parser)]
struct Args {
    /// The device's number.
    #[arg(long, default_value_t = 0)]
    device: usize,
    /// GB/s of the device's memory, of which each product's share is told.
    #[arg(long, default_value_t = 3350.0)]
    bandwidth: f64,
    /// The model's shape: tiny, 1b (Llama 3.2) or 8b (Llama 3.1).
    #[arg(long, default_value = "1b")]
    shape: String,
    /// The weights' format: bf16 or q4_k.
    #[arg(long, default_value = "bf16")]
    weights: String,
    /// Holds keys and values in codes of 8 bits.
    #[arg(long)]
    int8_cache: bool,
    /// Repeats of every measurement.
    #[arg(long, default_value_t = 20)]
    repeats: usize,
    /// Starts every kernel by itself instead of recorded passes.
    #[arg(long)]
    no_graphs: bool,
    /// Where the result goes.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Blocks of the draft, rows of the products and of the passes, and the passes' context.
const DRAFT_BLOCKS: usize = 2;
const ROWS: [usize; 5] = [1, 2, 4, 8, 16];
const CONTEXT: usize = 512;
const DECODED: usize = 128;
const DRAFTED: usize = 4;
/// Room for a few sequences of the passes' length.
const NUM_BLOCKS: usize = 256;

fn config(shape: &str) -> Result<ModelConfig> {
    let [hidden, inner, layers, heads, kv_heads, head_dim, vocab] = match shape {
        "tiny" => [256, 256, 3, 4, 2, 64, 200],
        "1b" => [2048, 8192, 16, 32, 8, 64, 128_256],
        "8b" => [4096, 14_336, 32, 32, 8, 128, 128_256],
        _ => anyhow::bail!("--shape is tiny, 1b or 8b, not {shape}"),
    };
    Ok(ModelConfig {
        family: Family::Llama,
        vocab_size: vocab,
        hidden_size: hidden,
        intermediate_size: inner,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        num_key_value_heads: kv_heads,
        head_dim,
        max_position_embeddings: 2048,
        rms_norm_eps: 1e-5,
        rope: RopeConfig { theta: 500_000.0, scaling: RopeScaling::None },
        sliding_window: None,
        design: Design::default(),
        tie_word_embeddings: true,
        bos_token_id: None,
        eos_token_ids: vec![2],
    })
}

fn main() -> Result<()> {
    let args = Args::parse();
    let device = Device::open(args.device)?;
    println!("device    {}", device.name());
    let format = match &*args.weights {
        "bf16" => DType::BF16,
        "q4_k" => DType::Q4_K,
        other => anyhow::bail!("--weights is bf16 or q4_k, not {other}"),
    };
    let config = config(&args.shape)?;
    let mut report = Map::new();
    report.insert("device".into(), device.name().into());
    report.insert("shape".into(), args.shape.clone().into());
    report.insert("weights".into(), args.weights.clone().into());
    report.insert("int8_cache".into(), args.int8_cache.into());
    report.insert("graphs".into(), (!args.no_graphs).into());
    report.insert("matmul".into(), products(&args, &device, &config, format)?);
    report.insert("engine".into(), engine(&args, &device, &config, format)?);
    if let Some(path) = &args.json {
        json_file(path, &report)?;
    }
    ensure!(report["engine"]["identical"] == true, "speculation changed the output");
    Ok(())
}

/// GB/s of the products of one block, weights alone, and the share of the memory's bandwidth.
fn products(
    args: &Args,
    device: &Arc<Device>,
    config: &ModelConfig,
    format: DType,
) -> Result<Value> {
    let (hidden, inner, dim) = (config.hidden_size, config.intermediate_size, config.head_dim);
    let (q, kv) = (config.num_attention_heads * dim, config.num_key_value_heads * dim);
    let mut all = Vec::new();
    for (name, outputs, inputs) in [
        ("qkv", q + 2 * kv, hidden),
        ("output", hidden, q),
        ("gate, up", 2 * inner, hidden),
        ("down", hidden, inner),
    ] {
        let stored = vec![0; format.bytes_for(outputs * inputs).expect("whole blocks")];
        // Several copies, so that none is found in the device's cache.
        let copies = (200_000_000 / stored.len()).clamp(1, 16);
        let weights: Vec<Weights> = (0..copies)
            .map(|_| Weights::pack(device, format, outputs, inputs, &stored))
            .collect::<Result<_, _>>()?;
        for rows in ROWS {
            let x =
                Tensor::from_f32(device, DType::BF16, [rows, inputs], &vec![0.5; rows * inputs])?;
            let mut out = Tensor::new(device, DType::BF16, rows, outputs)?;
            let mut samples = Vec::new();
            for _ in 0..args.repeats {
                device.synchronize()?;
                let started = Instant::now();
                for weights in &weights {
                    device.matmul(weights, &x, &mut out, 0)?;
                }
                device.synchronize()?;
                samples.push(started.elapsed().as_secs_f64() / copies as f64);
            }
            let seconds = median(&mut samples);
            let rate = weights[0].bytes() as f64 / seconds / 1e9;
            let share = rate / args.bandwidth;
            println!(
                "matmul    {name:<9} {rows:>3} rows {:>8.1} us {rate:>7.0} GB/s {share:>5.2}",
                seconds * 1e6
            );
            all.push(json!({"name": name, "rows": rows, "seconds": seconds, "gb_per_s": rate, "share": share}));
        }
    }
    Ok(all.into())
}

fn median(samples: &mut [f64]) -> f64 {
    samples.sort_unstable_by(f64::total_cmp);
    samples[samples.len() / 2]
}

/// Step costs, decoding with and without speculation, and whether the two agree to the bit.
fn engine(args: &Args, device: &Arc<Device>, config: &ModelConfig, format: DType) -> Result<Value> {
    let folder = tempfile::tempdir()?;
    let (path, draft_path) = (folder.path().join("model.gguf"), folder.path().join("draft.gguf"));
    let adds_nothing = |name: &str| {
        let block = name
            .strip_prefix("model.layers.")
            .and_then(|rest| rest.split('.').next()?.parse().ok());
        let writes = name.contains("o_proj") || name.contains("down_proj");
        block.is_some_and(|block: usize| block >= DRAFT_BLOCKS) && writes
    };
    let factor = |name: &str| if adds_nothing(name) { 0.0 } else { 1.0 };
    random_model::write_model(&path, config, 1, &|_| format, &factor);
    let mut checkpoint = Checkpoint::open(&path)?;
    let draft_config = ModelConfig { num_hidden_layers: DRAFT_BLOCKS, ..config.clone() };
    let names = tensor_names(&draft_config, |name| checkpoint.has(name));
    let tensors = names.into_iter().map(|name| Ok((name.clone(), checkpoint.tensor(&name)?)));
    gguf_file(&draft_path, "draft", &draft_config, &[], &tensors.collect::<Result<Vec<_>>>()?)?;

    let cache = if args.int8_cache { KvFormat::Int8 } else { KvFormat::Float };
    let target = CudaDecoder::load_with(&mut checkpoint, device, cache)?;
    let draft = target.lender().load_draft(&mut Checkpoint::open(&draft_path)?, &mut checkpoint)?;
    let CudaDraft::Standalone(draft) = draft else { anyhow::bail!("the draft is attached") };
    let runner = |decoder, drafter| -> Result<Box<dyn Forward>> {
        let mut runner = CudaRunner::new(decoder, NUM_BLOCKS, config.max_position_embeddings)?;
        runner.attach(drafter);
        Ok(Box::new(if args.no_graphs { runner.without_graphs() } else { runner }))
    };
    let mut engine =
        Engine::with_models(runner(target, None)?, Some(runner(*draft, None)?), settings())?;
    let costs = engine.measure_costs(CONTEXT, &ROWS, args.repeats)?;
    let verify: Map<String, Value> =
        ROWS.iter().map(|&n| (n.to_string(), costs.verify_cost(n).into())).collect();
    for (rows, seconds) in &costs.target {
        println!(
            "pass      {rows:>3} rows {:>8.1} us, v = {:.3}",
            seconds * 1e6,
            costs.verify_cost(*rows).unwrap_or(f64::NAN)
        );
    }
    let (rates, same) = decode(args, &mut engine, config, "standalone")?;
    let stats = format!("{:?}", engine.stats());
    drop(engine);

    let layers = config.num_hidden_layers as u32;
    let (blocks, states) = ([layers - 2, layers - 1], [layers / 3, 2 * layers / 3, layers]);
    let mut random = fastrand::Rng::with_seed(2);
    let mut projection = |shape: [usize; 2]| random_tensor(&mut random, format, &shape, 1.0);
    let neurons = config.intermediate_size;
    write_attached(&path, &draft_path, &blocks, neurons, &states, &mut projection);
    let target = CudaDecoder::load_with(&mut checkpoint, device, cache)?;
    let draft = target.lender().load_draft(&mut Checkpoint::open(&draft_path)?, &mut checkpoint)?;
    let CudaDraft::Attached(drafter) = draft else { anyhow::bail!("the draft is standalone") };
    let target = runner(target, Some(Drafter::Cuda(drafter)))?;
    let mut engine = Engine::with_models(target, None, settings())?;
    let attached = engine.measure_costs(CONTEXT, &[1], args.repeats)?;
    let (attached_rates, attached_same) = decode(args, &mut engine, config, "attached")?;
    Ok(json!({
        "pass_seconds": costs.target,
        "verify_cost": verify,
        "draft_step_cost": costs.draft_step_cost(),
        "decode_tokens_per_s": rates[0],
        "speculative_tokens_per_s": rates[1],
        "attached_step_cost": attached.draft_step_cost(),
        "attached_further_step_cost": attached.draft_further_step_cost(),
        "attached_tokens_per_s": attached_rates[1],
        "identical": same && attached_same,
        "stats": stats,
    }))
}

fn settings() -> EngineConfig {
    EngineConfig {
        max_num_seqs: 8,
        num_blocks: Some(NUM_BLOCKS),
        num_speculative_tokens: DRAFTED,
        ngram: false,
        adaptive: false,
        ..EngineConfig::default()
    }
}

/// Tokens per second without and with speculation by a draft of this kind, and whether the answers agree to the bit.
fn decode(
    args: &Args,
    engine: &mut Engine,
    config: &ModelConfig,
    kind: &str,
) -> Result<([f64; 2], bool)> {
    let vocab = config.vocab_size as u32;
    let request = |speculates: bool, tokens: usize| Request {
        ignore_eos: true,
        num_speculative_tokens: (!speculates).then_some(0),
        top_logprobs: Some(0),
        ..Request::greedy((0..CONTEXT as u32).map(|i| i * 31 % vocab).collect(), tokens)
    };
    let mut rates = [0.0; 2];
    let mut outputs: [Vec<Said>; 2] = Default::default();
    for (i, speculates) in [false, true].into_iter().enumerate() {
        let mut samples = Vec::new();
        for _ in 0..args.repeats.clamp(1, 5) {
            let short = time(engine, request(speculates, 1))?.0;
            let (long, tokens) = time(engine, request(speculates, DECODED + 1))?;
            samples.push(DECODED as f64 / (long - short));
            outputs[i] = tokens;
        }
        rates[i] = median(&mut samples);
    }
    let identical = outputs[0] == outputs[1];
    println!(
        "decode    {:.1} tokens/s, with {kind} draft {:.1}: {:.2} times; output {}",
        rates[0],
        rates[1],
        rates[1] / rates[0],
        if identical { "identical" } else { "DIFFERS" }
    );
    Ok((rates, identical))
}

/// A token and its log-probability.
type Said = (u32, Option<f32>);

/// Seconds of a request, and its tokens with their log-probabilities.
fn time(engine: &mut Engine, request: Request) -> Result<(f64, Vec<Said>)> {
    let started = Instant::now();
    let answer = engine.answer(vec![request])?.remove(0);
    let all = answer.tokens.iter().map(|token| (token.id, token.logprob)).collect();
    Ok((started.elapsed().as_secs_f64(), all))
}
