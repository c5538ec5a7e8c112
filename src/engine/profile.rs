//! Step costs of an idle engine, for benchmarks and for speculation that knows them before the first
//! request. Statistics and metrics do not count the passes that are timed.

use std::time::Instant;

use crate::kv_cache::{BlockPool, BlockTable};
use crate::model::{DraftInput, Forward, OutOfMemory, Rows, VerifyTask};
use crate::sampling::{Distribution, Draws, History, SamplingParams};
use crate::speculation::{DraftController, DraftModel, DraftStep, Work};

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

    /// Seconds of a draft step behind another draft step over those of a target step.
    #[must_use]
    pub fn draft_further_step_cost(&self) -> Option<f64> {
        Some(self.draft_further? / self.target_seconds(1)?)
    }

    fn target_seconds(&self, rows: usize) -> Option<f64> {
        self.target.iter().find(|&&(measured, _)| measured == rows).map(|&(_, seconds)| seconds)
    }
}

/// Rows of the draft passes that are timed.
const DRAFT_ROWS: [usize; 4] = [1, 4, 16, MOST_DRAFT_ROWS];
/// The most of them.
pub(super) const MOST_DRAFT_ROWS: usize = 64;
/// Positions that a pass is timed behind, beyond the context, to learn what attention costs.
const FAR: usize = 256;
/// Rows of the target passes that an engine times before it serves, and the context behind which.
const PROFILE_ROWS: [usize; 8] = [1, 2, 3, 4, 6, 8, 12, 16];
const PROFILE_CONTEXT: usize = 64;

/// An idle engine's parts, to time passes of its models.
pub(super) struct Profile<'a> {
    pub(super) target: &'a mut dyn Forward,
    pub(super) drafting: &'a mut DraftController,
    /// The block pool, which no sequence holds blocks of.
    pub(super) pool: &'a mut BlockPool,
    pub(super) max_model_len: usize,
    /// Rows of a pass at most.
    pub(super) max_rows: usize,
}

impl Profile<'_> {
    /// Measures step costs with about fifty passes; speculation decides by them when a draft token pays.
    ///
    /// # Errors
    /// [`OutOfMemory`] where the passes are too large.
    pub(super) fn learn(self) -> Result<(), OutOfMemory> {
        let context = PROFILE_CONTEXT.min(self.max_model_len / 2);
        let most = (self.max_model_len - context).min(self.max_rows);
        let rows: Vec<usize> = PROFILE_ROWS.into_iter().filter(|&rows| rows <= most).collect();
        if rows.is_empty() { Ok(()) } else { self.measure(context, &rows, 3).map(drop) }
    }

    /// Times passes of `row_counts` rows after `context` positions, `repeats` of each, and tells speculation.
    ///
    /// # Errors
    /// [`OutOfMemory`] where the passes are too large.
    ///
    /// # Panics
    /// If `context` and the rows exceed the context limit.
    pub(super) fn measure(
        self,
        context: usize,
        row_counts: &[usize],
        repeats: usize,
    ) -> Result<MeasuredCosts, OutOfMemory> {
        let Self { target, drafting, pool, max_model_len: limit, max_rows } = self;
        let most = row_counts.iter().copied().max().unwrap_or(1).max(1);
        assert!(context + most <= limit, "{context} + {most} positions exceed the context");
        let far = (context + FAR).min(limit - 1);
        let mut table = BlockTable::new();
        let reserved = table.reserve(limit.min(far.max(context + most) + 1), pool);
        assert!(reserved, "invariant: an idle engine has room for one sequence");
        let mut measure = || -> Result<MeasuredCosts, OutOfMemory> {
            let mut costs = MeasuredCosts { target: Vec::new(), draft: None, draft_further: None };
            prefill(target, &table, far, max_rows)?;
            // The first pass of so many rows takes memory for them.
            time_round(target, &table, context, most)?;
            // Round-robin, so that a busy moment of the machine touches every count alike.
            let mut samples = vec![Vec::new(); row_counts.len()];
            let mut attention = Vec::new();
            for _ in 0..repeats.max(1) {
                let near = time_round(target, &table, context, 1)?;
                attention.push(time_round(target, &table, far, 1)? - near);
                for (samples, &rows) in samples.iter_mut().zip(row_counts) {
                    samples.push(time_round(target, &table, context, rows)?);
                }
            }
            let known = &mut drafting.costs_mut().target;
            if far > context {
                known.measured_attention(median(&mut attention) / (far - context) as f64);
            }
            for (mut samples, &rows) in samples.into_iter().zip(row_counts) {
                let seconds = median(&mut samples);
                known.measured(Work::default().sequence(rows, context), seconds);
                costs.target.push((rows, seconds));
            }
            let fits = |rows: &usize| context + rows <= limit && *rows <= max_rows;
            let counts = DRAFT_ROWS.into_iter().filter(fits);
            let drafts = time_drafts(target, drafting, &table, context, counts, repeats, max_rows)?;
            for (rows, [first, further]) in drafts {
                drafting.costs_mut().measured_draft(DraftStep::First, rows, first);
                drafting.costs_mut().measured_draft(DraftStep::Further, rows, further);
                costs.draft = costs.draft.or(Some(first));
                costs.draft_further = costs.draft_further.or(Some(further));
            }
            Ok(costs)
        };
        let costs = measure();
        table.truncate(0, pool);
        costs
    }
}

/// Seconds of a first and of a further draft step with each of `counts` rows, if there is a draft model.
fn time_drafts(
    target: &mut dyn Forward,
    drafting: &mut DraftController,
    table: &BlockTable,
    context: usize,
    counts: impl Iterator<Item = usize>,
    repeats: usize,
    chunk: usize,
) -> Result<Vec<(usize, [f64; 2])>, OutOfMemory> {
    let Some(draft) = drafting.draft_mut() else { return Ok(Vec::new()) };
    let mut draft = DraftModel::standalone_mut(draft);
    if let Some(draft) = &mut draft {
        prefill(*draft, table, context, chunk)?;
    }
    let mut seconds = Vec::new();
    for rows in counts {
        let mut samples = [Vec::new(), Vec::new()];
        for _ in 0..repeats.max(1) {
            // As it is served: the target's weights have just passed through the caches.
            time_round(target, table, context, 1)?;
            let steps = match &mut draft {
                Some(draft) => {
                    [time(*draft, table, context, rows)?, time(*draft, table, context, rows)?]
                }
                None => time_attached(target, table, context, rows)?,
            };
            samples.iter_mut().zip(steps).for_each(|(samples, step)| samples.push(step));
        }
        seconds.push((rows, samples.each_mut().map(|samples| median(samples))));
    }
    Ok(seconds)
}

/// Fills the cache with `context` positions of some text.
fn prefill(
    model: &mut dyn Forward,
    table: &BlockTable,
    context: usize,
    chunk: usize,
) -> Result<(), OutOfMemory> {
    let mut rows = Rows::default();
    for start in (0..context).step_by(chunk) {
        rows.clear();
        rows.push(table, start, tokens(model, start..context.min(start + chunk)), 0);
        model.forward(&rows)?;
    }
    Ok(())
}

/// Seconds of one pass of `count` rows with logits after `context` positions.
fn time(
    model: &mut dyn Forward,
    table: &BlockTable,
    context: usize,
    count: usize,
) -> Result<f64, OutOfMemory> {
    let mut rows = Rows::default();
    rows.clear();
    rows.push(table, context, tokens(model, context..context + count), count);
    let started = Instant::now();
    model.forward(&rows)?;
    Ok(started.elapsed().as_secs_f64())
}

/// Seconds of a pass of the target of `count` rows after `context` positions, in which it decides the round where it does
/// so itself: then no logits come to the host.
fn time_round(
    target: &mut dyn Forward,
    table: &BlockTable,
    context: usize,
    count: usize,
) -> Result<f64, OutOfMemory> {
    if !target.verifies() {
        return time(target, table, context, count);
    }
    let ids = tokens(target, context..context + count);
    let mut rows = Rows::default();
    rows.clear();
    rows.push(table, context, ids.iter().copied(), count);
    let certain: Vec<_> = ids[1..].iter().map(|&id| Distribution::one_hot(id)).collect();
    let (params, history) =
        (SamplingParams { temperature: 0.0, ..SamplingParams::default() }, History::new(&ids));
    let task = VerifyTask {
        first_logit: 0,
        draft: ids[1..].iter().copied().zip(&certain).collect(),
        params: &params,
        draws: Draws::new(0),
        position: context,
        history: &history,
        masks: Vec::new(),
    };
    let started = Instant::now();
    target.forward_and_verify(&rows, &[task])?;
    Ok(started.elapsed().as_secs_f64())
}

/// Seconds of the first step of the attached drafter for `count` chains, behind a pass whose last row is at
/// `context`, and of a further one.
fn time_attached(
    target: &mut dyn Forward,
    table: &BlockTable,
    context: usize,
    count: usize,
) -> Result<[f64; 2], OutOfMemory> {
    let mut rows = Rows::default();
    rows.clear();
    rows.push(table, context, tokens(target, context..context + count), count);
    let drafter = target.attached().expect("invariant: the draft model is attached");
    let mut states = Vec::new();
    drafter.read_states(&[0], &mut states);
    let states = states.repeat(count);
    let from: Vec<u32> = (0..count as u32).collect();
    let mut time = |input| {
        let started = Instant::now();
        drafter.step(&rows, input)?;
        Ok(started.elapsed().as_secs_f64())
    };
    Ok([time(DraftInput::Target(&states))?, time(DraftInput::Own(&from))?])
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
