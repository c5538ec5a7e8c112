//! `pleach check`: whether models and their drafts fit each other and this machine, and what they promise,
//! before anything is served.

mod report;

use std::collections::BTreeMap;
use std::path::PathBuf;

pub use report::{CheckReport, MeasuredAcceptance, Memory, SpeedForecast};
use serde_json::json;
use tokenizers::Tokenizer;

use crate::cli::Config;
use crate::engine::{
    CacheNeeds, Engine, EngineConfig, EngineError, FinishReason, Request, expected_speedup,
};
use crate::kv_cache::BLOCK_SIZE;
use crate::loading::{LoadError, Model, each_by_wanted};
use crate::memory::Reserved;
use crate::model::{Draft, OutOfMemory};
use crate::prompts::{Prompt, PromptsError, VALIDATION_PROMPTS, read_prompts, spread};
use crate::speculation::StepCost;
use crate::text::{ChatTemplate, TemplateError};

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
    Memory(#[from] OutOfMemory),
    #[error(transparent)]
    Prompts(#[from] PromptsError),
    #[error("prompt {id}: {reason}")]
    Prompt { id: String, reason: String },
    #[error(transparent)]
    Template(#[from] TemplateError),
    #[error("--also {name}: {error}")]
    Also { name: String, error: Box<Self> },
}

/// Loads the models that a configuration names, the main one first, and measures each.
///
/// # Errors
/// [`CheckError`] where a pair does not fit together or the caches not into memory.
pub fn check(config: &Config, options: &Options) -> Result<Vec<CheckReport>, CheckError> {
    let prompts = read_prompts(options.prompts.as_deref(), VALIDATION_PROMPTS)?;
    let prompts = spread(prompts, options.limit);
    let of_model = |at: usize, name: String, error: CheckError| match at {
        0 => error,
        _ => CheckError::Also { name, error: error.into() },
    };
    let mut pairs = Vec::new();
    for (at, model) in Model::load(config)?.into_iter().enumerate() {
        let name = model.name.clone();
        pairs.push(Pair::of(model).map_err(|error| of_model(at, name, error))?);
    }
    // All weights are in memory, and stay there, as they do while the models are served.
    let (mut caches, mut engines) = (Reserved::none(), Vec::new());
    each_by_wanted(pairs, |at, left, pair| {
        let name = pair.model.name.clone();
        let (report, engine) =
            pair.measure(&prompts, left, &mut caches).map_err(|error| of_model(at, name, error))?;
        engines.push(engine);
        Ok(report)
    })
}

/// A model, its draft and the draft's name, to be measured.
struct Pair {
    model: Model,
    draft: Option<Draft>,
    draft_name: Option<String>,
}

impl Pair {
    /// A model with the draft it is to have, and the bytes that its caches take where memory does not bound them.
    fn of(mut model: Model) -> Result<(u64, Self), CheckError> {
        let draft = model.draft.take().transpose().map_err(CheckError::Draft)?;
        let (draft_name, draft) = draft.unzip();
        let needs = CacheNeeds::of(&model.target, draft.as_ref());
        let wanted = model.config.engine.wanted_bytes(needs)?;
        Ok((wanted, Self { model, draft, draft_name }))
    }

    /// Measures the pair, whose caches are among those of so many `engines`; `caches` are those that are there.
    fn measure(
        self,
        prompts: &[Prompt],
        engines: usize,
        caches: &mut Reserved,
    ) -> Result<(CheckReport, Engine), CheckError> {
        let Self {
            model: Model { config, name, target, tokenizer, template, adapters, .. },
            draft,
            draft_name,
        } = self;
        let adapters: usize = adapters.iter().map(|adapter| adapter.weights.bytes()).sum();
        let available = caches.available_beside(0);
        let mut engine_config = config.engine.clone();
        let share = available.map(|free| engine_config.share_of(free, engines as u64));
        engine_config.fit_blocks(CacheNeeds::of(&target, draft.as_ref()), share)?;
        let (limits, kv_blocks) =
            engine_config.resolve(target.config(), draft.as_ref().map(|draft| draft.config()))?;
        let kv = |blocks| {
            target.kv_cache_bytes(blocks) + draft.as_ref().map_or(0, |d| d.kv_cache_bytes(blocks))
        };
        let full = limits.max_model_len.div_ceil(BLOCK_SIZE) * limits.max_num_seqs;
        let memory = Memory {
            target_weights: target.memory_bytes() + adapters,
            draft_weights: draft.as_ref().map_or(0, |draft| draft.memory_bytes_beside(&target)),
            max_model_len: limits.max_model_len,
            max_num_seqs: limits.max_num_seqs,
            kv_blocks,
            kv_cache: kv(kv_blocks),
            kv_cache_full: kv(full),
            available,
        };
        caches.add(memory.kv_cache as u64);
        let layers =
            [target.config(), draft.as_ref().map_or(target.config(), |draft| draft.config())];
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
        let mut engine = Engine::new(target, draft, engine_config)?;
        let room = limits.max_model_len;
        let context = CONTEXT.min(room / 2);
        let rows: Vec<usize> = ROWS.into_iter().filter(|rows| context + rows <= room).collect();
        let costs = engine.measure_costs(context, &rows, REPEATS)?;
        let mut report = CheckReport {
            model: name,
            draft: draft_name,
            threads: config.threads,
            layers,
            memory,
            target_seconds: costs.target.iter().copied().collect(),
            draft_seconds: costs.draft,
            acceptance: None,
            prediction: None,
        };
        if !speculates {
            return Ok((report, engine));
        }
        let encode = |prompt: &Prompt| encode(prompt, template.as_ref(), &tokenizer);
        let acceptance = accept(&mut engine, prompts, encode)?;
        let mut target = StepCost::default();
        costs.target.iter().for_each(|&(rows, seconds)| target.measured(rows, seconds));
        report.prediction = predict(&target, costs.draft, acceptance.alpha, most);
        report.acceptance = Some(acceptance);
        Ok((report, engine))
    }
}

/// The tokens of a prompt's first message.
fn encode(
    prompt: &Prompt,
    template: Option<&ChatTemplate>,
    tokenizer: &Tokenizer,
) -> Result<Vec<u32>, CheckError> {
    let text = match template {
        Some(template) => {
            template.render(&[json!({"role": "user", "content": prompt.turns[0]})], &[])?
        }
        None => prompt.turns[0].clone(),
    };
    let encoding = tokenizer.encode(text, template.is_none());
    let wrong =
        |e: tokenizers::Error| CheckError::Prompt { id: prompt.id.clone(), reason: e.to_string() };
    Ok(encoding.map_err(wrong)?.get_ids().to_vec())
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
