//! What a target lends its drafts.

use std::sync::Arc;

use super::Decoder;
use super::error::{ModelError, check_draft};
use super::loader::{Loader, Precision};
use crate::checkpoint::Checkpoint;
use crate::checkpoint::architecture::ModelConfig;
use crate::model::attached::{AttachedDrafter, Tables};
use crate::model::draft::Draft;
use pleach_kernels::{PackedMatrix, ThreadPool};

/// What a target lends its drafts, also while it serves: its embedding and its head.
#[derive(Clone)]
pub struct Lender {
    pub(super) config: ModelConfig,
    pub(super) embedding: Arc<PackedMatrix>,
    pub(super) head: Arc<PackedMatrix>,
    pub(super) pool: Arc<ThreadPool>,
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
            let tables = Tables { embedding, head, draft_vocab: vocab };
            return Ok(
                AttachedDrafter::load(loader, config, attachment, tables, &self.pool)?.into()
            );
        }
        Ok(Decoder::assemble(loader, config, embedding, head, vocab, &self.pool)?.into())
    }
}
