//! Passes of the draft model: a standalone one catches up on the tokens it has not seen, an attached one reads
//! what the target has computed, and either says what it expects next.
//!
//! The K/V cache of a standalone draft has the shape of the target's and is indexed by the same block tables: a
//! draft token's position is reserved for the target anyway, and rollback is one truncation for both. What it
//! holds of a block that sequences share is its own matter: see [`super::draft_cache`]. An attached drafter has
//! the target's own cache.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use super::draft_cache::{DraftCache, Readings};
use super::{DraftStep, SpeculationState};
use crate::kv_cache::{BLOCK_SIZE, BlockTable};
use crate::model::{DraftInput, Forward, ModelConfig, Rows};

/// One forward pass of the draft model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DraftPass {
    /// Its place in the round.
    pub step: DraftStep,
    /// Rows computed.
    pub rows: usize,
    /// Whether every sequence read at most the tokens of its last round.
    pub decode: bool,
    /// Seconds it took.
    pub seconds: f64,
    /// Floating-point operations.
    pub flops: u64,
}

/// What computes, and what the next pass starts from.
enum Kind {
    Standalone {
        model: Box<dyn Forward>,
        readings: Readings,
        max_rows: usize,
    },
    /// The drafter belongs to the target.
    Attached {
        /// The target's states of all rows, in the first step of a chain.
        states: Vec<f32>,
        /// For every row that of the step before, in further steps.
        from: Vec<u32>,
    },
}

/// The draft model.
pub struct DraftModel {
    kind: Kind,
    config: ModelConfig,
    head_rows: usize,
    draft_vocab: Option<Arc<[u32]>>,
    rows: Rows,
    broken: bool,
    passes: Vec<DraftPass>,
    pub(super) failures: u64,
}

impl DraftModel {
    /// A standalone draft model with its own cache, whose passes have at most `max_rows` rows.
    #[must_use]
    pub fn standalone(model: Box<dyn Forward>, max_rows: usize) -> Self {
        let (config, head_rows) = (model.config().clone(), model.head_rows());
        let vocab = model.draft_vocab().cloned();
        let kind = Kind::Standalone { model, readings: Readings::default(), max_rows };
        Self::new(kind, config, head_rows, vocab)
    }

    /// The drafter that is attached to the target, where one is.
    #[must_use]
    pub fn attached(target: &mut dyn Forward) -> Option<Self> {
        let drafter = target.attached()?;
        let (config, head_rows) = (drafter.config().clone(), drafter.head_rows());
        let kind = Kind::Attached { states: Vec::new(), from: Vec::new() };
        Some(Self::new(kind, config, head_rows, drafter.draft_vocab().cloned()))
    }

    fn new(kind: Kind, config: ModelConfig, head_rows: usize, vocab: Option<Arc<[u32]>>) -> Self {
        Self {
            kind,
            config,
            head_rows,
            draft_vocab: vocab,
            rows: Rows::default(),
            broken: false,
            passes: Vec::new(),
            failures: 0,
        }
    }

    /// The draft model's shape.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Rows of the draft model's head.
    #[must_use]
    pub fn head_rows(&self) -> usize {
        self.head_rows
    }

    /// Token ids of the head's rows, where the head is trimmed.
    pub(super) fn draft_vocab(&self) -> Option<&Arc<[u32]>> {
        self.draft_vocab.as_ref()
    }

    /// The model itself, to measure it; `None` where it is attached to the target.
    pub fn standalone_mut(&mut self) -> Option<&mut dyn Forward> {
        match &mut self.kind {
            Kind::Standalone { model, .. } => Some(model.as_mut()),
            Kind::Attached { .. } => None,
        }
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
        if let Kind::Standalone { readings, .. } = &mut self.kind {
            readings.forget(blocks);
        }
    }

    /// Makes known what the draft model has read of a sequence of `len` known tokens.
    pub(super) fn note(&mut self, cache: &mut DraftCache, table: &BlockTable, len: usize) {
        if let Kind::Standalone { readings, .. } = &mut self.kind {
            readings.note(cache, table, cache.computed, len);
        }
    }

    /// What to go on from for drafting behind `len` known tokens.
    pub(super) fn view(&self, cache: DraftCache, table: &BlockTable, len: usize) -> DraftCache {
        match &self.kind {
            Kind::Standalone { readings, .. } => readings.view(cache, table, len),
            Kind::Attached { .. } => cache,
        }
    }

    /// Rows to compute before a draft token can follow `len` tokens, of which the last `drafted` are draft tokens
    /// and the last `own` of them the draft model's; `None` if none can. An attached drafter reads the target's
    /// states of the known tokens, and its own of its own tokens.
    pub(super) fn missing(
        &self,
        state: &SpeculationState,
        len: usize,
        drafted: usize,
        own: usize,
    ) -> Option<usize> {
        match &self.kind {
            Kind::Standalone { .. } => Some(state.draft.missing(len)),
            Kind::Attached { .. } => {
                (drafted == own && state.states.tokens == len - drafted).then_some(1)
            }
        }
    }

    /// Starts the next pass.
    pub(super) fn clear(&mut self) {
        self.rows.clear();
        if let Kind::Attached { states, from } = &mut self.kind {
            states.clear();
            from.clear();
        }
    }

    /// Adds a sequence to the pass: all that is missing of `tokens`, of which the first `known` are no draft
    /// tokens, as far as there is room. `last` is its row in the step before, if this is not the first of its
    /// chain. `Some(true)` if nothing is missing afterwards, so that the pass has logits for it; `None` if there is
    /// no room.
    pub(super) fn add(
        &mut self,
        state: &mut SpeculationState,
        table: &BlockTable,
        tokens: &[u32],
        known: usize,
        last: Option<u32>,
    ) -> Option<bool> {
        let (readings, max_rows) = match &mut self.kind {
            Kind::Standalone { readings, max_rows, .. } => (readings, *max_rows),
            Kind::Attached { states, from } => {
                match last {
                    Some(row) => from.push(row),
                    None => states.extend_from_slice(&state.states.values),
                }
                let place = tokens.len() - 1;
                self.rows.push(table, place, [tokens[place]], 1);
                return Some(true);
            }
        };
        let cache = &mut state.draft;
        // Sequences before this one in the pass may have read shared blocks.
        *cache = readings.view(*cache, table, tokens.len());
        let skipped = cache.skipped * BLOCK_SIZE;
        let (start, end) = (cache.computed, tokens.len() - skipped);
        let stop = end.min(start + max_rows - self.rows.len());
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
        readings.note(cache, table, stop.min(known.saturating_sub(skipped)), known);
        Some(stop == end)
    }

    /// Runs the pass. Returns the logits, `[complete sequences, head_rows]`, or `None` if the model failed for good.
    /// Sequences then go on without drafts.
    pub(super) fn run<'a>(
        &'a mut self,
        target: &'a mut dyn Forward,
        step: DraftStep,
    ) -> Option<&'a [f32]> {
        let Self { kind, config, head_rows, rows, broken, passes, failures, .. } = self;
        let rows = &*rows;
        let started = Instant::now();
        let forward = move || {
            let (kind, target) = (kind, target); // moved in, so that the logits may leave the closure
            match kind {
                Kind::Standalone { model, .. } => {
                    let logits = model.forward(rows).map_err(|error| error.to_string())?;
                    Ok((logits, rows.flops(config, *head_rows)))
                }
                Kind::Attached { states, from } => {
                    let drafter = target.attached().ok_or("it is not attached any more")?;
                    let positions = rows.positions.iter();
                    let flops = positions.map(|&p| drafter.flops_per_token(p as usize + 1)).sum();
                    let input = match from.is_empty() {
                        true => DraftInput::Target(states),
                        false => DraftInput::Own(from),
                    };
                    let logits = drafter.step(rows, input).map_err(|error| error.to_string())?;
                    Ok::<_, String>((logits, flops))
                }
            }
        };
        let passed = catch_unwind(AssertUnwindSafe(forward));
        let failed = |error: &String| {
            tracing::error!(error, "the draft model fails; going on without it");
            *broken = true;
            *failures += 1;
        };
        let passed = passed.unwrap_or_else(|_| Err("it panicked".into()));
        let (logits, flops) = passed.inspect_err(failed).ok()?;
        let seconds = started.elapsed().as_secs_f64();
        let decode = rows.len() <= 2 * rows.logit_rows.len();
        passes.push(DraftPass { step, rows: rows.len(), decode, seconds, flops });
        Some(logits)
    }
}
