//! How many blocks the K/V caches of an engine have.

use super::{EngineConfig, EngineError};
use crate::kv_cache::BLOCK_SIZE;
use crate::model::{CudaDecoder, Decoder, Draft, ModelConfig};

/// What decides how many blocks a K/V cache can have.
#[derive(Debug, Clone, Copy)]
pub struct CacheNeeds<'a> {
    /// The target's shape.
    pub target: &'a ModelConfig,
    /// The draft model's.
    pub draft: Option<&'a ModelConfig>,
    /// Bytes of one block: the target's and the draft model's.
    pub block_bytes: usize,
}

impl<'a> CacheNeeds<'a> {
    /// The needs of a decoder on a CUDA device, and of a draft there: its shape, and the bytes of one block of its own
    /// cache.
    #[must_use]
    pub fn on_cuda(target: &'a CudaDecoder, draft: Option<(&'a ModelConfig, usize)>) -> Self {
        let (draft, draft_bytes) = draft.unzip();
        Self {
            target: target.config(),
            draft,
            block_bytes: target.block_bytes() + draft_bytes.unwrap_or(0),
        }
    }

    /// The needs of decoders on the CPU.
    #[must_use]
    pub fn of(target: &'a Decoder, draft: Option<&'a Draft>) -> Self {
        Self {
            target: target.config(),
            draft: draft.map(Draft::config),
            block_bytes: target.kv_cache_bytes(1)
                + draft.map_or(0, |draft| draft.kv_cache_bytes(1)),
        }
    }

    /// Bytes of so many blocks.
    pub(super) const fn bytes(&self, blocks: usize) -> u64 {
        (blocks as u64).saturating_mul(self.block_bytes as u64)
    }

    fn too_many(&self, blocks: usize, fitting: usize, free: u64) -> EngineError {
        let needed = self.bytes(blocks).div_ceil(1_000_000);
        EngineError::Blocks { blocks, needed, free: free / 1_000_000, fitting }
    }
}

impl EngineConfig {
    /// Bytes that the caches take where memory does not bound them.
    ///
    /// # Errors
    /// [`EngineError`] if the settings or the models do not fit together.
    pub fn wanted_bytes(&self, needs: CacheNeeds<'_>) -> Result<u64, EngineError> {
        let (_, blocks) = self.resolve(needs.target, needs.draft)?;
        Ok(needs.bytes(blocks))
    }

    /// What the caches may take of `free` bytes where they are among the caches of so many engines: an equal share, or
    /// what it takes where the number of blocks is set.
    #[must_use]
    pub const fn share_of(&self, free: u64, engines: u64) -> u64 {
        if self.num_blocks.is_some() { free } else { free / engines }
    }

    /// Chooses a number of blocks that fits into `free` bytes, less a tenth for the rows of a pass, or checks that the
    /// number that is set does. Where the configuration bounds the caches' memory, less is free.
    ///
    /// # Errors
    /// [`EngineError`] if the settings or the models do not fit together, or one sequence, or the number of blocks that
    /// is set, not into memory.
    pub fn fit_blocks(
        &mut self,
        needs: CacheNeeds<'_>,
        free: Option<u64>,
    ) -> Result<(), EngineError> {
        let (limits, wanted) = self.resolve(needs.target, needs.draft)?;
        let free = free.into_iter().chain(self.cache_memory).min();
        let fit = free.map(|free| free / 10 * 9 / needs.block_bytes.max(1) as u64);
        let chosen = fit.map_or(wanted, |fit| wanted.min(usize::try_from(fit).unwrap_or(wanted)));
        if self.num_blocks.is_some() {
            let free = free.unwrap_or(0);
            return if chosen == wanted {
                Ok(())
            } else {
                Err(needs.too_many(wanted, chosen, free))
            };
        }
        let one = limits.max_model_len.div_ceil(BLOCK_SIZE);
        if chosen < one {
            return Err(EngineError::Memory {
                positions: limits.max_model_len,
                needed: needs.bytes(one).div_ceil(1_000_000),
                free: free.unwrap_or(0) / 1_000_000,
                fitting: chosen * BLOCK_SIZE,
            });
        }
        if chosen < wanted {
            tracing::info!(
                blocks = chosen,
                wanted,
                megabytes = needs.bytes(chosen) / 1_000_000,
                sequences = chosen / one,
                "the K/V cache is as large as memory allows"
            );
        }
        self.num_blocks = Some(chosen);
        Ok(())
    }

    /// A number of blocks for caches in `free` bytes of a device: as many as fit, or the number that is set.
    ///
    /// # Errors
    /// [`EngineError`] if the settings or the models do not fit together, or one sequence, or the number of blocks that
    /// is set, not into memory.
    pub fn fill_blocks(&self, needs: CacheNeeds<'_>, free: u64) -> Result<usize, EngineError> {
        let (limits, wanted) = self.resolve(needs.target, needs.draft)?;
        let fitting = usize::try_from(free / needs.block_bytes.max(1) as u64).unwrap_or(usize::MAX);
        // Blocks have numbers of 32 bits.
        let fitting = fitting.min(u32::MAX as usize / BLOCK_SIZE);
        if self.num_blocks.is_some() {
            let fits = wanted <= fitting;
            return if fits { Ok(wanted) } else { Err(needs.too_many(wanted, fitting, free)) };
        }
        let one = limits.max_model_len.div_ceil(BLOCK_SIZE);
        if fitting < one {
            return Err(EngineError::DeviceMemory {
                positions: limits.max_model_len,
                needed: needs.bytes(one).div_ceil(1_000_000),
                free: free / 1_000_000,
                percent: (self.gpu_memory_utilization * 100.0).round() as u64,
                fitting: fitting * BLOCK_SIZE,
            });
        }
        Ok(fitting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::test_model::TestModel;
    use crate::model::Forward;

    /// The cache takes what is left, down to one sequence, and not less.
    #[test]
    fn the_cache_fits_into_memory() {
        let model = TestModel::new(1);
        let needs = CacheNeeds { target: model.config(), draft: None, block_bytes: 1000 };
        let fit = |free: Option<u64>, mut config: EngineConfig| {
            config.fit_blocks(needs, free).map(|()| config.num_blocks)
        };
        let config =
            EngineConfig { max_model_len: Some(10 * BLOCK_SIZE), ..EngineConfig::default() };
        assert_eq!(fit(None, config.clone()), Ok(Some(40)));
        assert_eq!(fit(Some(1 << 40), config.clone()), Ok(Some(40)));
        assert_eq!(fit(Some(25_000), config.clone()), Ok(Some(22)));
        assert_eq!(fit(Some(11_200), config.clone()), Ok(Some(10)));
        let error = fit(Some(10_000), config.clone()).unwrap_err().to_string();
        let expected = format!("--max-model-len to {} or less", 9 * BLOCK_SIZE);
        assert!(error.contains(&expected), "{error}");
        let error = fit(Some(0), config.clone()).unwrap_err().to_string();
        assert!(error.ends_with("0 MB are left beside the weights"), "{error}");
        // Less is free where the caches' memory is bounded.
        let bounded = EngineConfig { cache_memory: Some(25_000), ..config.clone() };
        assert_eq!(fit(None, bounded.clone()), Ok(Some(22)));
        assert_eq!(fit(Some(1 << 40), bounded.clone()), Ok(Some(22)));
        assert_eq!(fit(Some(11_200), bounded), Ok(Some(10)));
        // What is set is taken as it is, or not at all.
        let set = EngineConfig { num_blocks: Some(7), ..config };
        assert_eq!(fit(None, set.clone()), Ok(Some(7)));
        assert_eq!(fit(Some(7_800), set.clone()), Ok(Some(7)));
        let (blocks, needed, free, fitting) = (7, 1, 0, 6);
        assert_eq!(
            fit(Some(7_700), set.clone()),
            Err(EngineError::Blocks { blocks, needed, free, fitting })
        );
        let error = fit(Some(0), set).unwrap_err().to_string();
        assert!(error.contains("room for 0 blocks: lower --kv-blocks"), "{error}");
    }

    /// On a device the cache takes all that is left, down to one sequence, and not less.
    #[test]
    fn the_cache_fills_a_device() {
        let model = TestModel::new(1);
        let needs = CacheNeeds { target: model.config(), draft: None, block_bytes: 1000 };
        let config =
            EngineConfig { max_model_len: Some(10 * BLOCK_SIZE), ..EngineConfig::default() };
        assert_eq!(config.fill_blocks(needs, 1_000_999), Ok(1000));
        assert_eq!(config.fill_blocks(needs, 10_000), Ok(10));
        let error = config.fill_blocks(needs, 9_999).unwrap_err().to_string();
        for part in ["90 % of", "--gpu-memory-utilization", "--max-model-len to 144 or less"] {
            assert!(error.contains(part), "{error}");
        }
        let error = config.fill_blocks(needs, 999).unwrap_err().to_string();
        assert!(error.ends_with("lower --max-num-batched-tokens or --max-num-seqs"), "{error}");
        let set = EngineConfig { num_blocks: Some(7), ..config };
        assert_eq!(set.fill_blocks(needs, 1_000_000), Ok(7));
        let error = set.fill_blocks(needs, 6_999).unwrap_err().to_string();
        assert!(error.contains("room for 6 blocks: lower --kv-blocks"), "{error}");
    }
}
