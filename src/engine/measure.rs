//! Step costs of an idle engine, for benchmarks and for speculation that knows them before the first
//! request.

use std::time::Instant;

use super::Engine;
use crate::kv_cache::BlockTable;
use crate::model::{DraftInput, Forward, Rows};
use crate::spec::{DraftStep, Load};

/// Seconds of forward passes, each the median of several.
#[derive(Debug, Clone, PartialEq)]
pub struct MeasuredCosts {
    /// Rows of one sequence in a target pass, all with logits → seconds.
    pub target: Vec<(usize, f64)>,
    /// One row through the draft model behind a pass of the target, if there is one.
    pub draft: Option<f64>,
    /// One row through it behind another draft pass.
    pub draft_further: Option<f64>,
}

impl MeasuredCosts {
    /// Seconds of a target pass with `rows` rows over one with a single row.
    #[must_use]
    pub fn verify_cost(&self, rows: usize) -> Option<f64> {
        Some(self.target_seconds(rows)? / self.target_seconds(1)?)
    }

    /// Seconds of a draft step behind a target step over those of a target step.
    #[must_use]
    pub fn draft_step_cost(&self) -> Option<f64> {
        Some(self.draft? / self.target_seconds(1)?)
    }

    /// The same behind another draft step.
    #[must_use]
    pub fn draft_further_step_cost(&self) -> Option<f64> {
        Some(self.draft_further? / self.target_seconds(1)?)
    }

    fn target_seconds(&self, rows: usize) -> Option<f64> {
        self.target.iter().find(|&&(measured, _)| measured == rows).map(|&(_, seconds)| seconds)
    }
}

/// Rows of the draft passes that are timed.
const DRAFT_ROWS: [usize; 4] = [1, 4, 16, 64];
/// Positions that a pass is timed behind, beyond the context, to learn what attention costs.
const FAR: usize = 256;
/// Rows of the target passes that an engine times before it serves, and the context behind which.
const PROFILE_ROWS: [usize; 8] = [1, 2, 3, 4, 6, 8, 12, 16];
const PROFILE_CONTEXT: usize = 64;

impl Engine {
    /// Learns the step costs that speculation and its estimated gain reckon with, in some fifty passes.
    /// Does nothing without speculation.
    pub fn profile(&mut self) {
        let context = PROFILE_CONTEXT.min(self.limits.max_model_len / 2);
        let room = self.limits.max_model_len - context;
        let most = room.min(self.config.max_num_batched_tokens);
        let rows: Vec<usize> = PROFILE_ROWS.into_iter().filter(|&rows| rows <= most).collect();
        if self.limits.num_speculative_tokens > 0 && !rows.is_empty() {
            self.measure_costs(context, &rows, 3);
        }
    }

    /// Times passes of `row_counts` rows after `context` positions, `repeats` of each, and tells
    /// speculation. Statistics and metrics do not count them.
    ///
    /// # Panics
    /// If the engine has work, or `context` and the rows exceed
    /// [`max_model_len`](super::EngineLimits::max_model_len).
    pub fn measure_costs(
        &mut self,
        context: usize,
        row_counts: &[usize],
        repeats: usize,
    ) -> MeasuredCosts {
        assert!(!self.has_work(), "step costs are measured on an idle engine");
        let most = row_counts.iter().copied().max().unwrap_or(1).max(1);
        let limit = self.limits.max_model_len;
        assert!(context + most <= limit, "{context} + {most} positions exceed the context");
        let far = (context + FAR).min(limit - 1);
        let mut table = BlockTable::new();
        let reserved =
            table.reserve(limit.min(far.max(context + most) + 1), self.scheduler.pool_mut());
        assert!(reserved, "invariant: an idle engine has room for one sequence");
        let chunk = self.config.max_num_batched_tokens;
        let mut costs = MeasuredCosts { target: Vec::new(), draft: None, draft_further: None };
        let target = self.target.as_mut();
        prefill(target, &table, far, chunk);
        // Round-robin, so that a busy moment of the machine touches every count alike.
        let mut samples = vec![Vec::new(); row_counts.len()];
        let mut attention = Vec::new();
        for _ in 0..repeats.max(1) {
            let near = time(target, &table, context, 1);
            attention.push(time(target, &table, far, 1) - near);
            for (samples, &rows) in samples.iter_mut().zip(row_counts) {
                samples.push(time(target, &table, context, rows));
            }
        }
        if far > context {
            self.costs.target.measured_attention(median(&mut attention) / (far - context) as f64);
        }
        for (mut samples, &rows) in samples.into_iter().zip(row_counts) {
            let seconds = median(&mut samples);
            self.costs.target.measured(Load::default().sequence(rows, context), seconds);
            costs.target.push((rows, seconds));
        }
        if let Some(draft) = self.cascade.draft_mut() {
            let mut draft = draft.standalone_mut();
            if let Some(draft) = &mut draft {
                prefill(*draft, &table, context, chunk);
            }
            for rows in DRAFT_ROWS.into_iter().filter(|&rows| context + rows <= limit) {
                let mut samples = [Vec::new(), Vec::new()];
                for _ in 0..repeats.max(1) {
                    // As it is served: the target's weights have just passed through the caches.
                    time(target, &table, context, 1);
                    let steps = match &mut draft {
                        Some(draft) => [0, 1].map(|_| time(*draft, &table, context, rows)),
                        None => time_attached(target, &table, context, rows),
                    };
                    samples.iter_mut().zip(steps).for_each(|(samples, step)| samples.push(step));
                }
                let [first, further] = samples.each_mut().map(|samples| median(samples));
                self.costs.measured_draft(DraftStep::First, rows, first);
                self.costs.measured_draft(DraftStep::Further, rows, further);
                costs.draft = costs.draft.or(Some(first));
                costs.draft_further = costs.draft_further.or(Some(further));
            }
        }
        table.truncate(0, self.scheduler.pool_mut());
        costs
    }
}

/// Fills the cache with `context` positions of some text.
fn prefill(model: &mut dyn Forward, table: &BlockTable, context: usize, chunk: usize) {
    let mut rows = Rows::default();
    for start in (0..context).step_by(chunk) {
        rows.clear();
        rows.push(table, start, tokens(model, start..context.min(start + chunk)), 0);
        model.forward(&rows);
    }
}

/// Seconds of one pass of `count` rows with logits after `context` positions.
fn time(model: &mut dyn Forward, table: &BlockTable, context: usize, count: usize) -> f64 {
    let mut rows = Rows::default();
    rows.clear();
    rows.push(table, context, tokens(model, context..context + count), count);
    let started = Instant::now();
    model.forward(&rows);
    started.elapsed().as_secs_f64()
}

/// Seconds of the first step of the attached drafter for `count` chains, behind a pass whose last row is at
/// `context`, and of a further one.
fn time_attached(
    target: &mut dyn Forward,
    table: &BlockTable,
    context: usize,
    count: usize,
) -> [f64; 2] {
    let mut rows = Rows::default();
    rows.clear();
    rows.push(table, context, tokens(target, context..context + count), count);
    let drafter = target.attached().expect("invariant: the draft model is attached");
    let mut states = Vec::new();
    drafter.read_states(0, &mut states);
    let states = states.repeat(count);
    let from: Vec<u32> = (0..count as u32).collect();
    [DraftInput::Target(&states), DraftInput::Own(&from)].map(|input| {
        let started = Instant::now();
        drafter.step(&rows, input);
        started.elapsed().as_secs_f64()
    })
}

/// Some token for each position.
fn tokens(model: &dyn Forward, positions: std::ops::Range<usize>) -> Vec<u32> {
    let vocab_size = model.config().vocab_size;
    positions.map(|position| (position * 31 % vocab_size) as u32).collect()
}

/// The middle of some samples; there must be one.
pub(super) fn median(samples: &mut [f64]) -> f64 {
    samples.sort_unstable_by(f64::total_cmp);
    samples[samples.len() / 2]
}
