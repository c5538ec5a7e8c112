//! From a configuration to a model that serves.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokenizers::Tokenizer;

use super::Serving;
use crate::checkpoint::source::{Source, SourceError, resolve};
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::config::Config;
use crate::engine::{Engine, EngineError, EngineHandle};
use crate::metrics::{DRAFT_FAILURES, INFO};
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

/// The models of a configuration, in memory.
pub struct Models {
    /// The target's name.
    pub name: String,
    /// What it is called besides.
    pub aliases: Vec<String>,
    /// The target.
    pub target: Decoder,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Its chat template, where it has one.
    pub template: Option<ChatTemplate>,
    /// The draft and its name, or why it cannot be used; `None` where none is configured.
    pub draft: Option<Result<(String, Decoder), LoadError>>,
}

impl Models {
    /// Fetches and loads the model and its draft.
    ///
    /// # Errors
    /// [`LoadError`] where the model itself cannot be served.
    pub fn load(config: &Config) -> Result<Self, LoadError> {
        let path = resolve(&config.model, &config.cache_dir)?;
        let mut checkpoint = Checkpoint::open(&path)?;
        let pool = Arc::new(ThreadPool::new(config.threads));
        let target = Decoder::load(&mut checkpoint, &pool)?;
        let template = ChatTemplate::of(&checkpoint)?;
        let mut aliases = vec![config.model.to_string()];
        aliases.extend(path.file_name().map(|name| name.to_string_lossy().into_owned()));
        if let Source::Hub { repo, .. } = &config.model {
            aliases.extend([repo.clone(), format!("hf:{repo}")]);
        }
        let tokenizer = checkpoint.tokenizer.take().ok_or(LoadError::NoTokenizer(path))?;
        let draft = config.draft.as_ref().map(|source| load_draft(config, source, &target, &pool));
        let name = checkpoint.name;
        Ok(Self { name, aliases, target, tokenizer, template, draft })
    }
}

/// Fetches and loads the model and its draft, and starts the engine. A draft that cannot be used is
/// reported and left out: the model serves without it.
///
/// # Errors
/// [`LoadError`] where the model itself cannot be served.
pub fn load(config: &Config) -> Result<(Serving, JoinHandle<()>), LoadError> {
    let Models { name, aliases, target, tokenizer, template, draft } = Models::load(config)?;
    let failed = |error: &LoadError| {
        tracing::error!(%error, "serving without the draft");
        metrics::counter!(DRAFT_FAILURES).increment(1);
    };
    let (draft_name, draft) = draft.and_then(|draft| draft.inspect_err(failed).ok()).unzip();
    let model = target.config();
    tracing::info!(
        model = %name,
        blocks = model.num_hidden_layers,
        draft_blocks = draft.as_ref().map(|d| d.config().num_hidden_layers),
        draft_head_rows = draft.as_ref().map(Decoder::head_rows),
        megabytes = target.memory_bytes() / 1_000_000,
        threads = config.threads,
        "model loaded"
    );
    let labels = [
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("model", name.clone()),
        ("draft", draft_name.unwrap_or_else(|| "none".into())),
    ];
    metrics::gauge!(INFO, &labels).set(1.0);
    let eos_token_ids = model.eos_token_ids.clone();
    let mut engine = Engine::new(target, draft, config.engine.clone())?;
    // Before anything else computes: what is measured beside it seems slow for good.
    engine.profile();
    let (engine, thread) = EngineHandle::start(engine);
    let serving = Serving::new(name, engine, tokenizer, template, eos_token_ids)
        .named(&config.served_model_names, aliases);
    Ok((serving, thread))
}

fn load_draft(
    config: &Config,
    source: &Source,
    target: &Decoder,
    pool: &Arc<ThreadPool>,
) -> Result<(String, Decoder), LoadError> {
    let path = resolve(source, &config.cache_dir)?;
    let mut checkpoint = Checkpoint::open(&path)?;
    let draft = Decoder::load_draft(&mut checkpoint, target, pool)?;
    let wanted = config.engine.max_model_len.unwrap_or(target.config().max_position_embeddings);
    let positions = draft.config().max_position_embeddings;
    if positions < wanted {
        return Err(LoadError::ShortDraft { positions, wanted });
    }
    Ok((checkpoint.name, draft))
}
