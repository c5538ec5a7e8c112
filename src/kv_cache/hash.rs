//! Names full blocks by what they hold.

use sha2::{Digest, Sha256};

use super::BLOCK_SIZE;

/// Names a full block by its tokens and all tokens before it: SHA-256 over the name of the block before
/// and the block's token ids. A client cannot make two texts of one name, so a name found is a text found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockHash([u8; 32]);

/// The names of a sequence's full blocks, in order.
#[derive(Debug, Clone, Default)]
pub struct BlockHashes(Vec<BlockHash>);

impl BlockHashes {
    /// Names the full blocks of `tokens` that have no name yet. The tokens named before must be the same.
    pub fn extend(&mut self, tokens: &[u32]) {
        for block in tokens.chunks_exact(BLOCK_SIZE).skip(self.0.len()) {
            let mut hasher = Sha256::new();
            if let Some(BlockHash(before)) = self.0.last() {
                hasher.update(before);
            }
            hasher.update(bytemuck::cast_slice(block));
            self.0.push(BlockHash(hasher.finalize().into()));
        }
    }

    /// The names.
    #[must_use]
    pub fn as_slice(&self) -> &[BlockHash] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(tokens: &[u32]) -> Vec<BlockHash> {
        let mut hashes = BlockHashes::default();
        hashes.extend(tokens);
        hashes.0
    }

    #[test]
    fn a_name_stands_for_all_tokens_up_to_its_block() {
        let tokens: Vec<u32> = (0..40).collect();
        let whole = names(&tokens);
        assert_eq!(whole.len(), 2, "the third block is not full");
        assert_eq!(names(&tokens[..32]), whole);
        let mut in_steps = BlockHashes::default();
        (0..=40).for_each(|end| in_steps.extend(&tokens[..end]));
        assert_eq!(in_steps.0, whole);
        let mut other = tokens;
        other[3] = 99;
        assert!(names(&other).iter().zip(&whole).all(|(a, b)| a != b));
        assert_ne!(names(&[7; 32])[0], names(&[7; 32])[1], "the same tokens, elsewhere");
    }
}
