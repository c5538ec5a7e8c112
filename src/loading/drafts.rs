//! Drafts: those a configuration names, and those that are loaded while their model serves.

use super::adapters::{LoadedBeside, bytes_of};
use super::error::LoadError;
use super::opened::stretch_positions;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::source::{Source, resolve};
use crate::cli::Config;
use crate::memory::Reserved;
use crate::metrics::DRAFT_FAILURES;
use crate::model::{Draft, Lender, ModelConfig};

/// The draft of a model, where it can be used; otherwise logs why not and counts a failure.
pub(super) fn usable<D>(model: &str, draft: Option<Result<D, LoadError>>) -> Option<D> {
    let failed = |error: &LoadError| {
        tracing::error!(model, %error, "serving without the draft");
        metrics::counter!(DRAFT_FAILURES, "model" => model.to_owned()).increment(1);
    };
    draft?.inspect_err(failed).ok()
}

/// Checks that a draft has as many positions as are served.
pub(super) fn check_positions(
    config: &Config,
    target: &ModelConfig,
    draft: &ModelConfig,
) -> Result<(), LoadError> {
    let wanted = config.engine.max_model_len.unwrap_or(target.max_position_embeddings);
    let positions = draft.max_position_embeddings;
    if positions < wanted { Err(LoadError::ShortDraft { positions, wanted }) } else { Ok(()) }
}

/// Loads drafts of a model that may be serving.
#[derive(Clone)]
pub struct DraftLoader {
    config: Config,
    lender: Lender,
    /// The caches of all engines that serve. With a draft that is switched in they change a little, as drafts differ.
    pub(super) caches: Reserved,
    /// The adapters that were loaded beside them.
    pub(super) loaded: LoadedBeside,
}

impl DraftLoader {
    /// Loads drafts of a target, of whose caches it knows nothing yet: how large they can be is known when the draft is.
    pub(super) fn new(config: Config, lender: Lender) -> Self {
        Self { config, lender, caches: Reserved::none(), loaded: LoadedBeside::default() }
    }

    /// Fetches and loads a draft that is to have a K/V cache of `num_blocks` blocks; gives its name too.
    ///
    /// # Errors
    /// [`LoadError`] where it does not fit the model, or not into memory: then it is not loaded.
    pub fn load(&self, source: &Source, num_blocks: usize) -> Result<(String, Draft), LoadError> {
        let path = resolve(source, &self.config.cache_dir)?;
        let mut checkpoint = Checkpoint::open(&path)?;
        stretch_positions(&mut checkpoint, &self.config);
        let needed = self.lender.draft_bytes(&checkpoint, num_blocks)?;
        // A tenth is for the rows of a pass.
        let loaded = self.loaded.lock();
        if let Some(left) = self.caches.available_beside(bytes_of(&loaded))
            && needed > left / 10 * 9
        {
            let (needed, left) = (needed.div_ceil(1_000_000), left / 1_000_000);
            return Err(LoadError::DraftMemory { needed, left });
        }
        let draft = self.lender.load_draft(&mut checkpoint)?;
        drop(loaded);
        check_positions(&self.config, self.lender.config(), draft.config())?;
        Ok((checkpoint.name, draft))
    }
}
