//! The decoder that serves: target and draft differ only in configuration and weights.

mod error;
mod layer;
mod lender;
mod loader;

use std::sync::Arc;

use super::{AdapterShapes, Rows};
use crate::checkpoint::Checkpoint;
use crate::checkpoint::architecture::{ModelConfig, RopeTables};
pub(super) use error::check_shape;
pub use error::{ModelError, check_draft};
pub(super) use layer::{Layer, Pass};
pub use lender::Lender;
pub(super) use loader::Loader;
pub use loader::Precision;
use pleach_kernels::{
    Activations, CacheFormat, LayerCache, PackedMatrix, ThreadPool, embed, matmul, rms_norm,
    rms_norm_quantized, scale, soft_cap,
};

/// A decoder-only transformer, packed for the kernels. Valid by construction: `forward` cannot fail.
pub struct Decoder {
    config: ModelConfig,
    embedding: Arc<PackedMatrix>,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    head: Arc<PackedMatrix>,
    draft_vocab: Option<Arc<[u32]>>,
    ropes: RopeTables,
    cache_format: CacheFormat,
    pool: Arc<ThreadPool>,
    /// What LoRA adapters of the blocks must fit.
    adapter_shapes: Arc<AdapterShapes>,
}

/// Keys and values of all layers for all blocks of the pool.
pub struct KvCache {
    pub(super) layers: Vec<LayerCache>,
    head_dim: usize,
}

impl KvCache {
    /// The keys and values that block `layer` keeps of a slot, rotated, `[kv_heads, head_dim]` each.
    ///
    /// # Panics
    /// If there is no such block or slot.
    pub fn read(&self, layer: usize, slot: u32, keys: &mut [f32], values: &mut [f32]) {
        self.layers[layer].read(slot, self.head_dim, keys, values);
    }
}

/// Buffers of one forward pass; they grow to the largest batch seen and are then reused.
#[derive(Default)]
pub struct Workspace {
    operands: [Activations; 2],
    /// `[rows, hidden]`: the residual stream.
    hidden: Vec<f32>,
    /// `[rows, q + k + v]`.
    wide: Vec<f32>,
    /// `[logit_rows, head_rows]`
    logits: Vec<f32>,
    ropes: Option<RopeTables>,
}

impl Workspace {
    /// Empty buffers.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl Decoder {
    /// Loads a model as its file stores it.
    ///
    /// # Errors
    /// [`ModelError`] naming the tensor or field.
    pub fn load(checkpoint: &mut Checkpoint, pool: &Arc<ThreadPool>) -> Result<Self, ModelError> {
        Self::load_with(checkpoint, pool, Precision::AsStored)
    }

    /// Loads a model at a chosen precision.
    ///
    /// # Errors
    /// [`ModelError`] naming the tensor or field.
    pub fn load_with(
        checkpoint: &mut Checkpoint,
        pool: &Arc<ThreadPool>,
        precision: Precision,
    ) -> Result<Self, ModelError> {
        let config = checkpoint.config.clone();
        let mut loader = Loader { checkpoint, precision, pool };
        let embedding = Arc::new(loader.matrix(
            "model.embed_tokens.weight",
            config.vocab_size,
            config.hidden_size,
        )?);
        let head = if config.tie_word_embeddings || !loader.checkpoint.has("lm_head.weight") {
            Arc::clone(&embedding)
        } else {
            Arc::new(loader.matrix("lm_head.weight", config.vocab_size, config.hidden_size)?)
        };
        Self::assemble(loader, config, embedding, head, None, pool)
    }

    fn assemble(
        mut loader: Loader,
        config: ModelConfig,
        embedding: Arc<PackedMatrix>,
        head: Arc<PackedMatrix>,
        draft_vocab: Option<Arc<[u32]>>,
        pool: &Arc<ThreadPool>,
    ) -> Result<Self, ModelError> {
        loader.checkpoint.check_tensors()?;
        let layers: Vec<Layer> = (0..config.num_hidden_layers)
            .map(|index| loader.layer(&config, index))
            .collect::<Result<_, _>>()?;
        let shapes = layers.iter().map(Layer::shapes).collect();
        let norm = loader.norm("model.norm.weight", &config, config.hidden_size)?;
        let ropes = RopeTables::new(&config);
        let pool = Arc::clone(pool);
        let cache_format = match loader.precision {
            Precision::AsStored | Precision::Q8_0 => CacheFormat::F16,
            Precision::F32 => CacheFormat::F32,
        };
        Ok(Self {
            config,
            embedding,
            layers,
            norm,
            head,
            draft_vocab,
            ropes,
            cache_format,
            pool,
            adapter_shapes: Arc::new(AdapterShapes::new(shapes)),
        })
    }

    /// The architecture.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// What adapters of its blocks must fit.
    #[must_use]
    pub fn adapter_shapes(&self) -> &Arc<AdapterShapes> {
        &self.adapter_shapes
    }

    /// Rows of the output head.
    #[must_use]
    pub fn head_rows(&self) -> usize {
        self.head.out_features()
    }

    /// Token ids of the head's rows, where the head is trimmed.
    #[must_use]
    pub fn draft_vocab(&self) -> Option<&Arc<[u32]>> {
        self.draft_vocab.as_ref()
    }

    /// Memory of the matrices this decoder holds alone or shares.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let head = if Arc::ptr_eq(&self.embedding, &self.head) { 0 } else { self.head.bytes() };
        self.layer_bytes() + self.embedding.bytes() + head
    }

    /// The same without the embedding and head that are `target`'s own.
    #[must_use]
    pub fn memory_bytes_beside(&self, target: &Self) -> usize {
        let theirs = |table: &Arc<PackedMatrix>| {
            Arc::ptr_eq(table, &target.embedding) || Arc::ptr_eq(table, &target.head)
        };
        let head = (!Arc::ptr_eq(&self.embedding, &self.head)).then_some(&self.head);
        let tables = [&self.embedding].into_iter().chain(head).filter(|table| !theirs(table));
        self.layer_bytes() + tables.map(|table| table.bytes()).sum::<usize>()
    }

    fn layer_bytes(&self) -> usize {
        self.layers.iter().map(Layer::bytes).sum()
    }

    /// How the caches of this decoder, and of drafts that it lends to from now on, hold keys and values: f16 where nothing
    /// is said, f32 beside weights that are decoded to it.
    pub fn set_cache_format(&mut self, format: CacheFormat) {
        self.cache_format = format;
    }

    /// Bytes of a cache of `num_blocks` blocks.
    #[must_use]
    pub fn kv_cache_bytes(&self, num_blocks: usize) -> usize {
        let bytes = |l: &Layer| LayerCache::bytes(num_blocks, &l.attention, self.cache_format);
        self.layers.iter().map(bytes).sum()
    }

    /// A cache of `num_blocks` blocks for this decoder.
    #[must_use]
    pub fn new_kv_cache(&self, num_blocks: usize) -> KvCache {
        let layer = |l: &Layer| LayerCache::new(num_blocks, &l.attention, self.cache_format);
        let layers = self.layers.iter().map(layer).collect();
        KvCache { layers, head_dim: self.config.head_dim }
    }

    /// Computes all rows, writes their keys and values, and returns the logits of `rows.logit_rows`,
    /// `[logit_rows, head_rows]`.
    ///
    /// # Panics
    /// If a token, slot or block lies outside the model or the cache.
    pub fn forward<'w>(
        &self,
        rows: &Rows,
        cache: &mut KvCache,
        workspace: &'w mut Workspace,
    ) -> &'w [f32] {
        self.forward_and_observe(rows, cache, workspace, &mut |_, _| {})
    }

    /// As [`forward`](Self::forward); `observe` sees the hidden states as in
    /// [`forward_observed`](Self::forward_observed).
    ///
    /// # Panics
    /// As [`forward`](Self::forward).
    pub fn forward_and_observe<'w>(
        &self,
        rows: &Rows,
        cache: &mut KvCache,
        workspace: &'w mut Workspace,
        observe: &mut dyn FnMut(usize, &[f32]),
    ) -> &'w [f32] {
        self.forward_observed(rows, cache, workspace, observe);
        let wanted = &rows.logit_rows;
        let Workspace { operands: [operand, _], hidden, logits, .. } = workspace;
        // Only the wanted rows are normed and multiplied.
        let (pool, eps) = (&*self.pool, self.config.rms_norm_eps as f32);
        let row = |index: usize| wanted[index] as usize;
        rms_norm_quantized(pool, hidden, wanted.len(), row, &self.norm, eps, operand);
        let logits = room(logits, wanted.len() * self.head_rows());
        matmul(pool, &[&self.head], operand, logits, self.head_rows());
        if let Some(cap) = self.config.design.logit_cap {
            soft_cap(pool, logits, 1.0, cap);
        }
        logits
    }

    /// The hidden state of a row of the last pass, behind the final norm: `[hidden]`.
    ///
    /// # Panics
    /// If the pass had no such row.
    pub fn hidden_state(&self, workspace: &Workspace, row: usize, out: &mut [f32]) {
        let width = self.config.hidden_size;
        let hidden = &workspace.hidden[row * width..][..width];
        rms_norm(&self.pool, hidden, &self.norm, self.config.rms_norm_eps as f32, out);
    }

    /// The blocks alone, without the head: `observe` sees the hidden states, `[rows, hidden]`, before
    /// block 0 (index 0) and after each block i (index i + 1).
    ///
    /// # Panics
    /// As [`forward`](Self::forward).
    pub fn forward_observed(
        &self,
        rows: &Rows,
        cache: &mut KvCache,
        workspace: &mut Workspace,
        observe: &mut dyn FnMut(usize, &[f32]),
    ) {
        let count = rows.len();
        let width = self.config.hidden_size;
        let Workspace { operands, hidden, wide, ropes, .. } = workspace;
        let ropes = ropes.get_or_insert_with(|| self.ropes.clone());
        ropes.set_positions(&rows.positions);
        hidden.resize(count * width, 0.0);
        let pool = &*self.pool;
        embed(pool, &self.embedding, &rows.tokens, hidden);
        if let Some(by) = self.config.design.embedding_scale {
            scale(hidden, by);
        }
        observe(0, hidden);
        let pass = Pass { pool, eps: self.config.rms_norm_eps as f32, rows, ropes };
        for (index, layer) in self.layers.iter().enumerate() {
            layer.forward(&pass, &mut cache.layers[index], hidden, wide, operands);
            observe(index + 1, hidden);
        }
    }
}

/// The first `len` values of a buffer that only grows: else logits would be filled with zeros whenever a pass has more rows
/// than the one before.
pub(super) fn room(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}
