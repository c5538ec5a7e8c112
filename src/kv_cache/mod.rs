//! Paged K/V cache bookkeeping: which block holds which positions of which sequence. CPU-only
//! logic; the numbers themselves live in [`crate::model`]'s cache, which is indexed by slot.

mod hash;
mod pool;
mod table;

pub use pleach_kernels::BLOCK_SIZE;

pub use hash::{BlockHash, BlockHashes, CacheSalt};
pub use pool::BlockPool;
pub use table::BlockTable;

/// Blocks that hold `positions` positions.
#[must_use]
pub fn blocks_for(positions: usize) -> usize {
    positions.div_ceil(BLOCK_SIZE)
}
