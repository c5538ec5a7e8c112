//! What passes of the target compute in a step, with draft tokens and without.

use crate::engine::scheduler::Scheduled;
use crate::spec::{Load, Proposal};

/// What a pass computes without draft tokens.
pub(super) fn without_drafts(items: &[Scheduled]) -> Load {
    let add = |load: Load, item: &Scheduled| load.sequence(item.count, item.start + item.count);
    items.iter().fold(Load::default(), add)
}

/// What a pass computes with them.
pub(in crate::engine) fn with_drafts(items: &[Scheduled], proposals: &[Proposal]) -> Load {
    items.iter().zip(proposals).fold(without_drafts(items), |load, (item, proposal)| {
        load.further(proposal.tokens.len(), item.start + item.count)
    })
}

/// What a pass computes with one row of each sequence.
pub(super) fn one_row_each<'a>(items: impl Iterator<Item = &'a Scheduled>) -> Load {
    items.fold(Load::default(), |load, item| load.sequence(1, item.start + item.count))
}
