//! What `/v1/embeddings` takes and gives.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::PromptInput;

/// What `/v1/embeddings` takes.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct Embeddings {
    /// A text, a list of up to 2048 texts, a list of token ids, or a list of such lists.
    pub(crate) input: PromptInput,
    /// How the numbers are written.
    pub(crate) encoding_format: Option<EncodingFormat>,
    /// How many numbers of each embedding are given: the first ones, brought to length 1 again. All where it is left
    /// out.
    #[schemars(range(min = 1))]
    pub(crate) dimensions: Option<usize>,
    /// Identifies the end user; ignored.
    #[expect(dead_code, reason = "of no effect")]
    user: Option<String>,
}

/// How the numbers of an embedding are written.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum EncodingFormat {
    /// As numbers.
    Float,
    /// As the base64 of their little-endian 32-bit floats.
    Base64,
}

/// Embeddings of texts.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct EmbeddingList {
    /// `list`.
    pub(crate) object: &'static str,
    /// One per input, in order.
    pub(crate) data: Vec<Embedding>,
    /// The model's name.
    pub(crate) model: String,
    /// What it took.
    pub(crate) usage: EmbeddingUsage,
}

/// Embedding of a text: the mean over its tokens of the hidden states behind the final norm, of length 1.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Embedding {
    /// `embedding`.
    pub(crate) object: &'static str,
    /// Place among the inputs.
    pub(crate) index: usize,
    /// The numbers.
    pub(crate) embedding: EmbeddingNumbers,
}

/// The numbers of an embedding.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum EmbeddingNumbers {
    /// As numbers.
    Float(Vec<f32>),
    /// As the base64 of their little-endian 32-bit floats.
    Base64(String),
}

/// What embeddings took.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct EmbeddingUsage {
    /// Tokens of the inputs.
    pub(crate) prompt_tokens: usize,
    /// The same.
    pub(crate) total_tokens: usize,
}
