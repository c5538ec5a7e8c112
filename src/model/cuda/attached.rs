//! The attached drafter on a device: see [`AttachedDrafter`](crate::model::AttachedDrafter) for what it computes.
//!
//! The columns of its projections are cut between the token and the states, so that either part is multiplied where it
//! lies. What a first step reads of the target goes to the host behind the target's pass and comes back with the step: a
//! round trip more than needed, for which the engine need not know where states lie. The drafter's own states stay on the
//! device.

use std::sync::Arc;

use super::layer::{Block, Layer, Pass, Stack, run_blocks};
use super::rotations::Rotations;
use super::states::States;
use super::workspace::{Buffers, PassBounds, Workspace};
use crate::model::{Attachment, DraftInput, ModelConfig, Rows};
use pleach_kernels::DType;
use pleach_kernels::cuda::{
    Batch, CudaError, Device, Graphs, KvLayer, PassKey, Staging, Table, Tensor, Weights,
};

/// A projection onto what the first block reads, cut by its inputs.
pub(super) struct Projection {
    /// `[hidden, hidden]`
    pub(super) token: Weights,
    /// `[hidden, states * hidden]`
    pub(super) states: Weights,
}

/// What a drafter has of its file, and of its target.
pub(super) struct Parts {
    pub(super) device: Arc<Device>,
    pub(super) config: ModelConfig,
    /// Format of activations: the target's.
    pub(super) dtype: DType,
    pub(super) attachment: Attachment,
    /// Of the first step of a chain, and of further ones.
    pub(super) projections: [Projection; 2],
    pub(super) layers: Vec<Layer>,
    pub(super) norm: Tensor,
    pub(super) embedding: Arc<Table>,
    pub(super) head: Arc<Stack>,
    pub(super) draft_vocab: Option<Arc<[u32]>>,
}

/// An attached drafter in a device's memory, with what its steps need beside weights.
pub struct CudaAttached {
    parts: Parts,
    workspace: Workspace,
    /// What it reads of the target's last pass.
    pub(super) target: States,
    /// `[rows, states * hidden]`: what a first step reads.
    given: Tensor,
    staging: Staging,
    /// `[rows, hidden]`: what a further step reads.
    gathered: Tensor,
    /// `[rows, hidden]`: the states of the last step, normed without weights.
    own: Tensor,
}

/// What a drafter shares with its target's passes.
pub(super) struct TargetCache<'a> {
    /// Keys and values of all blocks of the target.
    pub(super) layers: &'a mut [KvLayer],
    pub(super) num_blocks: usize,
    pub(super) rotations: &'a Rotations,
}

impl CudaAttached {
    pub(super) fn new(parts: Parts) -> Result<Self, CudaError> {
        let Parts { device, config, dtype, attachment, head, .. } = &parts;
        let (width, eps) = (config.hidden_size, config.rms_norm_eps as f32);
        let tensor = |cols| Tensor::new(device, *dtype, 0, cols);
        Ok(Self {
            workspace: Workspace::new(device, config, *dtype, head.outputs)?,
            target: States::new(device, *dtype, width, &attachment.states, eps)?,
            given: tensor(attachment.states.len() * width)?,
            staging: Staging::new(device)?,
            gathered: tensor(width)?,
            own: tensor(width)?,
            parts,
        })
    }

    /// The shape: the target's, with the kept blocks alone.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.parts.config
    }

    /// Rows of the output head.
    #[must_use]
    pub fn head_rows(&self) -> usize {
        self.parts.head.outputs
    }

    /// Token ids of the head's rows, where the head is trimmed.
    #[must_use]
    pub fn draft_vocab(&self) -> Option<&Arc<[u32]>> {
        self.parts.draft_vocab.as_ref()
    }

    /// Floating-point operations of a step behind `context` positions.
    #[must_use]
    pub fn flops_per_token(&self, context: usize) -> u64 {
        let Parts { config, attachment, .. } = &self.parts;
        let inputs = (1 + attachment.states.len()) * config.hidden_size;
        let projection = 2 * config.hidden_size * inputs;
        projection as u64 + config.flops_per_token(context, self.head_rows())
    }

    /// Something that recorded steps read or write has moved.
    pub(super) fn clear_graphs(&mut self) {
        self.workspace.graphs.clear();
    }

    /// Launches every step kernel by kernel.
    pub(super) fn disable_graphs(&mut self) {
        self.workspace.graphs = Graphs::new(&self.parts.device, false);
    }

    /// Steps that were started as one recorded graph.
    pub(super) fn replayed(&self) -> u64 {
        self.workspace.graphs.replayed()
    }

    /// Takes the memory that it needs beside passes of the target of so many rows with logits, and for steps within
    /// `bounds`, and computes the largest.
    pub(super) fn reserve(
        &mut self,
        logit_rows: usize,
        bounds: PassBounds,
        mut cache: TargetCache<'_>,
    ) -> Result<(), CudaError> {
        let Parts { device, layers, attachment, .. } = &self.parts;
        self.target.set_rows(device, Batch::rows_for(logit_rows))?;
        let positions = cache.rotations.positions();
        self.workspace.reserve(device, &layers[0].attention, bounds, positions)?;
        for tensor in [&mut self.given, &mut self.gathered, &mut self.own] {
            tensor.set_rows(Batch::rows_for(bounds.rows))?;
        }
        let inputs = attachment.states.len() * self.parts.config.hidden_size;
        for rows in bounds.first_passes(cache.num_blocks, positions) {
            let from: Vec<u32> = (0..rows.len() as u32).collect();
            let states = vec![0.0; rows.len() * inputs];
            for input in [DraftInput::Target(&states), DraftInput::Own(&from)] {
                self.step(&rows, input, &mut cache)?;
            }
        }
        self.clear_graphs();
        Ok(())
    }

    /// One step of several chains, as [`AttachedDrafter::step`](crate::model::AttachedDrafter::step); the target's
    /// states are normed, as [`States`] keeps them.
    pub(super) fn step(
        &mut self,
        rows: &Rows,
        input: DraftInput<'_>,
        cache: &mut TargetCache<'_>,
    ) -> Result<&[f32], CudaError> {
        let Self { parts, workspace, target: States { ones, .. }, given, staging, gathered, own } =
            self;
        let Parts {
            device, config, attachment, projections, layers, norm, embedding, head, ..
        } = parts;
        let Workspace { buffers, logits, on_host, graphs } = workspace;
        let &mut TargetCache { layers: ref mut cache, num_blocks, rotations } = cache;
        buffers.set(device, rows, &layers[0].attention, [num_blocks, rotations.positions()])?;
        let computed = buffers.batch.rows();
        logits.set_rows(computed)?;
        let [first, next] = projections;
        let (projection, states) = match input {
            DraftInput::Target(values) => {
                given.set_rows(computed)?;
                assert_eq!(values.len(), rows.len() * given.shape()[1], "a state for every row");
                staging.send_values(values, given)?;
                (first, &*given)
            }
            DraftInput::Own(from) => {
                assert_eq!(from.len(), rows.len(), "a row of the last step for every row");
                gathered.set_rows(computed)?;
                gathered.copy_rows(own, from)?;
                (next, &*gathered)
            }
        };
        own.set_rows(computed)?;
        let eps = config.rms_norm_eps as f32;
        let pass = Pass { device, eps, adapted: None };
        let used = buffers.tensors().into_iter().chain([&*logits, states, own]);
        let key = PassKey::new(&buffers.batch, used, None);
        graphs.run(key, &mut || {
            device.embed(embedding, 1.0, &buffers.batch, &mut buffers.hidden)?;
            device.add_rms_norm(&mut buffers.hidden, None, ones, None, &mut buffers.normed, eps)?;
            device.matmul(&projection.token, &buffers.normed, &mut buffers.hidden, 0)?;
            device.matmul(&projection.states, states, &mut buffers.delta, 0)?;
            let kept = cache.iter_mut().enumerate();
            let kept = kept.filter(|(block, _)| attachment.blocks.contains(block));
            let blocks = layers.iter().zip(kept).map(|(layer, (block, cache))| Block {
                layer,
                cache,
                rotations: rotations.of(block),
            });
            run_blocks(&pass, blocks, buffers, true, &mut |_, _| Ok(()))?;
            let Buffers { hidden, normed, delta, .. } = &mut *buffers;
            let rest = layers.last().map(|layer| layer.rest(delta));
            device.add_rms_norm(hidden, rest, norm, None, normed, eps)?;
            device.add_rms_norm(hidden, None, ones, None, own, eps)?;
            head.project(device, normed, logits)?;
            config.design.logit_cap.map_or(Ok(()), |cap| device.soft_cap(logits, cap))
        })?;
        on_host.read_rows(logits, std::iter::once(0..rows.len()))
    }
}
