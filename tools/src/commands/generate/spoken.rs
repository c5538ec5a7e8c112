//! Tokens as the API of another server tells of them, with the likeliest at each place.

use std::collections::HashMap;

use anyhow::{Context, Result, bail};
use pleach::checkpoint::Checkpoint;
use pleach::grammar::GrammarCompiler;
use serde_json::Value;

use crate::shared::chat::Chat;

/// How vLLM names tokens that it is asked to tell of by their ids (`return_tokens_as_token_ids`).
const BY_ID: &str = "token_id:";

/// The likeliest tokens of a place, and their log-probabilities.
type Likeliest = Vec<(u32, f32)>;

/// The ids of a model's tokens, by what stands for them.
pub(super) struct Spoken {
    vocab_size: usize,
    special: HashMap<String, u32>,
    /// By their bytes, where these are one token's alone.
    by_bytes: HashMap<Vec<u8>, Option<u32>>,
}

impl Spoken {
    pub(super) fn new(checkpoint: &Checkpoint, chat: &Chat) -> Result<Self> {
        let vocab_size = checkpoint.config.vocab_size;
        let compiler = GrammarCompiler::new(&chat.tokenizer, vocab_size, &chat.ends)?;
        let mut by_bytes = HashMap::new();
        for id in 0..vocab_size as u32 {
            if let Some(bytes) = compiler.token_bytes(id) {
                let known = by_bytes.entry(bytes.to_vec());
                known.and_modify(|id| *id = None).or_insert(Some(id));
            }
        }
        let added = chat.tokenizer.get_added_tokens_decoder();
        let special = added.into_iter().map(|(id, token)| (token.content, id)).collect();
        Ok(Self { vocab_size, special, by_bytes })
    }

    /// The tokens of an answer, and the likeliest at each place: `content` of a choice's `logprobs`. Of those, what
    /// cannot be told is left out.
    pub(super) fn tokens(&self, choice: &Value) -> Result<Vec<(u32, Likeliest)>> {
        let Some(content) = choice["logprobs"]["content"].as_array() else {
            bail!("the server gives no `logprobs` of its answers; leave out --top-logprobs");
        };
        let place = |entry: &Value| {
            let id = self.id(entry).with_context(|| {
                let token = &entry["token"];
                format!(
                    "the server wrote the token {token}, which --model's tokenizer does not have"
                )
            })?;
            let likeliest = entry["top_logprobs"].as_array().into_iter().flatten();
            let likeliest = likeliest
                .filter_map(|entry| Some((self.id(entry)?, entry["logprob"].as_f64()? as f32)));
            Ok((id, likeliest.collect()))
        };
        content.iter().map(place).collect()
    }

    /// The id that an entry names (llama.cpp's `id`, vLLM's `token_id:7`), or that of the token with its bytes.
    fn id(&self, entry: &Value) -> Option<u32> {
        let token = entry["token"].as_str()?;
        let named = match entry["id"].as_u64() {
            Some(id) => Some(id),
            None => token.strip_prefix(BY_ID).and_then(|id| id.parse().ok()),
        };
        if let Some(id) = named {
            return u32::try_from(id).ok().filter(|&id| (id as usize) < self.vocab_size);
        }
        if let Some(id) = self.special.get(token) {
            return Some(*id);
        }
        let told: Option<Vec<u8>> = entry["bytes"]
            .as_array()
            .and_then(|bytes| bytes.iter().map(|byte| u8::try_from(byte.as_u64()?).ok()).collect());
        *self.by_bytes.get(&told.unwrap_or_else(|| token.as_bytes().to_vec()))?
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spoken() -> Spoken {
        let by_bytes = [(&b"cat"[..], Some(3)), (b"\xc3", Some(4)), (b" ", None)];
        Spoken {
            vocab_size: 10,
            special: [("<|end|>".to_owned(), 9)].into(),
            by_bytes: by_bytes.map(|(bytes, id)| (bytes.to_vec(), id)).into(),
        }
    }

    #[test]
    fn tokens_are_told_by_id_or_bytes() {
        for (entry, id) in [
            (json!({"token": "cat"}), Some(3)),
            (json!({"token": "cat", "bytes": [99, 97, 116]}), Some(3)),
            (json!({"token": "\u{fffd}", "bytes": [195]}), Some(4)),
            (json!({"token": "?", "id": 7}), Some(7)),
            (json!({"token": "token_id:8", "bytes": [1]}), Some(8)),
            (json!({"token": "<|end|>"}), Some(9)),
            // Of several tokens, of none, beyond the vocabulary, no byte.
            (json!({"token": " "}), None),
            (json!({"token": "dog"}), None),
            (json!({"token": "?", "id": 10}), None),
            (json!({"token": "token_id:10"}), None),
            (json!({"token": "cat", "bytes": [256]}), Some(3)),
            (json!({"bytes": [195]}), None),
        ] {
            assert_eq!(spoken().id(&entry), id, "{entry}");
        }
    }

    #[test]
    fn what_is_not_known_is_left_out_of_the_likeliest_alone() {
        let top = json!([{"token": "cat", "logprob": -0.5}, {"token": "dog", "logprob": -1.0}]);
        let answer = |token: &str| json!({"logprobs": {"content": [{"token": token, "logprob": -0.5, "top_logprobs": top}]}});
        assert_eq!(spoken().tokens(&answer("cat")).unwrap(), [(3, vec![(3, -0.5)])]);
        let error = spoken().tokens(&answer("dog")).unwrap_err().to_string();
        assert!(error.contains("\"dog\""), "{error}");
        let error = spoken().tokens(&json!({"logprobs": null})).unwrap_err().to_string();
        assert!(error.contains("--top-logprobs"), "{error}");
    }
}
