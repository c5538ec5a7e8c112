//! Owns the blocks: which are free, how many tables hold each, and what the full ones are known to hold.

use std::collections::{BTreeSet, HashMap};

use super::BlockHash;

/// Hands out the blocks of one K/V cache. A block is free or held by one or more
/// [`super::BlockTable`]s. A full one may be published under its [`BlockHash`]; it is not written again,
/// tables may share it, and it keeps its content when it becomes free until it is handed out anew: the
/// longest unused first.
#[derive(Debug)]
pub struct BlockPool {
    blocks: Vec<Block>,
    /// Free blocks by the time since when, 0 for those whose content is of no use.
    free: BTreeSet<(u64, u32)>,
    published: HashMap<BlockHash, u32>,
    clock: u64,
    fresh: Vec<u32>,
}

#[derive(Debug, Clone, Default)]
struct Block {
    /// Tables that hold it.
    holders: u32,
    hash: Option<BlockHash>,
    freed: u64,
}

impl BlockPool {
    /// A pool of `num_blocks` free blocks.
    #[must_use]
    pub fn new(num_blocks: usize) -> Self {
        let last = u32::try_from(num_blocks).expect("invariant: block numbers fit in 32 bits");
        Self {
            blocks: vec![Block::default(); num_blocks],
            // Low numbers are used first, so a small load stays in a small part of the cache.
            free: (0..last).map(|block| (0, block)).collect(),
            published: HashMap::new(),
            clock: 0,
            fresh: Vec::new(),
        }
    }

    /// Blocks in total.
    #[must_use]
    pub fn num_blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that no table holds, whether their content is kept or not.
    #[must_use]
    pub fn num_free(&self) -> usize {
        self.free.len()
    }

    /// Blocks that tables hold.
    #[must_use]
    pub fn num_used(&self) -> usize {
        self.num_blocks() - self.num_free()
    }

    /// Takes a free block and forgets what it held, or `None` when there is none.
    pub fn alloc(&mut self) -> Option<u32> {
        let (_, block) = self.free.pop_first()?;
        self.withdraw(block);
        self.blocks[block as usize].holders = 1;
        self.fresh.push(block);
        Some(block)
    }

    /// Blocks handed out by [`alloc`](Self::alloc) since the last call.
    pub fn take_fresh(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.fresh)
    }

    /// One more table holds the block published under `hash`, if there is one.
    pub fn share(&mut self, hash: &BlockHash) -> Option<u32> {
        let number = *self.published.get(hash)?;
        let block = &mut self.blocks[number as usize];
        if block.holders == 0 {
            self.free.remove(&(block.freed, number));
        }
        block.holders += 1;
        Some(number)
    }

    /// Makes a full block known by its hash, unless another block holds the same.
    pub fn publish(&mut self, block: u32, hash: BlockHash) {
        if let std::collections::hash_map::Entry::Vacant(entry) = self.published.entry(hash) {
            entry.insert(block);
            self.blocks[block as usize].hash = Some(hash);
        }
    }

    /// Takes back what [`publish`](Self::publish) said: nobody new will share the block.
    pub fn withdraw(&mut self, block: u32) {
        if let Some(hash) = self.blocks[block as usize].hash.take() {
            self.published.remove(&hash);
        }
    }

    /// One table fewer holds the block.
    ///
    /// # Panics
    /// If no table holds it: two sequences would write to it.
    pub fn free(&mut self, number: u32) {
        let block = &mut self.blocks[number as usize];
        assert!(block.holders > 0, "block {number} freed twice");
        block.holders -= 1;
        if block.holders == 0 {
            block.freed = 0;
            if block.hash.is_some() {
                self.clock += 1;
                block.freed = self.clock;
            }
            self.free.insert((block.freed, number));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::BlockHashes;
    use super::*;

    fn hashes(count: u32) -> Vec<BlockHash> {
        let mut hashes = BlockHashes::default();
        hashes.extend(&(0..count * 16).collect::<Vec<u32>>());
        hashes.as_slice().to_vec()
    }

    #[test]
    fn hands_out_each_block_once() {
        let mut pool = BlockPool::new(3);
        let mut blocks: Vec<u32> = std::iter::from_fn(|| pool.alloc()).collect();
        assert_eq!(blocks, [0, 1, 2]);
        assert_eq!((pool.num_free(), pool.num_used()), (0, 3));
        pool.free(blocks.remove(1));
        assert_eq!(pool.alloc(), Some(1));
        assert_eq!(pool.take_fresh(), [0, 1, 2, 1]);
    }

    #[test]
    fn published_blocks_are_shared_and_kept_until_needed() {
        let mut pool = BlockPool::new(3);
        let names = hashes(3);
        for (block, name) in [0, 1].into_iter().zip(&names) {
            assert_eq!(pool.alloc(), Some(block));
            pool.publish(block, *name);
        }
        assert_eq!(pool.share(&names[0]), Some(0));
        pool.free(0);
        assert_eq!(pool.num_used(), 2, "still held by one");
        pool.free(1);
        pool.free(0);
        assert_eq!((pool.num_used(), pool.share(&names[2])), (0, None));
        // What holds nothing goes first, then what was freed first; sharing saves a block from that.
        assert_eq!(pool.share(&names[1]), Some(1));
        pool.free(1);
        assert_eq!((pool.alloc(), pool.alloc()), (Some(2), Some(0)));
        assert_eq!((pool.share(&names[0]), pool.share(&names[1])), (None, Some(1)));
        assert_eq!(pool.alloc(), None, "a block that is shared again is not free");
    }

    #[test]
    fn one_block_stands_for_a_text_and_can_be_withdrawn() {
        let mut pool = BlockPool::new(2);
        let name = hashes(1)[0];
        let (a, b) = (pool.alloc().unwrap(), pool.alloc().unwrap());
        pool.publish(a, name);
        pool.publish(b, name);
        pool.withdraw(b);
        assert_eq!(pool.share(&name), Some(a));
        pool.withdraw(a);
        assert_eq!(pool.share(&name), None);
    }

    #[test]
    #[should_panic(expected = "freed twice")]
    fn double_free_is_a_bug() {
        let mut pool = BlockPool::new(1);
        pool.free(0);
    }
}
