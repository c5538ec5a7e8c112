//! Maps the positions of one sequence to slots of the cache.

use super::{BLOCK_SIZE, BlockHash, BlockPool, blocks_for};

/// The blocks of one sequence: position `p` lives in `blocks[p / BLOCK_SIZE]`.
#[derive(Debug, Default)]
pub struct BlockTable {
    blocks: Vec<u32>,
}

impl BlockTable {
    /// A table without blocks.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The blocks in order of position.
    #[must_use]
    pub fn blocks(&self) -> &[u32] {
        &self.blocks
    }

    /// Positions the blocks have room for.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.blocks.len() * BLOCK_SIZE
    }

    /// The cache slot of a position.
    ///
    /// # Panics
    /// If the position has not been reserved.
    #[must_use]
    pub fn slot(&self, position: usize) -> u32 {
        let offset = (position % BLOCK_SIZE) as u32;
        self.blocks[position / BLOCK_SIZE] * BLOCK_SIZE as u32 + offset
    }

    /// A view without some of the blocks, in which later positions move forward. It owns nothing.
    #[must_use]
    pub fn without(&self, blocks: std::ops::Range<usize>) -> Self {
        Self { blocks: [&self.blocks[..blocks.start], &self.blocks[blocks.end..]].concat() }
    }

    /// A view of these blocks followed by those of another table, for sequences that begin with the same
    /// whole blocks. It owns nothing.
    #[must_use]
    pub fn followed_by(&self, rest: &Self) -> Self {
        Self { blocks: [&self.blocks[..], &rest.blocks].concat() }
    }

    /// Makes room for `len` positions. Takes all the blocks that are missing or, when the pool has
    /// too few, none; returns whether the room is there.
    pub fn reserve(&mut self, len: usize, pool: &mut BlockPool) -> bool {
        let missing = blocks_for(len).saturating_sub(self.blocks.len());
        if missing > pool.num_free() {
            return false;
        }
        self.blocks.extend((0..missing).map_while(|_| pool.alloc()));
        true
    }

    /// Holds, in an empty table, the blocks that are published under the first of `hashes`, up to the first
    /// that is not. Returns how many positions that gives.
    pub fn reuse(&mut self, hashes: &[BlockHash], pool: &mut BlockPool) -> usize {
        self.blocks.extend(hashes.iter().map_while(|hash| pool.share(hash)));
        self.capacity()
    }

    /// Forgets the positions from `len` on and returns the blocks that held nothing else. Rollback
    /// after a rejection is this and nothing more: the kept positions are not touched.
    pub fn truncate(&mut self, len: usize, pool: &mut BlockPool) {
        for block in self.blocks.drain(blocks_for(len).min(self.blocks.len())..).rev() {
            pool.free(block);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserve_slot_truncate() {
        let mut pool = BlockPool::new(4);
        let mut table = BlockTable::new();
        assert!(table.reserve(17, &mut pool));
        assert_eq!(table.blocks(), [0, 1]);
        assert_eq!((table.slot(0), table.slot(16), table.slot(31)), (0, 16, 31));
        assert!(table.reserve(20, &mut pool), "already there");
        assert_eq!(pool.num_used(), 2);
        assert_eq!(table.without(0..1).blocks(), [1]);
        assert_eq!(table.followed_by(&table.without(0..1)).blocks(), [0, 1, 1]);
        table.truncate(16, &mut pool);
        assert_eq!((table.blocks().len(), pool.num_used()), (1, 1));
        table.truncate(40, &mut pool);
        assert_eq!(table.blocks().len(), 1, "truncation never grows");
        table.truncate(0, &mut pool);
        assert_eq!(pool.num_used(), 0);
    }

    #[test]
    fn reserve_takes_all_or_nothing() {
        let mut pool = BlockPool::new(2);
        let mut table = BlockTable::new();
        assert!(!table.reserve(33, &mut pool));
        assert_eq!((table.blocks().len(), pool.num_free()), (0, 2));
    }
}
