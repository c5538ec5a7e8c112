//! What a target lends its drafts.

use std::sync::Arc;

use super::Decoder;
use super::error::{ModelError, check_draft};
use super::loader::{Loader, Precision};
use crate::checkpoint::architecture::{ModelConfig, PROJECTIONS, tensor_names};
use crate::checkpoint::{Checkpoint, TensorInfo};
use crate::model::attached::{AttachedDrafter, Tables};
use crate::model::draft::Draft;
use pleach_kernels::{CacheFormat, LayerCache, PackedMatrix, Shortlist, ThreadPool};

/// What a target lends its drafts, also while it serves: its embedding and its head, and the format of its cache.
#[derive(Clone)]
pub struct Lender {
    pub(super) config: ModelConfig,
    pub(super) embedding: Arc<PackedMatrix>,
    pub(super) head: Arc<PackedMatrix>,
    pub(super) pool: Arc<ThreadPool>,
    pub(super) cache_format: CacheFormat,
}

impl Lender {
    /// The target's shape.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Memory that a draft will take, with a K/V cache of `num_blocks` blocks; an attached one has no cache.
    ///
    /// # Errors
    /// [`ModelError`] naming a tensor whose format is not read.
    pub fn draft_bytes(&self, draft: &Checkpoint, num_blocks: usize) -> Result<u64, ModelError> {
        let config = &draft.config;
        let (embedding, head) = ("model.embed_tokens.weight", "lm_head.weight");
        let blocks = tensor_names(config, |name| draft.has(name));
        let others = [embedding, head].into_iter().chain(PROJECTIONS);
        let mut bytes = 0;
        for name in blocks.iter().map(String::as_str).chain(others).filter(|name| draft.has(name)) {
            let TensorInfo { dtype, shape } = draft.info(name)?;
            bytes += match shape[..] {
                [rows, cols] => PackedMatrix::packed_bytes(dtype, rows, cols),
                _ => shape.iter().product::<usize>() * size_of::<f32>(),
            };
        }
        // As `load_draft` finds its head.
        let own = [head, embedding].into_iter().find(|name| draft.has(name));
        let dtype = match own {
            Some(name) => draft.info(name)?.dtype,
            None => self.head.dtype(),
        };
        if let Some(rows) = draft.draft_vocab.as_ref().filter(|_| !draft.has(head)) {
            bytes += PackedMatrix::packed_bytes(dtype, rows.len(), config.hidden_size);
        }
        if draft.attachment.is_some() {
            let rows = draft.draft_vocab.as_ref().map_or(config.vocab_size, |rows| rows.len());
            bytes += Shortlist::copy_bytes(dtype, rows, config.hidden_size);
        } else {
            let layer = LayerCache::bytes(num_blocks, &config.attention(0), self.cache_format);
            bytes += layer * config.num_hidden_layers;
        }
        Ok(bytes as u64)
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
        // The model's own threads may be serving, and a job that packs would hold up its passes.
        let alone = ThreadPool::new(1);
        let mut loader = Loader { checkpoint, precision: Precision::AsStored, pool: &alone };
        let embedding = if loader.checkpoint.has("model.embed_tokens.weight") {
            let (rows, cols) = (config.vocab_size, config.hidden_size);
            Arc::new(loader.matrix("model.embed_tokens.weight", rows, cols)?)
        } else {
            Arc::clone(&self.embedding)
        };
        let own_head = loader.checkpoint.has("lm_head.weight") && !config.tie_word_embeddings;
        let full = if own_head {
            let rows = loader.checkpoint.info("lm_head.weight")?.shape[0];
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
            let tables = Tables { embedding, head: Shortlist::new(head), draft_vocab: vocab };
            return Ok(
                AttachedDrafter::load(loader, config, attachment, tables, &self.pool)?.into()
            );
        }
        let mut draft = Decoder::assemble(loader, config, embedding, head, vocab, &self.pool)?;
        draft.set_cache_format(self.cache_format);
        Ok(draft.into())
    }
}

impl Decoder {
    /// What drafts of this model share with it.
    #[must_use]
    pub fn lender(&self) -> Lender {
        let (embedding, head) = (Arc::clone(&self.embedding), Arc::clone(&self.head));
        Lender {
            config: self.config.clone(),
            embedding,
            head,
            pool: Arc::clone(&self.pool),
            cache_format: self.cache_format,
        }
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
}
