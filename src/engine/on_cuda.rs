//! Engines on a CUDA device, whose memory is planned: weights are there, then what a pass needs is taken and the largest
//! one computed, and the caches get what is left.

use std::sync::Arc;

use super::profile::MOST_DRAFT_ROWS;
use super::scheduler::MAX_LOGIT_ROWS;
use super::{CacheNeeds, Engine, EngineConfig, EngineError};
use crate::kv_cache::blocks_for;
use crate::metrics::DRAFT_FAILURES;
use crate::model::{CudaDecoder, CudaRunner, Forward, PassBounds};
use pleach_kernels::cuda::{CudaError, Device};

impl Engine {
    /// An engine over a target and perhaps a draft model on a CUDA device. Without a number of blocks, the caches
    /// take what the configuration gives them of its memory. A draft model that does not fit is left out.
    ///
    /// # Errors
    /// [`EngineError`] if the settings or the models do not fit together or the device.
    pub fn on_cuda(
        target: CudaDecoder,
        draft: Option<CudaDecoder>,
        mut config: EngineConfig,
    ) -> Result<Self, EngineError> {
        let device = Arc::clone(target.device());
        let share = config.device_room(&device)?;
        let room = config.cache_memory.map_or(share, |own| own.min(share));
        config.fill_blocks(CacheNeeds::on_cuda(&target, None), room)?;
        let draft = match draft {
            Some(draft) => {
                let both = CacheNeeds::on_cuda(&target, Some(&draft));
                config.spare(config.fill_blocks(both, room).map(|_| draft))?
            }
            None => None,
        };
        let own = draft.as_ref().map(CudaDecoder::config);
        let (limits, _) = config.resolve(target.config(), own)?;
        // What was reserved is for these, also where the draft is left out below.
        config.max_model_len = Some(limits.max_model_len);
        let runner = |decoder, bounds| -> Result<CudaRunner, EngineError> {
            let positions = limits.max_model_len;
            let mut runner = CudaRunner::new(decoder, blocks_for(positions), positions)?;
            runner.reserve(bounds)?;
            runner.set_blocks(0)?;
            Ok(runner)
        };
        let [target_bounds, draft_bounds] = config.pass_bounds(draft.is_some());
        let mut target = runner(target, target_bounds)?;
        let mut draft = match draft {
            Some(draft) => config.spare(runner(draft, draft_bounds))?,
            None => None,
        };
        let left = |config: &EngineConfig| -> Result<u64, CudaError> {
            Ok(room.saturating_sub(share.saturating_sub(config.device_room(&device)?)))
        };
        let mut blocks = None;
        if let Some(mut runner) = draft.take() {
            let both = CacheNeeds::on_cuda(target.decoder(), Some(runner.decoder()));
            let filled = config.fill_blocks(both, left(&config)?);
            let placed = filled.and_then(|blocks| {
                target.set_blocks(blocks)?;
                runner.set_blocks(blocks)?;
                Ok((runner, blocks))
            });
            if let Some((runner, placed)) = config.spare(placed)? {
                blocks = Some(placed);
                draft = Some(runner);
            } else {
                target.set_blocks(0)?;
            }
        }
        let blocks = match blocks {
            Some(blocks) => blocks,
            None => {
                let alone = CacheNeeds::on_cuda(target.decoder(), None);
                let blocks = config.fill_blocks(alone, left(&config)?)?;
                target.set_blocks(blocks)?;
                blocks
            }
        };
        config.num_blocks = Some(blocks);
        let needs = CacheNeeds::on_cuda(target.decoder(), draft.as_ref().map(CudaRunner::decoder));
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
        let draft = draft.map(|draft| Box::new(draft) as Box<dyn Forward>);
        Self::with_models(Box::new(target), draft, config)
    }
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

    /// The largest passes of the target, for which a draft model drafts or none, and of the draft model.
    fn pass_bounds(&self, drafted: bool) -> [PassBounds; 2] {
        let rows = self.max_num_batched_tokens;
        let sequences = self.max_num_seqs.min(rows);
        let decided = sequences * (self.num_speculative_tokens + 1) + MAX_LOGIT_ROWS;
        let logit_rows = decided.min(rows);
        let target = PassBounds { rows, sequences, logit_rows, decides: true, drafted };
        // All rows have logits, also those with which its costs are measured.
        let drafts = sequences.max(MOST_DRAFT_ROWS).min(rows);
        [target, PassBounds { logit_rows: drafts, decides: false, drafted: false, ..target }]
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
