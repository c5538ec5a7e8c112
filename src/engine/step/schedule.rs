//! Which rows of which sequences run.

use crate::engine::RequestId;
use crate::engine::scheduler::{Scheduled, Scheduler};
use crate::engine::sequences::Sequences;
use crate::engine::tally::Tally;
use crate::speculation::DraftController;

/// Hands out the rows of a step, and blocks for them and for draft tokens.
pub(in crate::engine) fn schedule(
    scheduler: &mut Scheduler,
    sequences: &mut Sequences,
    drafting: &mut DraftController,
    tally: &mut Tally,
) -> Vec<Scheduled> {
    let schedule = scheduler.schedule(|id| match sequences.get(id) {
        Some(sequence) if drafting.works() => sequence.draft_bound(),
        _ => 0,
    });
    drafting.forget(&schedule.fresh);
    preempted(&schedule.preempted, sequences, tally);
    for item in &schedule.items {
        let sequence = sequences.scheduled_mut(item);
        if sequence.stats.target_passes == 0 {
            sequence.stats.queue_seconds = sequence.submitted.elapsed().as_secs_f64();
            sequence.stats.cached_tokens = item.start;
        }
    }
    schedule.items
}

/// Notes that these sequences lost their blocks.
pub(in crate::engine) fn preempted(
    ids: &[RequestId],
    sequences: &mut Sequences,
    tally: &mut Tally,
) {
    for &id in ids {
        tally.preempted();
        if let Some(sequence) = sequences.get_mut(id) {
            sequence.stats.preemptions += 1;
            sequence.speculation.forget_cache();
        }
    }
}

/// Counts the sequences whose first pass this was, once it is computed.
pub(in crate::engine) fn begun(
    items: &[Scheduled],
    sequences: &Sequences,
    prefix_caching: bool,
    tally: &mut Tally,
) {
    let sequences = items.iter().map(|item| sequences.scheduled(item));
    for sequence in sequences.filter(|sequence| sequence.stats.target_passes == 0) {
        let stats = &sequence.stats;
        tally.queued(stats.queue_seconds);
        // A prompt of which something is read is computed whole.
        if prefix_caching && !sequence.readout.is_wanted() {
            tally.prefix_cache(stats.prompt_tokens, stats.cached_tokens);
        }
    }
}
