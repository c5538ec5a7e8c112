//! What the draft model's cache holds: of a sequence, and of the blocks that sequences share.
//!
//! The draft model reads a long text in part: the first block, then what follows a gap of skipped blocks.
//! What its cache holds of a block therefore depends on the gap before it, and a shared block can hold one
//! reading only. Invariants:
//! - The first `rows` slots of a block hold known tokens, read behind a gap of `skipped` blocks.
//! - A reading stays valid while the block keeps its tokens. A sequence with another gap cannot use it, and starts
//!   behind that block.

use crate::kv_cache::{BLOCK_SIZE, BlockTable};

/// Tokens behind which the draft model reads on; further back it reads the first block and then the
/// last so many tokens. Reading a prompt whole would cost more than its drafts save, and they hardly
/// get worse: on documents α is 0.42 with 48 tokens, 0.41 with 128, 0.44 with all.
const WINDOW: usize = 48;

/// What the draft model's cache holds of a sequence: of the tokens without the `skipped` blocks after
/// the first, the first `computed`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct DraftCache {
    pub(super) computed: usize,
    pub(super) skipped: usize,
    /// Whether the draft model failed on this sequence, which then goes on without.
    pub(super) failed: bool,
}

impl DraftCache {
    /// Rows to compute before a draft token can follow `len` tokens.
    pub(super) fn missing(self, len: usize) -> usize {
        len - self.skipped * BLOCK_SIZE - self.computed
    }

    /// Forgets what lies behind the first `len` tokens.
    pub(super) fn truncate(&mut self, len: usize) {
        match len.checked_sub((self.skipped + 1) * BLOCK_SIZE) {
            Some(rest) => self.computed = self.computed.min(BLOCK_SIZE + rest),
            None => {
                self.computed = self.computed.min(BLOCK_SIZE).min(len);
                self.skipped = 0;
            }
        }
    }

    /// Where in the table the block lies that holds the reading's `place`-th block.
    fn index(self, place: usize) -> usize {
        if place == 0 { 0 } else { place + self.skipped }
    }
}

/// What the draft model's cache holds of one block.
#[derive(Debug, Clone, Copy, Default)]
struct Reading {
    skipped: usize,
    rows: usize,
}

/// What the draft model's cache holds of every block, by its number.
#[derive(Debug, Default)]
pub(super) struct Readings(Vec<Reading>);

impl Readings {
    /// These blocks hold other tokens now, and nothing of them has been read.
    pub(super) fn forget(&mut self, blocks: &[u32]) {
        for &block in blocks {
            if let Some(reading) = self.0.get_mut(block as usize) {
                reading.rows = 0;
            }
        }
    }

    /// Makes known what a sequence has read: the first `computed` of its `len` known tokens without the
    /// gap. Where somebody else's reading of a shared block came first, the sequence's own is lost.
    pub(super) fn note(
        &mut self,
        cache: &mut DraftCache,
        table: &BlockTable,
        computed: usize,
        len: usize,
    ) {
        for place in 0..computed.div_ceil(BLOCK_SIZE) {
            let index = cache.index(place);
            let block = table.blocks()[index] as usize;
            if self.0.len() <= block {
                self.0.resize(block + 1, Reading::default());
            }
            let reading = &mut self.0[block];
            let skipped = if place == 0 { 0 } else { cache.skipped };
            let mut rows = (computed - place * BLOCK_SIZE).min(BLOCK_SIZE);
            if reading.rows == 0 || reading.skipped == skipped {
                rows = rows.max(reading.rows);
            } else if index < (len - 1) / BLOCK_SIZE {
                cache.computed = place * BLOCK_SIZE;
                return;
            } // The last token's block is the sequence's alone.
            *reading = Reading { skipped, rows };
        }
    }

    /// What to go on from for drafting behind `len` tokens: the sequence's own reading and what others
    /// added to it, else another's that comes close to the end, else a new one.
    pub(super) fn view(&self, cache: DraftCache, table: &BlockTable, len: usize) -> DraftCache {
        let own = self.extended(cache, table, len);
        if self.serves(own, table, len) {
            return own;
        }
        let full = &table.blocks()[..(len - 1) / BLOCK_SIZE];
        let last = full.iter().rposition(|&block| self.of(block).rows > 0);
        let skipped = last.map_or(0, |index| self.of(full[index]).skipped);
        let other = self.extended(DraftCache { computed: 0, skipped, ..cache }, table, len);
        if self.serves(other, table, len) {
            return other;
        }
        // Behind all that was read with other gaps.
        let first =
            (len.saturating_sub(WINDOW) / BLOCK_SIZE).max(last.map_or(0, |index| index + 1));
        let skipped = first.min(full.len()).saturating_sub(1);
        let first_block = if full.is_empty() { 0 } else { self.of(full[0]).rows };
        DraftCache { computed: first_block, skipped, ..cache }
    }

    /// With what is known to be read of the blocks that follow in the same way.
    fn extended(&self, mut cache: DraftCache, table: &BlockTable, len: usize) -> DraftCache {
        let end = len - 1 - (cache.skipped * BLOCK_SIZE).min(len - 1);
        while cache.computed < end {
            let place = cache.computed / BLOCK_SIZE;
            let reading = self.of(table.blocks()[cache.index(place)]);
            let computed = (place * BLOCK_SIZE + reading.rows).min(end);
            if computed <= cache.computed || place > 0 && reading.skipped != cache.skipped {
                break;
            }
            cache.computed = computed;
        }
        cache
    }

    /// Whether a reading is near enough to the end of `len` tokens, and no other lies in its way.
    fn serves(&self, cache: DraftCache, table: &BlockTable, len: usize) -> bool {
        let (last, place) = ((len - 1) / BLOCK_SIZE, cache.computed / BLOCK_SIZE);
        let next = cache.index(place.max(1)).min(last);
        let free = table.blocks()[next..last].iter().all(|&block| {
            let reading = self.of(block);
            reading.rows == 0 || reading.skipped == cache.skipped
        });
        let first = len.saturating_sub(WINDOW) / BLOCK_SIZE;
        free && (cache.missing(len) <= WINDOW + BLOCK_SIZE || first <= cache.skipped + 1)
    }

    fn of(&self, block: u32) -> Reading {
        self.0.get(block as usize).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv_cache::BlockPool;

    fn cache(computed: usize, skipped: usize) -> DraftCache {
        DraftCache { computed, skipped, failed: false }
    }

    fn table(len: usize) -> BlockTable {
        let mut table = BlockTable::new();
        assert!(table.reserve(len, &mut BlockPool::new(100)));
        table
    }

    #[test]
    fn long_texts_are_read_from_near_their_end() {
        let (none, table) = (Readings::default(), table(1001));
        let near = |computed, skipped, len| none.view(cache(computed, skipped), &table, len);
        assert_eq!(near(0, 0, 64), cache(0, 0), "short enough to read whole");
        // 1,000 − 48 lies in block 59; block 0 and the 59th and later are read.
        assert_eq!(near(0, 0, 1000), cache(0, 58));
        assert_eq!(near(0, 0, 1000).missing(1000), 1000 - 58 * 16);
        assert_eq!(near(940, 0, 1000), cache(940, 0), "close behind");
        assert_eq!(near(0, 58, 1001), cache(0, 58));
        let mut readings = Readings::default();
        let mut own = cache(500, 0);
        readings.note(&mut own, &table, 500, 1000);
        assert_eq!(readings.view(own, &table, 1000), cache(16, 58), "the first block is kept");
        readings.forget(table.blocks());
        assert_eq!(readings.view(cache(0, 0), &table, 1000), cache(0, 58));
    }

    /// Two sequences whose first 20 blocks are the same.
    #[test]
    fn what_one_sequence_read_serves_another() {
        let table = table(500);
        let mut readings = Readings::default();
        // The first has read blocks 0, 18 and 19, and 5 tokens more.
        let mut first = readings.view(cache(0, 0), &table, 340);
        assert_eq!(first, cache(0, 17));
        readings.note(&mut first, &table, 325 - 17 * 16, 340);
        let shared = |len| readings.view(cache(0, 0), &table, len);
        assert_eq!(shared(350), cache(325 - 17 * 16, 17), "near enough to read on from");
        assert_eq!(shared(480), cache(16, 26), "too far: the first block alone");
        // The last token is always read: what follows it is asked for.
        assert_eq!(shared(321), cache(320 - 17 * 16, 17));
        // A whole reading that would run into the other is given up for it, or begins behind it.
        assert_eq!(readings.view(cache(200, 0), &table, 335), cache(325 - 17 * 16, 17));
        let mut late = cache(330, 0);
        readings.note(&mut late, &table, 330, 400);
        assert_eq!(late.computed, 18 * 16, "up to the other's reading");
    }

    #[test]
    fn a_reading_with_holes_is_not_followed() {
        let table = table(500);
        let mut readings = Readings::default();
        // Blocks 0, 4, 5 … 9, of which the fifth is then another.
        readings.note(&mut cache(112, 3), &table, 112, 400);
        readings.forget(&table.blocks()[5..6]);
        let view = |len| readings.view(cache(0, 0), &table, len);
        assert_eq!(view(140), cache(32, 3), "near enough to read from the hole on");
        assert_eq!(view(200), cache(16, 9), "behind block 9, the last one read");
    }

    #[test]
    fn truncation_keeps_what_is_before() {
        let truncated = |mut cache: DraftCache, len| {
            cache.truncate(len);
            cache
        };
        assert_eq!(truncated(cache(50, 0), 40), cache(40, 0));
        assert_eq!(truncated(cache(50, 0), 60), cache(50, 0));
        // Blocks 0, 3, 4 … are held; position 60 is the 12th of block 3.
        assert_eq!(truncated(cache(50, 2), 60), cache(28, 2));
        assert_eq!(truncated(cache(50, 2), 40), cache(16, 0));
        assert_eq!(truncated(cache(50, 2), 9), cache(9, 0));
    }
}
