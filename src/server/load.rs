//! From a configuration to a model that serves.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use super::Serving;
use crate::checkpoint::source::{Source, SourceError, resolve};
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::config::Config;
use crate::engine::{Engine, EngineError, EngineHandle};
use crate::metrics::DRAFT_FAILURES;
use crate::model::{Decoder, ModelError};
use crate::ops::ThreadPool;
use crate::text::{ChatTemplate, TemplateError};

/// Why a model cannot be served.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each wraps the error of one step")]
pub enum LoadError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Template(#[from] TemplateError),
    #[error("{}: the model has no tokenizer", .0.display())]
    NoTokenizer(PathBuf),
    #[error(
        "the draft has {positions} positions, fewer than the {wanted} served; lower max_model_len"
    )]
    ShortDraft { positions: usize, wanted: usize },
}

/// Fetches and loads the model and its draft, and starts the engine. A draft that cannot be used is
/// reported and left out: the model serves without it.
///
/// # Errors
/// [`LoadError`] where the model itself cannot be served.
pub fn load(config: &Config) -> Result<(Serving, JoinHandle<()>), LoadError> {
    let path = resolve(&config.model, &config.cache_dir)?;
    let mut checkpoint = Checkpoint::open(&path)?;
    let pool = Arc::new(ThreadPool::new(config.threads));
    let target = Decoder::load(&mut checkpoint, &pool)?;
    let template = ChatTemplate::of(&checkpoint)?;
    let tokenizer = checkpoint.tokenizer.take().ok_or(LoadError::NoTokenizer(path))?;
    let draft = config.draft.as_ref().and_then(|source| {
        let failed = |error: &LoadError| {
            tracing::error!(%error, "serving without the draft");
            metrics::counter!(DRAFT_FAILURES).increment(1);
        };
        load_draft(config, source, &target, &pool).inspect_err(failed).ok()
    });
    let model = target.config();
    tracing::info!(
        model = %checkpoint.name,
        blocks = model.num_hidden_layers,
        draft_blocks = draft.as_ref().map(|d| d.config().num_hidden_layers),
        draft_head_rows = draft.as_ref().map(Decoder::head_rows),
        megabytes = target.memory_bytes() / 1_000_000,
        threads = config.threads,
        "model loaded"
    );
    let eos_token_ids = model.eos_token_ids.clone();
    let engine = Engine::new(target, draft, config.engine.clone())?;
    let (engine, thread) = EngineHandle::start(engine);
    let name = config.served_model_name.clone().unwrap_or(checkpoint.name);
    Ok((Serving::new(name, engine, tokenizer, template, eos_token_ids), thread))
}

fn load_draft(
    config: &Config,
    source: &Source,
    target: &Decoder,
    pool: &Arc<ThreadPool>,
) -> Result<Decoder, LoadError> {
    let path = resolve(source, &config.cache_dir)?;
    let draft = Decoder::load_draft(&mut Checkpoint::open(&path)?, target, pool)?;
    let wanted = config.engine.max_model_len.unwrap_or(target.config().max_position_embeddings);
    let positions = draft.config().max_position_embeddings;
    if positions < wanted { Err(LoadError::ShortDraft { positions, wanted }) } else { Ok(draft) }
}
