//! Special tokens by their role, as chat templates know them: `bos_token`, `eos_token`, `pad_token` and so on.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value as Json};
use tokenizers::Tokenizer;

use super::gguf::{Gguf, Value};
use super::settings::TOKENIZER;
use super::{CheckpointError, fields};
use crate::checkpoint::architecture::ModelConfig;

/// The text of the special token of each role.
pub type SpecialTokens = BTreeMap<String, String>;

/// Roles that transformers gives a template, and the ends of GGUF's keys for them.
const ROLES: [(&str, &str); 7] = [
    ("bos_token", "bos_token_id"),
    ("eos_token", "eos_token_id"),
    ("unk_token", "unknown_token_id"),
    ("sep_token", "seperator_token_id"),
    ("pad_token", "padding_token_id"),
    ("cls_token", "cls_token_id"),
    ("mask_token", "mask_token_id"),
];

/// The roles as `transformers` finds them: in `tokenizer_config.json`, beside older ones in
/// `special_tokens_map.json` too. Only where neither names a role, the ids of the configuration count.
pub(super) fn from_folder(
    folder: &Path,
    config: &ModelConfig,
    tokenizer: Option<&Tokenizer>,
) -> Result<SpecialTokens, CheckpointError> {
    let mut roles = fields::object(&folder.join(TOKENIZER))?.unwrap_or_default();
    if !roles.contains_key("added_tokens_decoder") {
        roles.extend(fields::object(&folder.join("special_tokens_map.json"))?.unwrap_or_default());
    }
    let id = |role: &str| match role {
        "bos_token" => config.bos_token_id,
        "eos_token" => config.eos_token_ids.first().copied(),
        _ => None,
    };
    let found = |(role, _): &(&str, &str)| {
        let text = match role_text(&roles, role) {
            Some(text) => text,
            None => tokenizer.and_then(|tokenizer| tokenizer.id_to_token(id(role)?)),
        };
        Some(((*role).to_owned(), text?))
    };
    Ok(ROLES.iter().filter_map(found).collect())
}

/// A role's text, alone or in an object; `Some(None)` where the file says that there is none.
fn role_text(roles: &Map<String, Json>, role: &str) -> Option<Option<String>> {
    let value = roles.get(role)?;
    let text = value.as_str().or_else(|| value.get("content")?.as_str());
    Some(text.map(str::to_owned))
}

/// The roles that a GGUF file's keys name.
pub(super) fn from_gguf(gguf: &Gguf) -> SpecialTokens {
    let tokens = gguf.get("tokenizer.ggml.tokens").and_then(Value::as_array).unwrap_or_default();
    let found = |(role, key): &(&str, &str)| {
        let id = gguf.get(&format!("tokenizer.ggml.{key}"))?.as_u64()?;
        let text = tokens.get(usize::try_from(id).ok()?)?.as_str()?;
        Some(((*role).to_owned(), text.to_owned()))
    };
    ROLES.iter().filter_map(found).collect()
}

/// Texts of tokens that end a turn, a message or a text, in every model that has them.
const ENDS: [&str; 7] = [
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|end_of_text|>",
    "<|endoftext|>",
];

/// The tokens that end a generation by their texts: a GGUF file's keys may name one of them, or another model's.
pub(super) fn ends(gguf: &Gguf) -> Vec<u32> {
    let tokens = gguf.get("tokenizer.ggml.tokens").and_then(Value::as_array).unwrap_or_default();
    let is_end = |token: &Value| token.as_str().is_some_and(|text| ENDS.contains(&text));
    tokens.iter().zip(0..).filter(|(token, _)| is_end(token)).map(|(_, id)| id).collect()
}
