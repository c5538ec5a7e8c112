use std::collections::{BTreeMap, HashSet};

use proptest::prelude::*;

use super::*;
use crate::kv_cache::BLOCK_SIZE;

fn id(number: u64) -> RequestId {
    RequestId(number)
}

/// (id, start, count, lookahead) of each share.
fn shares(schedule: &Schedule) -> Vec<(u64, usize, usize, usize)> {
    schedule.items.iter().map(|s| (s.id.0, s.start, s.count, s.lookahead)).collect()
}

#[test]
fn prompts_are_chunked_beside_decoding() {
    let mut scheduler = Scheduler::new(64, 8, 10);
    scheduler.add(id(1), 4);
    scheduler.add(id(2), 20);
    let first = scheduler.schedule(|_| 3);
    assert_eq!(shares(&first), [(1, 0, 4, 0), (2, 0, 6, 0)]);
    assert_eq!(first.items.iter().map(|s| s.completes).collect::<Vec<_>>(), [true, false]);
    scheduler.commit(id(1), 4, 5);
    scheduler.commit(id(2), 6, 20);
    let second = scheduler.schedule(|_| 3);
    assert_eq!(shares(&second), [(1, 4, 1, 3), (2, 6, 6, 0)]);
}

#[test]
fn lookahead_leaves_a_row_for_each_decoding_sequence() {
    let mut scheduler = Scheduler::new(64, 8, 6);
    for n in 0..3 {
        scheduler.add(id(n), 2);
    }
    assert_eq!(scheduler.schedule(|_| 0).items.len(), 3);
    for n in 0..3 {
        scheduler.commit(id(n), 2, 3);
    }
    assert_eq!(shares(&scheduler.schedule(|_| 9)), [(0, 2, 1, 3), (1, 2, 1, 0), (2, 2, 1, 0)]);
}

#[test]
fn the_newest_sequence_is_preempted_and_comes_back_first() {
    let mut scheduler = Scheduler::new(2, 8, 64);
    scheduler.add(id(1), BLOCK_SIZE);
    scheduler.add(id(2), BLOCK_SIZE);
    scheduler.add(id(3), 1);
    assert_eq!(shares(&scheduler.schedule(|_| 0)), [(1, 0, 16, 0), (2, 0, 16, 0)]);
    scheduler.commit(id(1), 16, 17);
    scheduler.commit(id(2), 16, 17);
    let schedule = scheduler.schedule(|_| 4);
    assert_eq!(schedule.preempted, [id(2)]);
    assert_eq!(shares(&schedule), [(1, 16, 1, 0)], "drafting preempts nobody");
    scheduler.remove(id(1));
    let schedule = scheduler.schedule(|_| 0);
    assert_eq!(shares(&schedule)[0], (2, 0, 17, 0));
}

#[derive(Debug, Clone)]
struct Case {
    num_blocks: usize,
    max_num_seqs: usize,
    budget: usize,
    /// Prompt length, tokens to generate, step of arrival, step of cancellation.
    sequences: Vec<(usize, usize, usize, Option<usize>)>,
    /// Accepted draft tokens per step, as a share of the lookahead.
    acceptance: Vec<usize>,
}

fn case() -> impl Strategy<Value = Case> {
    let cancel = prop_oneof![3 => Just(None), 1 => (0usize..60).prop_map(Some)];
    let sequence = (1usize..60, 1usize..40, 0usize..30, cancel);
    (
        7usize..20,
        1usize..6,
        1usize..40,
        prop::collection::vec(sequence, 1..8),
        prop::collection::vec(0usize..6, 1..20),
    )
        .prop_map(|(num_blocks, max_num_seqs, budget, sequences, acceptance)| Case {
            num_blocks,
            max_num_seqs,
            budget,
            sequences,
            acceptance,
        })
}

proptest! {
    /// Whatever arrives, is accepted or cancelled: no block is shared or lost, the budget holds,
    /// every step with work makes progress, and every sequence ends.
    #[test]
    fn invariants_hold_until_everything_is_done(case in case()) {
        let mut scheduler = Scheduler::new(case.num_blocks, case.max_num_seqs, case.budget);
        // Known tokens and final length of unfinished sequences.
        let mut live: BTreeMap<RequestId, (usize, usize)> = BTreeMap::new();
        let mut finished = 0;
        let mut step = 0;
        while step < 30 || !live.is_empty() {
            prop_assert!(step < 20_000, "no end in sight");
            for (n, &(prompt, generate, arrival, cancel)) in case.sequences.iter().enumerate() {
                let id = id(n as u64);
                if arrival == step {
                    scheduler.add(id, prompt);
                    live.insert(id, (prompt, prompt + generate));
                }
                if cancel == Some(step) && live.remove(&id).is_some() {
                    scheduler.remove(id);
                    finished += 1;
                }
            }
            let lookahead = |id: RequestId| {
                let (len, end) = live[&id];
                4.min(end - len - 1)
            };
            let schedule = scheduler.schedule(lookahead);
            prop_assert_eq!(schedule.items.is_empty(), live.is_empty(), "progress");
            let rows: usize = schedule.items.iter().map(|s| s.count + s.lookahead).sum();
            prop_assert!(rows <= case.budget);
            prop_assert!(scheduler.num_running() <= case.max_num_seqs);
            prop_assert!(schedule.items.iter().all(|s| s.count > 0));
            let ids: HashSet<_> = schedule.items.iter().map(|s| s.id).collect();
            prop_assert_eq!(ids.len(), schedule.items.len());
            check_blocks(&scheduler, case.num_blocks)?;
            for item in &schedule.items {
                let table = scheduler.table(item.id);
                prop_assert!(table.capacity() >= item.start + item.count + item.lookahead);
                let (len, end) = live[&item.id];
                prop_assert_eq!(item.completes, item.start + item.count == len);
                if !item.completes {
                    scheduler.commit(item.id, item.start + item.count, len);
                    continue;
                }
                let accepted = case.acceptance[step % case.acceptance.len()].min(item.lookahead);
                let new_len = len + accepted + 1;
                prop_assert!(new_len <= end);
                if new_len == end {
                    scheduler.remove(item.id);
                    live.remove(&item.id);
                    finished += 1;
                } else {
                    scheduler.commit(item.id, len + accepted, new_len);
                    live.insert(item.id, (new_len, end));
                }
            }
            check_blocks(&scheduler, case.num_blocks)?;
            step += 1;
        }
        prop_assert_eq!(finished, case.sequences.len());
        prop_assert_eq!(scheduler.pool().num_free(), case.num_blocks);
    }
}

/// Every used block belongs to exactly one running sequence, and waiting ones own none.
fn check_blocks(scheduler: &Scheduler, num_blocks: usize) -> Result<(), TestCaseError> {
    let mut owned = HashSet::new();
    for entry in &scheduler.running {
        for &block in entry.table.blocks() {
            prop_assert!(owned.insert(block), "block {} is shared", block);
        }
    }
    prop_assert!(scheduler.waiting.iter().all(|entry| entry.table.blocks().is_empty()));
    prop_assert_eq!(owned.len(), scheduler.pool().num_used());
    prop_assert_eq!(owned.len() + scheduler.pool().num_free(), num_blocks);
    Ok(())
}
