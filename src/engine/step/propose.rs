//! What is drafted.

use std::collections::HashMap;

use super::work::{one_row_each, without_drafts};
use crate::engine::RequestId;
use crate::engine::scheduler::{Scheduled, Scheduler};
use crate::engine::sequences::Sequences;
use crate::model::Forward;
use crate::speculation::{DraftController, DraftReport, Proposal, ProposeTask};

/// One proposal per item, empty where none was asked for or worth it, and what the draft model did for them.
pub(in crate::engine) fn propose(
    items: &[Scheduled],
    sequences: &mut Sequences,
    scheduler: &Scheduler,
    drafting: &mut DraftController,
    target: &mut dyn Forward,
) -> (Vec<Proposal>, DraftReport) {
    let mut proposals: Vec<Proposal> = items.iter().map(|_| Proposal::default()).collect();
    let places: HashMap<RequestId, usize> = items
        .iter()
        .enumerate()
        .filter(|(_, item)| item.lookahead > 0)
        .map(|(place, item)| (item.id, place))
        .collect();
    if places.is_empty() {
        return (proposals, DraftReport::default());
    }
    let rate = tokens_per_second(items, sequences, drafting);
    let mut tasks = Vec::new();
    for (id, sequence) in sequences.iter_mut() {
        let Some(&place) = places.get(&id) else { continue };
        let tokens_left = sequence.tokens_left();
        let task = ProposeTask {
            tokens: &mut sequence.tokens,
            num_tokens: items[place].lookahead,
            tokens_left,
            ends: &sequence.ends,
            table: scheduler.table(id),
            params: &sequence.params,
            history: &mut sequence.history,
            draws: sequence.draws,
            grammar: sequence.grammar.as_mut(),
            state: &mut sequence.speculation,
            proposal: Proposal::default(),
        };
        tasks.push((place, task));
    }
    tasks.sort_unstable_by_key(|&(place, _)| place);
    let (places, mut tasks): (Vec<usize>, Vec<ProposeTask<'_>>) = tasks.into_iter().unzip();
    let report = drafting.propose(&mut tasks, target, without_drafts(items), rate);
    for (place, task) in places.into_iter().zip(tasks) {
        proposals[place] = task.proposal;
    }
    (proposals, report)
}

/// Throughput of this step if every sequence were generating, at its average gain from speculation. One more
/// accepted token saves the inverse of this, even in a step that also reads prompts.
fn tokens_per_second(
    items: &[Scheduled],
    sequences: &Sequences,
    drafting: &DraftController,
) -> Option<f64> {
    let gains = items.iter().map(|item| sequences.scheduled(item).speculation.gain());
    let tokens: f64 = gains.sum();
    Some(tokens / drafting.costs().target.seconds(one_row_each(items.iter()))?)
}
