//! How a GGUF file's byte-level tokenizer splits a text into words, before their bytes are merged: one of a few ways,
//! which `tokenizer.ggml.pre` names by a model that has it. The names, and what else follows from them, are
//! llama.cpp's.

use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{PreTokenizerWrapper, SplitDelimiterBehavior};

use super::CheckpointError;
use super::gguf::{Gguf, Value};

const KEY: &str = "tokenizer.ggml.pre";

/// Words of GPT-2, as its tokenizer defines them.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// Words of Llama 3.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Words of Qwen 2.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Words of GPT-4o.
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Words of Mistral's Tekken.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Where llama.cpp splits the texts of models that it knows nothing of, one after the other.
const DEFAULT: [&str; 4] = [r"[\p{P}$+<=>^~|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"];

/// Tokens of Llama 3's vocabulary.
const LLAMA3_TOKENS: usize = 128_256;

/// A way to split texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PreTokenizer {
    /// At punctuation, into words as GPT-2 has them, and numbers into groups of three digits from the left.
    Default,
    /// Into words, numbers and runs of other characters, with the space before them.
    Gpt2,
    /// As [`Gpt2`](Self::Gpt2), but every digit alone.
    Digits,
    /// As Llama 3 does. A word that is a token is not put together from parts.
    Llama3,
    /// As [`Llama3`](Self::Llama3), but every word is put together from parts.
    Dbrx,
    /// As GPT-4o does, and Phi-4-mini and Llama 4 after it.
    Gpt4o,
    /// As Qwen 2 does.
    Qwen2,
    /// As Mistral does since Nemo. A word that is a token is not put together from parts.
    Tekken,
}

impl PreTokenizer {
    /// The way that a file names. Where it names none, one is chosen by its architecture, and a warning says so.
    ///
    /// # Errors
    /// The name is not known.
    pub(super) fn of(gguf: &Gguf) -> Result<Self, CheckpointError> {
        let Some(name) = gguf.get(KEY).and_then(Value::as_str) else {
            let chosen = Self::usual(gguf);
            let file = gguf.path().display();
            tracing::warn!(%file, ?chosen, "{KEY} is missing: words may be split in another way");
            return Ok(chosen);
        };
        Self::named(name).ok_or_else(|| {
            let reason = format!(
                "`{name}` is not supported; default, gpt-2, smollm, llama-bpe, dbrx, gpt-4o, qwen2 and tekken are, and their other names"
            );
            CheckpointError::field(gguf.path(), KEY, reason)
        })
    }

    /// What models of the file's architecture do.
    fn usual(gguf: &Gguf) -> Self {
        let tokens = gguf.get("tokenizer.ggml.tokens").and_then(Value::as_array);
        match gguf.get("general.architecture").and_then(Value::as_str) {
            Some("qwen2" | "qwen3") => Self::Qwen2,
            Some("llama") if tokens.map_or(0, <[Value]>::len) == LLAMA3_TOKENS => Self::Llama3,
            _ => Self::Default,
        }
    }

    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "default" => Self::Default,
            "gpt-2" | "phi-2" | "jina-es" | "jina-de" | "jina-v2-es" | "jina-v2-de"
            | "gigachat" | "a.x-4.0" | "mellum" | "modern-bert" | "mpt" | "olmo" | "jais"
            | "trillion" | "granite-docling" | "exaone4" => Self::Gpt2,
            "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone"
            | "minerva-7b" | "mellum2" => Self::Digits,
            "llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "falcon-h1" | "pixtral"
            | "midm-2.0" | "lfm2" | "jina-v5-nano" => Self::Llama3,
            "dbrx" | "smaug-bpe" => Self::Dbrx,
            "gpt-4o" | "llama4" | "kanana2" => Self::Gpt4o,
            "qwen2" | "deepseek-r1-qwen" | "kormo" | "f2llmv2" | "stablelm2" | "megrez"
            | "hunyuan" | "solar-open" | "grok-2" => Self::Qwen2,
            "tekken" => Self::Tekken,
            _ => return None,
        })
    }

    /// Whether a word that is a token becomes that token, whatever the merges make of it.
    pub(super) fn ignores_merges(self) -> bool {
        matches!(self, Self::Llama3 | Self::Tekken)
    }

    /// Whether texts begin with the first token where the file does not say it.
    pub(super) fn begins_texts(self) -> bool {
        self == Self::Llama3
    }

    /// As the library has it.
    ///
    /// # Errors
    /// What the library says of an expression.
    pub(super) fn build(self) -> tokenizers::Result<PreTokenizerWrapper> {
        let patterns: &[&str] = match self {
            Self::Gpt2 => return Ok(ByteLevel::new(false, true, true).into()),
            Self::Digits => {
                let words = ByteLevel::new(false, true, true);
                return Ok(Sequence::new(vec![Digits::new(true).into(), words.into()]).into());
            }
            Self::Llama3 | Self::Dbrx => &[LLAMA3],
            Self::Gpt4o => &[GPT4O],
            Self::Qwen2 => &[QWEN2],
            Self::Tekken => &[TEKKEN],
            Self::Default => &DEFAULT,
        };
        let isolated = SplitDelimiterBehavior::Isolated;
        let split =
            |pattern: &&str| Split::new(SplitPattern::Regex((*pattern).into()), isolated, false);
        let splits: tokenizers::Result<Vec<_>> = patterns.iter().map(split).collect();
        let splits = splits?.into_iter().map(PreTokenizerWrapper::from);
        let bytes = PreTokenizerWrapper::from(ByteLevel::new(false, true, false));
        Ok(Sequence::new(splits.chain([bytes]).collect()).into())
    }
}
