//! Which rows of which sequences run.

use crate::engine::scheduler::{Scheduled, Scheduler};
use crate::engine::sequences::Sequences;
use crate::engine::tally::Tally;
use crate::speculation::DraftController;

/// Hands out the rows of a step, and blocks for them and for draft tokens.
pub(in crate::engine) fn schedule(
    scheduler: &mut Scheduler,
    sequences: &mut Sequences,
    drafting: &mut DraftController,
    prefix_caching: bool,
    tally: &mut Tally,
) -> Vec<Scheduled> {
    let schedule = scheduler.schedule(|id| match sequences.get(id) {
        Some(sequence) if drafting.works() => sequence.draft_bound(),
        _ => 0,
    });
    drafting.forget(&schedule.fresh);
    for &id in &schedule.preempted {
        tally.preempted();
        if let Some(sequence) = sequences.get_mut(id) {
            sequence.stats.preemptions += 1;
            sequence.speculation.forget_cache();
        }
    }
    for item in &schedule.items {
        let sequence = sequences.scheduled_mut(item);
        if sequence.stats.target_passes > 0 {
            continue;
        }
        sequence.stats.queue_seconds = sequence.submitted.elapsed().as_secs_f64();
        tally.queued(sequence.stats.queue_seconds);
        if prefix_caching {
            sequence.stats.cached_tokens = item.start;
            tally.prefix_cache(sequence.stats.prompt_tokens, item.start);
        }
    }
    schedule.items
}
