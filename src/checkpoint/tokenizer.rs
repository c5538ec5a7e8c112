//! The tokenizer: read from a folder, or built from GGUF metadata.

use std::path::Path;

use serde_json::Value as Json;
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer};

use super::gguf::{Gguf, Value};
use super::{CheckpointError, hf_config};

/// Splits of Llama 3 and Qwen 2 before byte-level BPE, as their tokenizers define them.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Tokenizer and chat template of a Hugging Face folder; either may be missing.
pub(super) fn from_folder(
    folder: &Path,
) -> Result<(Option<Tokenizer>, Option<String>), CheckpointError> {
    let path = folder.join("tokenizer.json");
    let tokenizer = if path.exists() {
        Some(
            Tokenizer::from_file(&path)
                .map_err(|e| CheckpointError::corrupt(&path, e.to_string()))?,
        )
    } else {
        None
    };
    let path = folder.join("chat_template.jinja");
    if path.exists() {
        let text = std::fs::read_to_string(&path)
            .map_err(|source| CheckpointError::Io { path: path.clone(), source })?;
        return Ok((tokenizer, Some(text)));
    }
    let config = hf_config::object(&folder.join("tokenizer_config.json"))?;
    let template = config.as_ref().and_then(|c| c.get("chat_template")).and_then(|t| match t {
        Json::String(text) => Some(text.clone()),
        Json::Array(named) => named
            .iter()
            .find(|t| t["name"] == "default")
            .and_then(|t| t["template"].as_str().map(str::to_owned)),
        _ => None,
    });
    Ok((tokenizer, template))
}

/// Builds the tokenizer that the metadata describes; `None` where there is none (a draft).
pub(super) fn from_gguf(gguf: &Gguf) -> Result<Option<Tokenizer>, CheckpointError> {
    let key = "tokenizer.ggml.model";
    let Some(model) = gguf.get(key).and_then(Value::as_str) else { return Ok(None) };
    if model != "gpt2" {
        return Err(CheckpointError::field(
            gguf.path(),
            key,
            format!("`{model}` is not supported; gpt2 (byte-level BPE) is"),
        ));
    }
    let strings = |key: &str| -> Result<Vec<&str>, CheckpointError> {
        gguf.get(key)
            .and_then(Value::as_array)
            .and_then(|values| values.iter().map(Value::as_str).collect())
            .ok_or_else(|| CheckpointError::field(gguf.path(), key, "is no array of strings"))
    };
    let tokens = strings("tokenizer.ggml.tokens")?;
    let merges = strings("tokenizer.ggml.merges")?
        .into_iter()
        .map(|merge| merge.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())))
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| {
            CheckpointError::field(
                gguf.path(),
                "tokenizer.ggml.merges",
                "has an entry that is no pair",
            )
        })?;
    let vocab: Vec<_> =
        (0u32..).zip(&tokens).map(|(id, token)| ((*token).to_owned(), id)).collect();
    let bpe = BPE::builder()
        .vocab_and_merges(vocab.into_iter().collect::<tokenizers::models::bpe::Vocab>(), merges)
        .build()
        .map_err(|e| CheckpointError::field(gguf.path(), "tokenizer.ggml.merges", e.to_string()))?;
    let mut tokenizer = Tokenizer::new(bpe);
    tokenizer.with_pre_tokenizer(Some(pre_tokenizer(gguf)?));
    tokenizer.with_decoder(Some(ByteLevel::new(false, true, true)));
    // Types 3 (control) and 4 (user-defined) are matched in the text before anything is split.
    let kinds = gguf.get("tokenizer.ggml.token_type").and_then(Value::as_array).unwrap_or_default();
    let added: Vec<AddedToken> = tokens
        .iter()
        .zip(kinds)
        .filter_map(|(token, kind)| match kind.as_u64() {
            Some(3) => Some(AddedToken::from(*token, true)),
            Some(4) => Some(AddedToken::from(*token, false).normalized(false)),
            _ => None,
        })
        .collect();
    tokenizer
        .add_tokens(added)
        .map_err(|e| CheckpointError::field(gguf.path(), "tokenizer.ggml.tokens", e.to_string()))?;
    Ok(Some(tokenizer))
}

fn pre_tokenizer(gguf: &Gguf) -> Result<PreTokenizerWrapper, CheckpointError> {
    let key = "tokenizer.ggml.pre";
    let name = gguf.get(key).and_then(Value::as_str).unwrap_or("default");
    let split = |pattern: &str| -> Result<PreTokenizerWrapper, CheckpointError> {
        let split = Split::new(
            SplitPattern::Regex(pattern.into()),
            SplitDelimiterBehavior::Isolated,
            false,
        )
        .map_err(|e| CheckpointError::field(gguf.path(), key, e.to_string()))?;
        Ok(Sequence::new(vec![split.into(), ByteLevel::new(false, true, false).into()]).into())
    };
    match name {
        "smollm" => Ok(Sequence::new(vec![
            Digits::new(true).into(),
            ByteLevel::new(false, true, true).into(),
        ])
        .into()),
        "llama-bpe" | "llama3" => split(LLAMA3),
        "qwen2" => split(QWEN2),
        "gpt-2" | "default" => Ok(ByteLevel::new(false, true, true).into()),
        other => Err(CheckpointError::field(
            gguf.path(),
            key,
            format!("`{other}` is not supported; smollm, llama-bpe, qwen2 and gpt-2 are"),
        )),
    }
}
