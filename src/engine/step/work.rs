//! What passes of the target compute in a step, with draft tokens and without.

use crate::engine::scheduler::Scheduled;
use crate::speculation::{Proposal, Work};

/// What a pass computes without draft tokens.
pub(super) fn without_drafts(items: &[Scheduled]) -> Work {
    let add = |work: Work, item: &Scheduled| work.sequence(item.count, item.start + item.count);
    items.iter().fold(Work::default(), add)
}

/// What a pass computes with them.
pub(in crate::engine) fn with_drafts(items: &[Scheduled], proposals: &[Proposal]) -> Work {
    items.iter().zip(proposals).fold(without_drafts(items), |work, (item, proposal)| {
        work.further(proposal.tokens.len(), item.start + item.count)
    })
}

/// What a pass computes with one row of each sequence.
pub(super) fn one_row_each<'a>(items: impl Iterator<Item = &'a Scheduled>) -> Work {
    items.fold(Work::default(), |work, item| work.sequence(1, item.start + item.count))
}

/// Rows of prompts: all but the last row of each sequence whose next token is drawn.
pub(in crate::engine) fn prompt_rows(items: &[Scheduled]) -> usize {
    let drawn = items.iter().filter(|item| item.completes).count();
    items.iter().map(|item| item.count).sum::<usize>() - drawn
}
