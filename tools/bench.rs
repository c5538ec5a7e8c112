//! `bench`: how fast a model runs here.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use pleach::checkpoint::source::Source;
use pleach::checkpoint::write::json_file;
use pleach::engine::{Engine, EngineConfig, Request};
use serde::Serialize;

use crate::common::ModelArgs;

/// Times decoding, prefill and verification of a model on this machine, and drafting where there is a
/// draft.
///
/// Each figure is the median of several. Run it on an otherwise idle machine.
#[derive(Debug, Clone, clap::Args, Serialize)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// The draft. Default: for the default model, the draft in `drafts/`.
    #[arg(long, env = "PLEACH_DRAFT", value_name = "SOURCE")]
    pub(crate) draft: Option<Source>,
    /// Repeats of every measurement.
    #[arg(long, default_value_t = 15)]
    pub(crate) repeats: usize,
    /// Where the result goes.
    #[arg(long, value_name = "OUT")]
    pub(crate) json: Option<PathBuf>,
}

const ROWS: [usize; 6] = [1, 2, 4, 8, 16, 32];
const CONTEXT: usize = 64;
const PROMPT: usize = 512;
const DECODED: usize = 128;

pub(crate) fn run(args: &Args) -> Result<()> {
    let loaded = args.model.load(args.draft.as_ref())?;
    let config = EngineConfig {
        max_model_len: Some(loaded.target.config().max_position_embeddings.min(1024)),
        ..EngineConfig::default()
    };
    let vocab = loaded.target.config().vocab_size as u32;
    let mut engine = Engine::new(loaded.target, loaded.decoder, config)?;
    let costs = engine.measure_costs(CONTEXT, &ROWS, args.repeats);
    let prompt =
        |length: usize| -> Vec<u32> { (0..length as u32).map(|i| i * 31 % vocab).collect() };

    // Whole requests, as they are served: sampling and scheduling included.
    let mut time = |length: usize, tokens: usize| -> Result<f64> {
        let mut seconds = Vec::new();
        for _ in 0..args.repeats.clamp(1, 5) {
            let request = Request {
                ignore_eos: true,
                num_speculative_tokens: Some(0),
                ..Request::greedy(prompt(length), tokens)
            };
            engine.submit(request)?;
            let started = Instant::now();
            while engine.has_work() {
                engine.step();
            }
            seconds.push(started.elapsed().as_secs_f64());
        }
        seconds.sort_by(f64::total_cmp);
        Ok(seconds[seconds.len() / 2])
    };
    let decode = time(CONTEXT, DECODED + 1)? - time(CONTEXT, 1)?;
    let decode_tokens_per_s = DECODED as f64 / decode;
    let prefill_tokens_per_s = PROMPT as f64 / time(PROMPT, 1)?;

    let verify_cost: serde_json::Map<_, _> = ROWS
        .iter()
        .filter_map(|rows| Some((rows.to_string(), costs.verify_cost(*rows)?.into())))
        .collect();
    println!("decode   {decode_tokens_per_s:>8.1} tokens/s");
    println!("prefill  {prefill_tokens_per_s:>8.1} tokens/s ({PROMPT} tokens)");
    for (rows, cost) in ROWS.iter().filter_map(|rows| Some((rows, costs.verify_cost(*rows)?))) {
        println!("verify   {rows:>8} rows cost {cost:.2} times one");
    }
    if let Some(cost) = costs.draft_step_cost() {
        println!("draft    {cost:>8.3} target steps per draft step");
    }
    if let Some(path) = &args.json {
        json_file(
            path,
            &serde_json::json!({
                "decode_tokens_per_s": decode_tokens_per_s,
                "prefill_tokens_per_s": prefill_tokens_per_s,
                "verify_cost": verify_cost,
                "draft_step_cost": costs.draft_step_cost(),
                "threads": args.model.num_threads(),
            }),
        )?;
    }
    Ok(())
}
