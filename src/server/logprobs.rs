//! Log-probabilities in the two shapes of the API.

use serde_json::{Map, Value, json};
use tokenizers::Tokenizer;

use crate::engine::TokenOut;

fn text(tokenizer: &Tokenizer, id: u32) -> String {
    tokenizer.decode(&[id], false).unwrap_or_default()
}

/// Chat: one entry per token.
pub(super) fn chat(tokenizer: &Tokenizer, tokens: &[TokenOut]) -> Value {
    let entry = |id: u32, logprob: f32| {
        let token = text(tokenizer, id);
        json!({"token": token, "logprob": logprob, "bytes": token.as_bytes()})
    };
    let content: Vec<Value> = tokens
        .iter()
        .map(|token| {
            let mut value = entry(token.id, token.logprob.unwrap_or(f32::NEG_INFINITY));
            let top = token.top_logprobs.iter().map(|(id, p)| entry(*id, *p)).collect();
            value["top_logprobs"] = Value::Array(top);
            value
        })
        .collect();
    json!({"content": content, "refusal": null})
}

/// Plain completions: parallel lists; `offset` is the length of the text before these tokens.
pub(super) fn completion(tokenizer: &Tokenizer, tokens: &[TokenOut], mut offset: usize) -> Value {
    let (mut texts, mut values, mut tops, mut offsets) = (vec![], vec![], vec![], vec![]);
    for token in tokens {
        let piece = text(tokenizer, token.id);
        offsets.push(offset);
        offset += piece.chars().count();
        texts.push(piece);
        values.push(token.logprob);
        let top: Map<String, Value> =
            token.top_logprobs.iter().map(|(id, p)| (text(tokenizer, *id), json!(p))).collect();
        tops.push(top);
    }
    json!({"tokens": texts, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets})
}
