//! What a step took, and what its tokens would have taken without speculation.

use super::work::{one_row_each, prompt_rows, with_drafts, without_drafts};
use crate::engine::decode_time::{GeneratingStep, by_proposer};
use crate::engine::scheduler::Scheduled;
use crate::engine::tally::{Tally, TargetPass};
use crate::engine::{Event, RequestId};
use crate::speculation::{Proposal, StepCost};

/// Counts the time of a step whose draft passes took `draft_seconds`, by what passes of the target cost; before that
/// is known, nothing.
pub(in crate::engine) fn account(
    items: &[Scheduled],
    proposals: &[Proposal],
    pass: &TargetPass,
    draft_seconds: f64,
    events: &[(RequestId, Event)],
    target: &StepCost,
    tally: &mut Tally,
) {
    let sequences = items.iter().filter(|item| item.completes).count();
    let step = GeneratingStep {
        rows: pass.rows,
        prompt_rows: prompt_rows(items),
        sequences,
        tokens: events.iter().map(|(_, event)| event.num_tokens()).sum(),
        target_seconds: pass.seconds,
        draft_seconds,
    };
    let plain = one_row_each(items.iter().filter(|item| item.completes));
    let work = [plain, with_drafts(items, proposals), without_drafts(items)];
    let [Some(plain), Some(with), Some(without)] = work.map(|work| target.seconds(work)) else {
        return;
    };
    if let Some(time) = step.time(plain) {
        tally.decode_time(time);
    }
    let rows = (with - without).max(0.0);
    let token = plain / sequences.max(1) as f64;
    tally.proposer_seconds(by_proposer(proposals, events, rows, draft_seconds, token));
}

/// How many times as long as without speculation a step took, as far as that is known: a pass over prompts tells
/// nothing of it.
pub(in crate::engine) fn cost(
    items: &[Scheduled],
    pass: &TargetPass,
    draft_seconds: f64,
    target: &StepCost,
) -> f64 {
    let without = target.seconds(without_drafts(items)).filter(|_| pass.decode);
    without.map_or(1.0, |without| (pass.seconds + draft_seconds) / without)
}
