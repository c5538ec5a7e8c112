//! Rotary scaling, as llama.cpp's keys and its tensor of divisors have it.

use super::keys::Keys;
use crate::checkpoint::CheckpointError;
use crate::checkpoint::architecture::{RopeScaling, yarn_attention};
use crate::checkpoint::gguf::{Gguf, Value};

/// The rotary scaling by llama.cpp's keys, as llama.cpp reads them.
pub(super) fn scaling_by_keys(
    keys: &Keys,
    positions: usize,
) -> Result<RopeScaling, CheckpointError> {
    let given = |name| Ok(keys.optional_f64(name)?.filter(|value| *value != 0.0));
    let factor = match given("rope.scaling.factor")? {
        Some(factor) => factor,
        None => given("rope.scale_linear")?.unwrap_or(1.0),
    };
    let kind = keys.gguf.get(&keys.key("rope.scaling.type")).and_then(Value::as_str);
    let kind = kind.unwrap_or("linear");
    if kind == "longrope" || LONG_FACTORS.iter().any(|name| keys.gguf.has(name)) {
        let alone = kind == "none" || factor == 1.0 && ["linear", "longrope"].contains(&kind);
        if !alone {
            let [long, short] = LONG_FACTORS;
            let reason =
                format!("`{kind}` by {factor} beside tensors {long} and {short} is not supported");
            return Err(keys.error("rope.scaling.type", reason));
        }
        return long_rope(keys, positions);
    }
    let scaling = match kind {
        "none" => RopeScaling::None,
        "linear" if factor == 1.0 => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor },
        "yarn" => yarn_by_keys(keys, factor, positions)?,
        kind => {
            return Err(keys.error("rope.scaling.type", format!("`{kind}` is not supported")));
        }
    };
    if !keys.gguf.has(FACTORS) {
        return Ok(scaling);
    }
    let divisors = factors(keys, FACTORS)?;
    match scaling {
        RopeScaling::Linear { factor } => {
            let scaled = divisors.iter().map(|by| (f64::from(*by) * factor) as f32);
            Ok(RopeScaling::Factors(scaled.collect()))
        }
        RopeScaling::Yarn { .. } => {
            let reason = format!("yarn beside a tensor {FACTORS} is not supported");
            Err(keys.error("rope.scaling.type", reason))
        }
        _ => Ok(RopeScaling::Factors(divisors)),
    }
}

fn yarn_by_keys(
    keys: &Keys,
    factor: f64,
    positions: usize,
) -> Result<RopeScaling, CheckpointError> {
    for (name, neutral) in
        [("rope.scaling.yarn_ext_factor", 1.0), ("rope.scaling.yarn_log_multiplier", 0.0)]
    {
        if let Some(value) = keys.optional_f64(name)?.filter(|value| *value != neutral) {
            return Err(keys.error(name, format!("{value} is not supported")));
        }
    }
    let mut attention_factor = None;
    for name in ["rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor"] {
        if let Some(by) = keys.optional_f64(name)? {
            // What YaRN itself multiplies by comes on top.
            attention_factor = Some(by * yarn_attention(factor));
        }
    }
    let original = keys.optional_usize("rope.scaling.original_context_length")?;
    Ok(RopeScaling::Yarn {
        factor,
        original_max_position_embeddings: original.unwrap_or(positions),
        beta_fast: keys.optional_f64("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
        beta_slow: keys.optional_f64("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
        attention_factor,
    })
}

fn long_rope(keys: &Keys, positions: usize) -> Result<RopeScaling, CheckpointError> {
    let [long, short] = LONG_FACTORS.map(|name| factors(keys, name));
    let original = keys.optional_usize("rope.scaling.original_context_length")?;
    let attention_factor = keys.optional_f64("rope.scaling.attn_factor")?.unwrap_or(1.0);
    Ok(RopeScaling::long_rope(short?, long?, original.unwrap_or(positions), attention_factor))
}

/// The tensor of per-frequency divisors.
pub(in crate::checkpoint) const FACTORS: &str = "rope_freqs.weight";
/// The tensors of LongRoPE's divisors, for contexts longer than the trained one and for others.
pub(in crate::checkpoint) const LONG_FACTORS: [&str; 2] =
    ["rope_factors_long.weight", "rope_factors_short.weight"];

/// Per-frequency divisors of the rotary embedding.
fn factors(keys: &Keys, name: &str) -> Result<Vec<f32>, CheckpointError> {
    let path = keys.gguf.path();
    // The directory is shared, the file handle is not: open it anew for this one small tensor.
    let tensor = Gguf::open(path)?.read(name)?;
    let missing = || CheckpointError::MissingTensor { path: path.into(), name: name.into() };
    Ok(tensor.ok_or_else(missing)?.to_f32())
}
