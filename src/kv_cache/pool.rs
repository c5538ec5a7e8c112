//! Owns the set of free blocks.

/// Hands out the blocks of one K/V cache. Every block is either free or owned by exactly one
/// [`super::BlockTable`].
#[derive(Debug)]
pub struct BlockPool {
    free: Vec<u32>,
    in_use: Vec<bool>,
}

impl BlockPool {
    /// A pool of `num_blocks` free blocks.
    #[must_use]
    pub fn new(num_blocks: usize) -> Self {
        let last = u32::try_from(num_blocks).expect("invariant: block numbers fit in 32 bits");
        // Popped from the end, so low numbers are used first and a small load stays in a small
        // part of the cache.
        Self { free: (0..last).rev().collect(), in_use: vec![false; num_blocks] }
    }

    /// Blocks in total.
    #[must_use]
    pub fn num_blocks(&self) -> usize {
        self.in_use.len()
    }

    /// Blocks that no table owns.
    #[must_use]
    pub fn num_free(&self) -> usize {
        self.free.len()
    }

    /// Blocks that tables own.
    #[must_use]
    pub fn num_used(&self) -> usize {
        self.num_blocks() - self.num_free()
    }

    /// Takes a free block, or `None` when there is none.
    pub fn alloc(&mut self) -> Option<u32> {
        let block = self.free.pop()?;
        self.in_use[block as usize] = true;
        Some(block)
    }

    /// Returns a block.
    ///
    /// # Panics
    /// If the block is free already: two sequences would share it.
    pub fn free(&mut self, block: u32) {
        let in_use = &mut self.in_use[block as usize];
        assert!(*in_use, "block {block} freed twice");
        *in_use = false;
        self.free.push(block);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hands_out_each_block_once() {
        let mut pool = BlockPool::new(3);
        let mut blocks: Vec<u32> = std::iter::from_fn(|| pool.alloc()).collect();
        assert_eq!(blocks, [0, 1, 2]);
        assert_eq!((pool.num_free(), pool.num_used()), (0, 3));
        pool.free(blocks.remove(1));
        assert_eq!(pool.alloc(), Some(1));
    }

    #[test]
    #[should_panic(expected = "freed twice")]
    fn double_free_is_a_bug() {
        let mut pool = BlockPool::new(1);
        pool.free(0);
    }
}
