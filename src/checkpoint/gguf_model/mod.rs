//! What GGUF metadata and tensor names say about a model.

mod design;
mod extension;
mod keys;
mod rope;
mod tensors;

use super::CheckpointError;
use super::gguf::{Gguf, Value};
use crate::checkpoint::architecture::{Attachment, Family, ModelConfig, RopeConfig};
pub(super) use extension::EXTENSION;
use extension::Extension;
use keys::Keys;
pub(super) use keys::PHI3;
use rope::scaling_by_keys;
pub(super) use rope::{FACTORS, LONG_FACTORS};
pub(super) use tensors::{has, info, read, stored_name, tensor_name, to_gguf};

/// The values of `general.architecture` that are read.
const ARCHITECTURES: &str = "llama, smollm3, phi3, qwen2, qwen3, gemma2 and gemma3";

/// The architecture, from the metadata.
pub(super) fn config(gguf: &Gguf) -> Result<ModelConfig, CheckpointError> {
    let arch = gguf.get("general.architecture").and_then(Value::as_str).unwrap_or_default();
    let family = match arch {
        "llama" | "smollm3" | PHI3 => Family::Llama,
        "qwen2" => Family::Qwen2,
        "qwen3" => Family::Qwen3,
        "gemma2" => Family::Gemma2,
        "gemma3" => Family::Gemma3,
        other => {
            return Err(CheckpointError::field(
                gguf.path(),
                "general.architecture",
                format!("`{other}` is not supported; {ARCHITECTURES} are"),
            ));
        }
    };
    let keys = Keys { gguf, arch };
    if keys.optional_usize("expert_count")?.unwrap_or(0) > 0 {
        return Err(keys.error("expert_count", "mixtures of experts are not supported"));
    }
    if keys.optional_usize("attention.causal")? == Some(0) {
        return Err(keys.error("attention.causal", "false is not supported"));
    }
    let hidden_size = keys.usize("embedding_length")?;
    let heads = keys.usize("attention.head_count")?;
    let head_dim = match keys.optional_usize("attention.key_length")? {
        Some(dim) => dim,
        None => hidden_size.checked_div(heads).unwrap_or(0),
    };
    let tied = !gguf.has("output.weight");
    let vocab_size = match keys.optional_usize("vocab_size")? {
        Some(size) => size,
        None => ["token_embd.weight", "output.weight"]
            .iter()
            .find_map(|name| gguf.info(name)?.shape.first().copied())
            .ok_or_else(|| keys.error("vocab_size", "is missing"))?,
    };
    for (name, means) in [
        ("rope.dimension_count", "partial rotation"),
        ("attention.value_length", "values of another width"),
    ] {
        let partial = arch == PHI3 && name == "rope.dimension_count";
        let size = keys.optional_usize(name)?.filter(|size| *size != head_dim && !partial);
        if let Some(size) = size {
            let reason = format!("{size} beside heads of {head_dim}: {means} is not supported");
            return Err(keys.error(name, reason));
        }
    }
    let num_hidden_layers = keys.usize("block_count")?;
    let positions = keys.usize("context_length")?;
    let extension = Extension::of(gguf)?;
    let scaling = match &extension {
        Some(extension) => extension.scaling(positions)?,
        None => None,
    };
    let scaling = match scaling {
        Some(scaling) => scaling,
        None => scaling_by_keys(&keys, positions)?,
    };
    let original = keys.optional_usize("rope.scaling.original_context_length")?;
    let layers = extension.as_ref().map_or(Ok(None), Extension::layers)?;
    let sliding_window = design::sliding_window(&keys, family, layers, num_hidden_layers)?;
    let design = design::of(&keys, family, extension.as_ref(), [hidden_size, heads, head_dim])?;
    keys.warn_of_unknown();
    let token =
        |key: &str| gguf.get(key).and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok());
    let eos_token_ids = ["eos_token_id", "eot_token_id", "eom_token_id"]
        .iter()
        .filter_map(|name| token(&format!("tokenizer.ggml.{name}")));
    let mut config = ModelConfig {
        family,
        vocab_size,
        hidden_size,
        intermediate_size: keys.usize("feed_forward_length")?,
        num_hidden_layers,
        num_attention_heads: heads,
        num_key_value_heads: keys.optional_usize("attention.head_count_kv")?.unwrap_or(heads),
        head_dim,
        // Without the original context, the length is that of the scaled one.
        max_position_embeddings: original
            .map_or(positions, |original| scaling.reach(positions, original)),
        rms_norm_eps: keys
            .optional_f64("attention.layer_norm_rms_epsilon")?
            .ok_or_else(|| keys.error("attention.layer_norm_rms_epsilon", "is missing"))?,
        rope: RopeConfig {
            theta: keys.optional_f64("rope.freq_base")?.unwrap_or(10_000.0),
            scaling,
        },
        sliding_window,
        design,
        tie_word_embeddings: tied,
        bos_token_id: token("tokenizer.ggml.bos_token_id"),
        eos_token_ids: Vec::new(),
    };
    config.end_at(eos_token_ids);
    config.check().map_err(|(field, reason)| CheckpointError::field(gguf.path(), field, reason))?;
    Ok(config)
}

/// What the model is to be sampled by, under the names of `generation_config.json`.
pub(super) fn generation(gguf: &Gguf) -> serde_json::Map<String, serde_json::Value> {
    let names = [
        ("temp", "temperature"),
        ("top_k", "top_k"),
        ("top_p", "top_p"),
        ("min_p", "min_p"),
        ("xtc_probability", "xtc_probability"),
        ("xtc_threshold", "xtc_threshold"),
        ("penalty_repeat", "repetition_penalty"),
    ];
    let found = names.into_iter().filter_map(|(key, name)| {
        let value = gguf.get(&format!("general.sampling.{key}"))?;
        let whole = value.as_u64().map(serde_json::Value::from);
        Some((name.to_owned(), whole.or_else(|| value.as_f64().map(Into::into))?))
    });
    found.collect()
}

/// What a file calls its mixture of formats (`general.file_type`).
pub(super) fn mixture(gguf: &Gguf) -> Option<&'static str> {
    Some(match gguf.get("general.file_type").and_then(Value::as_u64)? {
        0 => "F32",
        1 => "F16",
        2 => "Q4_0",
        3 => "Q4_1",
        7 => "Q8_0",
        8 => "Q5_0",
        9 => "Q5_1",
        10 => "Q2_K",
        11 => "Q3_K_S",
        12 => "Q3_K_M",
        13 => "Q3_K_L",
        14 => "Q4_K_S",
        15 => "Q4_K_M",
        16 => "Q5_K_S",
        17 => "Q5_K_M",
        18 => "Q6_K",
        21 => "Q2_K_S",
        25 => "IQ4_NL",
        30 => "IQ4_XS",
        32 => "BF16",
        38 => "MXFP4",
        _ => return None,
    })
}

/// The token ids of a trimmed head (`pleach.draft_vocab`).
pub(super) fn draft_vocab(gguf: &Gguf) -> Result<Option<Vec<u32>>, CheckpointError> {
    numbers(gguf, "pleach.draft_vocab")
}

/// Keys of the blocks that an attached drafter keeps, and of the states it reads.
pub const ATTACHMENT: [&str; 2] = ["pleach.attached.blocks", "pleach.attached.states"];

/// Where an attached drafter hangs on its target.
pub(super) fn attachment(gguf: &Gguf) -> Result<Option<Attachment>, CheckpointError> {
    let [blocks, states] = ATTACHMENT;
    let sizes = |list: Vec<u32>| list.into_iter().map(|number| number as usize).collect();
    Ok(match (numbers(gguf, blocks)?, numbers(gguf, states)?) {
        (None, None) => None,
        (Some(blocks), Some(states)) => {
            Some(Attachment { blocks: sizes(blocks), states: sizes(states) })
        }
        (None, _) => return Err(CheckpointError::field(gguf.path(), blocks, "is missing")),
        (_, None) => return Err(CheckpointError::field(gguf.path(), states, "is missing")),
    })
}

fn numbers(gguf: &Gguf, key: &str) -> Result<Option<Vec<u32>>, CheckpointError> {
    let Some(value) = gguf.get(key) else { return Ok(None) };
    value
        .as_array()
        .and_then(|ids| {
            ids.iter().map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok())).collect()
        })
        .map(Some)
        .ok_or_else(|| CheckpointError::field(gguf.path(), key, "is not an array of numbers"))
}
