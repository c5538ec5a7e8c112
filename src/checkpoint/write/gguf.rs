//! GGUF files.

use std::borrow::Cow;
use std::io::Write;
use std::path::Path;

use serde_json::{Map, Value as Json};

use super::atomically;
use super::folder::{layer_types, no_rope_layers};
use crate::checkpoint::architecture::{
    Family, ModelConfig, RopeScaling, rope_divisors, yarn_attention,
};
use crate::checkpoint::gguf_model::{self, FACTORS, LONG_FACTORS, PHI3};
use crate::checkpoint::{CheckpointError, RawTensor, fused, rope};
use pleach_kernels::DType;

/// A metadata value of a GGUF file.
pub enum Meta<'a> {
    /// `u32`
    Number(u32),
    /// `f32`
    Float(f32),
    /// `string`
    Text(Cow<'a, str>),
    /// `[u32]`
    Numbers(&'a [u32]),
    /// The bytes of a value of another file, with its type before it.
    Copied(&'a [u8]),
}

const ALIGNMENT: usize = 32;

/// Writes a GGUF file (version 3): the configuration, further metadata, and tensors by their Hugging
/// Face names, rows in Hugging Face order.
///
/// # Errors
/// What the file system says, or a tensor without a GGUF name.
pub fn gguf_file<'a>(
    path: &Path,
    name: &str,
    config: &ModelConfig,
    more: &[(&str, Meta)],
    tensors: &'a [(String, RawTensor)],
) -> Result<(), CheckpointError> {
    let own = gguf_metadata(name, config);
    let corrupt = |reason| CheckpointError::corrupt(path, reason);
    let stored: Vec<(String, Cow<'a, RawTensor>)> = if architecture(config) == PHI3 {
        fused::joined(config, tensors).map_err(corrupt)?
    } else {
        let stored = |(name, tensor): &'a (String, RawTensor)| {
            (name.clone(), gguf_model::to_gguf(config, name, tensor))
        };
        tensors.iter().map(stored).collect()
    };
    let mut named = Vec::with_capacity(stored.len() + 2);
    for (name, tensor) in stored {
        let gguf_name = gguf_model::tensor_name(config, &name);
        let missing = || corrupt(format!("GGUF has no name for tensor {name}"));
        named.push((gguf_name.ok_or_else(missing)?, tensor));
    }
    named.extend(
        divisors(config).into_iter().map(|(name, tensor)| (name.to_owned(), Cow::Owned(tensor))),
    );
    let mut header = b"GGUF".to_vec();
    header.extend(3u32.to_le_bytes());
    header.extend((named.len() as u64).to_le_bytes());
    header.extend(((own.len() + more.len()) as u64).to_le_bytes());
    for (key, value) in own.iter().map(|(key, value)| (key.as_str(), value)) {
        put_meta(&mut header, key, value);
    }
    for (key, value) in more {
        put_meta(&mut header, key, value);
    }
    let mut offset = 0u64;
    for (name, tensor) in &named {
        put_text(&mut header, name);
        header.extend((tensor.shape.len() as u32).to_le_bytes());
        for size in tensor.shape.iter().rev() {
            header.extend((*size as u64).to_le_bytes());
        }
        header.extend(tensor.dtype.ggml_id().to_le_bytes());
        header.extend(offset.to_le_bytes());
        offset += tensor.data.len().next_multiple_of(ALIGNMENT) as u64;
    }
    header.resize(header.len().next_multiple_of(ALIGNMENT), 0);
    atomically(path, |writer| {
        writer.write_all(&header)?;
        for (_, tensor) in &named {
            let bytes = &tensor.data;
            writer.write_all(bytes)?;
            let padding = bytes.len().next_multiple_of(ALIGNMENT) - bytes.len();
            writer.write_all(&[0; ALIGNMENT][..padding])?;
        }
        Ok(())
    })
}

/// Whether a scaling is written as the frequencies' divisors, for want of keys that llama.cpp knows.
fn needs_divisors(scaling: &RopeScaling) -> bool {
    use RopeScaling::{Dynamic, Factors, Llama3, LongRope};
    matches!(scaling, Factors(_) | Llama3 { .. } | Dynamic { .. } | LongRope { .. })
}

/// The tensors of divisors, by their names; none where keys say all.
fn divisors(config: &ModelConfig) -> Vec<(&'static str, RawTensor)> {
    let scaling = &config.rope.scaling;
    if !needs_divisors(scaling) {
        return Vec::new();
    }
    let tensor = |values: &[f32]| {
        let data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        RawTensor { dtype: DType::F32, shape: vec![values.len()], data }
    };
    match (architecture(config), scaling) {
        (PHI3, RopeScaling::LongRope { long, short, .. }) => {
            LONG_FACTORS.into_iter().zip([long, short].map(|it| tensor(it))).collect()
        }
        // It knows no others.
        (PHI3, _) => LONG_FACTORS.map(|name| (name, tensor(&rope_divisors(config)))).into(),
        _ => vec![(FACTORS, tensor(&rope_divisors(config)))],
    }
}

/// What llama.cpp calls the design of a model's blocks.
fn architecture(config: &ModelConfig) -> &'static str {
    let long_rope = matches!(config.rope.scaling, RopeScaling::LongRope { .. });
    match config.family {
        Family::Llama if !config.design.unrotated.is_empty() => "smollm3",
        Family::Llama if config.design.rotated.is_some() || long_rope => PHI3,
        Family::Llama => "llama",
        Family::Qwen2 => "qwen2",
        Family::Qwen3 => "qwen3",
        Family::Gemma2 => "gemma2",
        Family::Gemma3 => "gemma3",
    }
}

fn gguf_metadata<'a>(name: &'a str, config: &ModelConfig) -> Vec<(String, Meta<'a>)> {
    let arch = architecture(config);
    let mut meta = vec![
        ("general.architecture".to_owned(), Meta::Text(arch.into())),
        ("general.name".to_owned(), Meta::Text(name.into())),
    ];
    for (key, value) in [
        ("block_count", config.num_hidden_layers),
        ("context_length", config.max_position_embeddings),
        ("embedding_length", config.hidden_size),
        ("feed_forward_length", config.intermediate_size),
        ("attention.head_count", config.num_attention_heads),
        ("attention.head_count_kv", config.num_key_value_heads),
        ("attention.key_length", config.head_dim),
        ("attention.value_length", config.head_dim),
        // Only of Phi-3 do others than whole heads turn.
        (
            "rope.dimension_count",
            config.design.rotated.filter(|_| arch == PHI3).unwrap_or(config.head_dim),
        ),
        ("vocab_size", config.vocab_size),
    ] {
        meta.push((format!("{arch}.{key}"), Meta::Number(value as u32)));
    }
    if let Some(window) = &config.sliding_window {
        let key = format!("{arch}.attention.sliding_window");
        meta.push((key, Meta::Number(window.window as u32)));
    }
    let mut float = |key: &str, value: f64| {
        meta.push((format!("{arch}.{key}"), Meta::Float(value as f32)));
    };
    float("attention.layer_norm_rms_epsilon", config.rms_norm_eps);
    float("rope.freq_base", config.rope.theta);
    if let Some(local) = &config.design.local_rope {
        float("rope.freq_base_swa", local.theta);
    }
    let caps = [
        ("attn_logit_softcapping", config.design.score_cap),
        ("final_logit_softcapping", config.design.logit_cap),
    ];
    for (key, cap) in caps {
        // 0 says that there is none where the architecture usually has one.
        let said = cap.or((config.family == Family::Gemma2).then_some(0.0));
        said.into_iter().for_each(|cap| float(key, cap.into()));
    }
    let kind = match &config.rope.scaling {
        RopeScaling::None => "none",
        RopeScaling::Linear { factor } => {
            float("rope.scaling.factor", *factor);
            "linear"
        }
        RopeScaling::Yarn { factor, attention_factor, beta_fast, beta_slow, .. } => {
            float("rope.scaling.factor", *factor);
            if let Some(attention) = attention_factor {
                float("rope.scaling.attn_factor", *attention / yarn_attention(*factor));
            }
            if (*beta_fast, *beta_slow) != (32.0, 1.0) {
                float("rope.scaling.yarn_beta_fast", *beta_fast);
                float("rope.scaling.yarn_beta_slow", *beta_slow);
            }
            "yarn"
        }
        // Their divisors are tensors.
        _ if arch == PHI3 => {
            if let RopeScaling::LongRope { attention_factor, .. } = &config.rope.scaling {
                float("rope.scaling.attn_factor", *attention_factor);
            }
            "longrope"
        }
        RopeScaling::Factors(_)
        | RopeScaling::Llama3 { .. }
        | RopeScaling::Dynamic { .. }
        | RopeScaling::LongRope { .. } => "none",
    };
    if let RopeScaling::Yarn { original_max_position_embeddings: original, .. }
    | RopeScaling::LongRope { original_max_position_embeddings: original, .. } =
        config.rope.scaling
    {
        let key = format!("{arch}.rope.scaling.original_context_length");
        meta.push((key, Meta::Number(original as u32)));
    }
    meta.push((format!("{arch}.rope.scaling.type"), Meta::Text(kind.into())));
    meta.extend(extension(config).map(|text| (gguf_model::EXTENSION.into(), text)));
    meta
}

/// What GGUF's own keys cannot say, or not exactly.
fn extension(config: &ModelConfig) -> Option<Meta<'static>> {
    let mut map = Map::new();
    let scaling = rope::to_json(&config.rope.scaling, config.max_position_embeddings);
    if !scaling.is_null() {
        map.insert("rope_scaling".into(), scaling);
    }
    let gemma = matches!(config.family, Family::Gemma2 | Family::Gemma3);
    match &config.sliding_window {
        Some(window) if gemma || window.first_layer() != Some(0) => {
            map.insert("layer_types".into(), layer_types(window));
        }
        // Without it, a reader takes the architecture's own pattern.
        None if gemma => {
            let types = vec!["full_attention"; config.num_hidden_layers];
            map.insert("layer_types".into(), types.into());
        }
        _ => {}
    }
    if !config.design.unrotated.is_empty() {
        map.insert("no_rope_layers".into(), no_rope_layers(&config.design.unrotated));
    }
    let rotated = config.design.rotated.filter(|_| architecture(config) != PHI3);
    let rotated = rotated.map(|rotated| rotated as f64 / config.head_dim as f64);
    let numbers = [
        ("partial_rotary_factor", rotated),
        ("query_pre_attn_scalar", config.design.query_scalar),
        ("embedding_multiplier", config.design.embedding_scale.map(f64::from)),
    ];
    for (name, number) in numbers {
        map.extend(number.map(|number| (name.into(), number.into())));
    }
    (!map.is_empty()).then(|| Meta::Text(Json::Object(map).to_string().into()))
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_meta(out: &mut Vec<u8>, key: &str, value: &Meta) {
    // Type ids of the format.
    let (u32_id, f32_id, string_id, array_id) = (4u32, 6u32, 8u32, 9u32);
    put_text(out, key);
    match value {
        Meta::Number(v) => {
            out.extend(u32_id.to_le_bytes());
            out.extend(v.to_le_bytes());
        }
        Meta::Float(v) => {
            out.extend(f32_id.to_le_bytes());
            out.extend(v.to_le_bytes());
        }
        Meta::Text(text) => {
            out.extend(string_id.to_le_bytes());
            put_text(out, text);
        }
        Meta::Numbers(values) => {
            out.extend(array_id.to_le_bytes());
            out.extend(u32_id.to_le_bytes());
            out.extend((values.len() as u64).to_le_bytes());
            out.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        }
        Meta::Copied(bytes) => out.extend(*bytes),
    }
}
