//! What `bench` is asked for.

use std::path::PathBuf;

use serde::Serialize;

use crate::shared::measure_args::MeasureArgs;

/// Times decoding, prefill, verification, drafting and up to 64 answers at once; with --prompts, also
/// speculation on those prompts.
///
/// Each figure is the median of several. Run it on an otherwise idle machine. On a CUDA device (--device), every time ends
/// when the processor has the result, which is a decision where the device decides; the JSON has `device` in place of
/// `threads`. With --prompts every prompt is answered in turns without speculation, with n-grams alone, with the draft model
/// alone and with both, and the answers are compared: they must be the same, token for token, above temperature 0 too, where
/// they are drawn with seeds. --unseeded draws them as for clients that name no seed.
#[derive(Debug, Clone, clap::Args, Serialize)]
pub(crate) struct Args {
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) measure: MeasureArgs,
    /// Repeats of every measurement.
    #[arg(long, default_value_t = 15)]
    pub(crate) repeats: usize,
    /// Numbers of answers to time at once, 64 at most.
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_value = "1,8,16,32,64")]
    pub(crate) streams: Vec<usize>,
    /// Draft tokens per round, at most.
    #[arg(long, env = "PLEACH_NUM_SPECULATIVE_TOKENS", default_value_t = 8, value_name = "K")]
    pub(crate) num_speculative_tokens: usize,
    /// Above temperature 0, draw answers without seeds, as for most clients: more draft tokens are accepted, and the
    /// answers, which then differ, are not compared.
    #[arg(long)]
    pub(crate) unseeded: bool,
    /// Where the result goes.
    #[arg(long, value_name = "OUT")]
    pub(crate) json: Option<PathBuf>,
}
