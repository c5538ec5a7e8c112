//! `pleach check`: whether a model and its draft fit each other and this machine, and what they promise,
//! before anything is served.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;
use serde_json::json;

use crate::cli::Config;
use crate::engine::{
    CacheNeeds, Engine, EngineConfig, EngineError, FinishReason, Request, expected_speedup,
};
use crate::kv_cache::BLOCK_SIZE;
use crate::loading::{LoadError, Models};
use crate::memory;
use crate::prompts::{Prompt, PromptsError, VALIDATION_PROMPTS, read_prompts, spread};
use crate::speculation::StepCost;
use crate::text::TemplateError;

/// Rows of the target passes that are timed.
const ROWS: [usize; 4] = [1, 2, 4, 8];
/// Context of the timed passes, and repeats of each.
const CONTEXT: usize = 256;
const REPEATS: usize = 15;
/// Draft tokens a round while acceptance is measured, as `pleach-tools evaluate` has it.
const DRAFTED: usize = 4;
/// Answers at a time, and tokens of each.
const BATCH: usize = 4;
const ANSWER: usize = 64;

/// What acceptance is measured on.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// A prompt file in place of the built-in prompts.
    pub prompts: Option<PathBuf>,
    /// Prompts to use at most, spread evenly.
    pub limit: Option<usize>,
}

/// Why a configuration cannot be served, or not be checked.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each wraps the error of one step")]
pub enum CheckError {
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("the draft cannot be used: {0}")]
    Draft(LoadError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Prompts(#[from] PromptsError),
    #[error("prompt {id}: {reason}")]
    Prompt { id: String, reason: String },
    #[error(transparent)]
    Template(#[from] TemplateError),
}

/// What a check found: memory in bytes, costs in seconds.
#[derive(Debug, Clone, Serialize)]
pub struct CheckReport {
    /// The target's name.
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
    /// Weights of the target.
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
    /// Memory left for the cache after the weights, where the system tells.
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

/// Loads what a configuration names and measures it.
///
/// # Errors
/// [`CheckError`] where the pair does not fit together or the cache not into memory.
pub fn check(config: &Config, options: &Options) -> Result<CheckReport, CheckError> {
    let prompts = read_prompts(options.prompts.as_deref(), VALIDATION_PROMPTS)?;
    let prompts = spread(prompts, options.limit);
    let models = Models::load(config)?;
    let draft = models.draft.transpose().map_err(CheckError::Draft)?;
    let (name, draft) = draft.unzip();
    let target = &models.target;
    let available = memory::available();
    let mut engine_config = config.engine.clone();
    engine_config.fit_blocks(CacheNeeds::of(target, draft.as_ref()), available)?;
    let (limits, kv_blocks) =
        engine_config.resolve(target.config(), draft.as_ref().map(|draft| draft.config()))?;
    let kv = |blocks| {
        target.kv_cache_bytes(blocks) + draft.as_ref().map_or(0, |d| d.kv_cache_bytes(blocks))
    };
    let full = limits.max_model_len.div_ceil(BLOCK_SIZE) * limits.max_num_seqs;
    let memory = Memory {
        target_weights: target.memory_bytes(),
        draft_weights: draft.as_ref().map_or(0, |draft| draft.memory_bytes_beside(target)),
        max_model_len: limits.max_model_len,
        max_num_seqs: limits.max_num_seqs,
        kv_blocks,
        kv_cache: kv(kv_blocks),
        kv_cache_full: kv(full),
        available,
    };
    let layers = [target.config(), draft.as_ref().map_or(target.config(), |draft| draft.config())];
    let layers = layers.map(|config| config.num_hidden_layers);
    let speculates = draft.is_some() && limits.num_speculative_tokens > 0;
    let most = config.engine.num_speculative_tokens;
    let engine_config = EngineConfig {
        num_speculative_tokens: most.min(DRAFTED),
        ngram: false,
        adaptive: false,
        max_num_seqs: BATCH.min(limits.max_num_seqs),
        num_blocks: Some(kv_blocks),
        ..engine_config
    };
    let mut engine = Engine::new(models.target, draft, engine_config)?;
    let room = limits.max_model_len;
    let context = CONTEXT.min(room / 2);
    let rows: Vec<usize> = ROWS.into_iter().filter(|rows| context + rows <= room).collect();
    let costs = engine.measure_costs(context, &rows, REPEATS);
    let mut report = CheckReport {
        model: models.name,
        draft: name,
        threads: config.threads,
        layers,
        memory,
        target_seconds: costs.target.iter().copied().collect(),
        draft_seconds: costs.draft,
        acceptance: None,
        prediction: None,
    };
    if !speculates {
        return Ok(report);
    }
    let encode = |prompt: &Prompt| -> Result<Vec<u32>, CheckError> {
        let text = match &models.template {
            Some(template) => {
                template.render(&[json!({"role": "user", "content": prompt.turns[0]})], &[])?
            }
            None => prompt.turns[0].clone(),
        };
        let encoding = models.tokenizer.encode(text, models.template.is_none());
        let wrong = |e: tokenizers::Error| CheckError::Prompt {
            id: prompt.id.clone(),
            reason: e.to_string(),
        };
        Ok(encoding.map_err(wrong)?.get_ids().to_vec())
    };
    let acceptance = accept(&mut engine, &prompts, encode)?;
    let mut target = StepCost::default();
    costs.target.iter().for_each(|&(rows, seconds)| target.measured(rows, seconds));
    report.prediction = predict(&target, costs.draft, acceptance.alpha, most);
    report.acceptance = Some(acceptance);
    Ok(report)
}

/// Answers the prompts' first messages and counts.
fn accept(
    engine: &mut Engine,
    prompts: &[Prompt],
    encode: impl Fn(&Prompt) -> Result<Vec<u32>, CheckError>,
) -> Result<MeasuredAcceptance, CheckError> {
    let failed = |prompt: &Prompt, reason| CheckError::Prompt { id: prompt.id.clone(), reason };
    let mut requests = Vec::new();
    for prompt in prompts {
        let request = Request::greedy(encode(prompt)?, ANSWER);
        request.validate(engine.limits()).map_err(|e| failed(prompt, e.to_string()))?;
        requests.push(request);
    }
    let answers = engine.answer(requests).expect("invariant: valid requests");
    for (prompt, answer) in prompts.iter().zip(answers) {
        if let FinishReason::Error(reason) = answer.reason {
            return Err(failed(prompt, reason));
        }
    }
    let stats = engine.stats();
    let ratio = |a: u64, b: u64| if b == 0 { 0.0 } else { a as f64 / b as f64 };
    Ok(MeasuredAcceptance {
        answers: prompts.len(),
        tokens: stats.rounds.generated_tokens,
        alpha: ratio(
            stats.rounds.accepted_tokens,
            stats.rounds.accepted_tokens + stats.rounds.recovered_tokens,
        ),
        mean_acceptance_length: 1.0 + ratio(stats.rounds.accepted_tokens, stats.rounds.drafts),
        num_speculative_tokens: engine.limits().num_speculative_tokens,
    })
}

fn predict(
    target: &StepCost,
    draft: Option<f64>,
    alpha: f64,
    most: usize,
) -> Option<SpeedForecast> {
    let one = target.seconds(1)?;
    let draft = draft? / one;
    let by_num_speculative_tokens: BTreeMap<usize, f64> = (1..=most)
        .filter_map(|gamma| {
            let verify = target.seconds(gamma + 1)? / one;
            Some((gamma, expected_speedup(alpha, gamma, draft, verify)))
        })
        .collect();
    let best = by_num_speculative_tokens.iter().max_by(|a, b| a.1.total_cmp(b.1));
    let (&num_speculative_tokens, &speedup) = best?;
    Some(SpeedForecast {
        num_speculative_tokens,
        speedup,
        tokens_per_second_without: 1.0 / one,
        by_num_speculative_tokens,
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn predictions_follow_the_formula() {
        assert!((expected_speedup(0.5, 2, 0.1, 1.2) - 1.75 / 1.4).abs() < 1e-12);
        assert_eq!(expected_speedup(0.0, 3, 0.0, 1.0), 1.0);
        assert_eq!(expected_speedup(1.0, 3, 0.0, 1.0), 4.0);
        let mut target = StepCost::default();
        for (rows, seconds) in [(1, 0.01), (2, 0.011), (4, 0.013), (8, 0.04)] {
            target.measured(rows, seconds);
        }
        let prediction = predict(&target, Some(0.001), 0.8, 7).unwrap();
        // Beyond four rows a pass grows faster than what the tokens bring.
        assert_eq!(prediction.num_speculative_tokens, 3);
        assert!((prediction.speedup - 2.952 / (0.3 + 1.3)).abs() < 1e-9, "{prediction:?}");
        assert_eq!(prediction.by_num_speculative_tokens.len(), 7);
        assert!(predict(&target, None, 0.8, 7).is_none());
        assert!(predict(&target, Some(0.001), 0.8, 0).is_none());
    }
}
