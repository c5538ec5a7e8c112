//! The tokenizer: read from a folder, or built from GGUF metadata.

use std::collections::HashMap;
use std::panic::catch_unwind;
use std::path::Path;

use serde::de::IgnoredAny;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as Decoders;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::prepend::Prepend;
use tokenizers::normalizers::replace::Replace;
use tokenizers::normalizers::utils::Sequence as Normalizers;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::template::{SpecialToken, TemplateProcessing};
use tokenizers::{AddedToken, DecoderWrapper, NormalizerWrapper, Tokenizer};

use super::CheckpointError;
use super::gguf::{Gguf, Value};
use super::pre_tokenizer::PreTokenizer;

/// The tokenizer of a Hugging Face folder, where it has one.
pub(super) fn from_folder(folder: &Path) -> Result<Option<Tokenizer>, CheckpointError> {
    let path = folder.join("tokenizer.json");
    path.exists().then(|| from_json(&path)).transpose()
}

fn from_json(path: &Path) -> Result<Tokenizer, CheckpointError> {
    let bytes = std::fs::read(path)
        .map_err(|error| CheckpointError::Io { path: path.to_owned(), error })?;
    // The library looks for a shape that fits and, where none does, says little or panics.
    serde_json::from_slice::<IgnoredAny>(&bytes)
        .map_err(|e| CheckpointError::corrupt(path, format!("not JSON: {e}")))?;
    let tokenizer = catch_unwind(|| Tokenizer::from_bytes(&bytes));
    let tokenizer = tokenizer.unwrap_or_else(|_| Err("it is no tokenizer".into()));
    tokenizer.map_err(|e| CheckpointError::corrupt(path, e.to_string()))
}

/// Builds the tokenizer that the metadata describes; `None` where there is none (a draft).
pub(super) fn from_gguf(gguf: &Gguf) -> Result<Option<Tokenizer>, CheckpointError> {
    let key = "tokenizer.ggml.model";
    let Some(model) = gguf.get(key).and_then(Value::as_str) else { return Ok(None) };
    let tokens = strings(gguf, TOKENS)?;
    let prefix = model == "llama" && flag(gguf, PREFIX).unwrap_or(true);
    let (mut tokenizer, begins_texts) = match model {
        "gpt2" => {
            let words = PreTokenizer::of(gguf)?;
            (byte_level(gguf, &tokens, words)?, words.begins_texts())
        }
        "llama" => (sentence_piece(gguf, &tokens, prefix)?, true),
        _ => {
            let reason = format!(
                "`{model}` is not supported; gpt2 (byte-level BPE) and llama (SentencePiece) are"
            );
            return Err(CheckpointError::field(gguf.path(), key, reason));
        }
    };
    // Types 3 (control) and 4 (user-defined) are matched in the text before anything is split.
    let kinds = gguf.get("tokenizer.ggml.token_type").and_then(Value::as_array).unwrap_or_default();
    let added: Vec<AddedToken> = tokens
        .iter()
        .zip(kinds)
        .filter_map(|(token, kind)| match kind.as_u64() {
            Some(3) => Some(AddedToken::from(*token, true)),
            // SentencePiece finds them in the text in which spaces are written as it writes them.
            Some(4) => {
                Some(AddedToken::from(*token, false).normalized(model == "llama" && !prefix))
            }
            _ => None,
        })
        .collect();
    tokenizer
        .add_tokens(added)
        .map_err(|e| CheckpointError::field(gguf.path(), TOKENS, e.to_string()))?;
    tokenizer.with_post_processor(first_token(gguf, begins_texts, &tokens)?);
    Ok(Some(tokenizer))
}

const TOKENS: &str = "tokenizer.ggml.tokens";
/// How SentencePiece writes a space.
const SPACE: &str = "\u{2581}";
const PREFIX: &str = "tokenizer.ggml.add_space_prefix";
const SCORES: &str = "tokenizer.ggml.scores";
const MERGES: &str = "tokenizer.ggml.merges";

fn strings<'a>(gguf: &'a Gguf, key: &str) -> Result<Vec<&'a str>, CheckpointError> {
    gguf.get(key)
        .and_then(Value::as_array)
        .and_then(|values| values.iter().map(Value::as_str).collect())
        .ok_or_else(|| CheckpointError::field(gguf.path(), key, "is no array of strings"))
}

fn flag(gguf: &Gguf, key: &str) -> Option<bool> {
    gguf.get(key).and_then(Value::as_u64).map(|flag| flag != 0)
}

/// What puts the first token of every text in its place, where the file wants one; `usual` is what it wants where it
/// does not say it.
fn first_token(
    gguf: &Gguf,
    usual: bool,
    tokens: &[&str],
) -> Result<Option<TemplateProcessing>, CheckpointError> {
    let flag = flag(gguf, "tokenizer.ggml.add_bos_token");
    let key = "tokenizer.ggml.bos_token_id";
    let id = gguf.get(key).and_then(Value::as_u64);
    let Some(id) = id.filter(|_| flag.unwrap_or(usual)) else { return Ok(None) };
    let error = |reason: String| CheckpointError::field(gguf.path(), key, reason);
    let token = usize::try_from(id).ok().and_then(|id| tokens.get(id));
    let token = token.ok_or_else(|| error(format!("{id} is no token")))?;
    let special = SpecialToken::new(
        "bos".into(),
        vec![u32::try_from(id).map_err(|e| error(e.to_string()))?],
        vec![(*token).to_owned()],
    );
    let special = special.map_err(|e| error(e.to_string()))?;
    TemplateProcessing::builder()
        .try_single("bos $A")
        .and_then(|builder| builder.try_pair("bos $A $B:1"))
        .map_err(error)?
        .special_tokens(vec![special])
        .build()
        .map(Some)
        .map_err(|e| error(e.to_string()))
}

/// SentencePiece's BPE: two neighbours that form a token are joined, the token with the highest score
/// first; what is no token falls back to bytes. With `prefix`, a text begins with a space.
fn sentence_piece(
    gguf: &Gguf,
    tokens: &[&str],
    prefix: bool,
) -> Result<Tokenizer, CheckpointError> {
    let error = |key: &str, reason: String| CheckpointError::field(gguf.path(), key, reason);
    let scores: Vec<f64> = gguf
        .get(SCORES)
        .and_then(Value::as_array)
        .and_then(|values| values.iter().map(Value::as_f64).collect())
        .filter(|scores: &Vec<f64>| scores.len() == tokens.len())
        .ok_or_else(|| error(SCORES, "is no array of numbers, one a token".into()))?;
    let ids: HashMap<&str, u32> = tokens.iter().copied().zip(0..).collect();
    // Every way to put a token together; among equal scores, the first token's parts come first.
    let mut merges = Vec::new();
    for (whole, score) in tokens.iter().zip(&scores) {
        for (at, _) in whole.char_indices().skip(1) {
            let (left, right) = whole.split_at(at);
            if let (Some(l), Some(r)) = (ids.get(left), ids.get(right)) {
                merges.push((score, *l, *r, left, right));
            }
        }
    }
    merges.sort_by(|a, b| b.0.total_cmp(a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    let merges = merges.into_iter().map(|m| (m.3.to_owned(), m.4.to_owned())).collect();
    let vocab: Vocab = tokens.iter().map(|token| (*token).to_owned()).zip(0..).collect();
    let unknown = gguf.get("tokenizer.ggml.unknown_token_id").and_then(Value::as_u64).unwrap_or(0);
    let unknown = usize::try_from(unknown).ok().and_then(|id| tokens.get(id));
    let bpe = BPE::builder()
        .vocab_and_merges(vocab, merges)
        .unk_token(unknown.unwrap_or(&"<unk>").to_string())
        .fuse_unk(true)
        .byte_fallback(true)
        .build()
        .map_err(|e| error(TOKENS, e.to_string()))?;
    let mut tokenizer = Tokenizer::new(bpe);
    let replace = |from: &str, to| Replace::new(from, to).map_err(|e| error(TOKENS, e.to_string()));
    let mut normalizers: Vec<NormalizerWrapper> = vec![replace(" ", SPACE)?.into()];
    let mut decoders: Vec<DecoderWrapper> =
        vec![replace(SPACE, " ")?.into(), ByteFallback::new().into(), Fuse::new().into()];
    if prefix {
        normalizers.push(Prepend::new(SPACE.into()).into());
        decoders.push(Strip::new(' ', 1, 0).into());
    }
    tokenizer
        .with_normalizer(Some(Normalizers::new(normalizers)))
        .map_err(|e| error(TOKENS, e.to_string()))?;
    tokenizer.with_decoder(Some(Decoders::new(decoders)));
    Ok(tokenizer)
}

/// Byte-level BPE of words, with the merges of the metadata.
fn byte_level(
    gguf: &Gguf,
    tokens: &[&str],
    words: PreTokenizer,
) -> Result<Tokenizer, CheckpointError> {
    let error = |reason: String| CheckpointError::field(gguf.path(), MERGES, reason);
    let merges = strings(gguf, MERGES)?
        .into_iter()
        .map(|merge| merge.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())))
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| error("has an entry that is no pair".into()))?;
    let vocab: Vocab = tokens.iter().map(|token| (*token).to_owned()).zip(0..).collect();
    let bpe = BPE::builder()
        .vocab_and_merges(vocab, merges)
        .ignore_merges(words.ignores_merges())
        .build()
        .map_err(|e| error(e.to_string()))?;
    let mut tokenizer = Tokenizer::new(bpe);
    tokenizer.with_pre_tokenizer(Some(words.build().map_err(|e| error(e.to_string()))?));
    tokenizer.with_decoder(Some(ByteLevel::new(false, true, true)));
    Ok(tokenizer)
}
