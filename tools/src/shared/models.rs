//! A target and perhaps its draft in memory, and the engine over them.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use pleach::checkpoint::Checkpoint;
use pleach::cli::KvCacheDtype;
use pleach::engine::{Engine, EngineConfig};
use pleach::loading::{cuda_engine, load_cuda_draft, load_cuda_target};
use pleach::model::{CudaDecoder, CudaDraft, Decoder, Draft, ModelConfig};
use pleach_kernels::CacheFormat;
use pleach_kernels::cuda::Device;

use super::chat::Chat;
use super::model_args::ModelArgs;
use super::place::Place;

/// A model that is ready to compute, and perhaps its draft.
pub(crate) struct Loaded {
    pub(crate) checkpoint: Checkpoint,
    pub(crate) draft: Option<Checkpoint>,
    pub(crate) chat: Chat,
    models: Models,
    /// The threads that compute on the processor.
    args: ModelArgs,
    cache: KvCacheDtype,
    place: Place,
}

/// A target and perhaps its draft in memory.
enum Models {
    Cpu(OnCpu),
    Cuda(CudaDecoder, Option<CudaDraft>),
}

/// Models in the processor's memory.
struct OnCpu {
    target: Decoder,
    draft: Option<Draft>,
}

/// An engine, and what speaks with it.
pub(crate) struct Running {
    pub(crate) engine: Engine,
    pub(crate) chat: Chat,
    /// The device that computes; `None` for the processor.
    pub(crate) device: Option<String>,
}

/// Where a device has too little memory for what a command does.
const TOO_LITTLE: &str = "the device does not hold this; here `--gpu-memory-utilization` says how much of it is used, and `--batch`, where there \
     is one, how many sequences run";

impl OnCpu {
    fn load(
        args: &ModelArgs,
        checkpoint: &mut Checkpoint,
        draft: Option<&mut Checkpoint>,
        cache: KvCacheDtype,
    ) -> Result<Self> {
        let pool = args.pool();
        let mut target = Decoder::load(checkpoint, &pool)?;
        if cache == KvCacheDtype::Int8 {
            target.set_cache_format(CacheFormat::Int8);
        }
        let draft = draft.map(|draft| Decoder::load_draft(draft, &target, &pool)).transpose()?;
        Ok(Self { target, draft })
    }

    fn engine(self, config: EngineConfig) -> Result<Engine> {
        Ok(Engine::new(self.target, self.draft, config)?)
    }
}

/// Loads models onto a device.
fn load_on_cuda(
    device: &Arc<Device>,
    checkpoint: &mut Checkpoint,
    draft: Option<&mut Checkpoint>,
    cache: KvCacheDtype,
) -> Result<Models> {
    let target = load_cuda_target(checkpoint, device, cache)?;
    let draft =
        draft.map(|draft| load_cuda_draft(draft, &target.lender(), checkpoint)).transpose()?;
    Ok(Models::Cuda(target, draft))
}

impl Loaded {
    /// Loads a model and its draft, where `place` says; onto the processor what a device does not run, where the choice is
    /// left.
    pub(crate) fn load(
        args: &ModelArgs,
        mut checkpoint: Checkpoint,
        mut draft: Option<Checkpoint>,
        cache: KvCacheDtype,
        mut place: Place,
    ) -> Result<Self> {
        let chat = Chat::new(&checkpoint)?;
        checkpoint.config.end_at(chat.ends.iter().copied());
        let models = place.load(|device| match device {
            Some(device) => load_on_cuda(device, &mut checkpoint, draft.as_mut(), cache),
            None => OnCpu::load(args, &mut checkpoint, draft.as_mut(), cache).map(Models::Cpu),
        })?;
        Ok(Self { checkpoint, draft, chat, models, args: args.clone(), cache, place })
    }

    /// The target's shape.
    pub(crate) fn config(&self) -> &ModelConfig {
        match &self.models {
            Models::Cpu(models) => models.target.config(),
            Models::Cuda(target, _) => target.config(),
        }
    }

    /// FLOPs of a draft token over those of a target token, behind `context` positions; `None` without a draft.
    pub(crate) fn draft_flop_share(&self, context: usize) -> Option<f64> {
        let (head_rows, draft) = match &self.models {
            Models::Cpu(OnCpu { target, draft }) => {
                (target.head_rows(), draft.as_ref().map(|draft| draft.flops_per_token(context)))
            }
            Models::Cuda(target, draft) => {
                (target.head_rows(), draft.as_ref().map(|draft| draft.flops_per_token(context)))
            }
        };
        Some(draft? as f64 / self.config().flops_per_token(context, head_rows) as f64)
    }

    /// Where the models are.
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// An engine of this configuration over them. On a device the caches have all that `--gpu-memory-utilization` leaves
    /// them, however many blocks the configuration names; what does not fit there is computed on the processor, where the
    /// choice is left.
    pub(crate) fn start(self, config: EngineConfig) -> Result<Running> {
        let Self { mut checkpoint, mut draft, chat, models, args, cache, mut place } = self;
        let engine = match models {
            Models::Cpu(models) => models.engine(config)?,
            Models::Cuda(target, own) => {
                let tried = on_cuda(target, own, &config).context(TOO_LITTLE);
                place.or_on_cpu(tried, || {
                    OnCpu::load(&args, &mut checkpoint, draft.as_mut(), cache)?.engine(config)
                })?
            }
        };
        Ok(Running { engine, chat, device: place.name().map(str::to_owned) })
    }
}

/// An engine on the device that the models are on.
fn on_cuda(target: CudaDecoder, draft: Option<CudaDraft>, config: &EngineConfig) -> Result<Engine> {
    let drafts = draft.is_some() && config.num_speculative_tokens > 0;
    let engine = cuda_engine(target, draft, EngineConfig { num_blocks: None, ..config.clone() })?;
    ensure!(!drafts || engine.has_draft_model(), "the draft does not fit beside the model");
    Ok(engine)
}
