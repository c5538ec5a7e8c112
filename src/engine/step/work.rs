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

/// The sequences that decode, one row each.
fn decoding(items: &[Scheduled]) -> impl Iterator<Item = &Scheduled> {
    items.iter().filter(|item| item.count == 1 && item.completes)
}

/// Rows of prompts, and what a pass would compute without them: a row at least.
pub(in crate::engine) fn prompts(items: &[Scheduled], proposals: &[Proposal]) -> (usize, Work) {
    let others =
        decoding(items).count() + proposals.iter().map(|it| it.tokens.len()).sum::<usize>();
    let all = with_drafts(items, proposals).rows;
    let work = one_row_each(decoding(items));
    (all - others, Work { rows: others.max(1), ..work })
}
