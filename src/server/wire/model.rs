//! The models that are served.

use schemars::JsonSchema;
use serde::Serialize;

/// The models served.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ModelList {
    /// `list`.
    pub(crate) object: &'static str,
    /// One per name.
    pub(crate) data: Vec<Model>,
}

/// A model served.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Model {
    /// Its name.
    pub(crate) id: String,
    /// `model`.
    pub(crate) object: &'static str,
    /// When the server was started or the adapter loaded, in seconds since 1970.
    pub(crate) created: u64,
    /// `pleach`.
    pub(crate) owned_by: &'static str,
    /// How many tokens a sequence may have.
    pub(crate) max_model_len: usize,
    /// Where the model comes from, as `--model` has it, or the folder of the adapter.
    pub(crate) root: Option<String>,
    /// Of an adapter, the name of the model that it adds to; otherwise null.
    pub(crate) parent: Option<String>,
    /// What the model's files say of it; null of an adapter.
    pub(crate) meta: Option<ModelMeta>,
}

/// A model by its files.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ModelMeta {
    /// Tokens of the longest context that its positions are trained (or scaled) for.
    pub(crate) n_ctx_train: usize,
    /// Width of its hidden states, and so of its embeddings.
    pub(crate) n_embd: usize,
    /// Tokens of its vocabulary.
    pub(crate) n_vocab: usize,
    /// Its parameters.
    pub(crate) n_params: u64,
    /// Bytes of its weights in the files.
    pub(crate) size: u64,
    /// The format of its weights, such as `Q4_K_M` or `BF16`.
    pub(crate) quantization: String,
}
