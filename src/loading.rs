//! From a configuration to a model that runs: for the server, and for `pleach check`.

mod adapters;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

pub use adapters::AdapterError;
use tokenizers::Tokenizer;

use crate::checkpoint::adapter::Adapter;
use crate::checkpoint::source::{Choice, Source, SourceError, resolve};
use crate::checkpoint::{ChatTemplates, Checkpoint, CheckpointError, Summary};
use crate::cli::{ComputeDevice, Config};
use crate::engine::{CacheNeeds, Engine, EngineConfig, EngineError, EngineHandle};
use crate::memory::Reserved;
use crate::metrics::DRAFT_FAILURES;
use crate::model::{CudaDecoder, Decoder, Draft, Lender, ModelConfig, ModelError};
use crate::sampling::{SamplingDefaults, SamplingParams};
use crate::text::{ChatTemplate, TemplateError};
use pleach_kernels::ThreadPool;
use pleach_kernels::cuda::{CudaError, Device};

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
    Cuda(#[from] CudaError),
    #[error(transparent)]
    Template(#[from] TemplateError),
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    #[error("{}: the model has no tokenizer", .0.display())]
    NoTokenizer(PathBuf),
    #[error(
        "the draft has {positions} positions, fewer than the {wanted} served; lower max_model_len"
    )]
    ShortDraft { positions: usize, wanted: usize },
    #[error(
        "the draft needs {needed} MB, and {left} MB are left beside the model and its K/V cache: take a smaller draft, or \
         start the server with a lower --kv-blocks or --max-model-len"
    )]
    DraftMemory { needed: u64, left: u64 },
    #[error("this runs on the CPU alone; leave out `--device`")]
    OnCpuAlone,
}

/// A draft and its name, or why it cannot be used; `None` where none is configured.
pub type MaybeDraft = Option<Result<(String, Draft), LoadError>>;

/// A model's files, open, with what is known before anything is loaded.
struct Opened {
    checkpoint: Checkpoint,
    summary: Summary,
    aliases: Vec<String>,
    template: Option<ChatTemplate>,
    tokenizer: Tokenizer,
    /// Its adapters, by their names.
    adapters: Vec<(String, Adapter)>,
}

impl Opened {
    /// Fetches the model and opens it.
    fn open(config: &Config) -> Result<Self, LoadError> {
        let path = resolve(&config.model, &config.cache_dir)?;
        let mut checkpoint = Checkpoint::open(&path)?;
        if let Source::Hub { repo, choice: Choice::Folder, .. } = &config.model {
            // The folder has the name of a commit.
            checkpoint.name = repo.rsplit('/').next().unwrap_or(repo).to_owned();
        }
        let summary = checkpoint.summary();
        let template = template(&mut checkpoint, config)?;
        let aliases = aliases(&config.model, &path);
        let tokenizer = checkpoint.tokenizer.take().ok_or(LoadError::NoTokenizer(path))?;
        let own = [std::slice::from_ref(&checkpoint.name), &aliases, &config.served_model_names];
        let adapters = adapters::read(&config.lora, &own.concat())?;
        Ok(Self { checkpoint, summary, aliases, template, tokenizer, adapters })
    }
}

/// The models of a configuration, in memory, to compute on the CPU.
pub struct Models {
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
}

impl Models {
    /// Fetches and loads the model and its draft.
    ///
    /// # Errors
    /// [`LoadError`] where the model itself cannot be served.
    pub fn load(config: &Config) -> Result<Self, LoadError> {
        if let ComputeDevice::Cuda(_) = config.device {
            return Err(LoadError::OnCpuAlone);
        }
        let mut model = Opened::open(config)?;
        let (target, draft, _) = load_on_cpu(config, &mut model)?;
        let Opened { checkpoint, template, tokenizer, .. } = model;
        Ok(Self { name: checkpoint.name, target, tokenizer, template, draft })
    }
}

/// Loads the target with its adapters, and the draft that is configured. Gives the loader of further drafts, which knows
/// of no caches yet: how large they can be is known when the draft is.
fn load_on_cpu(
    config: &Config,
    model: &mut Opened,
) -> Result<(Decoder, MaybeDraft, DraftLoader), LoadError> {
    let pool = Arc::new(ThreadPool::new(config.threads));
    let mut target = Decoder::load(&mut model.checkpoint, &pool)?;
    adapters::add(std::mem::take(&mut model.adapters), &mut target)?;
    let loader =
        DraftLoader { config: config.clone(), lender: target.lender(), caches: Reserved::new(0) };
    let draft = config.draft.as_ref().map(|source| loader.load(source, 0));
    Ok((target, draft, loader))
}

/// A model whose engine runs.
pub struct RunningModel {
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
    /// Loads further drafts of the model; `None` where they cannot be switched.
    pub loader: Option<DraftLoader>,
    /// The engine.
    pub engine: EngineHandle,
    /// The engine's thread.
    pub thread: JoinHandle<()>,
}

/// Fetches and loads the model and its draft, and starts the engine. A draft that cannot be used is reported and left
/// out: the model runs without it.
///
/// # Errors
/// [`LoadError`] where the model itself cannot be served.
pub fn start(config: &Config) -> Result<RunningModel, LoadError> {
    // A device that is not there is known before a model is fetched.
    let device = match config.device {
        ComputeDevice::Cuda(_) if !config.lora.is_empty() => return Err(AdapterError::Cuda.into()),
        ComputeDevice::Auto if !config.lora.is_empty() => None,
        ComputeDevice::Auto => first_device(),
        ComputeDevice::Cpu => None,
        ComputeDevice::Cuda(index) => Some(Device::open(index)?),
    };
    let mut model = Opened::open(config)?;
    let Placed { mut engine, draft, loader } = match &device {
        None => place_on_cpu(config, &mut model)?,
        Some(device) => match place_on_cuda(config, &mut model.checkpoint, device) {
            Err(error) if config.device == ComputeDevice::Auto => {
                tracing::warn!(%error, "the CUDA device does not run the model; computing on the CPU");
                place_on_cpu(config, &mut model)?
            }
            placed => placed?,
        },
    };
    // Before anything else computes: what is measured beside it seems slow for good.
    engine.profile();
    let (engine, thread) = EngineHandle::start(engine);
    let Opened { checkpoint, summary, aliases, template, tokenizer, .. } = model;
    let sampling = sampling(&checkpoint, config);
    let eos_token_ids = checkpoint.config.eos_token_ids;
    let name = checkpoint.name;
    Ok(RunningModel {
        name,
        summary,
        aliases,
        tokenizer,
        template,
        eos_token_ids,
        sampling,
        draft,
        loader,
        engine,
        thread,
    })
}

/// The first CUDA device; the log says which, or why there is none.
fn first_device() -> Option<Arc<Device>> {
    match Device::open(0) {
        Ok(device) => {
            tracing::info!(device = device.name(), "computing on the CUDA device that is there");
            Some(device)
        }
        Err(reason @ (CudaError::NoDriver(_) | CudaError::NoDevice { .. })) => {
            tracing::info!(%reason, "computing on the CPU");
            None
        }
        Err(error) => {
            tracing::warn!(%error, "the CUDA device cannot be used; computing on the CPU");
            None
        }
    }
}

/// An engine over models in memory, not started yet.
struct Placed {
    engine: Engine,
    /// The draft's name, where one drafts.
    draft: Option<String>,
    /// Loads further drafts; `None` where they cannot be switched.
    loader: Option<DraftLoader>,
}

fn place_on_cpu(config: &Config, model: &mut Opened) -> Result<Placed, LoadError> {
    let (target, draft, loader) = load_on_cpu(config, model)?;
    let (name, draft) = usable(served_name(config, &model.checkpoint), draft).unzip();
    let shape = draft.as_ref().map(|draft| (draft.config().num_hidden_layers, draft.head_rows()));
    tell(&model.checkpoint, target.memory_bytes(), shape, &format!("{} threads", config.threads));
    let block_bytes = CacheNeeds::of(&target, draft.as_ref()).block_bytes;
    let engine = Engine::new(target, draft, engine_config(config, &model.checkpoint))?;
    let caches = Reserved::new((engine.cache_blocks().1 * block_bytes) as u64);
    let loader = DraftLoader { caches, ..loader };
    Ok(Placed { engine, draft: name, loader: Some(loader) })
}

fn place_on_cuda(
    config: &Config,
    checkpoint: &mut Checkpoint,
    device: &Arc<Device>,
) -> Result<Placed, LoadError> {
    let target = CudaDecoder::load(checkpoint, device)?;
    let mut load_draft = |source| -> Result<(String, CudaDecoder), LoadError> {
        let mut draft = Checkpoint::open(&resolve(source, &config.cache_dir)?)?;
        stretch_positions(&mut draft, config);
        check_positions(config, target.config(), &draft.config)?;
        let decoder = CudaDecoder::load_draft(&mut draft, &target, checkpoint)?;
        Ok((draft.name, decoder))
    };
    let draft = config.draft.as_ref().map(&mut load_draft);
    let (name, draft) = usable(served_name(config, checkpoint), draft).unzip();
    let shape = draft.as_ref().map(|draft| (draft.config().num_hidden_layers, draft.head_rows()));
    tell(checkpoint, target.memory_bytes(), shape, device.name());
    let engine = Engine::on_cuda(target, draft, engine_config(config, checkpoint))?;
    Ok(Placed { engine, draft: name, loader: None })
}

/// The name that the model's answers carry.
fn served_name<'a>(config: &'a Config, model: &'a Checkpoint) -> &'a str {
    config.served_model_names.first().unwrap_or(&model.name)
}

fn engine_config(config: &Config, model: &Checkpoint) -> EngineConfig {
    EngineConfig { model: served_name(config, model).into(), ..config.engine.clone() }
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

/// The chat template, the model's own or the configuration's, which writes calls as the configuration says; the model's
/// configuration takes from it where a turn ends, and from the server's how long a context is to be.
fn template(
    checkpoint: &mut Checkpoint,
    config: &Config,
) -> Result<Option<ChatTemplate>, TemplateError> {
    let own = config.chat_template.is_none();
    if let Some(template) = config.chat_template.clone() {
        checkpoint.chat_templates = ChatTemplates { default: Some(template), tool_use: None };
    }
    let template = match checkpoint.compile_template() {
        Err(error) if own => {
            tracing::warn!(%error, "the model's chat template is of no use; --chat-template takes another");
            None
        }
        template => template?,
    };
    let variables = config.chat_template_kwargs.clone();
    let template = template.map(|template| template.with_variables(variables));
    checkpoint.end_at_turns(template.as_ref());
    stretch_positions(checkpoint, config);
    Ok(match config.tool_call_parser {
        Some(format) => template.map(|template| template.with_calls(format)),
        None => template,
    })
}

/// How tokens are drawn where a request does not say: as the configuration has it, then as the model has it.
fn sampling(checkpoint: &Checkpoint, config: &Config) -> SamplingParams {
    let own = SamplingDefaults::of_model(&checkpoint.generation).unwrap_or_else(|error| {
        tracing::warn!(%error, "the model's own sampling parameters are of no use");
        SamplingDefaults::default()
    });
    let params = config.sampling_defaults.clone().or(own).params();
    if params != SamplingParams::default() {
        let SamplingParams { temperature, top_k, top_p, min_p, repetition_penalty, .. } = params;
        tracing::info!(temperature, top_k, top_p, min_p, repetition_penalty, "sampling by default");
    }
    params
}

/// Makes room in dynamically scaled positions for the context that is to be served.
fn stretch_positions(checkpoint: &mut Checkpoint, config: &Config) {
    if let Some(wanted) = config.engine.max_model_len {
        checkpoint.config.stretch_positions(wanted);
    }
}

/// What a model is called besides its name.
fn aliases(source: &Source, path: &Path) -> Vec<String> {
    let mut aliases = vec![source.to_string()];
    aliases.extend(path.file_name().map(|name| name.to_string_lossy().into_owned()));
    if let Source::Hub { repo, .. } = source {
        aliases.extend([repo.clone(), format!("hf:{repo}")]);
    }
    aliases
}

/// The draft of a model, where it can be used; otherwise logs why not and counts a failure.
fn usable<D>(model: &str, draft: Option<Result<D, LoadError>>) -> Option<D> {
    let failed = |error: &LoadError| {
        tracing::error!(model, %error, "serving without the draft");
        metrics::counter!(DRAFT_FAILURES, "model" => model.to_owned()).increment(1);
    };
    draft?.inspect_err(failed).ok()
}

fn check_positions(
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
    /// The caches of the engine that serves. With a draft that is switched in they change a little, as drafts differ.
    caches: Reserved,
}

impl DraftLoader {
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
        if let Some(left) = self.caches.available_beside()
            && needed > left / 10 * 9
        {
            let (needed, left) = (needed.div_ceil(1_000_000), left / 1_000_000);
            return Err(LoadError::DraftMemory { needed, left });
        }
        let draft = self.lender.load_draft(&mut checkpoint)?;
        check_positions(&self.config, self.lender.config(), draft.config())?;
        Ok((checkpoint.name, draft))
    }
}
