use std::collections::{BTreeMap, HashSet};

use proptest::prelude::*;

use super::*;
use crate::kv_cache::BLOCK_SIZE;

fn id(number: u64) -> RequestId {
    RequestId(number)
}

/// The first `len` tokens of a text of its own.
fn text(number: u64, len: usize) -> Vec<u32> {
    (0..len as u32).map(|place| 1000 * number as u32 + place).collect()
}

impl Scheduler {
    fn add_text(&mut self, number: u64, len: usize) {
        self.add(id(number), &text(number, len), 0);
    }

    fn commit_text(&mut self, number: u64, computed: usize, len: usize) {
        self.commit(id(number), computed, &text(number, len));
    }
}

/// (id, start, count, lookahead) of each share.
fn shares(schedule: &Schedule) -> Vec<(u64, usize, usize, usize)> {
    schedule.items.iter().map(|s| (s.id.0, s.start, s.count, s.lookahead)).collect()
}

#[test]
fn prompts_are_chunked_beside_decoding() {
    let mut scheduler = Scheduler::new(64, 8, 10, true);
    scheduler.add_text(1, 4);
    scheduler.add_text(2, 20);
    let first = scheduler.schedule(|_| 3);
    assert_eq!(shares(&first), [(1, 0, 4, 0), (2, 0, 6, 0)]);
    assert_eq!(first.items.iter().map(|s| s.completes).collect::<Vec<_>>(), [true, false]);
    scheduler.commit_text(1, 4, 5);
    scheduler.commit_text(2, 6, 20);
    let second = scheduler.schedule(|_| 3);
    assert_eq!(shares(&second), [(1, 4, 1, 3), (2, 6, 6, 0)]);
}

#[test]
fn lookahead_leaves_a_row_for_each_decoding_sequence() {
    let mut scheduler = Scheduler::new(64, 8, 6, true);
    for n in 0..3 {
        scheduler.add_text(n, 2);
    }
    assert_eq!(scheduler.schedule(|_| 0).items.len(), 3);
    for n in 0..3 {
        scheduler.commit_text(n, 2, 3);
    }
    assert_eq!(shares(&scheduler.schedule(|_| 9)), [(0, 2, 1, 3), (1, 2, 1, 0), (2, 2, 1, 0)]);
}

#[test]
fn draft_tokens_leave_half_of_the_rows_to_prompts_that_wait() {
    let mut scheduler = Scheduler::new(1024, 64, 512, true);
    for n in 0..57 {
        scheduler.add_text(n, 2);
    }
    scheduler.schedule(|_| 0);
    (0..57).for_each(|n| scheduler.commit_text(n, 2, 3));
    let lookahead = |schedule: &Schedule| shares(schedule).iter().map(|it| it.3).sum::<usize>();
    let alone = scheduler.schedule(|_| 8);
    assert_eq!(lookahead(&alone), 57 * 8 - 1, "all there is but for a row each");
    (0..57).for_each(|n| scheduler.commit_text(n, 3, 4));
    scheduler.add_text(99, 2000);
    let beside = scheduler.schedule(|_| 8);
    assert_eq!(lookahead(&beside), 57 * 3);
    assert_eq!(shares(&beside)[57], (99, 0, 512 - 57 * 4, 0));
}

#[test]
fn prompts_have_few_rows_while_others_decode() {
    let mut scheduler = Scheduler::new(64, 8, 100, true);
    scheduler.bound_prompts(20);
    scheduler.add_text(1, 30);
    scheduler.add_text(2, 90);
    assert_eq!(shares(&scheduler.schedule(|_| 0)), [(1, 0, 30, 0), (2, 0, 70, 0)], "nobody waits");
    scheduler.commit_text(1, 30, 31);
    scheduler.commit_text(2, 70, 90);
    scheduler.add_text(3, 40);
    assert_eq!(shares(&scheduler.schedule(|_| 4)), [(1, 30, 1, 4), (2, 70, 20, 0)]);
    scheduler.commit_text(1, 31, 32);
    scheduler.commit_text(2, 90, 91);
    let schedule = scheduler.schedule(|_| 0);
    assert_eq!(shares(&schedule), [(1, 31, 1, 0), (2, 90, 1, 0), (3, 0, 20, 0)]);
}

#[test]
fn a_prompt_is_let_in_when_there_is_room_for_all_of_it() {
    let mut scheduler = Scheduler::new(10, 8, 16, false);
    scheduler.add_text(1, 100);
    for start in (0..96).step_by(16) {
        assert_eq!(shares(&scheduler.schedule(|_| 0)), [(1, start, 16, 0)]);
        scheduler.commit_text(1, start + 16, 100);
    }
    scheduler.schedule(|_| 0);
    scheduler.commit_text(1, 100, 101);
    // Three blocks are free; the next prompt needs four.
    scheduler.add_text(2, 60);
    for len in 101..150 {
        let schedule = scheduler.schedule(|_| 0);
        assert_eq!(shares(&schedule), [(1, len - 1, 1, 0)]);
        scheduler.commit_text(1, len, len + 1);
    }
    scheduler.remove(id(1));
    assert_eq!(shares(&scheduler.schedule(|_| 0)), [(2, 0, 16, 0)]);
    scheduler.commit_text(2, 16, 60);
    // What a prompt that is being read still lacks is no room for another.
    scheduler.add_text(3, 112);
    assert_eq!(shares(&scheduler.schedule(|_| 0)), [(2, 16, 16, 0)]);
    scheduler.commit_text(2, 32, 60);
    scheduler.remove(id(3));
    scheduler.add_text(4, 96);
    scheduler.schedule(|_| 0);
    scheduler.commit_text(2, 48, 60);
    assert_eq!(shares(&scheduler.schedule(|_| 0)), [(2, 48, 12, 0), (4, 0, 4, 0)]);
}

#[test]
fn the_newest_sequence_is_preempted_and_comes_back_first() {
    let mut scheduler = Scheduler::new(2, 8, 64, true);
    scheduler.add_text(1, BLOCK_SIZE);
    scheduler.add_text(2, BLOCK_SIZE);
    scheduler.add_text(3, 1);
    assert_eq!(shares(&scheduler.schedule(|_| 0)), [(1, 0, 16, 0), (2, 0, 16, 0)]);
    scheduler.commit_text(1, 16, 17);
    scheduler.commit_text(2, 16, 17);
    let schedule = scheduler.schedule(|_| 4);
    assert_eq!(schedule.preempted, [id(2)]);
    assert_eq!(shares(&schedule), [(1, 16, 1, 0)], "drafting preempts nobody");
    scheduler.remove(id(1));
    let schedule = scheduler.schedule(|_| 0);
    assert_eq!(shares(&schedule)[0], (2, 0, 17, 0), "its block was taken");
}

#[test]
fn a_preempted_sequence_finds_the_blocks_that_were_not_needed() {
    let mut scheduler = Scheduler::new(4, 8, 64, true);
    scheduler.add_text(1, 16);
    scheduler.add_text(2, 40);
    scheduler.schedule(|_| 0);
    scheduler.commit_text(1, 16, 17);
    scheduler.commit_text(2, 40, 41);
    assert_eq!(scheduler.schedule(|_| 0).preempted, [id(2)]);
    scheduler.remove(id(1));
    assert_eq!(shares(&scheduler.schedule(|_| 0)), [(2, 32, 9, 0)]);
}

#[test]
fn full_blocks_are_found_again_but_for_the_last_token() {
    let mut scheduler = Scheduler::new(8, 8, 64, true);
    scheduler.add_text(1, 40);
    assert_eq!(shares(&scheduler.schedule(|_| 0)), [(1, 0, 40, 0)]);
    // Generated tokens count as well.
    scheduler.commit_text(1, 40, 41);
    scheduler.commit_text(1, 48, 49);
    scheduler.remove(id(1));
    assert_eq!(scheduler.pool().num_used(), 0);
    for (number, len, found) in [(2, 40, 32), (3, 49, 48), (4, 48, 32), (5, 16, 0)] {
        scheduler.add(id(number), &text(1, len), 0);
        assert_eq!(shares(&scheduler.schedule(|_| 0)), [(number, found, len - found, 0)], "{len}");
        scheduler.remove(id(number));
    }
    let mut other = text(1, 49);
    other[20] = 7;
    scheduler.add(id(6), &other, 0);
    assert_eq!(shares(&scheduler.schedule(|_| 0)), [(6, 16, 33, 0)]);
    // What cannot be trusted is not found.
    scheduler.discard(id(6));
    scheduler.add(id(7), &other, 0);
    assert_eq!(shares(&scheduler.schedule(|_| 0)), [(7, 0, 49, 0)]);
    let mut plain = Scheduler::new(8, 8, 64, false);
    for number in [1, 2] {
        plain.add(id(number), &text(1, 40), 0);
        assert_eq!(shares(&plain.schedule(|_| 0)), [(number, 0, 40, 0)]);
        plain.remove(id(number));
    }
}

#[test]
fn sequences_of_one_step_share_what_it_computes() {
    let mut scheduler = Scheduler::new(8, 8, 100, true);
    for number in 1..4 {
        scheduler.add(id(number), &text(1, 40), 0);
    }
    let first = scheduler.schedule(|_| 0);
    assert_eq!(shares(&first), [(1, 0, 40, 0), (2, 32, 8, 0), (3, 32, 8, 0)]);
    assert_eq!((scheduler.pool().num_used(), first.fresh.len()), (5, 5));
    for number in 1..4 {
        scheduler.commit(id(number), 40, &text(1, 41));
        scheduler.remove(id(number));
    }
    assert_eq!(scheduler.pool().num_used(), 0);
}

/// A pass that was not computed: what was there before stays, and who was let in on what it was to fill waits again.
#[test]
fn a_pass_is_taken_back() {
    let mut scheduler = Scheduler::new(16, 8, 20, true);
    scheduler.add_text(1, 32);
    scheduler.schedule(|_| 0);
    scheduler.commit_text(1, 20, 32);
    scheduler.bound_rows(200);
    // The first sequence fills its second block; 2, 4 and 5 are let in on blocks that the pass was to fill.
    scheduler.add(id(2), &text(1, 40), 0);
    scheduler.add_text(3, 40);
    scheduler.add(id(4), &text(3, 35), 0);
    scheduler.add(id(5), &text(1, 45), 0);
    scheduler.add(id(6), &text(1, 30), 0);
    let of_6 = (6, 16, 14, 0);
    let first = scheduler.schedule(|_| 0);
    let all = [(1, 20, 12, 0), (2, 32, 8, 0), (3, 0, 40, 0), (4, 32, 3, 0), (5, 32, 13, 0), of_6];
    assert_eq!(shares(&first), all);
    assert_eq!(scheduler.retract(&first.items), [id(2), id(4), id(5)]);
    let held: Vec<usize> = [1, 3, 6].map(|n| scheduler.table(id(n)).blocks().len()).into();
    assert_eq!((held, scheduler.pool().num_used()), (vec![2, 0, 1], 2));
    // Of the next pass, nothing is found that the one before was to fill.
    scheduler.bound_rows(12);
    assert_eq!(shares(&scheduler.schedule(|_| 0)), [(1, 20, 12, 0)]);
    scheduler.commit(id(1), 32, &text(1, 33));
    scheduler.bound_rows(200);
    let next = shares(&scheduler.schedule(|_| 0));
    assert_eq!(next[..3], [(1, 32, 1, 0), (3, 0, 40, 0), of_6]);
    assert_eq!(next[3..], [(2, 32, 8, 0), (4, 32, 3, 0), (5, 32, 13, 0)]);
}

#[test]
fn a_lower_priority_number_runs_earlier_and_turns_nobody_out() {
    let mut scheduler = Scheduler::new(2, 2, 64, true);
    for (number, priority) in [(1, 5), (2, 5), (3, 0), (4, 5), (5, -1)] {
        scheduler.add(id(number), &text(number, 16), priority);
    }
    let running = |s: &Scheduler| s.running.iter().map(|entry| entry.id.0).collect::<Vec<_>>();
    scheduler.schedule(|_| 0);
    assert_eq!(running(&scheduler), [5, 3]);
    scheduler.add_text(6, 16);
    scheduler.commit_text(5, 16, 17);
    scheduler.commit_text(3, 16, 17);
    // Preempted for want of blocks, it comes back before all that wait, whatever their priority.
    assert_eq!(scheduler.schedule(|_| 0).preempted, [id(3)]);
    scheduler.add(id(7), &text(7, 1), -9);
    scheduler.remove(id(5));
    scheduler.schedule(|_| 0);
    assert_eq!(running(&scheduler), [3]);
    scheduler.remove(id(3));
    let mut order = Vec::new();
    while scheduler.num_waiting() > 0 {
        scheduler.schedule(|_| 0);
        for number in running(&scheduler) {
            order.push(number);
            scheduler.remove(id(number));
        }
    }
    assert_eq!(order, [7, 6, 1, 2, 4]);
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
    /// Passes computed between one that is not and the next.
    computed: usize,
    prefix_caching: bool,
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
        1usize..9,
        any::<bool>(),
    )
        .prop_map(
            |(
                num_blocks,
                max_num_seqs,
                budget,
                sequences,
                acceptance,
                computed,
                prefix_caching,
            )| {
                Case {
                    num_blocks,
                    max_num_seqs,
                    budget,
                    sequences,
                    acceptance,
                    computed,
                    prefix_caching,
                }
            },
        )
}

proptest! {
    /// Whatever arrives, is accepted, cancelled or not computed: no block is lost, none that may be written is shared, the
    /// budget holds, every step with work makes progress, and every sequence ends. Half of the sequences
    /// have the same text.
    #[test]
    fn invariants_hold_until_everything_is_done(case in case()) {
        let mut scheduler = Scheduler::new(
            case.num_blocks,
            case.max_num_seqs,
            case.budget,
            case.prefix_caching,
        );
        let text = |id: RequestId, len| text(if id.0.is_multiple_of(2) { 0 } else { id.0 }, len);
        // Known tokens and final length of unfinished sequences.
        let mut live: BTreeMap<RequestId, (usize, usize)> = BTreeMap::new();
        let mut finished = 0;
        let mut step = 0;
        while step < 30 || !live.is_empty() {
            prop_assert!(step < 20_000, "no end in sight");
            for (n, &(prompt, generate, arrival, cancel)) in case.sequences.iter().enumerate() {
                let id = id(n as u64);
                if arrival == step {
                    scheduler.add(id, &text(id, prompt), 0);
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
            if step % (case.computed + 1) == case.computed {
                let back = scheduler.retract(&schedule.items);
                prop_assert!(back.iter().all(|id| ids.contains(id)));
                for item in &schedule.items {
                    let entry = scheduler.running.iter().find(|entry| entry.id == item.id);
                    prop_assert_eq!(entry.is_none(), back.contains(&item.id));
                    prop_assert!(entry.is_none_or(|entry| entry.computed == item.start));
                }
                check_blocks(&scheduler, case.num_blocks)?;
                step += 1;
                continue;
            }
            for item in &schedule.items {
                let table = scheduler.table(item.id);
                prop_assert!(table.capacity() >= item.start + item.count + item.lookahead);
                let written = &table.blocks()[item.start / BLOCK_SIZE..];
                let others = scheduler.running.iter().filter(|entry| entry.id != item.id);
                // Others may hold what this pass fills with known tokens, never what it may roll back.
                let full = (item.start + item.count) / BLOCK_SIZE - item.start / BLOCK_SIZE;
                for entry in others {
                    for block in &written[full..] {
                        prop_assert!(!entry.table.blocks().contains(block), "block {} shared", block);
                    }
                    for block in &written[..full] {
                        let item = schedule.items.iter().find(|item| item.id == entry.id);
                        let reads = entry.table.blocks().iter().position(|b| b == block);
                        let writes = item.map_or(usize::MAX, |item| item.start / BLOCK_SIZE);
                        prop_assert!(reads.is_none_or(|at| at < writes), "{} written twice", block);
                    }
                }
                let (len, end) = live[&item.id];
                prop_assert_eq!(item.completes, item.start + item.count == len);
                if !item.completes {
                    scheduler.commit(item.id, item.start + item.count, &text(item.id, len));
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
                    scheduler.commit(item.id, len + accepted, &text(item.id, new_len));
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

/// Every used block is held by a running sequence, waiting ones hold none, and nothing is lost.
fn check_blocks(scheduler: &Scheduler, num_blocks: usize) -> Result<(), TestCaseError> {
    let mut held = HashSet::new();
    for entry in &scheduler.running {
        let own: HashSet<u32> = entry.table.blocks().iter().copied().collect();
        prop_assert_eq!(own.len(), entry.table.blocks().len());
        prop_assert!(scheduler.prefix_caching || held.is_disjoint(&own), "a block is shared");
        held.extend(own);
    }
    let mut waiting = scheduler.preempted.iter().chain(scheduler.waiting.values());
    prop_assert!(waiting.all(|entry| entry.table.blocks().is_empty() && entry.computed == 0));
    prop_assert_eq!(held.len(), scheduler.pool().num_used());
    prop_assert_eq!(held.len() + scheduler.pool().num_free(), num_blocks);
    Ok(())
}
