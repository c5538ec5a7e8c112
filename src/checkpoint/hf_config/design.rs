//! What sets the blocks of a Hugging Face model apart from Llama's.

use serde_json::Value;

use super::{CheckpointError, Fields};
use crate::checkpoint::architecture::{Design, Family};
use pleach_kernels::{Activation, DType};

/// Fields that change Gemma's computation, and no other's.
pub(super) const GEMMA_FIELDS: [&str; 3] =
    ["embedding_multiplier", "final_logit_softcapping", "attn_logit_softcapping"];

/// The design, but for rotary embeddings.
pub(super) fn of(
    fields: &Fields,
    family: Family,
    hidden_size: usize,
) -> Result<Design, CheckpointError> {
    let gemma = matches!(family, Family::Gemma2 | Family::Gemma3);
    let design = Design { activation: activation(fields, gemma)?, ..Design::default() };
    if !gemma {
        return Ok(design);
    }
    if fields.bool("use_bidirectional_attention")? {
        return Err(fields.error("use_bidirectional_attention", "true is not supported"));
    }
    // Where a field is not there, transformers has these numbers.
    let caps = if family == Family::Gemma2 { [Some(50.0), Some(30.0)] } else { [None; 2] };
    let cap = |field: &str, usual: Option<f64>| -> Result<Option<f32>, CheckpointError> {
        let given =
            if fields.map.contains_key(field) { fields.optional_f64(field)? } else { usual };
        Ok(given.filter(|cap| *cap != 0.0).map(|cap| cap as f32))
    };
    let multiplier = fields.optional_f64("embedding_multiplier")?.map(|by| by as f32);
    Ok(Design {
        output_norms: true,
        norms_from_one: true,
        embedding_scale: Some(
            multiplier.unwrap_or_else(|| root(hidden_size, number_format(fields))),
        ),
        query_scalar: Some(fields.optional_f64("query_pre_attn_scalar")?.unwrap_or(256.0)),
        score_cap: cap("attn_logit_softcapping", caps[0])?,
        logit_cap: cap("final_logit_softcapping", caps[1])?,
        ..design
    })
}

/// What the gate passes through: `hidden_act`, which Gemma calls `hidden_activation`.
fn activation(fields: &Fields, gemma: bool) -> Result<Activation, CheckpointError> {
    let names: &[&str] = if gemma { &["hidden_activation"] } else { &["hidden_act"] };
    let found = names.iter().find_map(|name| Some((*name, fields.get(name)?)));
    let usual = if gemma { Activation::GeluTanh } else { Activation::Silu };
    let Some((name, value)) = found else { return Ok(usual) };
    match value.as_str().unwrap_or_default() {
        "silu" | "swish" => Ok(Activation::Silu),
        "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
        other => {
            let reason = format!("`{other}` is not supported; silu and gelu_pytorch_tanh are");
            Err(fields.error(name, reason))
        }
    }
}

/// The name of the format that the model computes in.
fn number_format<'a>(fields: &'a Fields) -> &'a str {
    let named = |name| fields.get(name).and_then(Value::as_str);
    named("dtype").or_else(|| named("torch_dtype")).unwrap_or_default()
}

/// The square root of the width, rounded to the format that the model was trained in, as transformers rounds it.
pub(in crate::checkpoint) fn root(hidden_size: usize, format: &str) -> f32 {
    let root = (hidden_size as f64).sqrt() as f32;
    let format = match format {
        "bfloat16" => DType::BF16,
        "float16" => DType::F16,
        _ => DType::F32,
    };
    let bytes = format.quantize(&[root]).expect("invariant: a float format");
    let mut rounded = [root];
    format.dequantize(&bytes, &mut rounded);
    rounded[0]
}
