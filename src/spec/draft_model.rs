//! Passes of the draft model: it catches up on the tokens it has not seen and says what it expects next.
//!
//! Its K/V cache has the shape of the target's and is indexed by the same block tables: a draft
//! token's position is reserved for the target anyway, and rollback is one truncation for both. What it
//! holds of a block that sequences share is its own matter: see [`super::draft_cache`].

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use super::draft_cache::{DraftCache, Readings};
use crate::kv_cache::{BLOCK_SIZE, BlockTable};
use crate::model::{Forward, ModelConfig, Rows};

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
    readings: Readings,
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
            readings: Readings::default(),
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

    /// These blocks were handed out anew: what the cache holds of them is void.
    pub fn forget(&mut self, blocks: &[u32]) {
        self.readings.forget(blocks);
    }

    /// Makes known what the draft model has read of a sequence of `len` known tokens.
    pub(super) fn note(&mut self, cache: &mut DraftCache, table: &BlockTable, len: usize) {
        self.readings.note(cache, table, cache.computed, len);
    }

    /// What to go on from for drafting behind `len` known tokens.
    pub(super) fn view(&self, cache: DraftCache, table: &BlockTable, len: usize) -> DraftCache {
        self.readings.view(cache, table, len)
    }

    /// Starts the next pass.
    pub(super) fn clear(&mut self) {
        self.rows.clear();
    }

    /// Adds what `cache` lacks of `tokens`, of which the first `known` are no draft tokens, to the pass, as
    /// far as there is room. `Some(true)` if that is all, so that the pass has logits for it; `None` if
    /// there is no room.
    pub(super) fn add(
        &mut self,
        cache: &mut DraftCache,
        table: &BlockTable,
        tokens: &[u32],
        known: usize,
    ) -> Option<bool> {
        // Sequences before this one in the pass may have read shared blocks.
        *cache = self.readings.view(*cache, table, tokens.len());
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
        self.readings.note(cache, table, stop.min(known.saturating_sub(skipped)), known);
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
