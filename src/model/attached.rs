//! The attached drafter: a few of the target's last blocks, fed with what the target has computed anyway.
//!
//! The blocks that were cut are replaced by one projection. The first step of a chain, at position t + 1, reads
//! the newest token and the target's hidden states of position t, the last one it has computed; further steps
//! read the token before them and the drafter's own last state:
//!
//! ```text
//! x = A norm(e(token)) + F [norm(h_i(t)), norm(h_j(t)), …]        first step
//! x = A' norm(e(token)) + G norm(own last state)                   further steps
//! ```
//!
//! Attention reads the target's own K/V cache of the same blocks. A chain writes its keys and values to the slots
//! that are reserved for the tokens it drafts; the target's pass overwrites them before anybody reads them. So
//! there is no cache of the drafter's own, and nothing to catch up on.

use std::sync::Arc;

use super::decoder::{KvCache, Layer, Loader, ModelError, Pass, room};
use super::{DraftInput, Rows};
use crate::checkpoint::architecture::{Attachment, ModelConfig, PROJECTIONS, RopeTables};
use pleach_kernels::{
    Activations, PackedMatrix, Shortlist, ThreadPool, embed, matmul, rms_norm, rms_norm_quantized,
    soft_cap,
};

/// What a drafter has of its target or in its place.
pub(super) struct Tables {
    pub(super) embedding: Arc<PackedMatrix>,
    pub(super) head: Shortlist,
    pub(super) draft_vocab: Option<Arc<[u32]>>,
}

/// An attached drafter, packed for the kernels.
pub struct AttachedDrafter {
    config: ModelConfig,
    attachment: Attachment,
    first: PackedMatrix,
    next: PackedMatrix,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    tables: Tables,
    ropes: RopeTables,
    /// A norm without weights.
    ones: Vec<f32>,
    pool: Arc<ThreadPool>,
}

/// Buffers of a drafter's steps, and the states of its last one.
#[derive(Default)]
pub struct DraftWorkspace {
    operands: [Activations; 2],
    /// `[rows, inputs of the projection]`
    input: Vec<f32>,
    /// `[rows, hidden]`, of this step and of the one before.
    hidden: [Vec<f32>; 2],
    wide: Vec<f32>,
    logits: Vec<f32>,
    ropes: Option<RopeTables>,
}

impl AttachedDrafter {
    pub(super) fn load(
        mut loader: Loader<'_>,
        config: ModelConfig,
        attachment: Attachment,
        tables: Tables,
        pool: &Arc<ThreadPool>,
    ) -> Result<Self, ModelError> {
        let width = config.hidden_size;
        let [first, next] = PROJECTIONS;
        let first = loader.matrix(first, width, (1 + attachment.states.len()) * width)?;
        let next = loader.matrix(next, width, 2 * width)?;
        let layers = (0..config.num_hidden_layers)
            .map(|index| loader.layer(&config, index))
            .collect::<Result<_, _>>()?;
        let norm = loader.norm("model.norm.weight", &config, width)?;
        let (ropes, pool, ones) = (RopeTables::new(&config), Arc::clone(pool), vec![1.0; width]);
        Ok(Self { config, attachment, first, next, layers, norm, tables, ropes, ones, pool })
    }

    /// The shape: the target's, with the kept blocks alone.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Where it hangs on its target.
    #[must_use]
    pub fn attachment(&self) -> &Attachment {
        &self.attachment
    }

    /// Rows of the output head.
    #[must_use]
    pub fn head_rows(&self) -> usize {
        self.tables.head.exact().out_features()
    }

    /// Token ids of the head's rows, where the head is trimmed.
    #[must_use]
    pub fn draft_vocab(&self) -> Option<&Arc<[u32]>> {
        self.tables.draft_vocab.as_ref()
    }

    /// Memory of what the target does not have: projections, blocks, the rows of a trimmed head, and the head's copy.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let blocks = self.layers.iter().map(Layer::bytes).sum::<usize>();
        let Tables { head, draft_vocab, .. } = &self.tables;
        let trimmed = draft_vocab.as_ref().map_or(0, |_| head.exact().bytes());
        self.first.bytes() + self.next.bytes() + blocks + trimmed + head.bytes()
    }

    /// Floating-point operations of a step behind `context` positions.
    #[must_use]
    pub fn flops_per_token(&self, context: usize) -> u64 {
        let projection = 2 * self.first.out_features() * self.first.in_features();
        projection as u64 + self.config.flops_per_token(context, self.head_rows())
    }

    /// One step of several chains: a row each, whose keys and values go to its slot of the target's cache.
    /// Returns the logits, `[rows, head_rows]`.
    ///
    /// # Panics
    /// If the input does not have a state for every row, or a token, slot or block lies outside the model or the
    /// cache.
    pub fn step<'w>(
        &self,
        rows: &Rows,
        input: DraftInput<'_>,
        cache: &mut KvCache,
        workspace: &'w mut DraftWorkspace,
    ) -> &'w [f32] {
        let (count, width) = (rows.len(), self.config.hidden_size);
        let (pool, eps) = (&*self.pool, self.config.rms_norm_eps as f32);
        let DraftWorkspace { operands, input: values, hidden, wide, logits, ropes } = workspace;
        let ropes = ropes.get_or_insert_with(|| self.ropes.clone());
        ropes.set_positions(&rows.positions);
        hidden.swap(0, 1);
        let [hidden, last] = hidden;

        let projection = match input {
            DraftInput::Target(_) => &self.first,
            DraftInput::Own(_) => &self.next,
        };
        let cols = projection.in_features();
        values.resize(count * cols, 0.0);
        hidden.resize(count * width, 0.0);
        embed(pool, &self.tables.embedding, &rows.tokens, hidden);
        for (row, (values, token)) in
            values.chunks_exact_mut(cols).zip(hidden.chunks_exact(width)).enumerate()
        {
            let (first, rest) = values.split_at_mut(width);
            rms_norm(pool, token, &self.ones, eps, first);
            let states = match input {
                DraftInput::Target(states) => &states[row * rest.len()..][..rest.len()],
                DraftInput::Own(from) => &last[from[row] as usize * width..][..width],
            };
            rms_norm(pool, states, &self.ones, eps, rest);
        }
        operands[0].set(pool, values, count, cols);
        matmul(pool, &[projection], &operands[0], hidden, width);

        let pass = Pass { pool, eps, rows, ropes };
        for (layer, &block) in self.layers.iter().zip(&self.attachment.blocks) {
            layer.forward(&pass, &mut cache.layers[block], hidden, wide, operands);
        }
        rms_norm_quantized(pool, hidden, count, |row| row, &self.norm, eps, &mut operands[0]);
        let logits = room(logits, count * self.head_rows());
        self.tables.head.product(pool, &operands[0], logits);
        if let Some(cap) = self.config.design.logit_cap {
            soft_cap(pool, logits, 1.0, cap);
        }
        logits
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Design, Family, RopeConfig, RopeScaling};

    fn config(blocks: usize) -> ModelConfig {
        ModelConfig {
            family: Family::Llama,
            vocab_size: 100,
            hidden_size: 64,
            intermediate_size: 96,
            num_hidden_layers: blocks,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 16,
            max_position_embeddings: 512,
            rms_norm_eps: 1e-5,
            rope: RopeConfig { theta: 10_000.0, scaling: RopeScaling::None },
            sliding_window: None,
            design: Design::default(),
            tie_word_embeddings: true,
            bos_token_id: None,
            eos_token_ids: vec![1],
        }
    }

    #[test]
    fn an_attachment_fits_or_says_what_does_not() {
        let check = |blocks: &[usize], states: &[usize], drafter: &ModelConfig| {
            let attachment = Attachment { blocks: blocks.into(), states: states.into() };
            attachment.check(&config(6), drafter).map_err(|error| error.to_string())
        };
        let two = config(2);
        assert_eq!(check(&[4, 5], &[2, 4, 6], &two), Ok(()));
        // The same angles, said in another way.
        let mut factors = two.clone();
        factors.rope.scaling = RopeScaling::Factors(vec![1.0; 8]);
        assert_eq!(check(&[1, 3], &[0], &factors), Ok(()));
        for blocks in [&[5][..], &[5, 4], &[5, 6], &[]] {
            assert!(check(blocks, &[2], &two).unwrap_err().contains("blocks"), "{blocks:?}");
        }
        for states in [&[7][..], &[4, 2], &[2, 2], &[]] {
            assert!(check(&[4, 5], states, &two).unwrap_err().contains("states"), "{states:?}");
        }
        let mut windowed = two.clone();
        windowed.sliding_window = Some(crate::model::SlidingWindow::from_layer(16, 1, 2));
        assert!(check(&[4, 5], &[2], &windowed).unwrap_err().contains("windows"));
        for change in [
            |config: &mut ModelConfig| config.num_key_value_heads = 4,
            |config: &mut ModelConfig| config.head_dim = 32,
            |config: &mut ModelConfig| config.rope.theta = 20_000.0,
        ] {
            let mut other = two.clone();
            change(&mut other);
            assert!(check(&[4, 5], &[2], &other).unwrap_err().contains("heads"));
        }
    }
}
