//! A decoder with the cache and work space it needs for serving.

use std::sync::Arc;

use super::{
    AdapterShapes, AttachedDrafter, AttachedForward, Decoder, DraftInput, DraftWorkspace, Drafter,
    Forward, KvCache, ModelConfig, OutOfMemory, Rows, Workspace,
};
use crate::kv_cache::BLOCK_SIZE;

/// Owns one decoder, its K/V cache and its work space, and perhaps a drafter that reads them.
pub struct Runner {
    decoder: Decoder,
    cache: KvCache,
    workspace: Workspace,
    attached: Option<Attached>,
}

/// A drafter and what it reads of the decoder's last pass.
struct Attached {
    drafter: Box<AttachedDrafter>,
    workspace: DraftWorkspace,
    /// Rows whose states are kept, rising: those whose logits were asked for.
    rows: Vec<u32>,
    /// `[rows, states, hidden]`
    states: Vec<f32>,
}

impl Attached {
    fn new(drafter: Box<AttachedDrafter>) -> Self {
        Self { drafter, workspace: DraftWorkspace::default(), rows: Vec::new(), states: Vec::new() }
    }

    /// Values that the drafter reads of one row.
    fn width(&self) -> usize {
        self.drafter.attachment().states.len() * self.drafter.config().hidden_size
    }
}

impl Runner {
    /// A runner whose cache has `num_blocks` blocks.
    #[must_use]
    pub fn new(decoder: Decoder, num_blocks: usize) -> Self {
        let cache = decoder.new_kv_cache(num_blocks);
        tracing::info!(
            decoder_blocks = decoder.config().num_hidden_layers,
            positions = num_blocks * BLOCK_SIZE,
            megabytes = decoder.kv_cache_bytes(num_blocks) / 1_000_000,
            "room for the K/V cache; memory is taken as it fills"
        );
        Self { decoder, cache, workspace: Workspace::new(), attached: None }
    }
}

impl Forward for Runner {
    fn config(&self) -> &ModelConfig {
        self.decoder.config()
    }

    fn head_rows(&self) -> usize {
        self.decoder.head_rows()
    }

    fn draft_vocab(&self) -> Option<&Arc<[u32]>> {
        self.decoder.draft_vocab()
    }

    fn adapter_shapes(&self) -> Option<&Arc<AdapterShapes>> {
        Some(self.decoder.adapter_shapes())
    }

    fn forward(&mut self, rows: &Rows) -> Result<&[f32], OutOfMemory> {
        let Self { decoder, cache, workspace, attached } = self;
        let Some(attached) = attached else { return Ok(decoder.forward(rows, cache, workspace)) };
        let (hidden_size, width) = (decoder.config().hidden_size, attached.width());
        let Attached { drafter, rows: kept, states, .. } = attached;
        kept.clone_from(&rows.logit_rows);
        states.resize(kept.len() * width, 0.0);
        Ok(decoder.forward_and_observe(rows, cache, workspace, &mut |state, hidden| {
            let place = drafter.attachment().states.iter().position(|&read| read == state);
            let Some(place) = place else { return };
            for (states, &row) in states.chunks_exact_mut(width).zip(&*kept) {
                let hidden = &hidden[row as usize * hidden_size..][..hidden_size];
                states[place * hidden_size..][..hidden_size].copy_from_slice(hidden);
            }
        }))
    }

    fn hidden_state(&self, row: usize, out: &mut [f32]) {
        self.decoder.hidden_state(&self.workspace, row, out);
    }

    fn attached(&mut self) -> Option<&mut dyn AttachedForward> {
        self.attached.is_some().then_some(self as &mut dyn AttachedForward)
    }

    /// # Panics
    /// If the drafter is on a device.
    fn attach(&mut self, drafter: Option<Drafter>) -> Option<Drafter> {
        let drafter = drafter.map(|drafter| match drafter {
            Drafter::Cpu(drafter) => Attached::new(drafter),
            Drafter::Cuda(_) => panic!("the drafter is on a CUDA device, the model is not"),
        });
        let before = std::mem::replace(&mut self.attached, drafter);
        before.map(|attached| Drafter::Cpu(attached.drafter))
    }
}

/// What is left to say of a runner's drafter where `attached` has given it away.
const ATTACHED: &str = "invariant: `attached` gives a runner with a drafter";

impl Runner {
    fn drafter(&self) -> &Attached {
        self.attached.as_ref().expect(ATTACHED)
    }
}

impl AttachedForward for Runner {
    fn config(&self) -> &ModelConfig {
        self.drafter().drafter.config()
    }

    fn head_rows(&self) -> usize {
        self.drafter().drafter.head_rows()
    }

    fn draft_vocab(&self) -> Option<&Arc<[u32]>> {
        self.drafter().drafter.draft_vocab()
    }

    fn flops_per_token(&self, context: usize) -> u64 {
        self.drafter().drafter.flops_per_token(context)
    }

    fn read_states(&mut self, rows: &[u32], out: &mut Vec<f32>) {
        let attached = self.drafter();
        let width = attached.width();
        out.clear();
        for row in rows {
            let place = attached.rows.binary_search(row).expect("the row's logits were asked for");
            out.extend_from_slice(&attached.states[place * width..][..width]);
        }
    }

    fn step(&mut self, rows: &Rows, input: DraftInput<'_>) -> Result<&[f32], OutOfMemory> {
        let Attached { drafter, workspace, .. } = self.attached.as_mut().expect(ATTACHED);
        Ok(drafter.step(rows, input, &mut self.cache, workspace))
    }
}
