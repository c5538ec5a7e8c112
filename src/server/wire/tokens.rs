//! What `/tokenize`, `/detokenize` and `/apply-template` take and give.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::True;

/// What `/tokenize` takes besides a conversation.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct Tokenize {
    /// A text.
    pub(crate) prompt: Option<String>,
    /// The same under llama.cpp's name, and without what the tokenizer puts around a text, unless asked for.
    pub(crate) content: Option<String>,
    /// Add what the tokenizer puts around a text; not to a conversation, unless asked for.
    pub(crate) add_special_tokens: Option<bool>,
    /// llama.cpp's name of `add_special_tokens`.
    pub(crate) add_special: Option<bool>,
    /// Give the tokens' names too.
    pub(crate) return_token_strs: Option<bool>,
    /// Give each token with its piece of text.
    pub(crate) with_pieces: Option<bool>,
    /// Only `true`: special tokens in a text are read as such.
    #[expect(dead_code, reason = "has one value")]
    parse_special: Option<True>,
}

/// What `/detokenize` takes.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct Detokenize {
    /// Token ids.
    pub(crate) tokens: Vec<u32>,
}

/// Tokens of a text.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Tokens {
    /// How many there are.
    pub(crate) count: usize,
    /// How many a sequence may have.
    pub(crate) max_model_len: usize,
    /// Token ids, or ids and pieces of text if those were asked for.
    pub(crate) tokens: TokenList,
    /// The tokens' names, if asked for.
    pub(crate) token_strs: Option<Vec<String>>,
}

/// Tokens, alone or with what they stand for.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum TokenList {
    /// Ids.
    Ids(Vec<u32>),
    /// Ids with pieces of text.
    Pieces(Vec<TokenPiece>),
}

/// A token with its piece of text.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct TokenPiece {
    /// Token id.
    pub(crate) id: u32,
    /// What it stands for.
    pub(crate) piece: PieceText,
}

/// A piece of text.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum PieceText {
    /// Whole characters.
    Text(String),
    /// Bytes that are none alone.
    Bytes(Vec<u8>),
}

/// Text of tokens.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Detokenized {
    /// The text.
    pub(crate) prompt: String,
    /// The same, under llama.cpp's name.
    pub(crate) content: String,
}

/// A prompt.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Templated {
    /// The text that the model would read.
    pub(crate) prompt: String,
}
