//! What `generate` is asked for.

use std::path::PathBuf;

use pleach::cli::DeviceArgs;
use serde::Serialize;

use crate::shared::endpoint;
use crate::shared::model_args::ModelArgs;

/// Lets the model answer prompts, many at a time, and writes the answers: the training data of
/// self-data distillation.
///
/// Prompts are lines of JSON with "turns", a list of user messages, and perhaps "id" and "category".
/// Every turn is answered. A prompt with a "reference" answer is answered with the reference in view,
/// and the answer is kept where it checks out against it: the number after #### (GSM8K), the choice
/// letter, or for free text the length; else the reference takes its place. With --top-logprobs the
/// model's most likely tokens at every place of the answers go to a second file, OUT.topk, and references
/// are left aside, since they would change that distribution. Answers lie in the prompts' order. Started
/// again, it goes on with the prompts that have no answer yet.
///
/// With --endpoint another server answers, for instance a cluster that serves a large model; --model then
/// names where its tokenizer is. With --top-logprobs that server is asked for the likeliest tokens, and what it
/// says is trained on as if the model were here; without, with --loss ce.
#[derive(Debug, Clone, clap::Args, Serialize)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) device: DeviceArgs,
    /// Prompts (JSONL). Default: about 4,800 built-in ones.
    #[arg(long, env = "PLEACH_PROMPTS", value_name = "JSONL")]
    pub(crate) prompts: Option<PathBuf>,
    /// Where the answers go (JSONL).
    #[arg(long, env = "PLEACH_OUT", value_name = "JSONL")]
    pub(crate) out: PathBuf,
    /// Answer at most so many prompts, spread evenly over the file.
    #[arg(long)]
    pub(crate) limit: Option<usize>,
    /// Tokens of an answer, at most.
    #[arg(long, default_value_t = 256)]
    pub(crate) max_tokens: usize,
    /// Leave out prompts with more tokens than this.
    #[arg(long, default_value_t = 768)]
    pub(crate) max_prompt_tokens: usize,
    /// Sampling temperatures, taken in turn from prompt to prompt; 0 takes the likeliest token.
    #[arg(long, value_delimiter = ',', default_value = "0")]
    pub(crate) temperature: Vec<f32>,
    /// Keep the target's distribution over its K likeliest tokens; 0 keeps none.
    #[arg(long, default_value_t = 0, value_name = "K")]
    pub(crate) top_logprobs: usize,
    /// Answers written at the same time.
    #[arg(long, default_value_t = 32)]
    pub(crate) batch: usize,
    /// End after so many minutes, those before an interruption included; unfinished answers are kept as
    /// they are.
    #[arg(long)]
    pub(crate) minutes: Option<f64>,
    /// Seed of sampling.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) endpoint: endpoint::Args,
}
