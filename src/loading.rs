//! From a configuration to models that run: for the server, and for `pleach check`.

mod adapters;
mod device;
mod drafts;
mod error;
mod loaders;
mod on_cuda;
mod opened;
mod weights;

use std::sync::Arc;

use adapters::LoadedBeside;
pub use adapters::{AdapterError, AdapterLoadError, AdapterLoader, LoadedAdapter};
pub use device::{open_device, or_the_cpu};
pub use drafts::DraftLoader;
pub use error::LoadError;
pub use loaders::Loaders;
pub use on_cuda::{cuda_engine, load_cuda_draft, load_cuda_target};
use opened::Opened;
use tokenizers::Tokenizer;
pub use weights::MaybeDraft;
use weights::{Placed, Weights, load_on_cpu};

use crate::checkpoint::Summary;
use crate::cli::{ComputeDevice, Config};
use crate::engine::{EngineHandle, Turns};
use crate::memory::Reserved;
use crate::model::Decoder;
use crate::sampling::SamplingParams;
use crate::text::ChatTemplate;
use pleach_kernels::ThreadPool;
use pleach_kernels::cuda::Device;

/// A model of a configuration, in memory, to compute on the CPU.
pub struct Model {
    /// Its own configuration.
    pub config: Config,
    /// The target's name.
    pub name: String,
    /// The target.
    pub target: Decoder,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Its chat template, where it has one.
    pub template: Option<ChatTemplate>,
    /// The draft and its name, or why it cannot be used; `None` where none is configured.
    pub draft: MaybeDraft,
    /// Its LoRA adapters.
    pub adapters: Vec<LoadedAdapter>,
}

impl Model {
    /// Fetches and loads the models and their drafts, the main model first.
    ///
    /// # Errors
    /// [`LoadError`] where a model itself cannot be served.
    pub fn load(config: &Config) -> Result<Vec<Self>, LoadError> {
        if let ComputeDevice::Cuda(_) = config.device {
            return Err(LoadError::OnCpuAlone);
        }
        let pool = Arc::new(ThreadPool::new(config.threads));
        open(config, |mut model| {
            let (target, draft, adapters, _) = load_on_cpu(&mut model, &pool)?;
            let Opened { config, checkpoint, template, tokenizer, .. } = model;
            let name = checkpoint.name;
            Ok(Self { config, name, target, tokenizer, template, draft, adapters })
        })
    }
}

/// Fetches and opens the models of a configuration, the main one first, and loads each.
fn open<T>(
    config: &Config,
    load: impl Fn(Opened) -> Result<T, LoadError>,
) -> Result<Vec<T>, LoadError> {
    // Names that clash are known before a model is fetched.
    let beside = config.beside()?;
    let mut loaded = vec![Opened::open(config.clone()).and_then(&load)?];
    for (name, config) in beside {
        let model = Opened::open_as(&name, config).and_then(&load);
        loaded.push(model.map_err(|error| LoadError::Also { name, error: error.into() })?);
    }
    Ok(loaded)
}

/// Makes something of each model, those first whose caches want the fewest bytes: what they leave, the next may take. `make`
/// gets a model's place among `models` and how many are left, itself among them; what it makes comes in the order of
/// `models`.
///
/// # Errors
/// The first that `make` gives.
pub fn each_by_wanted<T, M, E>(
    models: Vec<(u64, T)>,
    mut make: impl FnMut(usize, usize, T) -> Result<M, E>,
) -> Result<Vec<M>, E> {
    let mut models: Vec<_> = models.into_iter().enumerate().collect();
    models.sort_by_key(|(_, (wanted, _))| *wanted);
    let mut made = Vec::new();
    let count = models.len();
    for (done, (at, (_, model))) in models.into_iter().enumerate() {
        made.push((at, make(at, count - done, model)?));
    }
    made.sort_by_key(|(at, _)| *at);
    Ok(made.into_iter().map(|(_, it)| it).collect())
}

/// A model whose engine runs.
pub struct RunningModel {
    /// Its own configuration.
    pub config: Config,
    /// Its name.
    pub name: String,
    /// What its files say of it.
    pub summary: Summary,
    /// Further names that requests may use.
    pub aliases: Vec<String>,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Its chat template, where it has one.
    pub template: Option<ChatTemplate>,
    /// Tokens that end an answer.
    pub eos_token_ids: Vec<u32>,
    /// How tokens are drawn where a request does not say.
    pub sampling: SamplingParams,
    /// The draft's name, where one drafts.
    pub draft: Option<String>,
    /// Its LoRA adapters.
    pub adapters: Vec<LoadedAdapter>,
    /// What loads drafts and adapters while it serves.
    pub loaders: Loaders,
    /// The engine.
    pub engine: EngineHandle,
}

/// A model in memory that has no engine yet.
struct Loaded {
    model: Opened,
    weights: Weights,
    /// Bytes that its caches take where memory does not bound them.
    wanted: u64,
}

impl Loaded {
    fn load(
        mut model: Opened,
        device: Option<&Arc<Device>>,
        pool: &Arc<ThreadPool>,
    ) -> Result<Self, LoadError> {
        let weights = Weights::load(&mut model, device, pool)?;
        let wanted = model.config.engine.wanted_bytes(weights.needs())?;
        Ok(Self { model, weights, wanted })
    }

    /// Starts the engine, one of `engines` whose caches share what is left of memory.
    fn start(
        self,
        engines: usize,
        caches: &mut Reserved,
        pool: &Arc<ThreadPool>,
        turns: &Turns,
    ) -> Result<RunningModel, LoadError> {
        let Self { mut model, weights, .. } = self;
        let placed = weights.place(&mut model, pool, engines as u64, caches, turns)?;
        let Placed { mut engine, draft, adapters, loaders } = placed;
        // Before anything else computes: what is measured beside it seems slow for good.
        engine.profile();
        let (engine, _) = EngineHandle::start(engine, turns.clone());
        let sampling = model.sampling();
        let Opened { config, checkpoint, summary, aliases, template, tokenizer, .. } = model;
        Ok(RunningModel {
            config,
            name: checkpoint.name,
            summary,
            aliases,
            tokenizer,
            template,
            eos_token_ids: checkpoint.config.eos_token_ids,
            sampling,
            draft,
            adapters,
            loaders,
            engine,
        })
    }
}

/// Fetches and loads the models and their drafts, and starts their engines, the main model's first. A draft that cannot
/// be used is reported and left out: its model runs without it.
///
/// # Errors
/// [`LoadError`] where a model cannot be served.
pub fn start(config: &Config) -> Result<Vec<RunningModel>, LoadError> {
    // A device that is not there is known before a model is fetched.
    let device = open_device(config.device)?;
    let (pool, turns) = (Arc::new(ThreadPool::new(config.threads)), Turns::default());
    let loaded = open(config, |model| {
        let model = Loaded::load(model, device.as_ref(), &pool)?;
        Ok((model.wanted, model))
    })?;
    // All weights are in memory: the caches share what is left.
    let mut caches = Reserved::none();
    let mut running = each_by_wanted(loaded, |at, left, model| {
        let name = model.model.checkpoint.name.clone();
        model.start(left, &mut caches, &pool, &turns).map_err(|error| match at {
            0 => error,
            _ => LoadError::Also { name, error: error.into() },
        })
    })?;
    let loaded = LoadedBeside::default();
    running.iter_mut().for_each(|model| model.loaders.beside(caches, &loaded));
    Ok(running)
}
