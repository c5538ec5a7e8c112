//! A new draft beside the one that serves: both read what live sequences said, and the faster one goes on.
//!
//! Every sequence that ends is a sample. Each draft reads it in one pass, as much of it as drafting reads, and
//! what it holds likeliest at every place is held against the token that came: at temperature 0 that is the
//! acceptance of its draft tokens. Then a step of each is timed. Both meet the same texts at the same
//! moments, whatever was drafted, and sequences wait for a few short passes when one of them ends.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use super::comparison::{Comparison, DraftScore, Outcome, expected_speedup};
use super::profile::median;
use super::sequence::Sequence;
use super::tally::Tally;
use crate::kv_cache::{BLOCK_SIZE, BlockPool, BlockTable};
use crate::model::{Forward, Rows};
use crate::speculation::{DraftController, DraftModel, StepCost};
use pleach_kernels::argmax;

/// Tokens of a prompt and of an answer that a sample has at most, beyond the first block.
const PROMPT: usize = 64;
const ANSWER: usize = 64;

/// The new draft and what is known so far.
struct Contest {
    candidate: Box<dyn Forward>,
    candidate_timing: Timing,
    current_timing: Timing,
    samples: Vec<Sample>,
}

/// What a sequence said, as drafts read it.
struct Sample {
    tokens: Vec<u32>,
    answer: usize,
}

impl Sample {
    /// The sample of a sequence whose first `prompt` tokens are the prompt; `None` without an answer.
    fn of(tokens: &[u32], prompt: usize) -> Option<Self> {
        let answer = tokens.len().saturating_sub(prompt).min(ANSWER);
        let tokens = &tokens[..prompt + answer];
        // Whole blocks are left out behind the first one.
        let skipped = prompt.saturating_sub(PROMPT) / BLOCK_SIZE * BLOCK_SIZE;
        let tokens = match skipped > BLOCK_SIZE {
            true => [&tokens[..BLOCK_SIZE], &tokens[skipped..]].concat(),
            false => tokens.to_vec(),
        };
        (answer > 0).then_some(Self { tokens, answer })
    }

    /// How many tokens of the answer `draft` holds likeliest; `None` if it fails.
    fn read(
        &self,
        draft: &mut dyn Forward,
        table: &BlockTable,
        timing: &mut Timing,
    ) -> Option<u64> {
        let read = || {
            let (last, ids) = (self.tokens.len() - 1, draft.draft_vocab().cloned());
            let answer = &self.tokens[self.tokens.len() - self.answer..];
            let width = draft.head_rows();
            let mut rows = Rows::default();
            rows.push(table, 0, self.tokens[..last].iter().copied(), self.answer);
            let started = Instant::now();
            let logits = draft.forward(&rows);
            timing.cost.observe(rows.len(), started.elapsed().as_secs_f64());
            let mut accepted = 0;
            for (logits, &came) in logits.chunks_exact(width).zip(answer) {
                let (row, _) = argmax(logits).ok()??;
                let likeliest = ids.as_ref().map_or(row as u32, |ids| ids[row]);
                accepted += u64::from(likeliest == came);
            }
            rows.clear();
            rows.push(table, last, [self.tokens[last]], 1);
            timing.step(|| {
                draft.forward(&rows);
            });
            Some(accepted)
        };
        catch_unwind(AssertUnwindSafe(read)).ok().flatten()
    }
}

/// What the passes of one draft took.
#[derive(Default)]
struct Timing {
    cost: StepCost,
    /// Seconds of a step, at every sample.
    steps: Vec<f64>,
}

impl Timing {
    /// Times a pass of one row. The quickest of three is least disturbed by what else the machine does.
    fn step(&mut self, mut pass: impl FnMut()) {
        let mut once = || {
            let started = Instant::now();
            pass();
            started.elapsed().as_secs_f64()
        };
        let seconds = once().min(once()).min(once());
        self.cost.observe(1, seconds);
        self.steps.push(seconds);
    }

    /// Median of the steps, in seconds; 0 where the draft always failed.
    fn step_seconds(&self) -> f64 {
        if self.steps.is_empty() { 0.0 } else { median(&mut self.steps.clone()) }
    }
}

/// The comparison of a new draft with the one that serves: how it stands, and what it needs while it goes on.
#[derive(Default)]
pub(super) struct DraftComparison {
    contest: Option<Contest>,
    comparison: Option<Comparison>,
}

/// A new draft that has won.
pub(super) struct Winner {
    pub(super) draft: Box<dyn Forward>,
    /// What its passes cost.
    pub(super) cost: StepCost,
}

impl DraftComparison {
    /// Begins to compare a draft model by this name on `wanted` tokens; one that goes on is over.
    pub(super) fn start(
        &mut self,
        draft: String,
        candidate: Box<dyn Forward>,
        wanted: u64,
        tally: &Tally,
    ) {
        self.stop(tally);
        self.contest = Some(Contest {
            candidate,
            candidate_timing: Timing::default(),
            current_timing: Timing::default(),
            samples: Vec::new(),
        });
        self.comparison = Some(Comparison { draft, wanted, ..Comparison::default() });
    }

    /// Ends a comparison; the old draft goes on.
    pub(super) fn stop(&mut self, tally: &Tally) {
        self.end(Outcome::Stopped, tally);
    }

    /// The comparison that goes on, or the last one.
    pub(super) fn status(&self) -> Option<&Comparison> {
        self.comparison.as_ref()
    }

    /// A sequence ends: what it said is a sample for the comparison that goes on.
    pub(super) fn sample(&mut self, sequence: &Sequence) {
        if let Some(contest) = &mut self.contest {
            contest.samples.extend(Sample::of(&sequence.tokens, sequence.stats.prompt_tokens));
        }
    }

    /// Lets both drafts read the samples that have come, in blocks of `pool`, and decides where they suffice; `most`
    /// draft tokens are proposed at a time.
    pub(super) fn read_samples(
        &mut self,
        pool: &mut BlockPool,
        drafting: &mut DraftController,
        most: usize,
        tally: &Tally,
    ) -> Option<Winner> {
        let samples = std::mem::take(&mut self.contest.as_mut()?.samples);
        samples.iter().find_map(|sample| self.read_sample(sample, pool, drafting, most, tally))
    }

    fn read_sample(
        &mut self,
        sample: &Sample,
        pool: &mut BlockPool,
        drafting: &mut DraftController,
        most: usize,
        tally: &Tally,
    ) -> Option<Winner> {
        let (contest, comparison) = (self.contest.as_mut()?, self.comparison.as_mut()?);
        let mut table = BlockTable::new();
        if !table.reserve(sample.tokens.len(), pool) {
            return None;
        }
        let Contest { candidate, candidate_timing, current_timing, .. } = contest;
        let candidate = sample.read(candidate.as_mut(), &table, candidate_timing);
        let current = drafting.draft_mut().filter(|draft| !draft.is_broken());
        let current = current.and_then(DraftModel::standalone_mut);
        let current =
            current.map(|draft| sample.read(draft, &table, current_timing).unwrap_or_default());
        table.truncate(0, pool);
        let Some(candidate) = candidate else { return self.end(Outcome::Failed, tally) };
        comparison.tokens += sample.answer as u64;
        tally.compared(sample.answer, candidate, current);
        let (target, tokens) = (&drafting.costs().target, comparison.tokens);
        let score = |before: DraftScore, accepted: u64, timing: &Timing| {
            let accepted_tokens = before.accepted_tokens + accepted;
            let one = target.seconds(1).unwrap_or(f64::INFINITY);
            let step_cost = timing.step_seconds() / one;
            let alpha = accepted_tokens as f64 / tokens as f64;
            let verify = |gamma| target.seconds(gamma + 1).map_or(1.0, |pass| pass / one);
            let promised = (1..=most).map(|g| expected_speedup(alpha, g, step_cost, verify(g)));
            DraftScore { accepted_tokens, step_cost, speedup: promised.fold(0.0, f64::max) }
        };
        comparison.candidate = score(comparison.candidate, candidate, &contest.candidate_timing);
        comparison.current = current.map(|accepted| {
            score(comparison.current.unwrap_or_default(), accepted, &contest.current_timing)
        });
        if tokens < comparison.wanted {
            return None;
        }
        let outcome = if comparison.is_won() { Outcome::Switched } else { Outcome::Refused };
        self.end(outcome, tally)
    }

    /// Ends a comparison that goes on; the new draft, if it is to serve.
    fn end(&mut self, outcome: Outcome, tally: &Tally) -> Option<Winner> {
        let (contest, comparison) = (self.contest.take()?, self.comparison.as_mut()?);
        comparison.outcome = Some(outcome);
        tally.comparison_ended(outcome);
        tracing::info!(outcome = outcome.name(), ?comparison, "drafts compared");
        (outcome == Outcome::Switched)
            .then_some(Winner { draft: contest.candidate, cost: contest.candidate_timing.cost })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_what_drafting_reads() {
        let tokens: Vec<u32> = (0..1000).collect();
        let sample = |prompt| Sample::of(&tokens, prompt).unwrap();
        assert_eq!(sample(10).tokens, tokens[..74]);
        assert_eq!(sample(79).tokens, tokens[..143], "nothing is gained by leaving out no block");
        let long = sample(900);
        assert_eq!((long.tokens.len(), long.answer), (16 + 900 - 832 + 64, 64));
        assert_eq!((long.tokens[15], long.tokens[16]), (15, 832));
        assert_eq!(sample(999).answer, 1);
        assert!(Sample::of(&tokens, 1000).is_none(), "an embedding says nothing");
    }
}
