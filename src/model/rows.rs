//! The ragged batch of one forward pass, owned, and what the rows of a draft step go on from.

use std::ops::Range;
use std::sync::Arc;

use super::AdapterWeights;
use crate::checkpoint::architecture::ModelConfig;
use crate::kv_cache::BlockTable;

/// Rows of one forward pass, grouped by sequence.
#[derive(Debug, Default)]
pub struct Rows {
    /// Token of each row.
    pub tokens: Vec<u32>,
    /// Position of each row in its sequence.
    pub positions: Vec<u32>,
    /// Cache slot of each row.
    pub slots: Vec<u32>,
    /// Row at which each sequence starts, and the number of rows.
    pub cu_seqlens_q: Vec<u32>,
    /// Rows whose logits are wanted.
    pub logit_rows: Vec<u32>,
    blocks: Vec<u32>,
    block_ends: Vec<usize>,
    /// Rows that go through an adapter, and which.
    adapted: Vec<(Range<usize>, Arc<AdapterWeights>)>,
}

impl Rows {
    /// Forgets all rows.
    pub fn clear(&mut self) {
        for numbers in [
            &mut self.tokens,
            &mut self.positions,
            &mut self.slots,
            &mut self.cu_seqlens_q,
            &mut self.logit_rows,
            &mut self.blocks,
        ] {
            numbers.clear();
        }
        self.block_ends.clear();
        self.adapted.clear();
        self.cu_seqlens_q.push(0);
    }

    /// Adds a sequence whose `tokens` start at position `start`; the logits of its last
    /// `num_logits` rows are wanted.
    pub fn push(
        &mut self,
        table: &BlockTable,
        start: usize,
        tokens: impl IntoIterator<Item = u32>,
        num_logits: usize,
    ) {
        if self.cu_seqlens_q.is_empty() {
            self.cu_seqlens_q.push(0);
        }
        for (position, token) in (start..).zip(tokens) {
            self.tokens.push(token);
            self.positions.push(position as u32);
            self.slots.push(table.slot(position));
        }
        let end = self.tokens.len() as u32;
        self.cu_seqlens_q.push(end);
        self.logit_rows.extend(end - num_logits as u32..end);
        self.blocks.extend_from_slice(table.blocks());
        self.block_ends.push(self.blocks.len());
    }

    /// Has the rows of the last sequence go through an adapter of the model.
    ///
    /// # Panics
    /// If there is no sequence.
    pub fn adapt_last(&mut self, adapter: &Arc<AdapterWeights>) {
        let bounds = self.cu_seqlens_q.last_chunk().expect("a sequence was added");
        let [start, end] = bounds.map(|row| row as usize);
        match self.adapted.last_mut() {
            Some((rows, same)) if Arc::ptr_eq(same, adapter) && rows.end == start => rows.end = end,
            _ => self.adapted.push((start..end, Arc::clone(adapter))),
        }
    }

    /// The rows that go through an adapter, rising, and which; others go through none.
    #[must_use]
    pub fn adapted(&self) -> &[(Range<usize>, Arc<AdapterWeights>)] {
        &self.adapted
    }

    /// Number of rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there are no rows.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Floating-point operations these rows take in a model whose head has `head_rows` rows.
    #[must_use]
    pub fn flops(&self, config: &ModelConfig, head_rows: usize) -> u64 {
        let blocks: u64 =
            self.positions.iter().map(|&p| config.flops_per_token(p as usize + 1, 0)).sum();
        blocks + self.logit_rows.len() as u64 * config.head_flops(head_rows)
    }

    /// The block table of the sequence at `index`.
    ///
    /// # Panics
    /// If there is no such sequence.
    #[must_use]
    pub fn block_table(&self, index: usize) -> &[u32] {
        let start = if index == 0 { 0 } else { self.block_ends[index - 1] };
        &self.blocks[start..self.block_ends[index]]
    }
}

/// What the rows of a step go on from.
#[derive(Debug, Clone, Copy)]
pub enum DraftInput<'a> {
    /// The target's states of the position before, as it gave them: `[rows, states, hidden]`.
    Target(&'a [f32]),
    /// The drafter's own states: for every row a row of the last step.
    Own(&'a [u32]),
}
