//! Passes of the draft model: it catches up on the tokens it has not seen and says what it expects next.
//!
//! Its K/V cache has the shape of the target's and is indexed by the same block tables: a draft
//! token's position is reserved for the target anyway, and rollback is one truncation for both.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use crate::kv_cache::{BLOCK_SIZE, BlockTable};
use crate::model::{Forward, ModelConfig, Rows};

/// Tokens behind which the draft model reads on; further back it reads the first block and then the
/// last so many tokens. Reading a long prompt whole would cost more than its drafts save.
const WINDOW: usize = 128;

/// What the draft model's cache holds of a sequence: of the tokens without the `skipped` blocks after
/// the first, the first `computed`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct DraftCache {
    computed: usize,
    skipped: usize,
    /// Whether the draft model failed on this sequence, which then goes on without.
    pub(super) failed: bool,
}

impl DraftCache {
    /// The same, brought within reach of the last of `len` tokens.
    fn near(self, len: usize) -> Self {
        let missing = len - self.skipped * BLOCK_SIZE - self.computed;
        let first = len.saturating_sub(WINDOW) / BLOCK_SIZE;
        if missing <= WINDOW + BLOCK_SIZE || first <= self.skipped + 1 {
            return self;
        }
        Self { computed: self.computed.min(BLOCK_SIZE), skipped: first - 1, ..self }
    }

    /// Rows to compute before a draft token can follow `len` tokens.
    pub(super) fn missing(self, len: usize) -> usize {
        let near = self.near(len);
        len - near.skipped * BLOCK_SIZE - near.computed
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
}

/// One forward pass of the draft model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DraftPass {
    /// Rows computed.
    pub rows: usize,
    /// Whether no sequence had more to catch up on than a round leaves behind.
    pub decode: bool,
    /// Seconds it took.
    pub seconds: f64,
    /// Floating-point operations.
    pub flops: u64,
}

/// The draft model with its cache.
pub struct DraftModel {
    model: Box<dyn Forward>,
    rows: Rows,
    max_rows: usize,
    broken: bool,
    passes: Vec<DraftPass>,
    pub(super) failures: u64,
}

impl DraftModel {
    /// A draft model whose passes have at most `max_rows` rows.
    #[must_use]
    pub fn new(model: Box<dyn Forward>, max_rows: usize) -> Self {
        Self {
            model,
            rows: Rows::default(),
            max_rows,
            broken: false,
            passes: Vec::new(),
            failures: 0,
        }
    }

    /// The draft model's shape.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        self.model.config()
    }

    /// Rows of the draft model's head.
    #[must_use]
    pub fn head_rows(&self) -> usize {
        self.model.head_rows()
    }

    /// The model itself, to measure it.
    pub fn model_mut(&mut self) -> &mut dyn Forward {
        self.model.as_mut()
    }

    pub(super) fn model(&self) -> &dyn Forward {
        self.model.as_ref()
    }

    /// Whether the draft model failed for good.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Passes and failures since the last call.
    pub fn take_report(&mut self) -> (Vec<DraftPass>, u64) {
        (std::mem::take(&mut self.passes), std::mem::take(&mut self.failures))
    }

    /// Starts the next pass.
    pub(super) fn clear(&mut self) {
        self.rows.clear();
    }

    /// Adds what `cache` lacks of `tokens` to the pass, as far as there is room. `Some(true)` if that
    /// is all, so that the pass has logits for it; `None` if there is no room.
    pub(super) fn add(
        &mut self,
        cache: &mut DraftCache,
        table: &BlockTable,
        tokens: &[u32],
    ) -> Option<bool> {
        *cache = cache.near(tokens.len());
        let skipped = cache.skipped * BLOCK_SIZE;
        let (start, end) = (cache.computed, tokens.len() - skipped);
        let stop = end.min(start + self.max_rows - self.rows.len());
        if start == stop {
            return None;
        }
        let token = |place: usize| tokens[if place < BLOCK_SIZE { place } else { place + skipped }];
        let read = (start..stop).map(token);
        let logits = usize::from(stop == end);
        if skipped == 0 {
            self.rows.push(table, start, read, logits);
        } else {
            self.rows.push(&table.without(1..1 + cache.skipped), start, read, logits);
        }
        cache.computed = stop;
        Some(stop == end)
    }

    /// Runs the pass. The logits, `[complete sequences, head_rows]`, or `None` if the model failed for
    /// good: the draft is a convenience, whatever goes wrong in it must not end a sequence.
    pub(super) fn run(&mut self) -> Option<&[f32]> {
        let rows = &self.rows;
        let flops = rows.flops(self.model.config(), self.model.head_rows());
        let started = Instant::now();
        let model = self.model.as_mut();
        let forward = move || {
            let model = model; // moved in, so that the logits may leave the closure
            model.forward(rows)
        };
        let Ok(logits) = catch_unwind(AssertUnwindSafe(forward)) else {
            tracing::error!("the draft model panicked; going on without it");
            self.broken = true;
            self.failures += 1;
            return None;
        };
        let seconds = started.elapsed().as_secs_f64();
        let decode = rows.len() <= 2 * rows.logit_rows.len();
        self.passes.push(DraftPass { rows: rows.len(), decode, seconds, flops });
        Some(logits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(computed: usize, skipped: usize) -> DraftCache {
        DraftCache { computed, skipped, failed: false }
    }

    #[test]
    fn long_texts_are_read_from_near_their_end() {
        assert_eq!(cache(0, 0).near(144), cache(0, 0), "short enough to read whole");
        // 1,000 − 128 lies in block 54; block 0 and the 54th and later are read.
        assert_eq!(cache(0, 0).near(1000), cache(0, 53));
        assert_eq!(cache(0, 0).missing(1000), 16 + 1000 - 54 * 16);
        assert_eq!(cache(500, 0).near(1000), cache(16, 53), "the first block is kept");
        assert_eq!(cache(900, 0).near(1000), cache(900, 0), "close behind");
        let near = cache(0, 0).near(1000);
        assert_eq!(near.near(1001), near);
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
