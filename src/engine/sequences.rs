//! The unfinished sequences of an engine.

use std::collections::HashMap;
use std::time::Duration;

use super::RequestId;
use super::scheduler::Scheduled;
use super::sequence::Sequence;

/// Sequences by request. Whatever is scheduled is one of them.
#[derive(Default)]
pub(super) struct Sequences(HashMap<RequestId, Sequence>);

impl Sequences {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn insert(&mut self, id: RequestId, sequence: Sequence) {
        self.0.insert(id, sequence);
    }

    pub(super) fn remove(&mut self, id: RequestId) -> Option<Sequence> {
        self.0.remove(&id)
    }

    pub(super) fn get(&self, id: RequestId) -> Option<&Sequence> {
        self.0.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: RequestId) -> Option<&mut Sequence> {
        self.0.get_mut(&id)
    }

    /// The sequences that came this long ago or longer, in order of arrival.
    pub(super) fn submitted_before(&self, ago: Duration) -> Vec<RequestId> {
        let old = self.0.iter().filter(|(_, sequence)| sequence.submitted.elapsed() >= ago);
        let mut ids: Vec<RequestId> = old.map(|(&id, _)| id).collect();
        ids.sort_unstable();
        ids
    }

    /// All sequences, in no order.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (RequestId, &mut Sequence)> {
        self.0.iter_mut().map(|(&id, sequence)| (id, sequence))
    }

    /// The sequence of an item of this step.
    pub(super) fn scheduled(&self, item: &Scheduled) -> &Sequence {
        self.0.get(&item.id).expect("invariant: scheduled sequences exist")
    }

    /// The sequence of an item of this step, to be changed.
    pub(super) fn scheduled_mut(&mut self, item: &Scheduled) -> &mut Sequence {
        self.0.get_mut(&item.id).expect("invariant: scheduled sequences exist")
    }
}
