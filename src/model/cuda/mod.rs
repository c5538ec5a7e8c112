//! The decoder on a CUDA device: the same architecture as [`Decoder`](super::Decoder), in 16-bit activations and
//! cache over the kernels of `kernels/`.
//!
//! Its logits differ from the CPU's by rounding, but a row's bits depend on its own context alone here too.

mod load;
mod verify;
mod workspace;

use std::sync::Arc;

use super::{Forward, ModelConfig, OutOfMemory, RoundResult, Rows, VerifyTask};
use crate::kv_cache::{BLOCK_SIZE, BlockPool, BlockTable};
use pleach_kernels::cuda::{
    AttentionInputs, BatchRows, CudaError, Device, Graphs, KvLayer, PassKey, QkvInputs, Table,
    Tensor, Weights,
};
use pleach_kernels::{AttentionShape, DType};
pub use workspace::PassBounds;
use workspace::Workspace;

/// Matrices whose outputs stand side by side; neighbours in one format are one matrix.
struct Stack {
    /// First output column of each, and the matrix.
    parts: Vec<(usize, Weights)>,
    outputs: usize,
    /// `[1, outputs]`, where the product adds it.
    bias: Option<Tensor>,
}

impl Stack {
    fn project(&self, device: &Device, x: &Tensor, out: &mut Tensor) -> Result<(), CudaError> {
        let mut parts = self.parts.iter();
        parts.try_for_each(|(column, weights)| device.matmul(weights, x, out, *column))?;
        self.bias.as_ref().map_or(Ok(()), |bias| device.add_bias(out, bias))
    }
}

struct Layer {
    input_norm: Tensor,
    qkv: Stack,
    qkv_bias: Option<Tensor>,
    qk_norm: Option<[Tensor; 2]>,
    output: Stack,
    post_norm: Tensor,
    gate_up: Stack,
    down: Stack,
    attention: AttentionShape,
}

/// A decoder-only transformer in a device's memory.
pub struct CudaDecoder {
    device: Arc<Device>,
    config: ModelConfig,
    /// Format of activations, keys and values.
    dtype: DType,
    embedding: Arc<Table>,
    layers: Vec<Layer>,
    norm: Tensor,
    head: Arc<Stack>,
    draft_vocab: Option<Arc<[u32]>>,
}

impl CudaDecoder {
    /// The architecture.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The device it is on.
    #[must_use]
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Rows of the output head.
    #[must_use]
    pub fn head_rows(&self) -> usize {
        self.head.outputs
    }

    /// Device memory of the matrices this decoder holds alone or shares.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let stacks = self.layers.iter().flat_map(|l| [&l.qkv, &l.output, &l.gate_up, &l.down]);
        let matrices = stacks.chain([&*self.head]).flat_map(|stack| &stack.parts);
        matrices.map(|(_, weights)| weights.bytes()).sum::<usize>() + self.embedding.bytes()
    }

    /// Device memory that one block of the K/V cache takes.
    #[must_use]
    pub fn block_bytes(&self) -> usize {
        self.layers.iter().map(|layer| KvLayer::block_bytes(&layer.attention, BLOCK_SIZE)).sum()
    }
}

/// Owns a decoder on a device, its K/V cache and its work space.
pub struct CudaRunner {
    decoder: CudaDecoder,
    /// f32 `[positions, head_dim]`
    rotations: Tensor,
    /// The final norm, on the host.
    norm: Vec<f32>,
    cache: Vec<KvLayer>,
    num_blocks: usize,
    workspace: Workspace,
}

impl CudaRunner {
    /// A runner whose cache has `num_blocks` blocks, for sequences of at most `positions` positions.
    ///
    /// # Errors
    /// If the device has too little memory, or fails.
    pub fn new(
        decoder: CudaDecoder,
        num_blocks: usize,
        positions: usize,
    ) -> Result<Self, CudaError> {
        let CudaDecoder { device, config, .. } = &decoder;
        let table = super::rope_table(config, &config.rope).rotations(positions);
        let shape = [positions, config.head_dim];
        let rotations = Tensor::from_f32(device, DType::F32, shape, &table)?;
        let workspace = Workspace::new(device, config, decoder.dtype, decoder.head_rows())?;
        let norm = decoder.norm.row(0)?;
        let (cache, none) = (Vec::new(), 0);
        let mut runner = Self { decoder, rotations, norm, cache, num_blocks: none, workspace };
        runner.set_blocks(num_blocks)?;
        Ok(runner)
    }

    /// What it runs.
    #[must_use]
    pub fn decoder(&self) -> &CudaDecoder {
        &self.decoder
    }

    /// Gives the cache so many blocks; what it held is gone.
    ///
    /// # Errors
    /// If the device has too little memory, or fails; then there is no cache.
    pub fn set_blocks(&mut self, num_blocks: usize) -> Result<(), CudaError> {
        let CudaDecoder { device, dtype, layers, .. } = &self.decoder;
        self.workspace.graphs.clear();
        (self.cache, self.num_blocks) = (Vec::new(), 0);
        let layer =
            |layer: &Layer| KvLayer::new(device, layer.attention, *dtype, [num_blocks, BLOCK_SIZE]);
        self.cache = layers.iter().map(layer).collect::<Result<_, _>>()?;
        self.num_blocks = num_blocks;
        Ok(())
    }

    /// Takes the memory that passes within these bounds need, and computes the largest, as far as the cache reaches:
    /// what the driver takes for its kernels is taken then, and such passes take no more.
    ///
    /// # Errors
    /// If the device has too little memory, or fails.
    pub fn reserve(&mut self, bounds: PassBounds) -> Result<(), CudaError> {
        let Self { decoder, rotations, workspace, .. } = self;
        let positions = rotations.shape()[0];
        workspace.reserve(&decoder.device, &decoder.layers[0].attention, bounds, positions)?;
        let positions = positions.min(self.num_blocks * BLOCK_SIZE);
        let (mut pool, mut table) = (BlockPool::new(self.num_blocks), BlockTable::new());
        assert!(table.reserve(positions, &mut pool), "invariant: as many blocks as are there");
        // Products have kernels of their own for few rows.
        for count in [bounds.rows, 16, 1].map(|count| count.min(bounds.rows).min(positions)) {
            let mut rows = Rows::default();
            let tokens = std::iter::repeat_n(0, count);
            rows.push(&table, positions - count, tokens, count.min(bounds.logit_rows));
            if bounds.decides {
                let shape = [rows.logit_rows.len(), self.decoder.head_rows()];
                self.workspace.verifier.set(shape, &[verify::warm_up_round()])?;
            }
            self.round(&rows, &[])?;
            if bounds.decides {
                let Workspace { verifier, logits, .. } = &mut self.workspace;
                verifier.run(logits)?;
            }
        }
        self.workspace.graphs.clear();
        Ok(())
    }

    /// Launches every pass kernel by kernel, as the first passes of a kind are.
    #[must_use]
    pub fn without_graphs(mut self) -> Self {
        self.workspace.graphs = Graphs::new(&self.decoder.device, false);
        self
    }

    /// Passes that were started as one recorded graph.
    #[must_use]
    pub fn replayed_passes(&self) -> u64 {
        self.workspace.graphs.replayed()
    }

    /// Starts a pass; its logits stay on the device.
    fn pass(&mut self, rows: &Rows) -> Result<(), CudaError> {
        let CudaDecoder { device, config, layers, .. } = &self.decoder;
        let Workspace {
            batch,
            hidden,
            normed,
            qkv,
            q,
            attended,
            delta,
            gate_up,
            inner,
            partial,
            logits,
            logit_rows,
            graphs,
            ..
        } = &mut self.workspace;
        let eps = config.rms_norm_eps as f32;
        let on_host = BatchRows {
            tokens: &rows.tokens,
            positions: &rows.positions,
            slots: &rows.slots,
            cu_seqlens_q: &rows.cu_seqlens_q,
            logit_rows: &rows.logit_rows,
            block_table: &|sequence| rows.block_table(sequence),
        };
        let attention = layers[0].attention;
        batch.set(
            &on_host,
            [self.num_blocks, BLOCK_SIZE, self.rotations.shape()[0]],
            &|rows, length| device.attention_workspace(&attention, rows, length),
        )?;
        for tensor in [&mut *hidden, normed, qkv, q, attended, delta, gate_up, inner] {
            tensor.set_rows(rows.len())?;
        }

        logits.set_rows(rows.logit_rows.len())?;
        let used = [&*hidden, normed, qkv, q, attended, delta, gate_up, inner, partial, logits];
        let key = PassKey::new(batch, used);
        let (decoder, rotations, cache) = (&self.decoder, &self.rotations, &mut self.cache);
        graphs.run(key, &mut || {
            device.embed(&decoder.embedding, batch, hidden)?;
            let mut added = None;
            for (layer, cache) in layers.iter().zip(&mut *cache) {
                device.add_rms_norm(hidden, added, &layer.input_norm, None, normed, eps)?;
                layer.qkv.project(device, normed, qkv)?;
                let inputs = QkvInputs {
                    bias: layer.qkv_bias.as_ref(),
                    qk_norm: layer.qk_norm.as_ref(),
                    rotations,
                    eps,
                };
                device.qkv_rope_write(qkv, &inputs, batch, q, cache)?;
                device.paged_attention(&AttentionInputs { q, cache }, batch, partial, attended)?;
                layer.output.project(device, attended, delta)?;
                device.add_rms_norm(hidden, Some(delta), &layer.post_norm, None, normed, eps)?;
                layer.gate_up.project(device, normed, gate_up)?;
                device.silu_mul(gate_up, inner)?;
                layer.down.project(device, inner, delta)?;
                added = Some(&*delta);
            }
            if rows.logit_rows.is_empty() {
                return Ok(());
            }
            // Only the wanted rows are normed and multiplied.
            normed.set_rows(rows.logit_rows.len())?;
            device.add_rms_norm(hidden, Some(delta), &decoder.norm, Some(batch), normed, eps)?;
            decoder.head.project(device, normed, logits)?;
            normed.set_rows(rows.len())
        })?;
        logit_rows.clone_from(&rows.logit_rows);
        Ok(())
    }

    /// A pass with its rounds: the logits of the other rows come to the host.
    fn round(
        &mut self,
        rows: &Rows,
        tasks: &[VerifyTask<'_>],
    ) -> Result<Vec<RoundResult>, CudaError> {
        let sequences: Vec<_> = tasks.iter().map(verify::sequence).collect();
        let count = rows.logit_rows.len();
        if !tasks.is_empty() {
            let shape = [count, self.decoder.head_rows()];
            self.workspace.verifier.set(shape, &sequences)?;
        }
        self.pass(rows)?;
        let Workspace { verifier, logits, on_host, .. } = &mut self.workspace;
        let mut outcomes = Vec::new();
        if !tasks.is_empty() {
            let mut rest = verifier.run(logits)?;
            for task in tasks {
                let (own, others) = rest.split_at(task.draft.len() + 1);
                outcomes.push(verify::outcome(own));
                rest = others;
            }
        }
        let named =
            tasks.iter().map(|task| task.first_logit..task.first_logit + task.draft.len() + 1);
        let starts = std::iter::once(0).chain(named.clone().map(|range| range.end));
        let ends = named.map(|range| range.start).chain([count]);
        on_host.read_rows(logits, starts.zip(ends).map(|(start, end)| start..end))?;
        Ok(outcomes)
    }

    /// # Panics
    /// If a token, slot or block lies outside the model or the cache, or the device fails other than for want of
    /// memory: CUDA has no way back from that within a process.
    fn run(
        &mut self,
        rows: &Rows,
        tasks: &[VerifyTask<'_>],
    ) -> Result<Vec<RoundResult>, OutOfMemory> {
        let vocab_size = self.decoder.config.vocab_size;
        let outside = rows.tokens.iter().find(|&&token| token as usize >= vocab_size);
        assert!(outside.is_none(), "token {outside:?} of {vocab_size}");
        self.round(rows, tasks).map_err(|error| match error {
            CudaError::OutOfMemory { .. } => OutOfMemory(error.to_string()),
            error => panic!("{}: {error}", self.decoder.device.name()),
        })
    }

    /// The residual stream of a row behind the last layer.
    fn residual(&self, row: usize) -> Result<Vec<f32>, CudaError> {
        let Workspace { hidden, delta, logit_rows, .. } = &self.workspace;
        let mut values = hidden.row(row)?;
        if logit_rows.binary_search(&(row as u32)).is_err() {
            values.iter_mut().zip(delta.row(row)?).for_each(|(value, delta)| *value += delta);
        }
        Ok(values)
    }
}

impl Forward for CudaRunner {
    fn config(&self) -> &ModelConfig {
        &self.decoder.config
    }

    fn head_rows(&self) -> usize {
        self.decoder.head_rows()
    }

    fn draft_vocab(&self) -> Option<&Arc<[u32]>> {
        self.decoder.draft_vocab.as_ref()
    }

    fn forward(&mut self, rows: &Rows) -> Result<&[f32], OutOfMemory> {
        self.run(rows, &[])?;
        Ok(self.workspace.on_host.values())
    }

    /// A trimmed head's rows are not the target's tokens.
    fn verifies(&self) -> bool {
        self.decoder.draft_vocab.is_none()
    }

    fn forward_and_verify(
        &mut self,
        rows: &Rows,
        tasks: &[VerifyTask<'_>],
    ) -> Result<(&[f32], Vec<RoundResult>), OutOfMemory> {
        let outcomes = self.run(rows, tasks)?;
        Ok((self.workspace.on_host.values(), outcomes))
    }

    /// Normed on the host: only embeddings ask for it, and their rows have no logits.
    ///
    /// # Panics
    /// If the last pass had no such row, or the device fails.
    fn hidden_state(&self, row: usize, out: &mut [f32]) {
        let values = self
            .residual(row)
            .unwrap_or_else(|error| panic!("{}: {error}", self.decoder.device.name()));
        let squares = values.iter().map(|value| value * value).sum::<f32>() / values.len() as f32;
        let scale = 1.0 / (squares + self.decoder.config.rms_norm_eps as f32).sqrt();
        for ((out, value), weight) in out.iter_mut().zip(values).zip(&self.norm) {
            *out = value * scale * weight;
        }
    }
}
