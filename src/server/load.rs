//! From a configuration to a model that serves.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use super::Serving;
use crate::checkpoint::source::{SourceError, resolve};
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::config::Config;
use crate::engine::{Engine, EngineError, EngineHandle};
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
        let draft = resolve(source, &config.cache_dir).map_err(LoadError::from).and_then(|path| {
            Ok(Decoder::load_draft(&mut Checkpoint::open(&path)?, &target, &pool)?)
        });
        draft.inspect_err(|error| tracing::error!(%error, "serving without the draft")).ok()
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
    let engine = Engine::new(target, draft, pool, config.engine.clone())?;
    let (engine, thread) = EngineHandle::start(engine);
    let name = config.served_model_name.clone().unwrap_or(checkpoint.name);
    let tokenizer = Arc::new(tokenizer);
    Ok((Serving { name, engine, tokenizer, template, eos_token_ids }, thread))
}
