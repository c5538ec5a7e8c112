//! How tokens are drawn, as requests say it.

use super::repetition;
use crate::sampling::{Restrictions, SamplingParams, top_k, top_n_sigma};
use crate::server::error::ApiError;
use crate::server::request::body::Body;
use crate::server::serving::Serving;
use crate::server::wire::{Drawing, DryPenalty, Number};

/// Reads how tokens are drawn out of a body; what it leaves out is as the model has it.
pub(crate) fn params(body: &mut Body, serving: &Serving) -> Result<SamplingParams, ApiError> {
    let wanted: Drawing = body.read()?;
    let dry: DryPenalty = body.read()?;
    let logit_bias = wanted
        .logit_bias
        .into_iter()
        .flatten()
        .map(|(text, bias)| {
            // One way to write each, so that none is there twice.
            let id = text.parse().ok().filter(|id: &u32| id.to_string() == text);
            let id = id.ok_or_else(|| {
                let message = "the keys of `logit_bias` must be token ids, written plainly";
                ApiError::invalid("logit_bias", message)
            });
            Ok((id?, bias.0))
        })
        .collect::<Result<_, ApiError>>()?;
    let number = |given: Option<Number>, default| given.map_or(default, f32::from);
    let usual = &serving.sampling;
    Ok(SamplingParams {
        temperature: number(wanted.temperature, usual.temperature),
        top_k: wanted.top_k.map_or(usual.top_k, top_k),
        top_p: number(wanted.top_p, usual.top_p),
        min_p: number(wanted.min_p, usual.min_p),
        top_n_sigma: wanted.top_n_sigma.map_or(usual.top_n_sigma, |it| top_n_sigma(it.into())),
        typical_p: number(wanted.typical_p, usual.typical_p),
        xtc_probability: number(wanted.xtc_probability, usual.xtc_probability),
        xtc_threshold: number(wanted.xtc_threshold, usual.xtc_threshold),
        seed: wanted.seed.map(|seed| seed as u64),
        repetition_penalty: number(wanted.repetition_penalty, usual.repetition_penalty),
        presence_penalty: number(wanted.presence_penalty, usual.presence_penalty),
        frequency_penalty: number(wanted.frequency_penalty, usual.frequency_penalty),
        dry: repetition::dry(dry, serving)?,
        logit_bias,
        restrictions: Restrictions {
            allowed: wanted.allowed_token_ids.map(Into::into),
            min_tokens: wanted.min_tokens.unwrap_or(0),
            bad_words: serving.bad_words(&wanted.bad_words.unwrap_or_default())?.into(),
            ..Restrictions::default()
        },
    })
}
