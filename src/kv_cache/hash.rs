//! Names full blocks by what they hold.

use sha2::{Digest, Sha256};

use super::BLOCK_SIZE;

/// Names a full block by its tokens and all tokens before it: SHA-256 over the name of the block before
/// and the block's token ids. A client cannot make two texts of one name, so a name found is a text found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockHash([u8; 32]);

/// Sets the names of a sequence's blocks apart from those of all sequences that have another one, or none: neither finds
/// what the other has computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheSalt([u8; 32]);

impl CacheSalt {
    /// The salt of a text that belongs to `owner`.
    #[must_use]
    pub fn new(owner: &str, text: &str) -> Self {
        let mut hasher = Sha256::new();
        // 65 bytes, which no name of a block is made of: nobody can choose a text whose salt is such a name.
        hasher.update(b"s");
        hasher.update(Sha256::digest(owner));
        hasher.update(Sha256::digest(text));
        Self(hasher.finalize().into())
    }

    /// The salt of what the adapter of this identity computes, of a text that has `salt`.
    #[must_use]
    pub fn of_adapter(adapter: u64, salt: Option<Self>) -> Self {
        let mut hasher = Sha256::new();
        // 9 or 41 bytes, which no name of a block and no other salt is made of.
        hasher.update(b"a");
        hasher.update(adapter.to_le_bytes());
        if let Some(Self(salt)) = salt {
            hasher.update(salt);
        }
        Self(hasher.finalize().into())
    }
}

/// The names of a sequence's full blocks, in order.
#[derive(Debug, Clone, Default)]
pub struct BlockHashes {
    salt: Option<CacheSalt>,
    names: Vec<BlockHash>,
}

impl BlockHashes {
    /// No names yet, of a sequence with this salt.
    #[must_use]
    pub fn salted(salt: Option<CacheSalt>) -> Self {
        Self { salt, names: Vec::new() }
    }

    /// Names the full blocks of `tokens` that have no name yet. The tokens named before must be the same.
    pub fn extend(&mut self, tokens: &[u32]) {
        for block in tokens.chunks_exact(BLOCK_SIZE).skip(self.names.len()) {
            let mut hasher = Sha256::new();
            let before = self.names.last().map(|BlockHash(name)| name);
            if let Some(before) = before.or(self.salt.as_ref().map(|CacheSalt(salt)| salt)) {
                hasher.update(before);
            }
            hasher.update(bytemuck::cast_slice(block));
            self.names.push(BlockHash(hasher.finalize().into()));
        }
    }

    /// The names.
    #[must_use]
    pub fn as_slice(&self) -> &[BlockHash] {
        &self.names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(tokens: &[u32]) -> Vec<BlockHash> {
        let mut hashes = BlockHashes::default();
        hashes.extend(tokens);
        hashes.names
    }

    #[test]
    fn salts_set_names_apart() {
        let tokens: Vec<u32> = (0..48).collect();
        let salted = |salt| {
            let mut hashes = BlockHashes::salted(salt);
            (0..=48).for_each(|end| hashes.extend(&tokens[..end]));
            hashes.names
        };
        let salts = [("a", ""), ("b", ""), ("", "a"), ("a", "b"), ("ab", ""), ("", "")];
        let salts = salts.map(|(owner, text)| Some(CacheSalt::new(owner, text)));
        let mut all: Vec<BlockHash> = salts.iter().flat_map(|salt| salted(*salt)).collect();
        all.extend(salted(None));
        for adapter in 0..2 {
            for salt in [None, salts[0], salts[1]] {
                all.extend(salted(Some(CacheSalt::of_adapter(adapter, salt))));
            }
        }
        assert_eq!(all.len(), 39);
        let different: std::collections::HashSet<&BlockHash> = all.iter().collect();
        assert_eq!(different.len(), all.len());
        assert_eq!(salted(salts[0]), salted(Some(CacheSalt::new("a", ""))));
    }

    #[test]
    fn a_name_stands_for_all_tokens_up_to_its_block() {
        let tokens: Vec<u32> = (0..40).collect();
        let whole = names(&tokens);
        assert_eq!(whole.len(), 2, "the third block is not full");
        assert_eq!(names(&tokens[..32]), whole);
        let mut in_steps = BlockHashes::default();
        (0..=40).for_each(|end| in_steps.extend(&tokens[..end]));
        assert_eq!(in_steps.names, whole);
        let mut other = tokens;
        other[3] = 99;
        assert!(names(&other).iter().zip(&whole).all(|(a, b)| a != b));
        assert_ne!(names(&[7; 32])[0], names(&[7; 32])[1], "the same tokens, elsewhere");
    }
}
