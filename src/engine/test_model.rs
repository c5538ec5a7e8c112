//! A model small enough to reason about: its logits are a hash of everything the sequence has said,
//! read back from the cache through the block tables. A wrong slot, a stale block or a lost token
//! changes the output.

use std::sync::Arc;

use crate::kv_cache::BLOCK_SIZE;
use crate::model::{
    Design, Family, Forward, ModelConfig, OutOfMemory, RopeConfig, RopeScaling, Rows,
};

pub(super) const VOCAB: usize = 48;
pub(super) const EOS: u32 = 0;

pub(super) struct TestModel {
    config: ModelConfig,
    vocab: Option<Arc<[u32]>>,
    /// Token and position in each slot.
    cache: Vec<Option<(u32, u32)>>,
    logits: Vec<f32>,
    /// Token and position of each row of the last pass: its hidden state.
    hidden: Vec<(u32, u32)>,
    /// Share of contexts, in 1/256, in which this model disagrees with the plain one.
    noise: u64,
    /// What happens on a row with token 1.
    pub(super) on_one: Fault,
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Fault {
    None,
    Nan,
    Panic,
}

impl TestModel {
    pub(super) fn new(num_blocks: usize) -> Self {
        Self {
            config: ModelConfig {
                family: Family::Llama,
                vocab_size: VOCAB,
                hidden_size: 8,
                intermediate_size: 8,
                num_hidden_layers: 2,
                num_attention_heads: 1,
                num_key_value_heads: 1,
                head_dim: 8,
                max_position_embeddings: 256,
                rms_norm_eps: 1e-5,
                rope: RopeConfig { theta: 1e4, scaling: RopeScaling::None },
                sliding_window: None,
                design: Design::default(),
                tie_word_embeddings: true,
                bos_token_id: None,
                eos_token_ids: vec![EOS],
            },
            vocab: None,
            cache: vec![None; num_blocks * BLOCK_SIZE],
            logits: Vec::new(),
            hidden: Vec::new(),
            noise: 0,
            on_one: Fault::None,
        }
    }

    /// A draft model that agrees with the plain one except in `noise` of 256 contexts.
    pub(super) fn draft(num_blocks: usize, noise: u64) -> Self {
        let mut model = Self { noise, ..Self::new(num_blocks) };
        model.config.num_hidden_layers = 1;
        model
    }

    /// Trims the head to these tokens.
    pub(super) fn trimmed(mut self, ids: &[u32]) -> Self {
        self.vocab = Some(ids.into());
        self
    }

    fn context(&self, table: &[u32], position: u32) -> u64 {
        (0..=position).fold(17, |hash, p| {
            let block = table[p as usize / BLOCK_SIZE] as usize;
            let held = self.cache[block * BLOCK_SIZE + p as usize % BLOCK_SIZE];
            let (token, at) = held.unwrap_or_else(|| panic!("position {p} was never computed"));
            assert_eq!(at, p, "another sequence's slot");
            mix(hash ^ u64::from(token))
        })
    }
}

fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 31)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    value ^ (value >> 29)
}

impl Forward for TestModel {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn head_rows(&self) -> usize {
        self.vocab.as_ref().map_or(VOCAB, |ids| ids.len())
    }

    fn draft_vocab(&self) -> Option<&Arc<[u32]>> {
        self.vocab.as_ref()
    }

    fn hidden_state(&self, row: usize, out: &mut [f32]) {
        let (token, position) = self.hidden[row];
        out.fill(0.0);
        (out[0], out[1]) = (token as f32, position as f32);
    }

    fn forward(&mut self, rows: &Rows) -> Result<&[f32], OutOfMemory> {
        self.hidden = rows.tokens.iter().copied().zip(rows.positions.iter().copied()).collect();
        for row in 0..rows.len() {
            if self.on_one == Fault::Panic {
                assert_ne!(rows.tokens[row], 1, "asked to fail");
            }
            let held = (rows.tokens[row], rows.positions[row]);
            self.cache[rows.slots[row] as usize] = Some(held);
        }
        let mut logits = Vec::new();
        for &row in &rows.logit_rows {
            let sequence = rows.cu_seqlens_q.partition_point(|&start| start <= row) - 1;
            let mut hash = self.context(rows.block_table(sequence), rows.positions[row as usize]);
            if mix(hash) % 256 < self.noise {
                hash ^= 1 << 60;
            }
            let fails = self.on_one == Fault::Nan && rows.tokens[row as usize] == 1;
            logits.extend((0..self.head_rows()).map(|head_row| {
                let id = self.vocab.as_ref().map_or(head_row as u32, |ids| ids[head_row]);
                let bits = mix(mix(hash ^ (u64::from(id) << 8)));
                if fails { f32::NAN } else { (bits % 1000) as f32 / 200.0 }
            }));
        }
        self.logits = logits;
        Ok(&self.logits)
    }
}
