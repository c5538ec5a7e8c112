//! Decides which tokens of which sequences the next pass computes, and which blocks they get. Looks at
//! token ids only to name full blocks: no tensors, no text.
//!
//! There is no prefill phase. A sequence has `len` known tokens, of which the first `computed` are
//! in the cache; every step lets it catch up. Invariants between steps:
//! - `computed < len` for every sequence: the last token is always still to be computed.
//! - A sequence's table has room for at least `computed` positions; a waiting one holds no block.
//! - Running sequences are in order of admission; preempted ones are let in again before any other.
//! - A published block is full, computed, and never written again.

use std::collections::{BTreeMap, HashSet, VecDeque};

use super::{Readout, Request, RequestId};
use crate::kv_cache::{BLOCK_SIZE, BlockHashes, BlockPool, BlockTable, CacheSalt, blocks_for};

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
    /// Blocks that were handed out: what they held is gone.
    pub fresh: Vec<u32>,
}

/// Rows of logits of prompts that one pass computes at most. A row is large, and those of a whole prompt
/// need not lie in memory at once.
pub(super) const MAX_LOGIT_ROWS: usize = 64;

#[derive(Debug)]
struct Entry {
    id: RequestId,
    len: usize,
    computed: usize,
    table: BlockTable,
    /// Names of full blocks; none without prefix caching.
    hashes: BlockHashes,
    /// Leading blocks that were published, or found so.
    published: usize,
    /// What is read off its prompt.
    readout: Readout,
}

impl Entry {
    /// Makes the full blocks of the first `computed` positions known.
    fn publish(&mut self, computed: usize, pool: &mut BlockPool) {
        let full = (computed / BLOCK_SIZE).min(self.hashes.as_slice().len());
        let blocks = self.table.blocks().iter().zip(self.hashes.as_slice());
        for (&block, &hash) in blocks.take(full).skip(self.published) {
            pool.publish(block, hash);
        }
        self.published = self.published.max(full);
    }

    /// Tokens that a pass computes at most while it has room for `logit_rows` rows of prompts' logits.
    fn bound(&self, logit_rows: usize) -> usize {
        if matches!(self.readout, Readout::Logprobs(_)) { logit_rows } else { usize::MAX }
    }

    /// Rows of logits that `count` tokens of a prompt that is read take.
    fn logit_rows(&self, count: usize) -> usize {
        if matches!(self.readout, Readout::Logprobs(_)) { count } else { 0 }
    }

    /// Blocks that its known tokens are still to have.
    fn missing_blocks(&self) -> usize {
        blocks_for(self.len).saturating_sub(self.table.blocks().len())
    }

    /// Keeps the first `computed` positions.
    fn truncate(&mut self, computed: usize, pool: &mut BlockPool) {
        self.table.truncate(computed, pool);
        self.computed = computed;
        self.published = self.published.min(computed / BLOCK_SIZE);
    }

    fn release(&mut self, pool: &mut BlockPool) {
        self.truncate(0, pool);
    }
}

/// Owns the block pool, every block table and the progress counters.
#[derive(Debug)]
pub struct Scheduler {
    pool: BlockPool,
    running: Vec<Entry>,
    preempted: VecDeque<Entry>,
    /// By priority, then by arrival.
    waiting: BTreeMap<(i64, RequestId), Entry>,
    max_num_seqs: usize,
    max_num_batched_tokens: usize,
    /// Rows of a pass that prompts have at most while sequences decode.
    prompt_rows: usize,
    prefix_caching: bool,
}

impl Scheduler {
    /// A scheduler over `num_blocks` free blocks. With `prefix_caching`, sequences share the full blocks
    /// of what they have in common, and find those of sequences that have ended.
    #[must_use]
    pub fn new(
        num_blocks: usize,
        max_num_seqs: usize,
        max_num_batched_tokens: usize,
        prefix_caching: bool,
    ) -> Self {
        Self {
            pool: BlockPool::new(num_blocks),
            running: Vec::new(),
            preempted: VecDeque::new(),
            waiting: BTreeMap::new(),
            max_num_seqs,
            max_num_batched_tokens,
            prompt_rows: usize::MAX,
            prefix_caching,
        }
    }

    /// From now on a pass has at most so many rows.
    pub fn bound_rows(&mut self, rows: usize) {
        self.max_num_batched_tokens = rows;
    }

    /// From now on prompts have at most so many rows of a pass while sequences decode.
    pub fn bound_prompts(&mut self, rows: usize) {
        self.prompt_rows = rows;
    }

    /// As [`add`](Self::add), for a whole request. Where something is read off its prompt, each position is computed for
    /// it, even where the cache holds it; where it has a salt or an adapter, it shares blocks with those of the
    /// same salt and adapter alone.
    pub(super) fn add_request(&mut self, id: RequestId, request: &Request) {
        let Request { prompt, priority, readout, cache_salt, adapter, .. } = request;
        let salt = match adapter {
            Some(adapter) => Some(CacheSalt::of_adapter(adapter.id(), *cache_salt)),
            None => *cache_salt,
        };
        self.enqueue(id, prompt, *priority, BlockHashes::salted(salt), *readout);
    }

    /// Queues a sequence of known tokens behind those of the same or a lower `priority` number. Ids rise
    /// with arrival. The whole sequence, up to its last computed position, must fit in the pool.
    pub fn add(&mut self, id: RequestId, tokens: &[u32], priority: i64) {
        self.enqueue(id, tokens, priority, BlockHashes::default(), Readout::None);
    }

    fn enqueue(
        &mut self,
        id: RequestId,
        tokens: &[u32],
        priority: i64,
        mut hashes: BlockHashes,
        readout: Readout,
    ) {
        if self.prefix_caching {
            hashes.extend(tokens);
        }
        let (table, len) = (BlockTable::new(), tokens.len());
        let entry = Entry { id, len, computed: 0, table, hashes, published: 0, readout };
        self.waiting.insert((priority, id), entry);
    }

    /// Drops a sequence. Its blocks are free, and found by sequences that begin alike.
    pub fn remove(&mut self, id: RequestId) {
        if let Some(index) = self.running.iter().position(|entry| entry.id == id) {
            self.running.remove(index).release(&mut self.pool);
        }
        self.preempted.retain(|entry| entry.id != id);
        self.waiting.retain(|&(_, waiting), _| waiting != id);
    }

    /// Drops a running sequence whose blocks are not to be trusted: nobody will find them.
    pub fn discard(&mut self, id: RequestId) {
        if let Some(entry) = self.running.iter().find(|entry| entry.id == id) {
            entry.table.blocks().iter().for_each(|&block| self.pool.withdraw(block));
        }
        self.remove(id);
    }

    /// Takes back what was handed out, as its pass was not computed: nobody finds the blocks that it was to fill.
    /// Returns the sequences that were let in on one of these: they wait again, in the same order.
    pub fn retract(&mut self, items: &[Scheduled]) -> Vec<RequestId> {
        let Self { pool, running, preempted, .. } = self;
        let mut void = HashSet::new();
        // Whoever was let in on a block comes behind the one who was to fill it.
        let back = running.extract_if(.., |entry| {
            let Some(item) = items.iter().find(|item| item.id == entry.id) else { return false };
            let (held, filled) = entry.table.blocks().split_at(item.start / BLOCK_SIZE);
            let unfounded = held.iter().any(|block| void.contains(block));
            filled.iter().for_each(|&block| pool.withdraw(block));
            void.extend(filled.iter().copied());
            entry.truncate(if unfounded { 0 } else { item.start }, pool);
            unfounded
        });
        let back: Vec<Entry> = back.collect();
        let ids = back.iter().map(|entry| entry.id).collect();
        back.into_iter().rev().for_each(|entry| preempted.push_front(entry));
        ids
    }

    /// Running sequences.
    #[must_use]
    pub fn num_running(&self) -> usize {
        self.running.len()
    }

    /// Waiting sequences.
    #[must_use]
    pub fn num_waiting(&self) -> usize {
        self.preempted.len() + self.waiting.len()
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
        let mut logit_rows = MAX_LOGIT_ROWS;
        // Decoding first: one token each, so that no prompt holds up a stream of tokens.
        let mut decoding = self.running.iter().filter(|e| e.computed + 1 == e.len).count();
        let prompt_rows = if decoding > 0 { self.prompt_rows } else { usize::MAX };
        let most_drafts = self.most_drafts(decoding);
        let mut index = 0;
        while index < self.running.len() && budget > 0 {
            let entry = &self.running[index];
            if entry.computed + 1 == entry.len {
                decoding -= 1;
                // One row is kept for each decoding sequence still to come.
                let room = (budget - 1).saturating_sub(decoding);
                let wanted = lookahead(entry.id).min(room).min(most_drafts);
                let Some(item) = self.place(index, 1, wanted, &mut schedule) else { break };
                budget -= 1 + item.lookahead;
            }
            index += 1;
        }
        budget = budget.min(prompt_rows);
        let mut index = 0;
        while index < self.running.len() && budget > 0 {
            let entry = &self.running[index];
            let missing = entry.len - entry.computed;
            let count = missing.min(budget).min(entry.bound(logit_rows));
            if missing > 1 && count > 0 {
                let Some(item) = self.place(index, count, 0, &mut schedule) else { break };
                budget -= item.count;
                logit_rows -= self.running[index].logit_rows(item.count);
            }
            index += 1;
        }
        // Every layer writes all keys and values of a pass before it reads any, so what this pass
        // computes can be shared in it.
        for item in &schedule.items {
            let entry = self.running.iter_mut().find(|entry| entry.id == item.id);
            let entry = entry.expect("invariant: scheduled sequences run");
            entry.publish(item.start + item.count, &mut self.pool);
        }
        // Nobody is admitted while somebody has just been turned out.
        while budget > 0 && schedule.preempted.is_empty() && self.running.len() < self.max_num_seqs
        {
            let Some(item) = self.admit(budget, logit_rows) else { break };
            budget -= item.count;
            logit_rows -= self.running.last().map_or(0, |entry| entry.logit_rows(item.count));
            schedule.items.push(item);
        }
        schedule.fresh = self.pool.take_fresh();
        schedule
    }

    /// Draft tokens that each of the sequences that decode may have: while prompts wait, half of the rows are theirs,
    /// since nobody knows yet which draft tokens there will be.
    fn most_drafts(&self, decoding: usize) -> usize {
        let admits = self.num_waiting() > 0 && self.running.len() < self.max_num_seqs;
        if admits || self.running.len() > decoding {
            self.max_num_batched_tokens.saturating_sub(decoding) / 2 / decoding.max(1)
        } else {
            usize::MAX
        }
    }

    /// Lets the next waiting sequence run, with up to `budget` of its tokens and `logit_rows` rows of
    /// logits of a prompt that is read, if there are blocks for all its tokens beside those that others still lack:
    /// one that had to be turned out on the way would have been computed for nothing.
    fn admit(&mut self, budget: usize, logit_rows: usize) -> Option<Scheduled> {
        let promised: usize = self.running.iter().map(Entry::missing_blocks).sum();
        let entry = match self.preempted.front_mut() {
            Some(entry) => entry,
            None => self.waiting.first_entry()?.into_mut(),
        };
        // The last token is computed in any case: what follows it is to be drawn.
        let found = entry.hashes.as_slice();
        let found = match entry.readout {
            Readout::None => &found[..found.len().min((entry.len - 1) / BLOCK_SIZE)],
            _ => &[],
        };
        let reused = entry.table.reuse(found, &mut self.pool);
        let count = (entry.len - reused).min(budget).min(entry.bound(logit_rows));
        let fits = promised + entry.missing_blocks() <= self.pool.num_free();
        if count == 0 || !fits || !entry.table.reserve(reused + count, &mut self.pool) {
            entry.release(&mut self.pool);
            return None;
        }
        (entry.computed, entry.published) = (reused, reused / BLOCK_SIZE);
        entry.publish(reused + count, &mut self.pool);
        let item = share(entry, count, 0);
        let next = self.preempted.pop_front().or_else(|| Some(self.waiting.pop_first()?.1));
        self.running.extend(next);
        Some(item)
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
        // No sequence is preempted to make room for draft tokens.
        if lookahead > 0 && entry.table.reserve(end + lookahead, &mut self.pool) {
            let item = share(entry, count, lookahead);
            schedule.items.push(item);
            return Some(item);
        }
        while !self.running[index].table.reserve(end, &mut self.pool) {
            let mut newest = self.running.pop().expect("invariant: sequence `index` runs");
            newest.release(&mut self.pool);
            schedule.items.retain(|item| item.id != newest.id);
            schedule.preempted.push(newest.id);
            self.preempted.push_front(newest);
            if self.running.len() == index {
                return None;
            }
        }
        let item = share(&self.running[index], count, 0);
        schedule.items.push(item);
        Some(item)
    }

    /// Records the outcome of a share: the first `computed` positions are valid in the cache, and
    /// `tokens` are all known ones. Blocks beyond the valid positions return to the pool.
    ///
    /// # Panics
    /// If the sequence is not running or nothing is left to compute.
    pub fn commit(&mut self, id: RequestId, computed: usize, tokens: &[u32]) {
        assert!(computed < tokens.len(), "the last token is computed in a later step");
        let entry = self.running.iter_mut().find(|entry| entry.id == id);
        let entry = entry.expect("invariant: scheduled sequences run");
        entry.computed = computed;
        entry.len = tokens.len();
        entry.table.truncate(computed, &mut self.pool);
        if self.prefix_caching {
            entry.hashes.extend(&tokens[..computed]);
            entry.publish(computed, &mut self.pool);
        }
    }
}

fn share(entry: &Entry, count: usize, lookahead: usize) -> Scheduled {
    let start = entry.computed;
    Scheduled { id: entry.id, start, count, lookahead, completes: start + count == entry.len }
}

#[cfg(test)]
mod tests;
