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
    let scaling = match kind.unwrap_or("linear") {
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
    let divisors = factors(keys.gguf)?;
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

/// The tensor of per-frequency divisors.
pub(in crate::checkpoint) const FACTORS: &str = "rope_freqs.weight";

/// Per-frequency divisors of the rotary embedding.
fn factors(gguf: &Gguf) -> Result<Vec<f32>, CheckpointError> {
    // The directory is shared, the file handle is not: open it anew for this one small tensor.
    let mut copy = Gguf::open(gguf.path())?;
    let tensor = copy.read(FACTORS)?.expect("the caller has seen it");
    Ok(tensor.to_f32())
}
