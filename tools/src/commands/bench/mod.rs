//! `bench`: how fast a model runs here.

mod args;
mod speculation;

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Result, ensure};
use pleach::checkpoint::write::json_file;
use pleach::engine::{EngineConfig, Request};
use pleach::kv_cache::blocks_for;
use pleach::prompts::{read_prompts, spread};
use serde::Serialize;

use crate::shared::models::Running;

pub(crate) use args::Args;
pub(crate) use speculation::{Way, measure as speculation};

const ROWS: [usize; 6] = [1, 2, 4, 8, 16, 32];
const CONTEXT: usize = 64;
const LONG_CONTEXT: usize = 1024;
const PROMPT: usize = 512;
const DECODED: usize = 128;
/// Answers at once, at most.
const MOST_STREAMS: usize = 64;

/// What one model does on this machine. Each time ends when the host has what was computed, on a device too.
#[derive(Debug, Serialize)]
struct BenchReport {
    /// Threads that compute; absent on a CUDA device.
    #[serde(skip_serializing_if = "Option::is_none")]
    threads: Option<usize>,
    /// The CUDA device that computes; absent for the processor.
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<String>,
    decode_tokens_per_s: f64,
    /// After 1,024 tokens of context, where the model has so many.
    decode_1024_tokens_per_s: Option<f64>,
    prefill_tokens_per_s: f64,
    /// Rows → seconds of a target pass over those of one row.
    verify_cost: BTreeMap<usize, f64>,
    /// Behind a target step, in target steps.
    draft_step_cost: Option<f64>,
    /// Behind another draft step.
    draft_further_step_cost: Option<f64>,
    /// Answers of 128 tokens at once without speculation → tokens per second, prompts included.
    streams_tokens_per_s: BTreeMap<usize, f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    speculation: Option<speculation::SpeculationReport>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let prompts = match &args.measure.prompts {
        Some(path) => Some(spread(read_prompts(Some(path), "")?, args.measure.limit)),
        None => None,
    };
    let streams = args.streams.iter().all(|n| (1..=MOST_STREAMS).contains(n));
    ensure!(streams, "--streams: numbers from 1 to {MOST_STREAMS}");
    let loaded = args.measure.load()?;
    let positions = loaded.config().max_position_embeddings;
    let least = PROMPT.max(CONTEXT + DECODED) + 1;
    ensure!(positions >= least, "the model has {positions} positions, and bench needs {least}");
    let config = EngineConfig {
        max_model_len: Some(positions.min(2048)),
        max_num_seqs: MOST_STREAMS,
        num_blocks: Some(MOST_STREAMS * blocks_for(CONTEXT + DECODED + 1)),
        num_speculative_tokens: args.num_speculative_tokens,
        gpu_memory_utilization: args.measure.device.gpu_memory_utilization,
        prefix_caching: false, // every repeat does the same work
        ..EngineConfig::default()
    };
    let vocab = loaded.config().vocab_size as u32;
    let Running { mut engine, chat, device } = loaded.start(config)?;
    let costs = engine.measure_costs(CONTEXT, &ROWS, args.repeats)?;
    let synthetic = |length: usize, tokens: usize| Request {
        ignore_eos: true,
        num_speculative_tokens: Some(0),
        ..Request::greedy((0..length as u32).map(|i| i * 31 % vocab).collect(), tokens)
    };

    // Whole requests, as they are served: sampling and scheduling included.
    let repeats = args.repeats.clamp(1, 5);
    let mut time = |streams: usize, length: usize, tokens: usize| -> Result<f64> {
        let mut seconds = Vec::new();
        for _ in 0..repeats {
            let requests = vec![synthetic(length, tokens); streams];
            let started = Instant::now();
            engine.answer(requests)?;
            seconds.push(started.elapsed().as_secs_f64());
        }
        seconds.sort_by(f64::total_cmp);
        Ok(seconds[seconds.len() / 2])
    };
    let decode = time(1, CONTEXT, DECODED + 1)? - time(1, CONTEXT, 1)?;
    let long = if positions > LONG_CONTEXT + DECODED {
        Some(time(1, LONG_CONTEXT, DECODED + 1)? - time(1, LONG_CONTEXT, 1)?)
    } else {
        None
    };
    let mut report = BenchReport {
        threads: device.is_none().then(|| args.measure.model.num_threads()),
        device,
        decode_tokens_per_s: DECODED as f64 / decode,
        decode_1024_tokens_per_s: long.map(|seconds| DECODED as f64 / seconds),
        prefill_tokens_per_s: PROMPT as f64 / time(1, PROMPT, 1)?,
        verify_cost: ROWS.iter().filter_map(|&n| Some((n, costs.verify_cost(n)?))).collect(),
        draft_step_cost: costs.draft_step_cost(),
        draft_further_step_cost: costs.draft_further_step_cost(),
        streams_tokens_per_s: args
            .streams
            .iter()
            .map(|&n| Ok((n, (n * DECODED) as f64 / time(n, CONTEXT, DECODED)?)))
            .collect::<Result<_>>()?,
        speculation: None,
    };
    print(&report);
    if let Some(prompts) = prompts {
        let speculation = speculation::measure(&mut engine, &chat, &prompts, args)?;
        print!("{speculation}");
        report.speculation = Some(speculation);
    }
    if let Some(path) = &args.json {
        json_file(path, &report)?;
    }
    Ok(())
}

fn print(report: &BenchReport) {
    println!("decode    {:>8.1} tokens/s after {CONTEXT} tokens", report.decode_tokens_per_s);
    if let Some(rate) = report.decode_1024_tokens_per_s {
        println!("          {rate:>8.1} tokens/s after {LONG_CONTEXT} tokens");
    }
    println!("prefill   {:>8.1} tokens/s ({PROMPT} tokens)", report.prefill_tokens_per_s);
    for (rows, cost) in &report.verify_cost {
        println!("verify    {rows:>8} rows cost {cost:.2} times one");
    }
    if let Some(cost) = report.draft_step_cost {
        println!("draft     {cost:>8.3} target steps per draft step behind a target step");
    }
    if let Some(cost) = report.draft_further_step_cost {
        println!("          {cost:>8.3} behind another draft step");
    }
    for (streams, rate) in &report.streams_tokens_per_s {
        println!("streams   {rate:>8.1} tokens/s, {streams} at once, without speculation");
    }
}
