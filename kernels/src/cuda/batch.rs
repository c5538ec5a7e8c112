//! Where the rows of one pass stand, checked and copied to the device at once.

use std::ops::Range;
use std::sync::Arc;

use super::calls::Address;
use super::memory::Memory;
use super::staging::Staging;
use super::{CudaError, Device};

/// Bytes of partial results that attention may hold at a time, unless one row needs more.
const WORKSPACE: usize = 128 << 20;

/// Lengths that bound a launch are rounded up to whole splits of attention, of which nothing but their number matters:
/// so one recorded pass serves as many positions.
const LENGTHS: usize = 256;

/// The slot of a row whose keys and values are not kept: `PLEACH_NO_SLOT`.
const NO_SLOT: u32 = u32::MAX;
/// Numbers of rows up to this are rounded up.
const ROUNDED: usize = 256;

/// The rows of one pass, grouped by sequence, on the host.
#[derive(Clone, Copy)]
pub struct BatchRows<'a> {
    /// Token of each row.
    pub tokens: &'a [u32],
    /// Position of each row; those of one sequence follow each other.
    pub positions: &'a [u32],
    /// Cache slot of each row.
    pub slots: &'a [u32],
    /// First row of each sequence, and the number of rows.
    pub cu_seqlens_q: &'a [u32],
    /// Rows whose logits are wanted, rising.
    pub logit_rows: &'a [u32],
    /// Cache blocks of a sequence, by its index.
    pub block_table: &'a dyn Fn(usize) -> &'a [u32],
}

/// The rows of one pass on a device.
pub struct Batch {
    memory: Memory,
    /// What the memory is given.
    numbers: Vec<u32>,
    staging: Staging,
    pub(super) rows: usize,
    pub(super) wanted: usize,
    /// Bounds of what the rows name, for which a kernel's tensors are checked.
    pub(super) num_blocks: usize,
    pub(super) max_positions: usize,
    sections: [usize; 4],
    pub(super) groups: Vec<Group>,
}

/// Rows whose attention runs in one launch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) rows: Range<usize>,
    /// First row of each sequence within the group, and the number of rows of sequences: the rest of `rows` fills up.
    cu_seqlens: Vec<u32>,
    /// Positions before each sequence's first row; sequences without rows at the end fill up.
    pub(super) context_lens: Vec<u32>,
    /// Index of each sequence that has rows.
    sequences: Vec<usize>,
    pub(super) max_length: usize,
    pub(super) max_blocks: usize,
    /// Where the three arrays above, the last as block tables, lie in the batch's memory.
    at: [usize; 3],
}

impl Batch {
    /// An empty batch.
    ///
    /// # Errors
    /// If there is no memory left.
    pub fn new(device: &Arc<Device>) -> Result<Self, CudaError> {
        Ok(Self {
            memory: Memory::new(device, 0)?,
            numbers: Vec::new(),
            staging: Staging::new(device)?,
            rows: 0,
            wanted: 0,
            num_blocks: 0,
            max_positions: 0,
            sections: [0; 4],
            groups: Vec::new(),
        })
    }

    /// Rows that are computed for `count` rows, the last ones of nothing: 1, 2, 4, and multiples of 8 up to 256. A
    /// product computes eight at a time anyway, and recorded passes are found again although drafts differ in length.
    #[must_use]
    pub fn rows_for(count: usize) -> usize {
        match count {
            3 => 4,
            5..=ROUNDED => count.next_multiple_of(8),
            count => count,
        }
    }

    /// Rows that a pass computes: [`rows_for`](Self::rows_for) those it was given.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Rows with logits that a pass computes: those it was given come first.
    #[must_use]
    pub fn wanted(&self) -> usize {
        self.wanted
    }

    /// Takes on the rows of a pass over a cache of `num_blocks` blocks of `block_size` positions, with rotations for
    /// `max_positions`. `workspace` gives the bytes that attention needs for (rows, longest sequence).
    ///
    /// # Errors
    /// If the device fails or there is no memory left.
    ///
    /// # Panics
    /// If the arrays do not fit each other, or a position, slot or block lies outside.
    pub fn set(
        &mut self,
        rows: &BatchRows<'_>,
        [num_blocks, block_size, max_positions]: [usize; 3],
        workspace: &dyn Fn(usize, usize) -> usize,
    ) -> Result<(), CudaError> {
        let count = rows.tokens.len();
        check(rows, [num_blocks, block_size, max_positions]);
        (self.rows, self.wanted) = (0, 0);
        self.groups.clear();
        let mut groups = groups(rows, &|count, length| workspace(count, length) <= WORKSPACE);
        self.numbers.clear();
        // The kernels read these numbers one by one; sections start at 16 bytes for those who might not.
        let mut put = |numbers: &mut dyn Iterator<Item = u32>| {
            let start = self.numbers.len().next_multiple_of(4);
            self.numbers.resize(start, 0);
            self.numbers.extend(numbers);
            start
        };
        // Rows of token 0 at position 0, of no sequence; of these, as many have logits as there are to be.
        let (computed, wanted) = (Self::rows_for(count), rows.logit_rows.len());
        let further = (Self::rows_for(wanted) - wanted).min(computed - count);
        let none = |of| std::iter::repeat_n(of, computed - count);
        let others = count as u32..(count + further) as u32;
        self.sections = [
            put(&mut rows.tokens.iter().copied().chain(none(0))),
            put(&mut rows.positions.iter().copied().chain(none(0))),
            put(&mut rows.slots.iter().copied().chain(none(NO_SLOT))),
            put(&mut rows.logit_rows.iter().copied().chain(others)),
        ];
        if let [group] = &mut groups[..] {
            group.round_up(computed, workspace);
        }
        for group in &mut groups {
            group.max_length = group.max_length.next_multiple_of(LENGTHS);
            group.max_blocks = group.max_length.div_ceil(block_size);
            let width = group.max_blocks;
            let tables = group.sequences.iter().flat_map(|&sequence| {
                let table = (rows.block_table)(sequence);
                table.iter().copied().chain(std::iter::repeat(0)).take(width)
            });
            let blocks = group.context_lens.len() * width;
            let mut tables = tables.chain(std::iter::repeat(0)).take(blocks);
            group.at = [
                put(&mut group.cu_seqlens.iter().copied()),
                put(&mut group.context_lens.iter().copied()),
                put(&mut tables),
            ];
        }
        let bytes: &[u8] = bytemuck::cast_slice(&self.numbers);
        self.memory.grow(bytes.len())?;
        self.staging.send(bytes, &mut self.memory)?;
        self.groups = groups;
        (self.rows, self.wanted) = (computed, wanted + further);
        (self.num_blocks, self.max_positions) = (num_blocks, max_positions);
        Ok(())
    }

    /// Makes room for passes of so many rows of so many sequences, each of at most `positions` in blocks of
    /// `block_size`, with attention's needs as in [`set`](Self::set). Gives the bytes of work space that attention takes
    /// at most.
    ///
    /// # Errors
    /// If there is no memory left.
    pub fn reserve(
        &mut self,
        [rows, sequences, positions, block_size]: [usize; 4],
        workspace: &dyn Fn(usize, usize) -> usize,
    ) -> Result<usize, CudaError> {
        let (rows, sequences) = (Self::rows_for(rows), sequences.next_power_of_two());
        let row = workspace(1, positions).max(1);
        // A group that is full has as many rows as fit, or one.
        let groups = rows / (WORKSPACE / row).max(1) + 1;
        // A sequence that is cut is in several groups.
        let tables = sequences + groups;
        let width = positions.next_multiple_of(LENGTHS).div_ceil(block_size);
        let gaps = 4 * (4 + 3 * groups);
        let numbers = 4 * rows + groups + tables * (2 + width) + gaps;
        self.memory.reserve(numbers * size_of::<u32>())?;
        Ok(workspace(rows, positions).min(WORKSPACE).max(row))
    }

    /// Every number and place that a launch over the batch is given.
    pub(super) fn layout(&self) -> Vec<usize> {
        let mut layout = vec![self.memory.address as usize, self.rows, self.wanted];
        layout.extend(self.sections);
        for group in &self.groups {
            layout.extend([group.rows.start, group.rows.end, group.context_lens.len()]);
            layout.extend([group.max_length, group.max_blocks]);
            layout.extend(group.at);
        }
        layout
    }

    fn address(&self, at: usize) -> Address {
        debug_assert!(at <= self.memory.bytes / size_of::<u32>());
        self.memory.address + (at * size_of::<u32>()) as u64
    }

    pub(super) fn tokens(&self) -> Address {
        self.address(self.sections[0])
    }

    pub(super) fn positions(&self) -> Address {
        self.address(self.sections[1])
    }

    pub(super) fn slots(&self) -> Address {
        self.address(self.sections[2])
    }

    pub(super) fn logit_rows(&self) -> Address {
        self.address(self.sections[3])
    }

    /// A group's cu_seqlens, context lengths and block tables.
    pub(super) fn group_arrays(&self, group: &Group) -> [Address; 3] {
        group.at.map(|at| self.address(at))
    }

    pub(super) fn is_on(&self, device: &Device) -> bool {
        std::ptr::eq(Arc::as_ptr(&self.memory.device), device)
    }
}

/// The checks of [`Batch::set`].
fn check(rows: &BatchRows<'_>, [num_blocks, block_size, max_positions]: [usize; 3]) {
    let count = rows.tokens.len();
    assert!(rows.positions.len() == count && rows.slots.len() == count, "{count} rows");
    let whole =
        rows.cu_seqlens_q.first() == Some(&0) && rows.cu_seqlens_q.last() == Some(&(count as u32));
    assert!(whole && rows.cu_seqlens_q.is_sorted(), "sequences of {count} rows");
    let rising = rows.logit_rows.is_sorted_by(|a, b| a < b);
    assert!(
        rising && rows.logit_rows.last().is_none_or(|&row| (row as usize) < count),
        "logits of {count} rows"
    );
    for (sequence, bounds) in rows.cu_seqlens_q.windows(2).enumerate() {
        let own = bounds[0] as usize..bounds[1] as usize;
        let positions = &rows.positions[own.clone()];
        let Some(&first) = positions.first() else { continue };
        assert!(
            positions.iter().zip(first..).all(|(&a, b)| a == b),
            "positions of sequence {sequence}"
        );
        let length = first as usize + own.len();
        assert!(length <= max_positions, "position {} of {max_positions}", length - 1);
        let table = (rows.block_table)(sequence);
        let needed = length.div_ceil(block_size);
        assert!(table.len() >= needed, "{} blocks for {length} positions", table.len());
        let outside = table.iter().find(|&&block| block as usize >= num_blocks);
        assert!(outside.is_none(), "block {outside:?} of {num_blocks}");
        for (&slot, position) in rows.slots[own].iter().zip(first as usize..) {
            let expected =
                table[position / block_size] as usize * block_size + position % block_size;
            assert!(slot as usize == expected, "slot {slot} of position {position}");
        }
    }
}

/// Cuts the rows, in order, where `fits(rows, longest sequence)` does not hold; one row always fits.
fn groups(rows: &BatchRows<'_>, fits: &dyn Fn(usize, usize) -> bool) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for (sequence, bounds) in rows.cu_seqlens_q.windows(2).enumerate() {
        let (mut next, end) = (bounds[0] as usize, bounds[1] as usize);
        while next < end {
            let context = rows.positions[next] as usize;
            let (have, longest) = groups.last().map_or((0, 0), |g| (g.rows.len(), g.max_length));
            let take = (1..=end - next).rev().find(|&n| fits(have + n, longest.max(context + n)));
            let take = match (take, groups.last_mut()) {
                (Some(take), Some(group)) => {
                    group.add(sequence, context, take);
                    take
                }
                _ => {
                    // A group of its own: as many rows as fit alone.
                    let take = (1..=end - next).rev().find(|&n| fits(n, context + n)).unwrap_or(1);
                    let mut group = Group::at(next);
                    group.add(sequence, context, take);
                    groups.push(group);
                    take
                }
            };
            next += take;
        }
    }
    groups
}

impl Group {
    fn at(row: usize) -> Self {
        Self {
            rows: row..row,
            cu_seqlens: vec![0],
            context_lens: Vec::new(),
            sequences: Vec::new(),
            max_length: 0,
            max_blocks: 0,
            at: [0; 3],
        }
    }

    /// Adds `count` rows of a sequence behind `context` positions.
    fn add(&mut self, sequence: usize, context: usize, count: usize) {
        self.rows.end += count;
        self.cu_seqlens.push(self.rows.len() as u32);
        self.context_lens.push(context as u32);
        self.sequences.push(sequence);
        self.max_length = self.max_length.max(context + count);
    }

    /// Adds rows of no sequence, of which attention computes nothing, up to `rows` where their work space fits, and
    /// sequences without rows, up to a power of two: launches over as many of both are the same.
    fn round_up(&mut self, rows: usize, workspace: &dyn Fn(usize, usize) -> usize) {
        let sequences = self.context_lens.len().next_power_of_two();
        self.cu_seqlens.resize(sequences + 1, self.rows.len() as u32);
        self.context_lens.resize(sequences, 0);
        if workspace(rows, self.max_length.next_multiple_of(LENGTHS)) <= WORKSPACE {
            self.rows.end = self.rows.start + rows;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_cut_where_the_work_space_ends() {
        // Sequences of 3 rows behind 5 positions, none, 4 rows behind 0, 1 row behind 90.
        let positions = [5, 6, 7, 0, 1, 2, 3, 90];
        let table: Vec<u32> = (0..6).collect();
        let rows = BatchRows {
            tokens: &[0; 8],
            positions: &positions,
            slots: &positions,
            cu_seqlens_q: &[0, 3, 3, 7, 8],
            logit_rows: &[2, 7],
            block_table: &|_| &table,
        };
        check(&rows, [6, 16, 91]);
        let cut = |budget: usize| {
            let groups = groups(&rows, &|count, length| count * length <= budget);
            let mut next = 0;
            for group in &groups {
                assert_eq!(
                    (group.rows.start, group.context_lens.len()),
                    (next, group.sequences.len())
                );
                assert!(group.rows.len() == 1 || group.rows.len() * group.max_length <= budget);
                for (i, (&sequence, &context)) in
                    group.sequences.iter().zip(&group.context_lens).enumerate()
                {
                    let row = group.rows.start + group.cu_seqlens[i] as usize;
                    assert_eq!(positions[row], context);
                    assert!(
                        (rows.cu_seqlens_q[sequence]..rows.cu_seqlens_q[sequence + 1])
                            .contains(&(row as u32))
                    );
                }
                next = group.rows.end;
            }
            assert_eq!(next, 8, "every row once, in order");
            groups.into_iter().map(|group| group.rows.len()).collect::<Vec<_>>()
        };
        assert_eq!(cut(10_000), [8]);
        assert_eq!(cut(60), [7, 1]);
        assert_eq!(cut(16), [2, 2, 3, 1]);
        assert_eq!(cut(1), [1; 8]);
    }

    #[test]
    fn groups_are_filled_up_where_the_work_space_allows() {
        let table: Vec<u32> = (0..6).collect();
        let filled = |counts: [usize; 3], budget: usize| {
            let positions: Vec<u32> = counts.iter().flat_map(|&count| 0..count as u32).collect();
            let [a, b, c] = counts.map(|count| count as u32);
            let rows = BatchRows {
                tokens: &vec![0; positions.len()],
                positions: &positions,
                slots: &positions,
                cu_seqlens_q: &[0, a, a + b, a + b + c],
                logit_rows: &[],
                block_table: &|_| &table,
            };
            let mut groups = groups(&rows, &|_, _| true);
            let computed = Batch::rows_for(positions.len());
            groups[0].round_up(computed, &|rows, _| rows * WORKSPACE / budget);
            groups.remove(0)
        };
        for counts in [[3, 1, 1], [1, 4, 1], [2, 2, 3], [2, 4, 2]] {
            let count: usize = counts.iter().sum();
            let group = filled(counts, 8);
            assert_eq!((group.rows.clone(), group.context_lens.len()), (0..8, 4), "{counts:?}");
            let ends = [counts[0], counts[0] + counts[1], count, count].map(|end| end as u32);
            assert_eq!(group.cu_seqlens[1..], ends);
            assert_eq!(filled(counts, 7).rows, 0..count, "no room for eight");
        }
        let rows = [0, 1, 2, 3, 4, 5, 8, 9, 255, 256, 257, 300].map(Batch::rows_for);
        assert_eq!(rows, [0, 1, 2, 4, 4, 8, 8, 16, 256, 256, 257, 300]);
    }

    #[test]
    #[should_panic(expected = "block Some(9) of 6")]
    fn a_block_outside_the_cache_is_refused() {
        let rows = BatchRows {
            tokens: &[0],
            positions: &[0],
            slots: &[144],
            cu_seqlens_q: &[0, 1],
            logit_rows: &[],
            block_table: &|_| &[9],
        };
        check(&rows, [6, 16, 91]);
    }
}
