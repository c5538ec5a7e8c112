//! What a request says of repetitions, in terms of the model's tokens.

use crate::sampling::Dry;
use crate::server::error::ApiError;
use crate::server::serving::Serving;
use crate::server::wire::{DryPenalty, Number};

/// Texts that break repetitions where a request names none, as llama.cpp has them.
const BREAKERS: [&str; 4] = ["\n", ":", "\"", "*"];
const FIELD: &str = "dry_sequence_breakers";

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
        let texts = breakers.unwrap_or_else(|| BREAKERS.map(str::to_owned).into());
        dry.breakers = breaking(&texts, serving)?.into();
    }
    Ok((dry != Dry::default()).then_some(dry))
}

/// Tokens that have one of the texts in them, and sequences of tokens at the end of whose first a text begins, in rising
/// order.
fn breaking(texts: &[String], serving: &Serving) -> Result<Vec<Vec<u32>>, ApiError> {
    let mut found = Vec::new();
    for id in 0..serving.engine.limits().vocab_size as u32 {
        let bytes = serving.bytes_of(id);
        for text in texts {
            for place in (0..bytes.len()).filter(|&place| bytes[place] == text.as_bytes()[0]) {
                let rest = &bytes[place..];
                if rest.starts_with(text.as_bytes()) {
                    found.push(vec![id]);
                    break;
                }
                if text.as_bytes().starts_with(rest) && text.is_char_boundary(rest.len()) {
                    let tail = serving.encode(FIELD, &text[rest.len()..], false)?;
                    found.push([vec![id], tail].concat());
                }
            }
        }
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}
