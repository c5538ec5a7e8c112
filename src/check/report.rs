//! What `pleach check` says of a model.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::kv_cache::BLOCK_SIZE;

/// What a check of one model found: memory in bytes, costs in seconds.
#[derive(Debug, Clone, Serialize)]
pub struct CheckReport {
    /// The target's name: of a model beside the main one, that which requests call it by.
    pub model: String,
    /// The draft's name.
    pub draft: Option<String>,
    /// Threads that compute.
    pub threads: usize,
    /// Decoder blocks of the target, and of the draft.
    pub layers: [usize; 2],
    /// Memory of weights and cache.
    pub memory: Memory,
    /// Rows → seconds of a target pass.
    pub target_seconds: BTreeMap<usize, f64>,
    /// Seconds of a draft step.
    pub draft_seconds: Option<f64>,
    /// How many of the draft's tokens are accepted.
    pub acceptance: Option<MeasuredAcceptance>,
    /// The speed-up that acceptance and costs promise.
    pub prediction: Option<SpeedForecast>,
}

/// Memory in bytes.
#[derive(Debug, Clone, Serialize)]
pub struct Memory {
    /// Weights of the target and of its adapters.
    pub target_weights: usize,
    /// Weights of the draft that are not the target's own.
    pub draft_weights: usize,
    /// Positions of one sequence at most.
    pub max_model_len: usize,
    /// Sequences that run at a time.
    pub max_num_seqs: usize,
    /// Blocks of the K/V cache as configured.
    pub kv_blocks: usize,
    /// The K/V cache as configured: target and draft.
    pub kv_cache: usize,
    /// The K/V cache in which all sequences have their full length at once.
    pub kv_cache_full: usize,
    /// Memory left for the cache after the weights, and after the caches of models that want less, where the system
    /// tells.
    pub available: Option<u64>,
}

/// Acceptance of the draft model's tokens, at temperature 0.
#[derive(Debug, Clone, Serialize)]
pub struct MeasuredAcceptance {
    /// Answers measured.
    pub answers: usize,
    /// Tokens of those answers.
    pub tokens: u64,
    /// Chance that a draft token is accepted given that all before it were.
    pub alpha: f64,
    /// Tokens that a round yields at `num_speculative_tokens`: 1 + accepted / drafts.
    pub mean_acceptance_length: f64,
    /// Draft tokens a round while it was measured.
    pub num_speculative_tokens: usize,
}

/// Speed of one answer at a time, drafting with the draft model alone.
#[derive(Debug, Clone, Serialize)]
pub struct SpeedForecast {
    /// Draft tokens a round that promise most.
    pub num_speculative_tokens: usize,
    /// Tokens per second over those without speculation.
    pub speedup: f64,
    /// Tokens per second without speculation.
    pub tokens_per_second_without: f64,
    /// Draft tokens a round → speed-up.
    pub by_num_speculative_tokens: BTreeMap<usize, f64>,
}

impl std::fmt::Display for CheckReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let memory = &self.memory;
        let mb = |bytes: usize| bytes.div_ceil(1_000_000);
        let [layers, draft_layers] = self.layers;
        let weights = mb(memory.target_weights);
        writeln!(f, "model     {}: {layers} decoder blocks, {weights} MB", self.model)?;
        match &self.draft {
            None => writeln!(f, "draft     none")?,
            Some(draft) => {
                let own = mb(memory.draft_weights);
                writeln!(
                    f,
                    "draft     {draft}: {draft_layers} decoder blocks, {own} MB of its own"
                )?;
            }
        }
        write!(
            f,
            "K/V cache {} MB in {} blocks, room for {:.1} sequences of {} tokens; {} MB would hold all {}",
            mb(memory.kv_cache),
            memory.kv_blocks,
            (memory.kv_blocks * BLOCK_SIZE) as f64 / memory.max_model_len as f64,
            memory.max_model_len,
            mb(memory.kv_cache_full),
            memory.max_num_seqs,
        )?;
        match memory.available {
            Some(free) => writeln!(f, " ({} MB are free)", free / 1_000_000)?,
            None => writeln!(f)?,
        }
        let one = self.target_seconds.get(&1).copied().unwrap_or(f64::NAN);
        write!(f, "passes    {:.2} ms for one row", 1000.0 * one)?;
        for (rows, seconds) in self.target_seconds.iter().filter(|(rows, _)| **rows > 1) {
            write!(f, ", {rows} rows {:.2} times that", seconds / one)?;
        }
        match self.draft_seconds {
            Some(draft) => writeln!(f, ", a draft step {:.3}", draft / one)?,
            None => writeln!(f)?,
        }
        if let Some(acceptance) = &self.acceptance {
            writeln!(
                f,
                "accepted  α {:.3} over {} answers ({} tokens), mean acceptance length {:.2} at {} draft tokens",
                acceptance.alpha,
                acceptance.answers,
                acceptance.tokens,
                acceptance.mean_acceptance_length,
                acceptance.num_speculative_tokens,
            )?;
        }
        let Some(prediction) = &self.prediction else {
            return writeln!(f, "speed-up  none: the model will serve without a draft model");
        };
        writeln!(
            f,
            "speed-up  {:.2} predicted at {} draft tokens a round: {:.0} tokens/s instead of {:.0}, one answer \
             at a time",
            prediction.speedup,
            prediction.num_speculative_tokens,
            prediction.speedup * prediction.tokens_per_second_without,
            prediction.tokens_per_second_without,
        )?;
        if prediction.speedup <= 1.0 {
            writeln!(f, "          this draft does not pay here; the server will hardly use it")?;
        }
        Ok(())
    }
}
