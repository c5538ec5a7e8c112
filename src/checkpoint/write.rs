//! Writing models: Hugging Face folders and GGUF drafts. A file appears under its name whole or not at
//! all: it is written beside it, synced and renamed.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use safetensors::Dtype;
use serde_json::{Value as Json, json};

use super::{Checkpoint, CheckpointError, RawTensor, gguf_model};
use crate::model::{Family, ModelConfig, RopeScaling};
use crate::ops::DType;

/// How the names of files begin that are still being written; a killed process leaves them behind.
pub const BEGUN: &str = ".writing-";

/// Writes a file through `fill` so that no reader ever sees a part of it.
///
/// # Errors
/// What the file system says; the old file, if any, is then untouched.
pub fn atomically(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<&File>) -> io::Result<()>,
) -> Result<(), CheckpointError> {
    let error = |source| CheckpointError::Io { path: path.into(), source };
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666)); // less what umask takes
    }
    let file = builder.prefix(BEGUN).tempfile_in(folder).map_err(error)?;
    let mut writer = BufWriter::with_capacity(1 << 20, file.as_file());
    fill(&mut writer).and_then(|()| writer.flush()).map_err(error)?;
    drop(writer);
    file.as_file().sync_all().map_err(error)?;
    file.persist(path).map_err(|e| error(e.error))?;
    // The rename itself must last too.
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(error)
}

/// Writes a JSON file, indented, [`atomically`].
///
/// # Errors
/// What the file system says.
pub fn json_file(path: &Path, value: &impl serde::Serialize) -> Result<(), CheckpointError> {
    atomically(path, |writer| {
        serde_json::to_writer_pretty(&mut *writer, value)?;
        writer.write_all(b"\n")
    })
}

/// A tensor to be written, made when its turn comes.
pub struct LazyTensor<'a> {
    /// Hugging Face name.
    pub name: String,
    /// Float format on disk.
    pub dtype: DType,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// Makes the values.
    pub values: Box<dyn Fn() -> Result<Vec<f32>, CheckpointError> + 'a>,
}

/// The safetensors format of a float format.
fn safetensors_dtype(dtype: DType) -> Option<Dtype> {
    match dtype {
        DType::F32 => Some(Dtype::F32),
        DType::F16 => Some(Dtype::F16),
        DType::BF16 => Some(Dtype::BF16),
        _ => None,
    }
}

/// Writes `model.safetensors`, one tensor in memory at a time.
///
/// # Errors
/// What the file system says, or what a tensor's maker says.
pub fn safetensors_file(path: &Path, tensors: &[LazyTensor]) -> Result<(), CheckpointError> {
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut end = 0;
    for tensor in tensors {
        let dtype = safetensors_dtype(tensor.dtype).ok_or_else(|| {
            CheckpointError::corrupt(path, format!("safetensors cannot hold {:?}", tensor.dtype))
        })?;
        let values = tensor.shape.iter().product::<usize>();
        let start = end;
        end += tensor.dtype.bytes_for(values).unwrap_or(0);
        header.insert(
            tensor.name.clone(),
            json!({"dtype": dtype, "shape": tensor.shape, "data_offsets": [start, end]}),
        );
    }
    let mut header = Json::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut failed = None;
    let written = atomically(path, |writer| {
        writer.write_all(&(header.len() as u64).to_le_bytes())?;
        writer.write_all(&header)?;
        for tensor in tensors {
            let values = (tensor.values)().map_err(|error| {
                failed = Some(error);
                io::Error::other("a tensor could not be made")
            })?;
            let bytes = tensor.dtype.quantize(&values).expect("invariant: a float format");
            writer.write_all(&bytes)?;
        }
        Ok(())
    });
    failed.map_or(written, Err)
}

/// Writes everything of a Hugging Face folder but the weights: `config.json`,
/// `generation_config.json`, and the tokenizer with its chat template where `like` has them.
///
/// # Errors
/// What the file system says, or a configuration that Hugging Face's format cannot hold.
pub fn folder_files(
    folder: &Path,
    config: &ModelConfig,
    dtype: DType,
    like: &Checkpoint,
) -> Result<(), CheckpointError> {
    std::fs::create_dir_all(folder)
        .map_err(|source| CheckpointError::Io { path: folder.into(), source })?;
    json_file(&folder.join("config.json"), &hf_config(folder, config, dtype)?)?;
    let eos = eos(config);
    json_file(
        &folder.join("generation_config.json"),
        &json!({"bos_token_id": config.bos_token_id, "eos_token_id": eos}),
    )?;
    let Some(tokenizer) = &like.tokenizer else { return Ok(()) };
    let text = tokenizer
        .to_string(false)
        .map_err(|e| CheckpointError::corrupt(folder, format!("tokenizer: {e}")))?;
    atomically(&folder.join("tokenizer.json"), |w| w.write_all(text.as_bytes()))?;
    let token = |id: Option<u32>| id.and_then(|id| tokenizer.id_to_token(id));
    let settings = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": token(config.bos_token_id),
        "eos_token": token(config.eos_token_ids.first().copied()),
        "chat_template": like.chat_template,
        "model_max_length": config.max_position_embeddings,
        "clean_up_tokenization_spaces": false,
    });
    json_file(&folder.join("tokenizer_config.json"), &settings)
}

fn eos(config: &ModelConfig) -> Json {
    match config.eos_token_ids[..] {
        [] => Json::Null,
        [id] => json!(id),
        ref ids => json!(ids),
    }
}

/// The inverse of reading `config.json`.
fn hf_config(folder: &Path, config: &ModelConfig, dtype: DType) -> Result<Json, CheckpointError> {
    let (model_type, architecture) = match (config.family, config.sliding_window) {
        (Family::Llama, None) => ("llama", "LlamaForCausalLM"),
        (Family::Llama, Some(_)) => ("mistral", "MistralForCausalLM"),
        (Family::Qwen2, _) => ("qwen2", "Qwen2ForCausalLM"),
        (Family::Qwen3, _) => ("qwen3", "Qwen3ForCausalLM"),
    };
    let scaling = match &config.rope.scaling {
        RopeScaling::None => Json::Null,
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
        RopeScaling::Factors(_) => {
            let reason = "a Hugging Face folder cannot hold the frequency factors of a GGUF file; \
                          start from the model's Hugging Face folder";
            return Err(CheckpointError::field(folder, "rope_scaling", reason));
        }
    };
    let mut json = json!({
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_act": "silu",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope.theta,
        "rope_scaling": scaling,
        "tie_word_embeddings": config.tie_word_embeddings,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": eos(config),
        "torch_dtype": match dtype {
            DType::F16 => "float16",
            DType::BF16 => "bfloat16",
            _ => "float32",
        },
    });
    if let Some(window) = config.sliding_window {
        json["sliding_window"] = json!(window.window);
        if config.family != Family::Llama {
            json["use_sliding_window"] = json!(true);
            json["max_window_layers"] = json!(window.first_layer);
        }
    }
    Ok(json)
}

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
}

const ALIGNMENT: usize = 32;

/// Writes a GGUF file (version 3): the configuration, further metadata, and tensors by their Hugging
/// Face names, rows in Hugging Face order.
///
/// # Errors
/// What the file system says, a tensor without a GGUF name, or a configuration GGUF cannot hold.
pub fn gguf_file(
    path: &Path,
    name: &str,
    config: &ModelConfig,
    more: &[(&str, Meta)],
    tensors: &[(String, RawTensor)],
) -> Result<(), CheckpointError> {
    let own = gguf_metadata(path, name, config)?;
    let mut header = b"GGUF".to_vec();
    header.extend(3u32.to_le_bytes());
    header.extend((tensors.len() as u64).to_le_bytes());
    header.extend(((own.len() + more.len()) as u64).to_le_bytes());
    for (key, value) in own.iter().map(|(key, value)| (key.as_str(), value)) {
        put_meta(&mut header, key, value);
    }
    for (key, value) in more {
        put_meta(&mut header, key, value);
    }
    let mut offset = 0u64;
    let mut data = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let gguf_name = gguf_model::tensor_name(name).ok_or_else(|| {
            CheckpointError::corrupt(path, format!("GGUF has no name for tensor {name}"))
        })?;
        put_text(&mut header, &gguf_name);
        header.extend((tensor.shape.len() as u32).to_le_bytes());
        for size in tensor.shape.iter().rev() {
            header.extend((*size as u64).to_le_bytes());
        }
        header.extend(tensor.dtype.ggml_id().to_le_bytes());
        header.extend(offset.to_le_bytes());
        offset += tensor.data.len().next_multiple_of(ALIGNMENT) as u64;
        data.push(gguf_model::to_gguf_rows(config, name, tensor));
    }
    header.resize(header.len().next_multiple_of(ALIGNMENT), 0);
    atomically(path, |writer| {
        writer.write_all(&header)?;
        for bytes in &data {
            writer.write_all(bytes)?;
            let padding = bytes.len().next_multiple_of(ALIGNMENT) - bytes.len();
            writer.write_all(&[0; ALIGNMENT][..padding])?;
        }
        Ok(())
    })
}

fn gguf_metadata<'a>(
    path: &Path,
    name: &'a str,
    config: &ModelConfig,
) -> Result<Vec<(String, Meta<'a>)>, CheckpointError> {
    let arch = match config.family {
        Family::Llama => "llama",
        Family::Qwen2 => "qwen2",
        Family::Qwen3 => "qwen3",
    };
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
        ("rope.dimension_count", config.head_dim),
        ("vocab_size", config.vocab_size),
    ] {
        meta.push((format!("{arch}.{key}"), Meta::Number(value as u32)));
    }
    if let Some(window) = config.sliding_window {
        if window.first_layer > 0 {
            let reason = "GGUF cannot hold a window that starts at a later block";
            return Err(CheckpointError::field(path, "max_window_layers", reason));
        }
        let key = format!("{arch}.attention.sliding_window");
        meta.push((key, Meta::Number(window.window as u32)));
    }
    let mut float = |key: &str, value: f64| {
        meta.push((format!("{arch}.{key}"), Meta::Float(value as f32)));
    };
    float("attention.layer_norm_rms_epsilon", config.rms_norm_eps);
    float("rope.freq_base", config.rope.theta);
    let kind = match &config.rope.scaling {
        RopeScaling::None => "none",
        RopeScaling::Linear { factor } => {
            float("rope.scaling.factor", *factor);
            "linear"
        }
        RopeScaling::Yarn { factor, attention_factor, beta_fast, beta_slow, .. }
            if (*beta_fast, *beta_slow) == (32.0, 1.0) =>
        {
            float("rope.scaling.factor", *factor);
            if let Some(attention) = attention_factor {
                float("rope.scaling.attn_factor", *attention);
            }
            "yarn"
        }
        other => {
            let reason = format!("GGUF cannot hold {other:?}; serve the draft's folder instead");
            return Err(CheckpointError::field(path, "rope_scaling", reason));
        }
    };
    if let RopeScaling::Yarn { original_max_position_embeddings: original, .. } =
        config.rope.scaling
    {
        let key = format!("{arch}.rope.scaling.original_context_length");
        meta.push((key, Meta::Number(original as u32)));
    }
    meta.push((format!("{arch}.rope.scaling.type"), Meta::Text(kind.into())));
    Ok(meta)
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
    }
}
