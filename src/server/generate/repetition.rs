//! What a request says of repetitions, in terms of the model's tokens.

use std::sync::Arc;

use crate::sampling::Dry;
use crate::server::error::ApiError;
use crate::server::serving::Serving;
use crate::server::wire::{DryPenalty, Number};

/// Texts that break repetitions where a request names none, as llama.cpp has them.
const BREAKERS: [&str; 4] = ["\n", ":", "\"", "*"];
const FIELD: &str = "dry_sequence_breakers";
/// Tokens of a breaker behind its first at most, as llama.cpp has it.
const TAIL_TOKENS: usize = 20;
/// Tokens, and sequences of them, that a request's texts may be found in: some megabytes.
const FOUND: usize = 1 << 16;

/// The penalty that a request asks for; its numbers are checked with the other parameters.
pub(crate) fn dry(wanted: DryPenalty, serving: &Serving) -> Result<Option<Dry>, ApiError> {
    let usual = Dry::default();
    let breakers = wanted.dry_sequence_breakers;
    if breakers.as_ref().is_some_and(|texts| texts.iter().any(String::is_empty) || texts.is_empty())
    {
        let message = format!("`{FIELD}` must be a list of texts, none of them empty");
        return Err(ApiError::invalid(FIELD, message));
    }
    let penalty_last_n = match wanted.dry_penalty_last_n {
        None => usual.penalty_last_n,
        Some(-1) => None,
        Some(count) => Some(usize::try_from(count).map_err(|_| {
            let field = "dry_penalty_last_n";
            ApiError::invalid(field, format!("`{field}` must be at least -1"))
        })?),
    };
    let number = |given: Option<Number>, usual| given.map_or(usual, f32::from);
    let mut dry = Dry {
        multiplier: number(wanted.dry_multiplier, usual.multiplier),
        base: number(wanted.dry_base, usual.base),
        allowed_length: wanted.dry_allowed_length.unwrap_or(usual.allowed_length),
        penalty_last_n,
        ..usual
    };
    if dry.penalises() {
        dry.breakers = match breakers {
            Some(texts) => breaking(&texts, serving)?.into(),
            None => usual_breakers(serving)?,
        };
    }
    Ok((dry != Dry::default()).then_some(dry))
}

/// What breaks repetitions by default. All tokens are looked through for it, so each model keeps it.
fn usual_breakers(serving: &Serving) -> Result<Arc<[Vec<u32>]>, ApiError> {
    if let Some(known) = serving.usual_breakers.get() {
        return Ok(Arc::clone(known));
    }
    let found = breaking(&BREAKERS, serving)?.into();
    Ok(Arc::clone(serving.usual_breakers.get_or_init(|| found)))
}

/// Tokens that have one of the texts in them, and sequences of tokens at the end of whose first a text begins, in rising
/// order.
fn breaking<T: AsRef<str>>(texts: &[T], serving: &Serving) -> Result<Vec<Vec<u32>>, ApiError> {
    let tails: Vec<Vec<Vec<u32>>> =
        texts.iter().map(|text| tails(text.as_ref(), serving)).collect::<Result<_, _>>()?;
    let mut found = Vec::new();
    for id in 0..serving.engine.limits().vocab_size as u32 {
        let bytes = serving.bytes_of(id);
        for (text, tails) in texts.iter().map(AsRef::as_ref).zip(&tails) {
            for place in (0..bytes.len()).filter(|&place| bytes[place] == text.as_bytes()[0]) {
                let rest = &bytes[place..];
                if rest.starts_with(text.as_bytes()) {
                    found.push(vec![id]);
                    break;
                }
                if text.as_bytes().starts_with(rest) && text.is_char_boundary(rest.len()) {
                    found.push([&[id], &tails[rest.len()][..]].concat());
                }
            }
        }
        if found.len() > FOUND {
            let message = format!("the texts of `{FIELD}` are found in more than {FOUND} tokens");
            return Err(ApiError::invalid(FIELD, message));
        }
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// Tokens of what stands behind each place in a text where a character begins.
fn tails(text: &str, serving: &Serving) -> Result<Vec<Vec<u32>>, ApiError> {
    let tail = |place| match text.get(place..) {
        Some(tail) => serving.encode(FIELD, tail, false),
        None => Ok(Vec::new()),
    };
    let cut = |tail: Vec<u32>| tail.into_iter().take(TAIL_TOKENS).collect();
    (0..text.len()).map(|place| Ok(cut(tail(place)?))).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;
    use crate::checkpoint::Checkpoint;
    use crate::engine::{Engine, EngineConfig, EngineHandle, Turns};
    use crate::model::Decoder;
    use pleach_kernels::ThreadPool;

    /// A model whose tokens 1 to 3 have one of the usual breakers in them.
    fn serving() -> Serving {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/llama-tied");
        let mut checkpoint = Checkpoint::open(&folder).unwrap();
        let target = Decoder::load(&mut checkpoint, &Arc::new(ThreadPool::new(1))).unwrap();
        let config = EngineConfig { max_model_len: Some(16), ..EngineConfig::default() };
        let engine = Engine::new(target, None, config).unwrap();
        let (engine, _) = EngineHandle::start(engine, Turns::default());
        let level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        let vocab = json!({"x": 0, "Ċ": 1, "\":": 2, "a*": 3, ",": 4});
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": level, "post_processor": null, "decoder": level,
            "model": {"type": "BPE", "vocab": vocab, "merges": []},
        });
        let tokenizer = tokenizer.to_string().parse().unwrap();
        Serving::new("m".into(), engine, tokenizer, None, vec![0])
    }

    #[test]
    fn usual_breakers_are_looked_up_once() {
        let serving = serving();
        let breakers = |mut fields: serde_json::Value| {
            fields["dry_multiplier"] = json!(1);
            let wanted = serde_json::from_value(fields).unwrap();
            dry(wanted, &serving).unwrap().unwrap().breakers
        };
        let usual = breakers(json!({}));
        assert_eq!(*usual, [vec![1], vec![2], vec![3]]);
        assert!(Arc::ptr_eq(&usual, &breakers(json!({}))));
        assert_eq!(*breakers(json!({"dry_sequence_breakers": [","]})), [vec![4]]);
        assert_eq!(breakers(json!({"dry_sequence_breakers": BREAKERS})), usual);
        // Whatever tokens a text begins in, of its rest so many are looked at.
        let long = format!("*{}", ",".repeat(TAIL_TOKENS + 4));
        let found = [&[3][..], &[4; TAIL_TOKENS]].concat();
        assert_eq!(*breakers(json!({"dry_sequence_breakers": [long]})), [found]);
    }
}
