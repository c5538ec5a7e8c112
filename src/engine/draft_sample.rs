//! What a sequence said, as drafts that are compared read it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use super::profile::median;
use crate::kv_cache::{BLOCK_SIZE, BlockTable};
use crate::model::{AdapterWeights, DraftInput, Forward, Rows};
use crate::speculation::StepCost;
use pleach_kernels::argmax;

/// Tokens of a prompt and of an answer that a sample has at most, beyond the first block.
const PROMPT: usize = 64;
const ANSWER: usize = 64;

/// The end of a prompt and the beginning of its answer, in tokens.
pub(super) struct Sample {
    pub(super) tokens: Vec<u32>,
    /// The tokens of the answer, at their end. At least two tokens are before them.
    pub(super) answer: usize,
    /// The adapter that the target answered with.
    adapter: Option<Arc<AdapterWeights>>,
}

impl Sample {
    /// The sample of a sequence whose first `prompt` tokens are the prompt; `None` without an answer.
    pub(super) fn of(
        tokens: &[u32],
        prompt: usize,
        adapter: Option<&Arc<AdapterWeights>>,
    ) -> Option<Self> {
        let prompt = prompt.max(2);
        let answer = tokens.len().saturating_sub(prompt).min(ANSWER);
        let tokens = tokens.get(..prompt + answer)?;
        // Whole blocks are left out behind the first one.
        let skipped = prompt.saturating_sub(PROMPT) / BLOCK_SIZE * BLOCK_SIZE;
        let tokens = match skipped > BLOCK_SIZE {
            true => [&tokens[..BLOCK_SIZE], &tokens[skipped..]].concat(),
            false => tokens.to_vec(),
        };
        (answer > 0).then_some(Self { tokens, answer, adapter: adapter.cloned() })
    }

    /// How many tokens of the answer a standalone draft holds likeliest; `None` if it fails.
    pub(super) fn read(
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
            let logits = draft.forward(&rows).ok()?;
            timing.cost.observe(rows.len(), started.elapsed().as_secs_f64());
            let mut accepted = 0;
            for (logits, &came) in logits.chunks_exact(width).zip(answer) {
                accepted += u64::from(likeliest(logits, ids.as_deref())? == came);
            }
            rows.clear();
            rows.push(table, last, [self.tokens[last]], 1);
            timing.step(|| {
                let _ = draft.forward(&rows);
            });
            Some(accepted)
        };
        catch_unwind(AssertUnwindSafe(read)).ok().flatten()
    }

    /// How many tokens of the answer the drafter that is attached to `target` holds likeliest, which reads the sample
    /// first; `None` if one of them fails.
    pub(super) fn read_attached(
        &self,
        target: &mut dyn Forward,
        table: &BlockTable,
        timing: &mut Timing,
    ) -> Option<u64> {
        let read = || {
            let first = self.tokens.len() - self.answer;
            let known = &self.tokens[..self.tokens.len() - 2];
            let mut rows = Rows::default();
            // The drafter reads the states behind which the last token before each of the answer came.
            rows.push(table, 0, known.iter().copied(), self.answer);
            if let Some(adapter) = &self.adapter {
                rows.adapt_last(adapter);
            }
            target.forward(&rows).ok()?;
            let drafter = target.attached()?;
            let ids = drafter.draft_vocab().cloned();
            // A step writes to the slot of the token that it reads, so the last token comes first.
            let places = (first..self.tokens.len()).rev();
            let read: Vec<u32> = places.clone().map(|place| place as u32 - 2).collect();
            let mut all = Vec::new();
            drafter.read_states(&read, &mut all);
            let states = || all.chunks_exact(all.len() / self.answer);
            let mut accepted = 0;
            for (place, states) in places.clone().zip(states()) {
                rows.clear();
                rows.push(table, place - 1, [self.tokens[place - 1]], 1);
                let logits = drafter.step(&rows, DraftInput::Target(states)).ok()?;
                accepted += u64::from(likeliest(logits, ids.as_deref())? == self.tokens[place]);
            }
            let last = states().next_back()?;
            timing.step(|| {
                let _ = drafter.step(&rows, DraftInput::Target(last));
            });
            rows.clear();
            for place in places {
                rows.push(table, place - 1, [self.tokens[place - 1]], 1);
            }
            let started = Instant::now();
            drafter.step(&rows, DraftInput::Target(&all)).ok()?;
            timing.cost.observe(rows.len(), started.elapsed().as_secs_f64());
            Some(accepted)
        };
        catch_unwind(AssertUnwindSafe(read)).ok().flatten()
    }
}

/// The token that logits hold likeliest, whose rows are those of `ids`; `None` if one is not a number.
fn likeliest(logits: &[f32], ids: Option<&[u32]>) -> Option<u32> {
    let (row, _) = argmax(logits).ok()??;
    Some(ids.map_or(row as u32, |ids| ids[row]))
}

/// What the passes of one draft took.
#[derive(Default)]
pub(super) struct Timing {
    pub(super) cost: StepCost,
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
    pub(super) fn step_seconds(&self) -> f64 {
        if self.steps.is_empty() { 0.0 } else { median(&mut self.steps.clone()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_what_drafting_reads() {
        let tokens: Vec<u32> = (0..1000).collect();
        let sample = |prompt| Sample::of(&tokens, prompt, None).unwrap();
        assert_eq!(sample(10).tokens, tokens[..74]);
        assert_eq!(sample(79).tokens, tokens[..143], "nothing is gained by leaving out no block");
        let long = sample(900);
        assert_eq!((long.tokens.len(), long.answer), (16 + 900 - 832 + 64, 64));
        assert_eq!((long.tokens[15], long.tokens[16]), (15, 832));
        assert_eq!(sample(999).answer, 1);
        assert!(Sample::of(&tokens, 1000, None).is_none(), "an embedding says nothing");
        let short = Sample::of(&tokens[..4], 1, None).unwrap();
        assert_eq!((short.tokens.len(), short.answer), (4, 2), "two tokens are before the answer");
        assert!(Sample::of(&tokens[..2], 1, None).is_none());
        assert!(Sample::of(&tokens[..1], 1, None).is_none());
    }
}
