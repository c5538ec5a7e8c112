//! The decoder that serves: target and draft differ only in configuration and weights.

use std::sync::Arc;

use super::Rows;
use super::attached::{AttachedDrafter, Tables};
use super::draft::Draft;
use crate::checkpoint::architecture::{AttachmentError, ModelConfig, rope_table};
use crate::checkpoint::{Checkpoint, CheckpointError};
use pleach_kernels::cuda::CudaError;
use pleach_kernels::{
    Activations, AttentionShape, CacheFormat, LayerCache, OpsError, PackedMatrix, RopeTable,
    ThreadPool, add_bias, embed, matmul, matmul_add, paged_attention, rms_norm, rms_norm_heads,
    rms_norm_quantized, silu_mul_quantized,
};

/// Why a checkpoint does not make a decoder.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The file cannot be read or lacks something.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A tensor's shape is not what the configuration asks for.
    #[error("tensor {name} has shape {found:?}, the configuration asks for {expected:?}")]
    Shape {
        /// Hugging Face name.
        name: String,
        /// Shape in the file.
        found: Vec<usize>,
        /// Shape by the configuration.
        expected: Vec<usize>,
    },
    /// A tensor cannot be packed.
    #[error("tensor {name}: {error}")]
    Pack {
        /// Hugging Face name.
        name: String,
        /// What does not fit.
        error: OpsError,
    },
    /// An attached draft does not fit its target.
    #[error(transparent)]
    Attachment(#[from] AttachmentError),
    /// The draft does not fit its target.
    #[error(
        "the draft does not fit the target: {what} is {draft}, the target's is {target}; build a draft from this target with `pleach-tools build`"
    )]
    Draft {
        /// What differs.
        what: &'static str,
        /// The draft's value.
        draft: usize,
        /// The target's value.
        target: usize,
    },
    /// A token id of the draft's head is not in the target's vocabulary, or the head has other rows.
    #[error("the draft's vocabulary does not fit: {0}")]
    DraftVocab(String),
    /// A CUDA device cannot hold or compute the model.
    #[error(transparent)]
    Cuda(#[from] CudaError),
    /// The model has something that only the CPU computes.
    #[error("{what}: {reason}; use `--device cpu`")]
    Unsupported {
        /// Tensor or field.
        what: String,
        /// What is not there.
        reason: String,
    },
}

/// Checks a tensor's shape.
pub(super) fn check_shape(
    name: &str,
    found: &[usize],
    expected: &[usize],
) -> Result<(), ModelError> {
    if found == expected {
        return Ok(());
    }
    let (found, expected) = (found.into(), expected.into());
    Err(ModelError::Shape { name: name.into(), found, expected })
}

/// Checks that a draft fits its target, and gives the token ids of its head, where that is trimmed.
pub(super) fn check_draft(
    draft: &Checkpoint,
    target: &ModelConfig,
) -> Result<Option<Arc<[u32]>>, ModelError> {
    let config = &draft.config;
    for (what, draft, target) in [
        ("hidden_size", config.hidden_size, target.hidden_size),
        ("vocab_size", config.vocab_size, target.vocab_size),
    ] {
        if draft != target {
            return Err(ModelError::Draft { what, draft, target });
        }
    }
    if let Some(vocab) = &draft.draft_vocab {
        let rising = vocab.windows(2).all(|pair| pair[0] < pair[1]);
        if !rising || vocab.last().is_none_or(|last| *last as usize >= config.vocab_size) {
            let reason = "token ids must rise and lie in the vocabulary";
            return Err(ModelError::DraftVocab(reason.into()));
        }
    }
    Ok(draft.draft_vocab.as_deref().map(Into::into))
}

/// How the weights are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// As in the file: quantised weights multiply int8 activations. Keys and values are kept as f16.
    AsStored,
    /// Decoded to f32, keys and values too: slow and large, for reference.
    F32,
}

pub(super) struct Projection {
    weight: PackedMatrix,
    bias: Option<Vec<f32>>,
}

/// One decoder block.
pub(super) struct Layer {
    input_norm: Vec<f32>,
    /// Query, key, value; written side by side.
    qkv: [Projection; 3],
    /// Norms of every query and key head.
    qk_norm: Option<[Vec<f32>; 2]>,
    output: Projection,
    post_norm: Vec<f32>,
    /// Gate, up; written side by side.
    gate_up: [Projection; 2],
    down: Projection,
    attention: AttentionShape,
}

/// What the blocks of a pass share.
pub(super) struct Pass<'a> {
    pub(super) pool: &'a ThreadPool,
    pub(super) eps: f32,
    pub(super) rows: &'a Rows,
    /// Set to the rows' positions.
    pub(super) rope: &'a RopeTable,
}

impl Layer {
    /// Computes the block for all rows of `hidden`, `[rows, hidden]`, in place, and writes their keys and values.
    /// `wide` and `activations` are work space.
    pub(super) fn forward(
        &self,
        pass: &Pass<'_>,
        cache: &mut LayerCache,
        hidden: &mut [f32],
        wide: &mut Vec<f32>,
        activations: &mut Activations,
    ) {
        let Pass { pool, eps, rows, rope } = *pass;
        let (count, shape) = (rows.len(), &self.attention);
        let (q, kv) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
        let stride = q + 2 * kv;
        let every = |row| row;

        rms_norm_quantized(pool, hidden, count, every, &self.input_norm, eps, activations);
        wide.resize(count * stride, 0.0);
        project(pool, &self.qkv, activations, wide, stride);
        if let Some([q_norm, k_norm]) = &self.qk_norm {
            rms_norm_heads(pool, wide, q_norm, eps, shape.heads, stride, 0);
            rms_norm_heads(pool, wide, k_norm, eps, shape.kv_heads, stride, q);
        }
        cache.write(pool, shape, Some(rope), wide, stride, &rows.slots);
        paged_attention(
            pool,
            shape,
            wide,
            stride,
            cache,
            &rows.cu_seqlens_q,
            &rows.positions,
            |sequence| rows.block_table(sequence),
            activations,
        );
        add_projection(pool, &self.output, activations, hidden);

        rms_norm_quantized(pool, hidden, count, every, &self.post_norm, eps, activations);
        let inner = self.gate_up[0].weight.out_features();
        wide.resize(count * 2 * inner, 0.0);
        project(pool, &self.gate_up, activations, wide, 2 * inner);
        silu_mul_quantized(pool, wide, inner, activations);
        add_projection(pool, &self.down, activations, hidden);
    }

    /// Memory of the block's matrices.
    pub(super) fn bytes(&self) -> usize {
        let projections = self.qkv.iter().chain([&self.output]).chain(&self.gate_up);
        projections.chain([&self.down]).map(|projection| projection.weight.bytes()).sum()
    }
}

/// A decoder-only transformer, packed for the kernels. Valid by construction: `forward` cannot fail.
pub struct Decoder {
    config: ModelConfig,
    embedding: Arc<PackedMatrix>,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    head: Arc<PackedMatrix>,
    draft_vocab: Option<Arc<[u32]>>,
    rope: RopeTable,
    cache_format: CacheFormat,
    pool: Arc<ThreadPool>,
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
    activations: Activations,
    /// `[rows, hidden]`: the residual stream.
    hidden: Vec<f32>,
    /// `[rows, q + k + v]` or `[rows, gate | up]`.
    wide: Vec<f32>,
    /// `[logit_rows, head_rows]`
    logits: Vec<f32>,
    rope: Option<RopeTable>,
}

impl Workspace {
    /// Empty buffers.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

/// Reads and packs tensors, checking their shapes.
pub(super) struct Loader<'a> {
    pub(super) checkpoint: &'a mut Checkpoint,
    pub(super) precision: Precision,
}

impl Loader<'_> {
    pub(super) fn matrix(
        &mut self,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> Result<PackedMatrix, ModelError> {
        let tensor = self.checkpoint.tensor(name)?;
        check_shape(name, &tensor.shape, &[rows, cols])?;
        let pack = |error| ModelError::Pack { name: name.into(), error };
        match self.precision {
            Precision::AsStored => {
                PackedMatrix::pack(tensor.dtype, rows, cols, &tensor.data).map_err(pack)
            }
            Precision::F32 => PackedMatrix::from_f32(rows, cols, &tensor.to_f32()).map_err(pack),
        }
    }

    pub(super) fn vector(&mut self, name: &str, len: usize) -> Result<Vec<f32>, ModelError> {
        let tensor = self.checkpoint.tensor(name)?;
        check_shape(name, &tensor.shape, &[len])?;
        Ok(tensor.to_f32())
    }

    fn projection(
        &mut self,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> Result<Projection, ModelError> {
        let weight = self.matrix(&format!("{name}.weight"), rows, cols)?;
        let bias = format!("{name}.bias");
        let bias = if self.checkpoint.has(&bias) { Some(self.vector(&bias, rows)?) } else { None };
        Ok(Projection { weight, bias })
    }

    pub(super) fn layer(
        &mut self,
        config: &ModelConfig,
        index: usize,
    ) -> Result<Layer, ModelError> {
        let name = |rest: &str| format!("model.layers.{index}.{rest}");
        let (hidden, dim) = (config.hidden_size, config.head_dim);
        let q = config.num_attention_heads * dim;
        let kv = config.num_key_value_heads * dim;
        let inner = config.intermediate_size;
        let q_norm = name("self_attn.q_norm.weight");
        let qk_norm = if self.checkpoint.has(&q_norm) {
            let k_norm = self.vector(&name("self_attn.k_norm.weight"), dim)?;
            Some([self.vector(&q_norm, dim)?, k_norm])
        } else {
            None
        };
        Ok(Layer {
            input_norm: self.vector(&name("input_layernorm.weight"), hidden)?,
            qkv: [
                self.projection(&name("self_attn.q_proj"), q, hidden)?,
                self.projection(&name("self_attn.k_proj"), kv, hidden)?,
                self.projection(&name("self_attn.v_proj"), kv, hidden)?,
            ],
            qk_norm,
            output: self.projection(&name("self_attn.o_proj"), hidden, q)?,
            post_norm: self.vector(&name("post_attention_layernorm.weight"), hidden)?,
            gate_up: [
                self.projection(&name("mlp.gate_proj"), inner, hidden)?,
                self.projection(&name("mlp.up_proj"), inner, hidden)?,
            ],
            down: self.projection(&name("mlp.down_proj"), hidden, inner)?,
            attention: AttentionShape {
                heads: config.num_attention_heads,
                kv_heads: config.num_key_value_heads,
                head_dim: dim,
                window: config.window(index),
            },
        })
    }
}

/// What a target lends its drafts, also while it serves: its embedding and its head.
#[derive(Clone)]
pub struct Lender {
    config: ModelConfig,
    embedding: Arc<PackedMatrix>,
    head: Arc<PackedMatrix>,
    pool: Arc<ThreadPool>,
}

impl Lender {
    /// The target's shape.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Loads a draft. The embedding, and the head's rows, are the target's own where the draft leaves them
    /// out.
    ///
    /// # Errors
    /// [`ModelError`] naming what does not fit the target, the tensor or the field.
    pub fn load_draft(&self, checkpoint: &mut Checkpoint) -> Result<Draft, ModelError> {
        let config = checkpoint.config.clone();
        let vocab = check_draft(checkpoint, &self.config)?;
        let attachment = checkpoint.attachment.clone();
        let mut loader = Loader { checkpoint, precision: Precision::AsStored };
        let embedding = if loader.checkpoint.has("model.embed_tokens.weight") {
            let (rows, cols) = (config.vocab_size, config.hidden_size);
            Arc::new(loader.matrix("model.embed_tokens.weight", rows, cols)?)
        } else {
            Arc::clone(&self.embedding)
        };
        let own_head = loader.checkpoint.has("lm_head.weight") && !config.tie_word_embeddings;
        let full = if own_head {
            let rows = loader.checkpoint.tensor("lm_head.weight")?.shape[0];
            Arc::new(loader.matrix("lm_head.weight", rows, config.hidden_size)?)
        } else if loader.checkpoint.has("model.embed_tokens.weight") {
            Arc::clone(&embedding)
        } else {
            Arc::clone(&self.head)
        };
        let head = match &vocab {
            None if full.out_features() == config.vocab_size => full,
            Some(vocab) if full.out_features() == vocab.len() => full,
            Some(vocab) if full.out_features() == config.vocab_size => {
                Arc::new(full.select_rows(vocab))
            }
            _ => {
                let rows = full.out_features();
                return Err(ModelError::DraftVocab(format!("the head has {rows} rows")));
            }
        };
        if let Some(attachment) = attachment {
            attachment.check(&self.config, &config)?;
            let tables = Tables { embedding, head, draft_vocab: vocab };
            return Ok(
                AttachedDrafter::load(loader, config, attachment, tables, &self.pool)?.into()
            );
        }
        Ok(Decoder::assemble(loader, config, embedding, head, vocab, &self.pool)?.into())
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
        let mut loader = Loader { checkpoint, precision };
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

    /// What drafts of this model share with it.
    #[must_use]
    pub fn lender(&self) -> Lender {
        let (embedding, head) = (Arc::clone(&self.embedding), Arc::clone(&self.head));
        Lender { config: self.config.clone(), embedding, head, pool: Arc::clone(&self.pool) }
    }

    /// Loads a draft of `target`. The embedding, and the head's rows, are the target's own where the
    /// draft leaves them out.
    ///
    /// # Errors
    /// [`ModelError`] naming what does not fit the target, the tensor or the field.
    pub fn load_draft(
        checkpoint: &mut Checkpoint,
        target: &Self,
        pool: &Arc<ThreadPool>,
    ) -> Result<Draft, ModelError> {
        Lender { pool: Arc::clone(pool), ..target.lender() }.load_draft(checkpoint)
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
        let layers = (0..config.num_hidden_layers)
            .map(|index| loader.layer(&config, index))
            .collect::<Result<_, _>>()?;
        let norm = loader.vector("model.norm.weight", config.hidden_size)?;
        let rope = rope_table(&config);
        let pool = Arc::clone(pool);
        let cache_format = match loader.precision {
            Precision::AsStored => CacheFormat::F16,
            Precision::F32 => CacheFormat::F32,
        };
        Ok(Self { config, embedding, layers, norm, head, draft_vocab, rope, cache_format, pool })
    }

    /// The architecture.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
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
        let Workspace { activations, hidden, logits, .. } = workspace;
        // Only the wanted rows are normed and multiplied.
        let (pool, eps) = (&*self.pool, self.config.rms_norm_eps as f32);
        let row = |index: usize| wanted[index] as usize;
        rms_norm_quantized(pool, hidden, wanted.len(), row, &self.norm, eps, activations);
        logits.resize(wanted.len() * self.head_rows(), 0.0);
        matmul(pool, &[&self.head], activations, logits, self.head_rows());
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
        let Workspace { activations, hidden, wide, rope, .. } = workspace;
        let rope = rope.get_or_insert_with(|| self.rope.clone());
        rope.set_positions(&rows.positions);
        hidden.resize(count * width, 0.0);
        let pool = &*self.pool;
        embed(pool, &self.embedding, &rows.tokens, hidden);
        observe(0, hidden);
        let pass = Pass { pool, eps: self.config.rms_norm_eps as f32, rows, rope };
        for (index, layer) in self.layers.iter().enumerate() {
            layer.forward(&pass, &mut cache.layers[index], hidden, wide, activations);
            observe(index + 1, hidden);
        }
    }
}

/// Writes the outputs of several projections side by side into rows of `stride` values.
fn project<const N: usize>(
    pool: &ThreadPool,
    projections: &[Projection; N],
    x: &Activations,
    out: &mut [f32],
    stride: usize,
) {
    matmul(pool, &projections.each_ref().map(|p| &p.weight), x, out, stride);
    let mut offset = 0;
    for projection in projections {
        if let Some(bias) = &projection.bias {
            add_bias(out, bias, stride, offset);
        }
        offset += projection.weight.out_features();
    }
}

/// Adds the output of a projection to rows of its own width.
fn add_projection(pool: &ThreadPool, projection: &Projection, x: &Activations, out: &mut [f32]) {
    let width = projection.weight.out_features();
    matmul_add(pool, &projection.weight, x, out, width);
    if let Some(bias) = &projection.bias {
        add_bias(out, bias, width, 0);
    }
}
