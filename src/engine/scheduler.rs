//! Decides which tokens of which sequences the next pass computes, and which blocks they get. Knows
//! lengths only: no tensors, no text.
//!
//! There is no prefill phase. A sequence has `len` known tokens, of which the first `computed` are
//! in the cache; every step lets it catch up. Invariants between steps:
//! - `computed < len` for every sequence: the last token is always still to be computed.
//! - A sequence's table has room for at least `computed` positions; a waiting one owns no block.
//! - Running sequences are in order of arrival, and all waiting ones arrived after them, apart from
//!   preempted ones, which wait in front.

use std::collections::VecDeque;

use super::RequestId;
use crate::kv_cache::{BlockPool, BlockTable};

/// One sequence's share of a pass: tokens `start..start + count`, then up to `lookahead` draft
/// tokens for which blocks are reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scheduled {
    /// The sequence.
    pub id: RequestId,
    /// First position to compute.
    pub start: usize,
    /// Known tokens to compute.
    pub count: usize,
    /// Draft tokens that may follow; 0 unless the one token computed is the last one known.
    pub lookahead: usize,
    /// Whether the last known token is among them, so that the next one can be drawn.
    pub completes: bool,
}

/// The work of one step.
#[derive(Debug, Default)]
pub struct Schedule {
    /// Shares, in order of arrival within decoding and within catching up.
    pub items: Vec<Scheduled>,
    /// Sequences that lost their blocks to older ones and wait again.
    pub preempted: Vec<RequestId>,
}

#[derive(Debug)]
struct Entry {
    id: RequestId,
    len: usize,
    computed: usize,
    table: BlockTable,
}

/// Owns the block pool, every block table and the progress counters.
#[derive(Debug)]
pub struct Scheduler {
    pool: BlockPool,
    running: Vec<Entry>,
    waiting: VecDeque<Entry>,
    max_num_seqs: usize,
    max_num_batched_tokens: usize,
}

impl Scheduler {
    /// A scheduler over `num_blocks` free blocks.
    #[must_use]
    pub fn new(num_blocks: usize, max_num_seqs: usize, max_num_batched_tokens: usize) -> Self {
        Self {
            pool: BlockPool::new(num_blocks),
            running: Vec::new(),
            waiting: VecDeque::new(),
            max_num_seqs,
            max_num_batched_tokens,
        }
    }

    /// Queues a sequence of `len` known tokens. The whole sequence, up to its last computed
    /// position, must fit in the pool.
    pub fn add(&mut self, id: RequestId, len: usize) {
        self.waiting.push_back(Entry { id, len, computed: 0, table: BlockTable::new() });
    }

    /// Drops a sequence and frees its blocks.
    pub fn remove(&mut self, id: RequestId) {
        if let Some(index) = self.running.iter().position(|entry| entry.id == id) {
            let mut entry = self.running.remove(index);
            entry.table.truncate(0, &mut self.pool);
        }
        self.waiting.retain(|entry| entry.id != id);
    }

    /// Running sequences.
    #[must_use]
    pub fn num_running(&self) -> usize {
        self.running.len()
    }

    /// Waiting sequences.
    #[must_use]
    pub fn num_waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The block pool.
    #[must_use]
    pub fn pool(&self) -> &BlockPool {
        &self.pool
    }

    /// The block pool, to borrow blocks from while nothing is scheduled.
    pub(super) fn pool_mut(&mut self) -> &mut BlockPool {
        &mut self.pool
    }

    /// The block table of a running sequence.
    ///
    /// # Panics
    /// If the sequence is not running.
    #[must_use]
    pub fn table(&self, id: RequestId) -> &BlockTable {
        let entry = self.running.iter().find(|entry| entry.id == id);
        &entry.expect("invariant: scheduled sequences run").table
    }

    /// Hands out tokens and blocks. `lookahead` says how many draft tokens a sequence would take.
    pub fn schedule(&mut self, lookahead: impl Fn(RequestId) -> usize) -> Schedule {
        let mut schedule = Schedule::default();
        let mut budget = self.max_num_batched_tokens;
        // Decoding first: one token each, so that no prompt holds up a stream of tokens.
        let mut decoding = self.running.iter().filter(|e| e.computed + 1 == e.len).count();
        let mut index = 0;
        while index < self.running.len() && budget > 0 {
            let entry = &self.running[index];
            if entry.computed + 1 == entry.len {
                decoding -= 1;
                // One row is kept for each decoding sequence still to come.
                let room = (budget - 1).saturating_sub(decoding);
                let wanted = lookahead(entry.id).min(room);
                let Some(item) = self.place(index, 1, wanted, &mut schedule) else { break };
                budget -= 1 + item.lookahead;
            }
            index += 1;
        }
        let mut index = 0;
        while index < self.running.len() && budget > 0 {
            let entry = &self.running[index];
            let missing = entry.len - entry.computed;
            if missing > 1 {
                let Some(item) = self.place(index, missing.min(budget), 0, &mut schedule) else {
                    break;
                };
                budget -= item.count;
            }
            index += 1;
        }
        // Nobody is admitted while somebody has just been turned out.
        while budget > 0 && schedule.preempted.is_empty() && self.running.len() < self.max_num_seqs
        {
            let Some(mut entry) = self.waiting.pop_front() else { break };
            let count = entry.len.min(budget);
            if !entry.table.reserve(count, &mut self.pool) {
                self.waiting.push_front(entry);
                break;
            }
            budget -= count;
            schedule.items.push(share(&entry, count, 0));
            self.running.push(entry);
        }
        schedule
    }

    /// Reserves blocks for `count` tokens and, room permitting, `lookahead` draft tokens of running
    /// sequence `index`, preempting the newest sequences as needed. `None` if that sequence itself
    /// had to go.
    fn place(
        &mut self,
        index: usize,
        count: usize,
        lookahead: usize,
        schedule: &mut Schedule,
    ) -> Option<Scheduled> {
        let entry = &mut self.running[index];
        let end = entry.computed + count;
        // Draft tokens are a luxury: nobody is preempted for them.
        if lookahead > 0 && entry.table.reserve(end + lookahead, &mut self.pool) {
            let item = share(entry, count, lookahead);
            schedule.items.push(item);
            return Some(item);
        }
        while !self.running[index].table.reserve(end, &mut self.pool) {
            let mut newest = self.running.pop().expect("invariant: sequence `index` runs");
            newest.table.truncate(0, &mut self.pool);
            newest.computed = 0;
            schedule.items.retain(|item| item.id != newest.id);
            schedule.preempted.push(newest.id);
            self.waiting.push_front(newest);
            if self.running.len() == index {
                return None;
            }
        }
        let item = share(&self.running[index], count, 0);
        schedule.items.push(item);
        Some(item)
    }

    /// Records the outcome of a share: the first `computed` positions are valid in the cache, and
    /// the sequence now has `len` known tokens. Blocks beyond that return to the pool.
    ///
    /// # Panics
    /// If the sequence is not running or nothing is left to compute.
    pub fn commit(&mut self, id: RequestId, computed: usize, len: usize) {
        assert!(computed < len, "the last token is computed in a later step");
        let entry = self.running.iter_mut().find(|entry| entry.id == id);
        let entry = entry.expect("invariant: scheduled sequences run");
        entry.computed = computed;
        entry.len = len;
        entry.table.truncate(computed, &mut self.pool);
    }
}

fn share(entry: &Entry, count: usize, lookahead: usize) -> Scheduled {
    let start = entry.computed;
    Scheduled { id: entry.id, start, count, lookahead, completes: start + count == entry.len }
}

#[cfg(test)]
#[path = "scheduler_tests.rs"]
mod tests;
