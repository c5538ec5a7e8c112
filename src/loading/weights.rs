//! The weights of a model and its draft in memory, of the processor or of a CUDA device.

use std::sync::Arc;

use super::adapters::{self, AdapterLoader, LoadedAdapter};
use super::device::or_the_cpu;
use super::drafts::{CpuDrafts, CudaDrafts, DraftLoader, open, usable};
use super::error::LoadError;
use super::loaders::Loaders;
use super::on_cuda::{cuda_engine, load_cuda_adapters, load_cuda_draft, load_cuda_target};
use super::opened::Opened;
use crate::checkpoint::Checkpoint;
use crate::cli::KvCacheDtype;
use crate::engine::{CacheNeeds, Engine, EngineConfig, Turns};
use crate::memory::Reserved;
use crate::model::{CudaDecoder, CudaDraft, Decoder, Draft};
use pleach_kernels::cuda::Device;
use pleach_kernels::{CacheFormat, ThreadPool};

/// A draft and its name, or why it cannot be used; `None` where none is configured.
pub type MaybeDraft = Option<Result<(String, Draft), LoadError>>;

/// A target and, perhaps, its draft and the draft's name.
pub(super) enum Weights {
    /// In the memory of the processor.
    Cpu(Box<OnCpu>),
    /// In that of a device.
    Cuda(Box<OnCuda>),
}

/// Those in the memory of the processor.
pub(super) struct OnCpu {
    target: Decoder,
    draft: Option<(String, Draft)>,
    adapters: Vec<LoadedAdapter>,
    drafts: CpuDrafts,
}

/// Those in the memory of a device.
pub(super) struct OnCuda {
    target: CudaDecoder,
    draft: Option<(String, CudaDraft)>,
    adapters: Vec<LoadedAdapter>,
}

/// An engine over models in memory, not started yet.
pub(super) struct Placed {
    pub(super) engine: Engine,
    /// The draft's name, where one drafts.
    pub(super) draft: Option<String>,
    /// The adapters of the configuration.
    pub(super) adapters: Vec<LoadedAdapter>,
    /// Loads further drafts and adapters.
    pub(super) loaders: Loaders,
}

/// A target on the CPU, its draft, its adapters and what loads further drafts.
pub(super) type LoadedOnCpu = (Decoder, MaybeDraft, Vec<LoadedAdapter>, CpuDrafts);

/// Loads the target, its adapters, and the draft that is configured.
pub(super) fn load_on_cpu(
    model: &mut Opened,
    pool: &Arc<ThreadPool>,
) -> Result<LoadedOnCpu, LoadError> {
    let mut target = Decoder::load(&mut model.checkpoint, pool)?;
    if model.config.kv_cache_dtype == KvCacheDtype::Int8 {
        target.set_cache_format(CacheFormat::Int8);
    }
    let adapters = std::mem::take(&mut model.adapters);
    let adapters = adapters::load(adapters, target.adapter_shapes())?;
    let drafts = CpuDrafts::new(model.config.clone(), target.lender());
    let draft = model.config.draft.as_ref().map(|source| drafts.load(source, 0));
    Ok((target, draft, adapters, drafts))
}

impl Weights {
    /// Loads a model onto the device, or into the processor's memory where there is none; or where it does not run the
    /// model and the configuration leaves the choice.
    pub(super) fn load(
        model: &mut Opened,
        device: Option<&Arc<Device>>,
        pool: &Arc<ThreadPool>,
    ) -> Result<Self, LoadError> {
        let Some(device) = device else { return Ok(Self::Cpu(OnCpu::load(model, pool)?.into())) };
        match OnCuda::load(model, device) {
            Ok(weights) => Ok(Self::Cuda(weights.into())),
            Err(error) => Ok(Self::Cpu(OnCpu::load_after(error, model, pool)?.into())),
        }
    }

    /// What decides how many blocks the caches can have.
    pub(super) fn needs(&self) -> CacheNeeds<'_> {
        match self {
            Self::Cpu(weights) => weights.needs(),
            Self::Cuda(weights) => weights.needs(),
        }
    }

    /// An engine over them, whose caches have a fair share of what is left of memory for those of `engines`, unless
    /// their size is set; `caches` are those that share the processor's. The engines take `turns`.
    pub(super) fn place(
        self,
        model: &mut Opened,
        pool: &Arc<ThreadPool>,
        engines: u64,
        caches: &mut Reserved,
        turns: &Turns,
    ) -> Result<Placed, LoadError> {
        let own = EngineConfig { model: model.served_name().into(), ..model.config.engine.clone() };
        let within = |free: Option<u64>| EngineConfig {
            cache_memory: free.map(|free| own.share_of(free, engines)),
            ..own.clone()
        };
        let weights = match self {
            Self::Cuda(weights) => match weights.place(model, within, turns) {
                Err(error) => OnCpu::load_after(error, model, pool)?,
                placed => return placed,
            },
            Self::Cpu(weights) => *weights,
        };
        let block_bytes = weights.needs().block_bytes;
        let OnCpu { target, draft, adapters, drafts } = weights;
        let loader = AdapterLoader::new(Arc::clone(target.adapter_shapes()));
        let (name, draft) = draft.unzip();
        let engine = Engine::new(target, draft, within(caches.available_beside(0)))?;
        caches.add((engine.cache_blocks().1 * block_bytes) as u64);
        let loaders = Loaders { drafts: DraftLoader::Cpu(drafts), adapters: loader };
        Ok(Placed { engine, draft: name, adapters, loaders })
    }
}

impl OnCuda {
    fn load(model: &mut Opened, device: &Arc<Device>) -> Result<Self, LoadError> {
        let (config, checkpoint) = (&model.config, &mut model.checkpoint);
        let target = load_cuda_target(checkpoint, device, config.kv_cache_dtype)?;
        let adapters = load_cuda_adapters(&model.adapters, &target)?;
        let mut load_draft = |source| -> Result<(String, CudaDraft), LoadError> {
            let mut draft = open(source, config, target.config())?;
            let loaded = load_cuda_draft(&mut draft, &target.lender(), checkpoint)?;
            Ok((draft.name, loaded))
        };
        let draft = config.draft.as_ref().map(&mut load_draft);
        let draft = usable(model.served_name(), draft);
        let shape = draft.as_ref().map(|(_, it)| (it.config().num_hidden_layers, it.head_rows()));
        tell(&model.checkpoint, target.memory_bytes(), shape, device.name());
        Ok(Self { target, draft, adapters })
    }

    fn needs(&self) -> CacheNeeds<'_> {
        CacheNeeds::on_cuda(&self.target, self.draft.as_ref().map(|(_, draft)| draft.cache_needs()))
    }

    /// An engine over them, of the configuration that `within` makes of what is left of the device's memory.
    fn place(
        self,
        model: &Opened,
        within: impl Fn(Option<u64>) -> EngineConfig,
        turns: &Turns,
    ) -> Result<Placed, LoadError> {
        let room = within(None).device_room(self.target.device())?;
        let path = model.checkpoint.path().to_owned();
        let drafts =
            CudaDrafts::new(model.config.clone(), self.target.lender(), path, turns.clone());
        let loader = AdapterLoader::on_cuda(&self.target, turns);
        let (name, draft) = self.draft.unzip();
        let engine = cuda_engine(self.target, draft, within(Some(room)))?;
        let draft = name.filter(|_| engine.has_draft_model());
        let loaders = Loaders { drafts: DraftLoader::Cuda(drafts), adapters: loader };
        Ok(Placed { engine, draft, adapters: self.adapters, loaders })
    }
}

impl OnCpu {
    fn load(model: &mut Opened, pool: &Arc<ThreadPool>) -> Result<Self, LoadError> {
        let (target, draft, adapters, drafts) = load_on_cpu(model, pool)?;
        let draft = usable(model.served_name(), draft);
        let shape = draft.as_ref().map(|(_, it)| (it.config().num_hidden_layers, it.head_rows()));
        tell(
            &model.checkpoint,
            target.memory_bytes(),
            shape,
            &format!("{} threads", model.config.threads),
        );
        Ok(Self { target, draft, adapters, drafts })
    }

    /// Loads into the processor's memory what a device does not run, where the configuration leaves the choice.
    fn load_after(
        error: LoadError,
        model: &mut Opened,
        pool: &Arc<ThreadPool>,
    ) -> Result<Self, LoadError> {
        or_the_cpu(error, model.config.device)?;
        Self::load(model, pool)
    }

    fn needs(&self) -> CacheNeeds<'_> {
        CacheNeeds::of(&self.target, self.draft.as_ref().map(|(_, draft)| draft))
    }
}

/// Logs what was loaded; of the draft, its blocks and the rows of its head.
fn tell(model: &Checkpoint, bytes: usize, draft: Option<(usize, usize)>, on: &str) {
    let (draft_blocks, draft_head_rows) = draft.unzip();
    tracing::info!(
        model = %model.name,
        blocks = model.config.num_hidden_layers,
        draft_blocks,
        draft_head_rows,
        megabytes = bytes / 1_000_000,
        on,
        "model loaded"
    );
}
