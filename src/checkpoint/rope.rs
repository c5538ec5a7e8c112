//! Rotary scalings as `rope_scaling` of a `config.json` has them.

use serde_json::{Value, json};

use super::CheckpointError;
use super::fields::Fields;
use crate::checkpoint::architecture::RopeScaling;

/// Reads a `rope_scaling` object; `positions` is the model's `max_position_embeddings`.
pub(super) fn parse(inner: &Fields, positions: usize) -> Result<RopeScaling, CheckpointError> {
    let kind = inner.get("rope_type").or_else(|| inner.get("type")).and_then(Value::as_str);
    let original = match inner.optional_usize("original_max_position_embeddings")? {
        Some(original) => original,
        None => positions,
    };
    Ok(match kind.unwrap_or("default") {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: inner.f64("factor")? },
        "dynamic" => RopeScaling::Dynamic {
            factor: inner.f64("factor")?,
            original_max_position_embeddings: original,
        },
        "llama3" => RopeScaling::Llama3 {
            factor: inner.f64("factor")?,
            low_freq_factor: inner.f64("low_freq_factor")?,
            high_freq_factor: inner.f64("high_freq_factor")?,
            original_max_position_embeddings: original,
        },
        "yarn" => yarn(inner, original)?,
        "longrope" | "su" => longrope(inner, positions, original)?,
        other => {
            let reason = format!(
                "`{other}` is not supported; linear, dynamic, llama3, yarn and longrope are"
            );
            return Err(inner.error("rope_type", reason));
        }
    })
}

fn yarn(inner: &Fields, original: usize) -> Result<RopeScaling, CheckpointError> {
    let factor = inner.f64("factor")?;
    if inner.get("truncate") == Some(&Value::Bool(false)) {
        return Err(inner.error("truncate", "false is not supported"));
    }
    let scale = |weight: f64| if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 };
    let given = |field| Ok(inner.optional_f64(field)?.filter(|weight| *weight != 0.0));
    let weights = given("mscale")?.zip(given("mscale_all_dim")?);
    let attention_factor = inner
        .optional_f64("attention_factor")?
        .or_else(|| weights.map(|(one, all)| scale(one) / scale(all)));
    Ok(RopeScaling::Yarn {
        factor,
        original_max_position_embeddings: original,
        beta_fast: inner.optional_f64("beta_fast")?.unwrap_or(32.0),
        beta_slow: inner.optional_f64("beta_slow")?.unwrap_or(1.0),
        attention_factor,
    })
}

fn longrope(
    inner: &Fields,
    positions: usize,
    original: usize,
) -> Result<RopeScaling, CheckpointError> {
    let list = |field| {
        let values = inner.get(field).and_then(Value::as_array).and_then(|values| {
            values.iter().map(|value| value.as_f64().map(|value| value as f32)).collect()
        });
        values.ok_or_else(|| inner.error(field, "is no list of numbers"))
    };
    let (long, short): (Vec<f32>, Vec<f32>) = (list("long_factor")?, list("short_factor")?);
    let factor = positions as f64 / original.max(1) as f64;
    let usual = if factor <= 1.0 {
        1.0
    } else {
        (1.0 + factor.ln() / (original.max(2) as f64).ln()).sqrt()
    };
    let attention_factor = inner.optional_f64("attention_factor")?.unwrap_or(usual);
    Ok(RopeScaling::long_rope(short, long, original, attention_factor))
}

/// The inverse of [`parse`]; `Null` without scaling.
pub(super) fn to_json(scaling: &RopeScaling, positions: usize) -> Value {
    match scaling {
        RopeScaling::None => Value::Null,
        RopeScaling::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
        RopeScaling::Dynamic { factor, original_max_position_embeddings } => json!({
            "rope_type": "dynamic", "factor": factor,
            "original_max_position_embeddings": original_max_position_embeddings,
        }),
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => json!({
            "rope_type": "llama3", "factor": factor, "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original_max_position_embeddings,
        }),
        RopeScaling::Yarn {
            factor,
            original_max_position_embeddings,
            beta_fast,
            beta_slow,
            attention_factor,
        } => json!({
            "rope_type": "yarn", "factor": factor, "beta_fast": beta_fast, "beta_slow": beta_slow,
            "original_max_position_embeddings": original_max_position_embeddings,
            "attention_factor": attention_factor,
        }),
        RopeScaling::LongRope {
            short,
            long,
            original_max_position_embeddings: original,
            attention_factor,
        } => json!({
            "rope_type": "longrope", "short_factor": short, "long_factor": long,
            "factor": positions as f64 / *original as f64,
            "original_max_position_embeddings": original, "attention_factor": attention_factor,
        }),
        RopeScaling::Factors(factors) => json!({
            "rope_type": "longrope", "short_factor": factors, "long_factor": factors, "factor": 1.0,
            "original_max_position_embeddings": positions, "attention_factor": 1.0,
        }),
    }
}
