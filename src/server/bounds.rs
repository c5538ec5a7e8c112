//! How much a request may hold: every bound on what a client sends, for all of the API's shapes.
//!
//! A body is measured as text before it is read, then field by field; a text's length in tokens is the model's to
//! bound, and a grammar's size [`GrammarCompiler`](crate::grammar::GrammarCompiler)'s.

use serde_json::{Map, Value};

use super::error::ApiError;

/// Bytes of a request body at most.
pub(super) const BODY_BYTES: usize = 8 << 20;
/// Bytes of a body that a request may hold without regard to others: as many as usual bodies have.
pub(super) const SMALL_BODY_BYTES: usize = 64 << 10;
/// Bytes that all larger bodies may hold together, from their first byte until they are read.
pub(super) const BODIES_BYTES: usize = 64 << 20;
/// Choices of one prompt: vLLM's clients ask for no more, and each is a sequence.
pub(super) const CHOICES: usize = 128;
/// Prompts in one request.
pub(super) const PROMPTS: usize = 128;
/// Texts to embed in one request, as OpenAI has it.
pub(super) const INPUTS: usize = 2048;
/// Log-probabilities of prompts in one answer: some tens of megabytes of text.
pub(super) const PROMPT_LOGPROBS: usize = 1 << 20;
/// Functions in one request, as OpenAI has it.
pub(super) const TOOLS: usize = 128;
/// Objects and lists in a body. Each takes some hundred bytes once read, so a body of empty ones would take gigabytes.
const CONTAINERS: usize = 1 << 16;
/// Values in a body: token ids are the most numerous, and a million of them are beyond any context.
const VALUES: usize = 1 << 20;
/// Messages, or items, of a conversation: templates walk all of them.
const MESSAGES: usize = 4096;
/// Parts and calls of all messages together.
const PARTS: usize = 8192;
/// Stop strings: each is looked for at every token, on the engine's thread.
const STOPS: usize = 16;
/// Bytes of one stop string: text is held back by as much.
const STOP_BYTES: usize = 1 << 10;
/// Bytes of all stop strings.
const STOPS_BYTES: usize = 4 << 10;
/// Tokens that end an answer: each generated token is looked for among them.
const STOP_TOKEN_IDS: usize = 256;
/// The only tokens that an answer may have: each row of logits is cut down to them.
const ALLOWED_TOKEN_IDS: usize = 4096;
/// Texts that an answer may not have: each is compared with its end at every token.
const BAD_WORDS: usize = 256;
/// Bytes of all of them.
const BAD_WORDS_BYTES: usize = 16 << 10;
/// Texts that break repetitions: each is looked for in the whole vocabulary.
const BREAKERS: usize = 32;
/// Bytes of one of them.
const BREAKER_BYTES: usize = 64;
/// Tokens whose logits are changed, at every position; vLLM's bound.
const LOGIT_BIAS: usize = 1024;
/// Entries that come back with an answer. OpenAI's bounds are 16, of 64 and 512 bytes.
const METADATA: usize = 64;
/// Bytes of those entries.
const METADATA_BYTES: usize = 16 << 10;
/// Variables of the chat template; their texts together are bounded with those of a small body.
const VARIABLES: usize = 64;
/// Bytes of a name, which messages quote.
const NAME_BYTES: usize = 1 << 10;

/// A list, a text or an object, by the field that it stands in.
struct Bound {
    fields: &'static [&'static str],
    /// Items of a list or entries of an object.
    items: usize,
    /// Bytes of one text, and of all.
    bytes: (usize, usize),
}

const ANY: usize = usize::MAX;

/// Fields of all shapes. Lists of numbers are prompts in `input`, so only its other items count.
const FIELDS: [Bound; 12] = [
    Bound { fields: &["messages", "input"], items: MESSAGES, bytes: (ANY, ANY) },
    Bound { fields: &["tools"], items: TOOLS, bytes: (ANY, ANY) },
    Bound { fields: &["stop", "stop_sequences"], items: STOPS, bytes: (STOP_BYTES, STOPS_BYTES) },
    Bound { fields: &["stop_token_ids"], items: STOP_TOKEN_IDS, bytes: (ANY, ANY) },
    Bound { fields: &["allowed_token_ids"], items: ALLOWED_TOKEN_IDS, bytes: (ANY, ANY) },
    Bound { fields: &["bad_words"], items: BAD_WORDS, bytes: (NAME_BYTES, BAD_WORDS_BYTES) },
    Bound { fields: &["dry_sequence_breakers"], items: BREAKERS, bytes: (BREAKER_BYTES, ANY) },
    Bound { fields: &["logit_bias"], items: LOGIT_BIAS, bytes: (ANY, ANY) },
    Bound { fields: &["metadata"], items: METADATA, bytes: (METADATA_BYTES, METADATA_BYTES) },
    Bound { fields: &["chat_template_kwargs"], items: VARIABLES, bytes: (ANY, SMALL_BODY_BYTES) },
    Bound {
        fields: &["model", "user", "cache_salt", "lora_name"],
        items: ANY,
        bytes: (NAME_BYTES, NAME_BYTES),
    },
    Bound { fields: &["tool_choice"], items: 16, bytes: (NAME_BYTES, NAME_BYTES) },
];

/// Measures a body before it is read.
pub(super) fn check_text(body: &[u8]) -> Result<(), ApiError> {
    let (mut containers, mut values) = (0_usize, 1_usize);
    let (mut quoted, mut escaped) = (false, false);
    for byte in body {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = quoted,
            b'"' => quoted = !quoted,
            _ if quoted => {}
            b'{' | b'[' => containers += 1,
            b',' => values += 1,
            _ => {}
        }
    }
    let too_many = |what, most| {
        let message = format!("the body holds more than {most} {what}");
        Err(ApiError::invalid("body", message))
    };
    if containers > CONTAINERS {
        return too_many("objects and lists", CONTAINERS);
    }
    if values > VALUES {
        return too_many("values", VALUES);
    }
    Ok(())
}

/// Measures the fields of a body.
pub(super) fn check_fields(fields: &Map<String, Value>) -> Result<(), ApiError> {
    for Bound { fields: names, items, bytes } in &FIELDS {
        for name in *names {
            if let Some(value) = fields.get(*name) {
                check_field(name, value, *items, *bytes)?;
            }
        }
    }
    for name in ["messages", "input"] {
        let messages = fields.get(name).and_then(Value::as_array).into_iter().flatten();
        let parts: usize = messages.map(parts).sum();
        if parts > PARTS {
            let message = format!("`{name}` takes up to {PARTS} parts and calls in all");
            return Err(ApiError::invalid(name, message));
        }
    }
    Ok(())
}

fn check_field(
    name: &str,
    value: &Value,
    most: usize,
    (each, all): (usize, usize),
) -> Result<(), ApiError> {
    let texts: Vec<&str> = match value {
        Value::String(text) => vec![text],
        Value::Array(items) => items.iter().filter_map(Value::as_str).collect(),
        Value::Object(fields) => fields
            .iter()
            .flat_map(|(name, value)| [Some(&**name), value.as_str()])
            .flatten()
            .collect(),
        _ => Vec::new(),
    };
    let items = match value {
        Value::Array(items) if name == "input" => items.iter().filter(|it| !it.is_number()).count(),
        Value::Array(items) => items.len(),
        Value::Object(fields) => fields.len(),
        _ => 1,
    };
    let invalid = |message| Err(ApiError::invalid(name, message));
    if items > most {
        return invalid(format!("`{name}` takes up to {most} items, not {items}"));
    }
    if texts.iter().any(|text| text.len() > each) {
        return invalid(format!("each text of `{name}` may have {each} bytes at most"));
    }
    if texts.iter().map(|text| text.len()).sum::<usize>() > all {
        return invalid(format!("the texts of `{name}` may have {all} bytes in all"));
    }
    Ok(())
}

/// Parts and calls of a message, in whatever shape.
fn parts(message: &Value) -> usize {
    let lists = message.as_object().into_iter().flatten().filter_map(|(_, field)| field.as_array());
    lists.flatten().map(|part| 1 + part["content"].as_array().map_or(0, Vec::len)).sum()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn texts_are_measured_without_what_is_quoted() {
        let quoted = json!({"prompt": format!("\\\"{}", "[{,".repeat(1 << 20))}).to_string();
        assert!(check_text(quoted.as_bytes()).is_ok());
        assert!(check_text("[".repeat(CONTAINERS + 1).as_bytes()).is_err());
        assert!(check_text("[1,".repeat(CONTAINERS).as_bytes()).is_ok());
        assert!(check_text(format!("[{}1]", "1,".repeat(VALUES)).as_bytes()).is_err());
    }

    #[test]
    fn fields_are_measured_in_every_shape() {
        let check = |body: Value| check_fields(body.as_object().unwrap());
        for fine in [
            json!({"stop": "x".repeat(STOP_BYTES)}),
            json!({"stop": vec!["x"; STOPS]}),
            json!({"input": vec![1; 5000]}),
            json!({"messages": [{"content": vec![json!({"type": "text"}); PARTS]}]}),
            json!({"metadata": {"key": "value"}, "model": "m", "tool_choice": "auto"}),
        ] {
            assert!(check(fine).is_ok());
        }
        let block = json!({"content": vec![json!({}); 100]});
        for wrong in [
            json!({"stop": "x".repeat(STOP_BYTES + 1)}),
            json!({"stop_sequences": vec!["x".repeat(STOP_BYTES); 5]}),
            json!({"stop": vec!["x"; STOPS + 1]}),
            json!({"stop_token_ids": vec![1; STOP_TOKEN_IDS + 1]}),
            json!({"allowed_token_ids": vec![1; ALLOWED_TOKEN_IDS + 1]}),
            json!({"bad_words": vec!["x"; BAD_WORDS + 1]}),
            json!({"bad_words": vec!["x".repeat(NAME_BYTES); 17]}),
            json!({"dry_sequence_breakers": vec!["x"; BREAKERS + 1]}),
            json!({"dry_sequence_breakers": ["x".repeat(BREAKER_BYTES + 1)]}),
            json!({"input": vec!["x"; MESSAGES + 1]}),
            json!({"messages": vec![json!({}); MESSAGES + 1]}),
            json!({"messages": [{"content": vec![json!({}); PARTS + 1]}]}),
            json!({"messages": [{"content": vec![block; 100]}]}),
            json!({"metadata": {"key": "x".repeat(METADATA_BYTES)}}),
            json!({"model": "x".repeat(NAME_BYTES + 1)}),
            json!({"cache_salt": "x".repeat(NAME_BYTES + 1)}),
            json!({"lora_name": "x".repeat(NAME_BYTES + 1)}),
        ] {
            assert!(check(wrong).is_err());
        }
    }
}
