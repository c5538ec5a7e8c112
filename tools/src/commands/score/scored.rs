//! The model that is scored, in the memory of the processor or of a device.

use anyhow::{Context, Result};
use pleach::checkpoint::Checkpoint;
use pleach::cli::KvCacheDtype;
use pleach::engine::{Engine, EngineConfig};
use pleach::loading::{cuda_engine, load_cuda_target};
use pleach::model::{CudaDecoder, CudaRunner, Decoder, Forward, Precision, Rows, Workspace};

use crate::shared::model_args::ModelArgs;
use crate::shared::place::Place;

/// A model that is scored.
pub(super) enum Scored {
    Cpu(Box<OnCpu>),
    Cuda(Box<OnCuda>),
}

pub(super) struct OnCpu {
    decoder: Decoder,
    workspace: Workspace,
}

pub(super) struct OnCuda {
    runner: CudaRunner,
    /// Of the runner's cache.
    blocks: usize,
    gpu_memory_utilization: f64,
}

/// How a model is held.
pub(super) struct Settings {
    /// Of weights on the processor; those on a device are as stored.
    pub(super) precision: Precision,
    /// Tokens of a text that it sees at once, at most.
    pub(super) max_length: usize,
    /// Share of a device's memory that an engine over it uses.
    pub(super) gpu_memory_utilization: f64,
}

impl Scored {
    /// Loads the model where `place` says; onto the processor what a device does not run, where the choice is left.
    pub(super) fn load(
        args: &ModelArgs,
        checkpoint: &mut Checkpoint,
        place: &mut Place,
        settings: &Settings,
    ) -> Result<Self> {
        place.load(|device| match device {
            Some(device) => {
                let target = load_cuda_target(checkpoint, device, KvCacheDtype::Auto)?;
                Self::on_cuda(target, settings)
            }
            None => {
                let decoder = Decoder::load_with(checkpoint, &args.pool(), settings.precision)?;
                Ok(Self::on_cpu(decoder))
            }
        })
    }

    pub(super) fn on_cpu(decoder: Decoder) -> Self {
        Self::Cpu(OnCpu { decoder, workspace: Workspace::new() }.into())
    }

    /// Passes differ in their rows, so none is recorded.
    fn on_cuda(decoder: CudaDecoder, settings: &Settings) -> Result<Self> {
        let &Settings { max_length, gpu_memory_utilization, .. } = settings;
        let positions = max_length.min(decoder.config().max_position_embeddings);
        let runner = CudaRunner::new(decoder, 0, positions)?.without_graphs();
        Ok(Self::Cuda(OnCuda { runner, blocks: 0, gpu_memory_utilization }.into()))
    }

    /// Rows of the output head.
    pub(super) fn head_rows(&self) -> usize {
        match self {
            Self::Cpu(model) => model.decoder.head_rows(),
            Self::Cuda(model) => model.runner.head_rows(),
        }
    }

    /// The logits of a pass whose keys and values lie in so many blocks, and are forgotten: `[logit_rows, head_rows]`.
    pub(super) fn forward(&mut self, rows: &Rows, blocks: usize) -> Result<&[f32]> {
        match self {
            Self::Cpu(model) => {
                let mut cache = model.decoder.new_kv_cache(blocks);
                Ok(model.decoder.forward(rows, &mut cache, &mut model.workspace))
            }
            Self::Cuda(model) => {
                let OnCuda { runner, blocks: there, .. } = &mut **model;
                let advice = "a lower --max-length makes passes smaller, and `--device cpu` computes on the processor";
                if *there < blocks {
                    runner.set_blocks(blocks).context(advice)?;
                    *there = blocks;
                }
                runner.forward(rows).context(advice)
            }
        }
    }

    /// An engine over the model.
    pub(super) fn into_engine(self, config: EngineConfig) -> Result<Engine> {
        match self {
            Self::Cpu(model) => Ok(Engine::new(model.decoder, None, config)?),
            Self::Cuda(model) => {
                let OnCuda { runner, gpu_memory_utilization, .. } = *model;
                let config = EngineConfig { gpu_memory_utilization, ..config };
                Ok(cuda_engine(runner.into_decoder(), None, config)?)
            }
        }
    }
}
