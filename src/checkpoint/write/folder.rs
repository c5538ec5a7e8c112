//! Hugging Face folders.

use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value as Json, json};

use super::{LazyTensor, atomically, json_file, safetensors_file};
use crate::checkpoint::architecture::{Family, ModelConfig, RopeScaling, SlidingWindow};
use crate::checkpoint::gguf_model::PHI3;
use crate::checkpoint::hf_config::{NOTE, root};
use crate::checkpoint::settings::{SETTINGS, TOKENIZER};
use crate::checkpoint::{Checkpoint, CheckpointError, fields, fused, rope};
use pleach_kernels::{Activation, DType};

/// Writes a Hugging Face folder: [its files](folder_files), and these weights as its model type names them. Returns the
/// file of the weights. What is there of another model's `pleach.json` goes.
///
/// # Errors
/// What the file system says, what a tensor's maker says, or a configuration that Hugging Face's format cannot hold.
pub fn model_folder(
    folder: &Path,
    config: &ModelConfig,
    dtype: DType,
    like: &Checkpoint,
    mut tensors: Vec<LazyTensor<'_>>,
) -> Result<PathBuf, CheckpointError> {
    let note = folder.join(NOTE);
    match std::fs::remove_file(&note) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(CheckpointError::Io { path: note, error });
        }
        _ => {}
    }
    let written = folder_files(folder, config, dtype, like)?;
    if written["model_type"] == PHI3 {
        tensors = side_by_side(config, tensors);
    }
    let file = folder.join("model.safetensors");
    safetensors_file(&file, &tensors, &[])?;
    Ok(file)
}

/// Tensors to be written, of which those that are stored side by side are one.
fn side_by_side<'a>(config: &ModelConfig, tensors: Vec<LazyTensor<'a>>) -> Vec<LazyTensor<'a>> {
    let mut all: Vec<(String, Vec<(usize, LazyTensor<'a>)>)> = Vec::new();
    for tensor in tensors {
        let (whole, rows) =
            fused::source(config, &tensor.name).unwrap_or_else(|| (tensor.name.clone(), 0..0));
        match all.iter_mut().find(|(other, _)| *other == whole) {
            Some((_, parts)) => parts.push((rows.start, tensor)),
            None => all.push((whole, vec![(rows.start, tensor)])),
        }
    }
    let joined = all.into_iter().map(|(name, mut parts)| {
        parts.sort_by_key(|(start, _)| *start);
        let first = &parts[0].1;
        let (dtype, mut shape) = (first.dtype, first.shape.clone());
        shape[0] = parts.iter().map(|(_, part)| part.shape[0]).sum();
        let values = move || {
            let values = parts.iter().map(|(_, part)| (part.values)());
            Ok(values.collect::<Result<Vec<_>, _>>()?.concat())
        };
        LazyTensor { name, dtype, shape, values: Box::new(values) }
    });
    joined.collect()
}

/// Writes everything of a Hugging Face folder but the weights: `config.json`, and the settings of generation
/// and tokenizer as `like` has them. Returns the configuration.
///
/// # Errors
/// What the file system says, or a configuration that Hugging Face's format cannot hold.
pub fn folder_files(
    folder: &Path,
    config: &ModelConfig,
    dtype: DType,
    like: &Checkpoint,
) -> Result<Json, CheckpointError> {
    let make = |folder: &Path| {
        std::fs::create_dir_all(folder)
            .map_err(|error| CheckpointError::Io { path: folder.into(), error })
    };
    make(folder)?;
    let written = hf_config(config, dtype, like)?;
    json_file(&folder.join("config.json"), &written)?;
    if !like.path().is_dir() {
        settings(folder, config, like)?;
        return Ok(written);
    }
    for name in SETTINGS {
        let path = like.path().join(name);
        if path.exists() {
            let bytes = std::fs::read(&path);
            let bytes = bytes.map_err(|error| CheckpointError::Io { path, error })?;
            let path = folder.join(name);
            path.parent().map_or(Ok(()), make)?;
            atomically(&path, |writer| writer.write_all(&bytes))?;
        }
    }
    Ok(written)
}

/// Settings of a model that comes from a GGUF file.
fn settings(folder: &Path, config: &ModelConfig, like: &Checkpoint) -> Result<(), CheckpointError> {
    json_file(
        &folder.join("generation_config.json"),
        &json!({"bos_token_id": config.bos_token_id, "eos_token_id": eos(config)}),
    )?;
    let Some(tokenizer) = &like.tokenizer else { return Ok(()) };
    let text = tokenizer
        .to_string(false)
        .map_err(|e| CheckpointError::corrupt(folder, format!("tokenizer: {e}")))?;
    atomically(&folder.join("tokenizer.json"), |w| w.write_all(text.as_bytes()))?;
    let mut settings = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": null,
        "eos_token": null,
        "chat_template": like.chat_templates.to_settings(),
        "model_max_length": config.max_position_embeddings,
        "clean_up_tokenization_spaces": false,
    });
    for (role, text) in &like.special_tokens {
        settings[role] = json!(text);
    }
    json_file(&folder.join(TOKENIZER), &settings)
}

fn eos(config: &ModelConfig) -> Json {
    match config.eos_token_ids[..] {
        [] => Json::Null,
        [id] => json!(id),
        ref ids => json!(ids),
    }
}

/// `config.json` of a model with this configuration: that of the folder `like` but for its blocks and its
/// float format, or, where `like` is a GGUF file, one made of the configuration.
///
/// # Errors
/// A configuration that Hugging Face's format cannot hold.
pub fn hf_config(
    config: &ModelConfig,
    dtype: DType,
    like: &Checkpoint,
) -> Result<Json, CheckpointError> {
    let known =
        if like.path().is_dir() { fields::object(&like.path().join("config.json"))? } else { None };
    let mut map = known.unwrap_or_else(|| of_config(config, like));
    // What is written are floats.
    map.remove("quantization_config");
    let dtype = match dtype {
        DType::F16 => "float16",
        DType::BF16 => "bfloat16",
        _ => "float32",
    };
    let name = if map.contains_key("dtype") { "dtype" } else { "torch_dtype" };
    map.insert(name.into(), json!(dtype));
    map.insert("num_hidden_layers".into(), json!(config.num_hidden_layers));
    map.insert("intermediate_size".into(), json!(config.intermediate_size));
    map.insert("tie_word_embeddings".into(), json!(config.tie_word_embeddings));
    put_windows(&mut map, config, like)?;
    put_embedding_scale(&mut map, config, dtype);
    if !config.design.unrotated.is_empty() {
        map.insert("no_rope_layers".into(), no_rope_layers(&config.design.unrotated));
    }
    Ok(Json::Object(map))
}

/// Which blocks have a window, in the words of the model type.
fn put_windows(
    map: &mut Map<String, Json>,
    config: &ModelConfig,
    like: &Checkpoint,
) -> Result<(), CheckpointError> {
    let Some(window) = &config.sliding_window else {
        if map.get("use_sliding_window") == Some(&json!(true)) {
            map.insert("use_sliding_window".into(), json!(false));
        }
        if map.contains_key("layer_types") || gemma(config) {
            let types = vec!["full_attention"; config.num_hidden_layers];
            map.insert("layer_types".into(), json!(types));
        }
        return Ok(());
    };
    map.insert("sliding_window".into(), json!(window.window));
    if gemma(config) {
        map.insert("layer_types".into(), layer_types(window));
        return Ok(());
    }
    if config.family == Family::Llama {
        if window.first_layer() == Some(0) {
            return Ok(());
        }
        let reason = "a Hugging Face folder of this family has a window in every block or in none";
        return Err(CheckpointError::field(like.path(), "layer_types", reason));
    }
    map.insert("use_sliding_window".into(), json!(true));
    map.insert("layer_types".into(), layer_types(window));
    map.insert("max_window_layers".into(), json!(window.first_layer().unwrap_or(0)));
    Ok(())
}

fn gemma(config: &ModelConfig) -> bool {
    matches!(config.family, Family::Gemma2 | Family::Gemma3)
}

/// Which blocks rotate, as `no_rope_layers`: 1 where a block does.
pub(super) fn no_rope_layers(unrotated: &[bool]) -> Json {
    unrotated.iter().map(|unrotated| u8::from(!unrotated)).collect()
}

/// A window's blocks as `layer_types`.
pub(super) fn layer_types(window: &SlidingWindow) -> Json {
    let kind = |uses: &bool| if *uses { "sliding_attention" } else { "full_attention" };
    window.layers.iter().map(kind).collect()
}

/// The inverse of reading `config.json`.
fn of_config(config: &ModelConfig, like: &Checkpoint) -> Map<String, Json> {
    let (model_type, architecture) = match (config.family, &config.sliding_window) {
        (Family::Llama, _) if !config.design.unrotated.is_empty() => {
            ("smollm3", "SmolLM3ForCausalLM")
        }
        (Family::Llama, _) if config.design.rotated.is_some() => (PHI3, "Phi3ForCausalLM"),
        (Family::Llama, None) => ("llama", "LlamaForCausalLM"),
        (Family::Llama, Some(_)) => ("mistral", "MistralForCausalLM"),
        (Family::Qwen2, _) => ("qwen2", "Qwen2ForCausalLM"),
        (Family::Qwen3, _) => ("qwen3", "Qwen3ForCausalLM"),
        (Family::Gemma2, _) => ("gemma2", "Gemma2ForCausalLM"),
        (Family::Gemma3, _) => ("gemma3_text", "Gemma3ForCausalLM"),
    };
    let positions = match config.rope.scaling {
        // The field counts the positions before they are scaled.
        RopeScaling::Linear { factor } => {
            (config.max_position_embeddings as f64 / factor).round() as usize
        }
        _ => config.max_position_embeddings,
    };
    let mut fields = json!({
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_act": activation(config),
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": positions,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope.theta,
        "rope_scaling": rope::to_json(&config.rope.scaling, positions),
        "bos_token_id": config.bos_token_id,
        "eos_token_id": eos(config),
    });
    if let Some(rotated) = config.design.rotated {
        fields["partial_rotary_factor"] = json!(rotated as f64 / config.head_dim as f64);
        // Without one, transformers takes a token that the vocabulary may not have.
        fields["pad_token_id"] = Json::Null;
        if let RopeScaling::LongRope { original_max_position_embeddings, .. } = config.rope.scaling
        {
            fields["original_max_position_embeddings"] = json!(original_max_position_embeddings);
        }
    } else if config.family == Family::Llama {
        fields["attention_bias"] = json!(like.has("model.layers.0.self_attn.q_proj.bias"));
        fields["mlp_bias"] = json!(like.has("model.layers.0.mlp.up_proj.bias"));
    }
    let mut map = match fields {
        Json::Object(map) => map,
        _ => Map::new(),
    };
    if gemma(config) {
        put_gemma(&mut map, config);
    }
    map
}

/// The name of what the gate passes through.
fn activation(config: &ModelConfig) -> &'static str {
    match config.design.activation {
        Activation::Silu => "silu",
        Activation::GeluTanh => "gelu_pytorch_tanh",
    }
}

/// What Gemma's `config.json` says beside other models'.
fn put_gemma(map: &mut Map<String, Json>, config: &ModelConfig) {
    let design = &config.design;
    map.insert("hidden_activation".into(), json!(activation(config)));
    map.insert("query_pre_attn_scalar".into(), json!(design.query_scalar));
    map.insert("attn_logit_softcapping".into(), json!(design.score_cap));
    map.insert("final_logit_softcapping".into(), json!(design.logit_cap));
    if let Some(rope) = &design.local_rope {
        map.insert("rope_local_base_freq".into(), json!(rope.theta));
    }
}

/// Keeps the multiplier of Gemma's embeddings where the float format that is written would round it to another one.
fn put_embedding_scale(map: &mut Map<String, Json>, config: &ModelConfig, dtype: &str) {
    let scale =
        config.design.embedding_scale.filter(|scale| *scale != root(config.hidden_size, dtype));
    map.extend(scale.map(|scale| ("embedding_multiplier".to_owned(), json!(scale))));
}
