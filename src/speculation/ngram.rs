//! Prompt lookup: what followed the latest tokens where they occurred before (Saxena, "Prompt Lookup
//! Decoding", 2023).

use std::collections::HashMap;

/// Tokens of context that are looked up, at most.
const LONGEST: usize = 4;
/// Tokens of a match that are counted, at most: longer ones are no more reliable.
const COUNTED: usize = 32;
/// Fills up contexts shorter than [`LONGEST`]; no token has this id.
const NONE: u32 = u32::MAX;

/// An earlier place in a text whose preceding tokens are those at the text's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Match {
    /// Position of the token that followed.
    pub next: usize,
    /// Tokens before it that are the same.
    pub length: usize,
}

/// Where each run of up to four tokens of a text last occurred. A token costs four insertions, a
/// search at most four look-ups, however long the text.
#[derive(Debug, Clone, Default)]
pub struct NgramIndex {
    /// A run of tokens → position of the token after it.
    nexts: HashMap<[u32; LONGEST], u32>,
    indexed: usize,
}

/// The last `length` tokens of `context`.
fn key(context: &[u32], length: usize) -> [u32; LONGEST] {
    let mut key = [NONE; LONGEST];
    key[..length].copy_from_slice(&context[context.len() - length..]);
    key
}

impl NgramIndex {
    /// Takes in the tokens of `text` that are new. Texts only grow.
    pub fn extend(&mut self, text: &[u32]) {
        for next in self.indexed.max(1)..text.len() {
            for length in 1..=LONGEST.min(next) {
                self.nexts.insert(key(&text[..next], length), next as u32);
            }
        }
        self.indexed = self.indexed.max(text.len());
    }

    /// The latest place that agrees with the end of `text` on the most tokens, up to four, before
    /// any other. `text` may have tokens that are not indexed yet.
    #[must_use]
    pub fn find(&self, text: &[u32]) -> Option<Match> {
        let next = (1..=LONGEST.min(text.len()))
            .rev()
            .find_map(|length| self.nexts.get(&key(text, length)))?;
        let next = *next as usize;
        let agreeing = text[..next].iter().rev().zip(text.iter().rev());
        let length = agreeing.take(COUNTED).take_while(|(then, now)| then == now).count();
        Some(Match { next, length })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn index(text: &[u32]) -> NgramIndex {
        let mut index = NgramIndex::default();
        index.extend(text);
        index
    }

    #[test]
    fn finds_what_followed() {
        let text = [1, 2, 3, 9, 1, 2, 3];
        assert_eq!(index(&text).find(&text), Some(Match { next: 3, length: 3 }));
        let text = [5, 5, 5];
        assert_eq!(index(&text).find(&text), Some(Match { next: 2, length: 2 }), "overlapping");
        let text = [1, 2, 3];
        assert_eq!(index(&text).find(&text), None);
        assert_eq!(index(&[]).find(&[]), None);
        // A longer match wins over a later one, the later among equals.
        let text = [1, 2, 7, 0, 2, 8, 0, 2, 9, 1, 2];
        assert_eq!(index(&text).find(&text), Some(Match { next: 2, length: 2 }));
        let text = [2, 8, 2, 9, 2];
        assert_eq!(index(&text).find(&text), Some(Match { next: 3, length: 1 }));
    }

    proptest! {
        /// In any pieces, and against a search of the whole text.
        #[test]
        fn agrees_with_a_search(text in prop::collection::vec(0u32..5, 1..60), cut in 0usize..60) {
            let mut index = index(&text[..cut.min(text.len())]);
            index.extend(&text);
            let end = text.len();
            let common = |next: usize| {
                (0..next).take_while(|back| text[next - 1 - back] == text[end - 1 - back]).count()
            };
            let best = (1..end).max_by_key(|&next| (common(next).min(LONGEST), next));
            let expected = best
                .filter(|&next| common(next) > 0)
                .map(|next| Match { next, length: common(next).min(COUNTED) });
            prop_assert_eq!(index.find(&text), expected);
        }
    }
}
