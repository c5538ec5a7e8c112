//! Drafts: those a configuration names, and those that are loaded while their model serves.

use std::path::PathBuf;

use super::adapters::{LoadedBeside, bytes_of, lacking};
use super::error::LoadError;
use super::on_cuda::load_cuda_draft;
use super::opened::stretch_positions;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::source::{Source, resolve};
use crate::cli::Config;
use crate::engine::{Candidate, EngineHandle, Turns};
use crate::memory::Reserved;
use crate::metrics::DRAFT_FAILURES;
use crate::model::{
    CudaDraft, CudaLender, CudaRunner, Draft, Drafter, Lender, ModelConfig, Runner, check_draft,
};

/// The draft of a model, where it can be used; otherwise logs why not and counts a failure.
pub(super) fn usable<D>(model: &str, draft: Option<Result<D, LoadError>>) -> Option<D> {
    let failed = |error: &LoadError| {
        tracing::error!(model, %error, "serving without the draft");
        metrics::counter!(DRAFT_FAILURES, "model" => model.to_owned()).increment(1);
    };
    draft?.inspect_err(failed).ok()
}

/// Checks that a draft has as many positions as are served.
fn check_positions(
    config: &Config,
    target: &ModelConfig,
    draft: &ModelConfig,
) -> Result<(), LoadError> {
    let wanted = config.engine.max_model_len.unwrap_or(target.max_position_embeddings);
    let positions = draft.max_position_embeddings;
    if positions < wanted { Err(LoadError::ShortDraft { positions, wanted }) } else { Ok(()) }
}

/// Loads further drafts of a model that serves, where the model is.
#[derive(Clone)]
pub enum DraftLoader {
    /// In the processor's memory.
    Cpu(CpuDrafts),
    /// In a CUDA device's.
    Cuda(CudaDrafts),
}

impl DraftLoader {
    /// Fetches and loads a draft beside the one that serves, and has `engine` compare the two on `tokens` tokens.
    ///
    /// # Errors
    /// [`LoadError`] where it does not fit the model, or not into memory: then it is not loaded.
    pub fn compare(
        &self,
        source: &Source,
        engine: &EngineHandle,
        tokens: u64,
    ) -> Result<(), LoadError> {
        let (config, target) = match self {
            Self::Cpu(drafts) => (&drafts.config, drafts.lender.config()),
            Self::Cuda(drafts) => (&drafts.config, drafts.lender.config()),
        };
        let draft = open(source, config, target)?;
        engine.check_draft(&draft.config, draft.draft_vocab.as_deref())?;
        match self {
            Self::Cpu(drafts) => drafts.compare(draft, engine, tokens),
            Self::Cuda(drafts) => drafts.compare(draft, engine, tokens),
        }
    }
}

/// Fetches and opens a draft for a target of this shape, which it must fit.
pub(super) fn open(
    source: &Source,
    config: &Config,
    target: &ModelConfig,
) -> Result<Checkpoint, LoadError> {
    let mut checkpoint = Checkpoint::open(&resolve(source, &config.cache_dir)?)?;
    stretch_positions(&mut checkpoint, config);
    check_draft(&checkpoint, target)?;
    check_positions(config, target, &checkpoint.config)?;
    Ok(checkpoint)
}

/// Checks that a draft of so many bytes fits into what is left beside the rows of a pass.
fn check_memory(needed: u64, left: u64) -> Result<(), LoadError> {
    lacking(needed, left)
        .map_or(Ok(()), |[needed, left]| Err(LoadError::DraftMemory { needed, left }))
}

/// Loads drafts of a model in the processor's memory, also while it serves.
#[derive(Clone)]
pub struct CpuDrafts {
    config: Config,
    lender: Lender,
    /// The caches of all engines that serve. With a draft that is switched in they change a little, as drafts differ.
    pub(super) caches: Reserved,
    /// The adapters that were loaded beside them.
    pub(super) loaded: LoadedBeside,
}

impl CpuDrafts {
    /// Loads drafts of a target, of whose caches it knows nothing yet: how large they can be is known when the draft is.
    pub(super) fn new(config: Config, lender: Lender) -> Self {
        Self { config, lender, caches: Reserved::none(), loaded: LoadedBeside::default() }
    }

    /// Fetches and loads a draft that is to have a K/V cache of `num_blocks` blocks; gives its name too.
    pub(super) fn load(
        &self,
        source: &Source,
        num_blocks: usize,
    ) -> Result<(String, Draft), LoadError> {
        self.load_opened(open(source, &self.config, self.lender.config())?, num_blocks)
    }

    fn compare(
        &self,
        checkpoint: Checkpoint,
        engine: &EngineHandle,
        tokens: u64,
    ) -> Result<(), LoadError> {
        let num_blocks = engine.num_blocks();
        let (name, draft) = self.load_opened(checkpoint, num_blocks)?;
        let candidate = match draft {
            Draft::Standalone(draft) => {
                Candidate::Standalone(Box::new(Runner::new(*draft, num_blocks)))
            }
            Draft::Attached(drafter) => Candidate::Attached(Drafter::Cpu(drafter)),
        };
        Ok(engine.compare(name, candidate, tokens)?)
    }

    fn load_opened(
        &self,
        mut checkpoint: Checkpoint,
        num_blocks: usize,
    ) -> Result<(String, Draft), LoadError> {
        let needed = self.lender.draft_bytes(&checkpoint, num_blocks)?;
        let loaded = self.loaded.lock();
        if let Some(left) = self.caches.available_beside(bytes_of(&loaded)) {
            check_memory(needed, left)?;
        }
        let draft = self.lender.load_draft(&mut checkpoint)?;
        drop(loaded);
        Ok((checkpoint.name, draft))
    }
}

/// What a device has no memory for beside a model that serves, and what to do then.
const CACHE: (&str, &str) = (
    "the keys and values of the draft",
    "start the server with a lower --gpu-memory-utilization, or take an attached draft, which has none",
);

/// Loads drafts of a model on a device, which serves meanwhile.
#[derive(Clone)]
pub struct CudaDrafts {
    config: Config,
    lender: CudaLender,
    /// The target's file or folder: a draft may have its head's rows from it.
    target: PathBuf,
    /// Those of the engines on the device, which do not compute while a draft is copied to it.
    turns: Turns,
}

impl CudaDrafts {
    pub(super) fn new(config: Config, lender: CudaLender, target: PathBuf, turns: Turns) -> Self {
        Self { config, lender, target, turns }
    }

    fn compare(
        &self,
        mut checkpoint: Checkpoint,
        engine: &EngineHandle,
        tokens: u64,
    ) -> Result<(), LoadError> {
        let num_blocks = engine.num_blocks();
        let needed = self.lender.draft_bytes(&checkpoint, num_blocks)?;
        let mut target = Checkpoint::open(&self.target)?;
        // Until the engine has the draft, or it is freed.
        let _turn = self.turns.take();
        let (left, _) = self.lender.device().memory()?;
        check_memory(needed, left as u64)?;
        let candidate = match load_cuda_draft(&mut checkpoint, &self.lender, &mut target)? {
            CudaDraft::Standalone(draft) => {
                let positions = engine.limits().max_model_len;
                let runner = CudaRunner::new(*draft, num_blocks, positions);
                let runner = runner.map_err(|error| LoadError::from(error).advise(CACHE))?;
                Candidate::Standalone(Box::new(runner))
            }
            CudaDraft::Attached(drafter) => Candidate::Attached(Drafter::Cuda(drafter)),
        };
        Ok(engine.compare(checkpoint.name, candidate, tokens)?)
    }
}
