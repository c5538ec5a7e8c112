//! Engines on a CUDA device, whose memory is planned: weights are there, then what a pass needs is taken and the largest
//! one computed, and the caches get what is left.

use std::sync::Arc;

use super::profile::MOST_DRAFT_ROWS;
use super::scheduler::MAX_LOGIT_ROWS;
use super::{CacheNeeds, Engine, EngineConfig, EngineError};
use crate::kv_cache::blocks_for;
use crate::metrics::DRAFT_FAILURES;
use crate::model::{CudaDecoder, CudaDraft, CudaRunner, Drafter, Forward, PassBounds};
use pleach_kernels::cuda::{CudaError, Device};

impl Engine {
    /// An engine over a target and perhaps a draft of either kind on a CUDA device. Without a number of blocks, the caches
    /// take what the configuration gives them of its memory. A draft that does not fit is left out.
    ///
    /// # Errors
    /// [`EngineError`] if the settings or the models do not fit together or the device.
    pub fn on_cuda(
        target: CudaDecoder,
        draft: Option<CudaDraft>,
        mut config: EngineConfig,
    ) -> Result<Self, EngineError> {
        let device = Arc::clone(target.device());
        let share = config.device_room(&device)?;
        let room = config.cache_memory.map_or(share, |own| own.min(share));
        config.fill_blocks(CacheNeeds::on_cuda(&target, None), room)?;
        let draft = match draft {
            Some(draft) => {
                let both = CacheNeeds::on_cuda(&target, Some(draft.cache_needs()));
                config.spare(config.fill_blocks(both, room).map(|_| draft))?
            }
            None => None,
        };
        let own = draft.as_ref().map(CudaDraft::config);
        let (limits, _) = config.resolve(target.config(), own)?;
        // What was reserved is for these, also where the draft is left out below.
        config.max_model_len = Some(limits.max_model_len);
        let positions = limits.max_model_len;
        let runner = |decoder, bounds| -> Result<CudaRunner, EngineError> {
            let mut runner = CudaRunner::new(decoder, blocks_for(positions), positions)?;
            runner.reserve(bounds)?;
            runner.set_blocks(0)?;
            Ok(runner)
        };
        let [target_bounds, standalone_bounds, attached_bounds] =
            config.pass_bounds(draft.is_some());
        let mut target = runner(target, target_bounds)?;
        let mut standalone = None;
        match draft {
            Some(CudaDraft::Standalone(draft)) => {
                standalone = config.spare(runner(*draft, standalone_bounds))?;
            }
            Some(CudaDraft::Attached(drafter)) => {
                target.attach(Some(Drafter::Cuda(drafter)));
                let mut reserve = || -> Result<(), EngineError> {
                    target.set_blocks(blocks_for(positions))?;
                    target.reserve_drafter(target_bounds.logit_rows, attached_bounds)?;
                    Ok(())
                };
                if config.spare(reserve())?.is_none() {
                    target.attach(None);
                }
                target.set_blocks(0)?;
            }
            None => {}
        }
        let left = |config: &EngineConfig| -> Result<u64, CudaError> {
            Ok(room.saturating_sub(share.saturating_sub(config.device_room(&device)?)))
        };
        let place = |target: &mut CudaRunner, standalone: &mut Option<CudaRunner>| {
            let needs = needs(target, standalone.as_ref());
            let blocks = config.fill_blocks(needs, left(&config)?)?;
            target.set_blocks(blocks)?;
            if let Some(standalone) = standalone {
                standalone.set_blocks(blocks)?;
            }
            Ok(blocks)
        };
        let mut blocks = None;
        if standalone.is_some() || target.drafter_config().is_some() {
            blocks = config.spare(place(&mut target, &mut standalone))?;
        }
        let blocks = match blocks {
            Some(blocks) => blocks,
            None => {
                standalone = None;
                target.attach(None);
                target.set_blocks(0)?;
                place(&mut target, &mut standalone)?
            }
        };
        config.num_blocks = Some(blocks);
        let needs = needs(&target, standalone.as_ref());
        let (free, total) = device.memory()?;
        let mb = |bytes: u64| bytes / 1_000_000;
        tracing::info!(
            device_mb = mb(total as u64),
            weights_and_others_mb =
                mb((total as f64 * config.gpu_memory_utilization) as u64 - share),
            pass_mb = mb(share.saturating_sub(config.device_room(&device)? + needs.bytes(blocks))),
            cache_mb = mb(needs.bytes(blocks)),
            free_mb = mb(free as u64),
            blocks,
            sequences = blocks / blocks_for(limits.max_model_len),
            "the device's memory is planned"
        );
        let standalone = standalone.map(|draft| Box::new(draft) as Box<dyn Forward>);
        Self::with_models(Box::new(target), standalone, config)
    }
}

/// What decides how many blocks the caches of a target and its draft can have.
fn needs<'a>(target: &'a CudaRunner, standalone: Option<&'a CudaRunner>) -> CacheNeeds<'a> {
    let standalone =
        standalone.map(|draft| (draft.decoder().config(), draft.decoder().block_bytes()));
    let attached = target.drafter_config().map(|config| (config, 0));
    CacheNeeds::on_cuda(target.decoder(), standalone.or(attached))
}

impl EngineConfig {
    /// Bytes of a device that may still be taken.
    ///
    /// # Errors
    /// What the driver says.
    pub fn device_room(&self, device: &Device) -> Result<u64, CudaError> {
        let (free, total) = device.memory()?;
        let usable = (total as f64 * self.gpu_memory_utilization) as usize;
        Ok(usable.saturating_sub(total - free) as u64)
    }

    /// The largest passes of the target, for which a draft model drafts or none, of a standalone draft model, and steps of
    /// an attached one.
    fn pass_bounds(&self, drafted: bool) -> [PassBounds; 3] {
        let rows = self.max_num_batched_tokens;
        let sequences = self.max_num_seqs.min(rows);
        let decided = sequences * (self.num_speculative_tokens + 1) + MAX_LOGIT_ROWS;
        let logit_rows = decided.min(rows);
        let target =
            PassBounds { rows, sequences, logit_rows, decides: true, drafted, adapted: true };
        // All rows have logits, also those with which its costs are measured.
        let drafts = sequences.max(MOST_DRAFT_ROWS).min(rows);
        let standalone = PassBounds {
            logit_rows: drafts,
            decides: false,
            drafted: false,
            adapted: false,
            ..target
        };
        // A row a chain.
        let attached = PassBounds { rows: drafts, sequences: drafts, ..standalone };
        [target, standalone, attached]
    }

    /// What was made of the draft model; without it, where it does not fit into memory.
    fn spare<T>(&self, made: Result<T, EngineError>) -> Result<Option<T>, EngineError> {
        match made {
            Ok(made) => Ok(Some(made)),
            Err(
                error @ (EngineError::DeviceMemory { .. }
                | EngineError::Blocks { .. }
                | EngineError::Cuda(CudaError::OutOfMemory { .. })),
            ) => {
                let model = String::from(&*self.model);
                tracing::error!(model, %error, "serving without the draft, which does not fit beside the model");
                metrics::counter!(DRAFT_FAILURES, "model" => model).increment(1);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}
