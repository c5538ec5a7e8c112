//! A decoder on a device with the cache and work space it needs for serving.

use std::sync::Arc;

use super::adapters::CudaAdapters;
use super::attached::{CudaAttached, TargetCache};
use super::decoder::CudaDecoder;
use super::layer::{Block, Layer, Pass, run_blocks};
use super::rotations::Rotations;
use super::verify;
use super::workspace::{Buffers, PassBounds, Workspace};
use crate::kv_cache::BLOCK_SIZE;
use crate::model::{
    AdapterShapes, AttachedForward, DraftInput, Drafter, Forward, ModelConfig, OutOfMemory,
    RoundResult, Rows, VerifyTask,
};
use pleach_kernels::cuda::{
    AdaptedRows, Batch, CudaError, Device, Graphs, KvLayer, PassKey, Verifier,
};

/// Owns a decoder on a device, its K/V cache and its work space, and perhaps a drafter that reads them.
pub struct CudaRunner {
    decoder: CudaDecoder,
    rotations: Rotations,
    /// The final norm, on the host.
    norm: Vec<f32>,
    cache: Vec<KvLayer>,
    num_blocks: usize,
    workspace: Workspace,
    verifier: Verifier,
    /// Of the last pass of which any row went through an adapter.
    adapted: AdaptedRows,
    /// The last pass's `logit_rows`: in these rows `delta` is in `hidden` already.
    logit_rows: Vec<u32>,
    attached: Option<Box<CudaAttached>>,
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
        let rotations = Rotations::new(device, config, positions)?;
        let workspace = Workspace::new(device, config, decoder.dtype, decoder.head_rows())?;
        let norm = decoder.norm.row(0)?;
        let verifier = Verifier::new(device)?;
        let adapted = AdaptedRows::new(device)?;
        let mut runner = Self {
            decoder,
            rotations,
            norm,
            cache: Vec::new(),
            num_blocks: 0,
            workspace,
            verifier,
            adapted,
            logit_rows: Vec::new(),
            attached: None,
        };
        runner.set_blocks(num_blocks)?;
        Ok(runner)
    }

    /// What it runs.
    #[must_use]
    pub fn decoder(&self) -> &CudaDecoder {
        &self.decoder
    }

    /// What it runs, without cache and work space.
    #[must_use]
    pub fn into_decoder(self) -> CudaDecoder {
        self.decoder
    }

    /// Gives the cache so many blocks; what it held is gone.
    ///
    /// # Errors
    /// If the device has too little memory, or fails; then there is no cache.
    pub fn set_blocks(&mut self, num_blocks: usize) -> Result<(), CudaError> {
        self.clear_graphs();
        let &CudaDecoder { ref device, dtype, kv_format, ref layers, .. } = &self.decoder;
        (self.cache, self.num_blocks) = (Vec::new(), 0);
        let size = [num_blocks, BLOCK_SIZE];
        let layer = |it: &Layer| KvLayer::new(device, it.attention, dtype, kv_format, size);
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
        let Self { decoder, rotations, workspace, verifier, adapted, .. } = self;
        let positions = rotations.positions();
        workspace.reserve(&decoder.device, &decoder.layers[0].attention, bounds, positions)?;
        let PassBounds { sequences, logit_rows, decides, drafted, .. } = bounds;
        if decides {
            verifier.reserve(sequences, logit_rows, decoder.head_rows(), drafted)?;
        }
        if bounds.adapted {
            adapted.reserve(Batch::rows_for(bounds.rows), decoder.dtype)?;
        }
        for rows in bounds.first_passes(self.num_blocks, positions) {
            if bounds.decides {
                let shape = [rows.logit_rows.len(), self.decoder.head_rows()];
                self.verifier.set(shape, &[verify::warm_up_round()])?;
            }
            self.round(&rows, &[])?;
            if bounds.decides {
                self.verifier.run(&self.workspace.logits)?;
            }
        }
        self.clear_graphs();
        Ok(())
    }

    /// The same for the drafter that is attached: for steps within `bounds`, beside passes of so many rows with logits.
    ///
    /// # Errors
    /// If the device has too little memory, or fails.
    ///
    /// # Panics
    /// If no drafter is attached.
    pub fn reserve_drafter(
        &mut self,
        logit_rows: usize,
        bounds: PassBounds,
    ) -> Result<(), CudaError> {
        let (drafter, cache) = self.drafter_and_cache();
        drafter.reserve(logit_rows, bounds, cache)
    }

    /// Forgets recorded passes, and those of the drafter.
    fn clear_graphs(&mut self) {
        self.workspace.graphs.clear();
        if let Some(drafter) = &mut self.attached {
            drafter.clear_graphs();
        }
    }

    /// Launches every pass, and every step of the drafter that is attached, kernel by kernel, as the first of a kind are.
    #[must_use]
    pub fn without_graphs(mut self) -> Self {
        self.workspace.graphs = Graphs::new(&self.decoder.device, false);
        if let Some(drafter) = &mut self.attached {
            drafter.disable_graphs();
        }
        self
    }

    /// Passes that were started as one recorded graph.
    #[must_use]
    pub fn replayed_passes(&self) -> u64 {
        self.workspace.graphs.replayed()
    }

    /// Steps of the drafter that is attached that were started as one recorded graph.
    #[must_use]
    pub fn replayed_steps(&self) -> u64 {
        self.attached.as_ref().map_or(0, |drafter| drafter.replayed())
    }

    /// The shape of the drafter that is attached, where one is.
    #[must_use]
    pub fn drafter_config(&self) -> Option<&ModelConfig> {
        self.attached.as_ref().map(|drafter| drafter.config())
    }

    /// The drafter that is attached, and what it shares.
    fn drafter_and_cache(&mut self) -> (&mut CudaAttached, TargetCache<'_>) {
        let Self { attached, cache, num_blocks, rotations, .. } = self;
        let cache = TargetCache { layers: cache, num_blocks: *num_blocks, rotations };
        (attached.as_mut().expect(ATTACHED), cache)
    }

    fn drafter(&self) -> &CudaAttached {
        self.attached.as_ref().expect(ATTACHED)
    }

    /// Starts a pass; its logits stay on the device, and what a drafter reads of it.
    fn pass(&mut self, rows: &Rows) -> Result<(), CudaError> {
        let Self { decoder, rotations, cache, workspace, attached, adapted, .. } = self;
        let CudaDecoder { device, config, layers, embedding, norm, head, .. } = &*decoder;
        let Workspace { buffers, logits, graphs, .. } = workspace;
        let eps = config.rms_norm_eps as f32;
        let bounds = [self.num_blocks, rotations.positions()];
        buffers.set(device, rows, &layers[0].attention, bounds)?;
        let [computed, wanted] = [buffers.batch.rows(), buffers.batch.wanted()];
        let adapted = adapt(&decoder.adapters, adapted, rows, computed)?;
        logits.set_rows(wanted)?;
        let mut states = attached.as_mut().map(|drafter| &mut drafter.target);
        if let Some(states) = &mut states {
            states.set_rows(device, wanted)?;
        }
        let kept = states.iter().flat_map(|states| states.tensors());
        let used = buffers.tensors().into_iter().chain([&*logits]).chain(kept);
        let key = PassKey::new(&buffers.batch, used, adapted);
        let pass = Pass { device, eps, adapted };
        let embedding_scale = config.design.embedding_scale.unwrap_or(1.0);
        graphs.run(key, &mut || {
            device.embed(embedding, embedding_scale, &buffers.batch, &mut buffers.hidden)?;
            let mut keep = |blocks: usize, buffers: &mut Buffers| match &mut states {
                Some(states) if wanted > 0 => states.keep(blocks, device, buffers),
                _ => Ok(()),
            };
            run_blocks(&pass, blocks(layers, cache, rotations), buffers, false, &mut keep)?;
            let Buffers { batch, hidden, normed, delta, .. } = &mut *buffers;
            let mut rest = layers.last().map(|layer| layer.rest(delta));
            if adds_at_once(layers) {
                device.add_rms_norm(hidden, rest.take(), norm, None, normed, eps)?;
            }
            if wanted == 0 {
                return Ok(());
            }
            // Only the wanted rows are normed and multiplied.
            normed.set_rows(wanted)?;
            device.add_rms_norm(hidden, rest, norm, Some(batch), normed, eps)?;
            head.project(device, normed, logits)?;
            if let Some(cap) = config.design.logit_cap {
                device.soft_cap(logits, cap)?;
            }
            normed.set_rows(computed)?;
            keep(layers.len(), buffers)
        })?;
        self.logit_rows.clone_from(&rows.logit_rows);
        Ok(())
    }

    /// The blocks alone, without the head and without recording: `observe` sees the hidden states on the host,
    /// `[rows, hidden]`, before block 0 (index 0) and after each block i (index i + 1), as
    /// [`Decoder::forward_observed`](crate::model::Decoder::forward_observed) shows them.
    ///
    /// # Errors
    /// If the device has too little memory, or fails.
    ///
    /// # Panics
    /// If a token, slot or block lies outside the model or the cache, or a drafter is attached, for which nothing is kept.
    pub fn forward_observed(
        &mut self,
        rows: &Rows,
        observe: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), CudaError> {
        assert!(self.attached.is_none(), "a drafter reads nothing of such a pass");
        check_tokens(rows, self.decoder.config.vocab_size);
        let Self { decoder, rotations, cache, workspace, adapted, .. } = self;
        let CudaDecoder { device, config, layers, embedding, norm, .. } = &*decoder;
        let Workspace { buffers, on_host, .. } = workspace;
        let eps = config.rms_norm_eps as f32;
        let bounds = [self.num_blocks, rotations.positions()];
        buffers.set(device, rows, &layers[0].attention, bounds)?;
        let embedding_scale = config.design.embedding_scale.unwrap_or(1.0);
        device.embed(embedding, embedding_scale, &buffers.batch, &mut buffers.hidden)?;
        let mut show = |blocks: usize, buffers: &mut Buffers| {
            observe(blocks, on_host.read_rows(&buffers.hidden, std::iter::once(0..rows.len()))?);
            Ok(())
        };
        let adapted = adapt(&decoder.adapters, adapted, rows, buffers.batch.rows())?;
        let pass = Pass { device, eps, adapted };
        run_blocks(&pass, blocks(layers, cache, rotations), buffers, false, &mut show)?;
        let Buffers { hidden, normed, delta, .. } = &mut *buffers;
        let rest = layers.last().map(|layer| layer.rest(delta));
        device.add_rms_norm(hidden, rest, norm, None, normed, eps)?;
        show(layers.len(), buffers)?;
        // What the last block added is in all rows already.
        self.logit_rows = (0..rows.len() as u32).collect();
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
            self.verifier.set(shape, &sequences)?;
        }
        self.pass(rows)?;
        if count == 0 {
            // Whoever called measures how long a pass takes.
            self.decoder.device.synchronize()?;
        }
        let Workspace { logits, on_host, .. } = &mut self.workspace;
        let mut outcomes = Vec::new();
        if !tasks.is_empty() {
            let mut rest = self.verifier.run(logits)?;
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
        check_tokens(rows, self.decoder.config.vocab_size);
        let outcomes = self.round(rows, tasks);
        outcomes.map_err(|error| out_of_memory(&self.decoder.device, error))
    }

    /// Keys and values that the cache holds of some blocks of positions, for one block of the decoder:
    /// `[blocks, kv_heads, BLOCK_SIZE, head_dim]` each.
    ///
    /// # Errors
    /// If the device fails.
    pub fn cells(&self, layer: usize, blocks: &[u32]) -> Result<[Vec<f32>; 2], CudaError> {
        self.cache[layer].read(blocks)
    }

    /// The residual stream of a row behind the last layer.
    fn residual(&self, row: usize) -> Result<Vec<f32>, CudaError> {
        let Buffers { hidden, delta, .. } = &self.workspace.buffers;
        let mut values = hidden.row(row)?;
        let added = self.logit_rows.binary_search(&(row as u32)).is_ok();
        if !added && !adds_at_once(&self.decoder.layers) {
            values.iter_mut().zip(delta.row(row)?).for_each(|(value, delta)| *value += delta);
        }
        Ok(values)
    }
}

/// What is left to say of a runner's drafter where `attached` has given it away.
const ATTACHED: &str = "invariant: `attached` gives a runner with a drafter";

/// Takes on the adapters of a pass that computes so many rows; nothing where no row goes through one.
fn adapt<'a>(
    adapters: &CudaAdapters,
    adapted: &'a mut AdaptedRows,
    rows: &Rows,
    computed: usize,
) -> Result<Option<&'a AdaptedRows>, CudaError> {
    adapters.forget();
    if rows.adapted().is_empty() {
        return Ok(None);
    }
    let parts = rows.adapted().iter();
    let parts = parts.map(|(rows, adapter)| (rows.clone(), adapter.on_cuda().factors()));
    adapted.set(computed, parts)?;
    Ok(Some(adapted))
}

/// The blocks of a pass, each over its keys and values.
fn blocks<'a>(
    layers: &'a [Layer],
    cache: &'a mut [KvLayer],
    rotations: &'a Rotations,
) -> impl Iterator<Item = Block<'a>> {
    let blocks = layers.iter().zip(cache).enumerate();
    blocks.map(|(block, (layer, cache))| Block { layer, cache, rotations: rotations.of(block) })
}

/// Whether a pass adds what the last block leaves in all rows, and not in those alone that have logits: where it is normed
/// first, which the host does not do to the bit.
fn adds_at_once(layers: &[Layer]) -> bool {
    layers.last().is_some_and(|layer| layer.feed_forward_norm.is_some())
}

/// # Panics
/// If a token lies outside the vocabulary.
fn check_tokens(rows: &Rows, vocab_size: usize) {
    let outside = rows.tokens.iter().find(|&&token| token as usize >= vocab_size);
    assert!(outside.is_none(), "token {outside:?} of {vocab_size}");
}

/// What a pass failed for, if that is memory.
///
/// # Panics
/// If the device failed other than for want of memory: CUDA has no way back from that within a process.
fn out_of_memory(device: &Device, error: CudaError) -> OutOfMemory {
    match error {
        CudaError::OutOfMemory { .. } => OutOfMemory(error.to_string()),
        error => panic!("{}: {error}", device.name()),
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

    fn adapter_shapes(&self) -> Option<&Arc<AdapterShapes>> {
        Some(&self.decoder.adapter_shapes)
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

    fn attached(&mut self) -> Option<&mut dyn AttachedForward> {
        self.attached.is_some().then_some(self as &mut dyn AttachedForward)
    }

    /// # Panics
    /// If the drafter is not on a device.
    fn attach(&mut self, drafter: Option<Drafter>) -> Option<Drafter> {
        let drafter = drafter.map(|drafter| match drafter {
            Drafter::Cuda(drafter) => drafter,
            Drafter::Cpu(_) => panic!("the drafter is not on the model's device"),
        });
        // Recorded passes keep states for the drafter that was there, and its steps read another cache.
        let before = std::mem::replace(&mut self.attached, drafter);
        self.clear_graphs();
        before.map(Drafter::Cuda)
    }
}

impl AttachedForward for CudaRunner {
    fn config(&self) -> &ModelConfig {
        self.drafter().config()
    }

    fn head_rows(&self) -> usize {
        self.drafter().head_rows()
    }

    fn draft_vocab(&self) -> Option<&Arc<[u32]>> {
        self.drafter().draft_vocab()
    }

    fn flops_per_token(&self, context: usize) -> u64 {
        self.drafter().flops_per_token(context)
    }

    /// They are normed.
    ///
    /// # Panics
    /// If the device fails: memory was taken with the pass.
    fn read_states(&mut self, rows: &[u32], out: &mut Vec<f32>) {
        let known = &self.logit_rows;
        let place = |row| known.binary_search(row).expect("the row's logits were asked for");
        let places: Vec<usize> = rows.iter().map(place).collect();
        let states = &mut self.attached.as_mut().expect(ATTACHED).target;
        let read = states.read(&places, out);
        read.unwrap_or_else(|error| panic!("{}: {error}", self.decoder.device.name()));
    }

    fn step(&mut self, rows: &Rows, input: DraftInput<'_>) -> Result<&[f32], OutOfMemory> {
        check_tokens(rows, self.decoder.config.vocab_size);
        let device = Arc::clone(&self.decoder.device);
        let (drafter, mut cache) = self.drafter_and_cache();
        let logits = drafter.step(rows, input, &mut cache);
        logits.map_err(|error| out_of_memory(&device, error))
    }
}
