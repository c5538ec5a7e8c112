//! `config.json` (and `generation_config.json`, `pleach.json`) of a Hugging Face folder.

use std::path::Path;

use serde_json::{Map, Value};

use super::{CheckpointError, Description};
use crate::model::{Attachment, Family, ModelConfig, RopeConfig, RopeScaling, SlidingWindow};

/// Largest JSON file that is read.
const MAX_BYTES: u64 = 64 << 20;

/// Parses a JSON object; `None` where the file does not exist.
pub(super) fn object(path: &Path) -> Result<Option<Map<String, Value>>, CheckpointError> {
    let io = |source| CheckpointError::Io { path: path.into(), source };
    match std::fs::metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io(e)),
        Ok(meta) if meta.len() > MAX_BYTES => {
            return Err(CheckpointError::corrupt(path, format!("{} bytes of JSON", meta.len())));
        }
        Ok(_) => {}
    }
    let bytes = std::fs::read(path).map_err(io)?;
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|e| CheckpointError::corrupt(path, e.to_string()))
}

struct Fields<'a> {
    path: &'a Path,
    map: &'a Map<String, Value>,
}

impl Fields<'_> {
    fn error(&self, field: &str, reason: impl Into<String>) -> CheckpointError {
        CheckpointError::field(self.path, field, reason)
    }

    fn get(&self, field: &str) -> Option<&Value> {
        self.map.get(field).filter(|v| !v.is_null())
    }

    fn optional_usize(&self, field: &str) -> Result<Option<usize>, CheckpointError> {
        self.get(field)
            .map(|v| {
                v.as_u64()
                    .and_then(|v| u32::try_from(v).ok())
                    .map(|v| v as usize)
                    .ok_or_else(|| self.error(field, format!("{v} is no number of this kind")))
            })
            .transpose()
    }

    fn usize(&self, field: &str) -> Result<usize, CheckpointError> {
        self.optional_usize(field)?.ok_or_else(|| self.error(field, "is missing"))
    }

    fn optional_f64(&self, field: &str) -> Result<Option<f64>, CheckpointError> {
        self.get(field)
            .map(|v| v.as_f64().ok_or_else(|| self.error(field, format!("{v} is no number"))))
            .transpose()
    }

    fn f64(&self, field: &str) -> Result<f64, CheckpointError> {
        self.optional_f64(field)?.ok_or_else(|| self.error(field, "is missing"))
    }

    fn bool(&self, field: &str) -> Result<bool, CheckpointError> {
        match self.get(field) {
            None => Ok(false),
            Some(v) => {
                v.as_bool().ok_or_else(|| self.error(field, format!("{v} is not true or false")))
            }
        }
    }

    fn token_ids(&self, field: &str) -> Result<Vec<u32>, CheckpointError> {
        let id = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
        match self.get(field) {
            None => Some(Vec::new()),
            Some(Value::Array(ids)) => ids.iter().map(id).collect(),
            Some(v) => id(v).map(|id| vec![id]),
        }
        .ok_or_else(|| self.error(field, "is no token id"))
    }
}

/// What a folder says of its model.
pub(super) fn read(folder: &Path) -> Result<Description, CheckpointError> {
    let path = folder.join("config.json");
    let map = object(&path)?.ok_or_else(|| {
        CheckpointError::corrupt(&path, "is missing: not a Hugging Face model folder")
    })?;
    let fields = Fields { path: &path, map: &map };
    let mut config = config(&fields)?;
    let generation = folder.join("generation_config.json");
    if let Some(map) = object(&generation)? {
        let ids = Fields { path: &generation, map: &map }.token_ids("eos_token_id")?;
        config.eos_token_ids.extend(ids);
        config.eos_token_ids.sort_unstable();
        config.eos_token_ids.dedup();
    }
    config.check().map_err(|(field, reason)| fields.error(field, reason))?;
    let extension = folder.join("pleach.json");
    let Some(map) = object(&extension)? else {
        return Ok(Description { config, draft_vocab: None, attachment: None });
    };
    let draft_vocab = Fields { path: &extension, map: &map }.token_ids("draft_vocab")?;
    let draft_vocab = Some(draft_vocab).filter(|ids| !ids.is_empty());
    let attachment = attachment(&extension, &map)?;
    Ok(Description { config, draft_vocab, attachment })
}

/// Where an attached drafter hangs on its target: `"attached": {"blocks": […], "states": […]}`.
fn attachment(
    path: &Path,
    map: &Map<String, Value>,
) -> Result<Option<Attachment>, CheckpointError> {
    let Some(value) = map.get("attached") else { return Ok(None) };
    let list = |name: &str| -> Option<Vec<usize>> {
        let numbers = value.get(name)?.as_array()?.iter();
        numbers.map(|number| usize::try_from(number.as_u64()?).ok()).collect()
    };
    match (list("blocks"), list("states")) {
        (Some(blocks), Some(states)) => Ok(Some(Attachment { blocks, states })),
        _ => Err(CheckpointError::field(path, "attached", "has no lists `blocks` and `states`")),
    }
}

fn config(fields: &Fields) -> Result<ModelConfig, CheckpointError> {
    let family = match fields.get("model_type").and_then(Value::as_str).unwrap_or_default() {
        "llama" | "mistral" => Family::Llama,
        "qwen2" => Family::Qwen2,
        "qwen3" => Family::Qwen3,
        other => {
            return Err(fields.error(
                "model_type",
                format!("`{other}` is not supported; llama, mistral, qwen2 and qwen3 are"),
            ));
        }
    };
    if let Some(act) = fields.get("hidden_act").and_then(Value::as_str)
        && act != "silu"
    {
        return Err(fields.error("hidden_act", format!("`{act}` is not supported; silu is")));
    }
    let hidden_size = fields.usize("hidden_size")?;
    let heads = fields.usize("num_attention_heads")?;
    let max_position_embeddings = fields.usize("max_position_embeddings")?;
    let window = fields.optional_usize("sliding_window")?;
    let sliding_window = match family {
        Family::Llama => window.map(|window| SlidingWindow { window, first_layer: 0 }),
        Family::Qwen2 | Family::Qwen3 if fields.bool("use_sliding_window")? => {
            let first_layer = fields.optional_usize("max_window_layers")?.unwrap_or(0);
            window.map(|window| SlidingWindow { window, first_layer })
        }
        Family::Qwen2 | Family::Qwen3 => None,
    };
    if sliding_window.is_some_and(|w| w.window == 0) {
        return Err(fields.error("sliding_window", "is 0"));
    }
    Ok(ModelConfig {
        family,
        vocab_size: fields.usize("vocab_size")?,
        hidden_size,
        intermediate_size: fields.usize("intermediate_size")?,
        num_hidden_layers: fields.usize("num_hidden_layers")?,
        num_attention_heads: heads,
        num_key_value_heads: fields.optional_usize("num_key_value_heads")?.unwrap_or(heads),
        head_dim: match fields.optional_usize("head_dim")? {
            Some(dim) => dim,
            None => hidden_size.checked_div(heads).unwrap_or(0),
        },
        max_position_embeddings,
        rms_norm_eps: fields.f64("rms_norm_eps")?,
        rope: rope(fields, max_position_embeddings)?,
        sliding_window,
        tie_word_embeddings: fields.bool("tie_word_embeddings")?,
        bos_token_id: fields.token_ids("bos_token_id")?.first().copied(),
        eos_token_ids: fields.token_ids("eos_token_id")?,
    })
}

/// `rope_theta` and `rope_scaling`, or both in the newer `rope_parameters`.
fn rope(fields: &Fields, max_position_embeddings: usize) -> Result<RopeConfig, CheckpointError> {
    let object = fields.get("rope_parameters").or_else(|| fields.get("rope_scaling"));
    let empty = Map::new();
    let map = match object {
        None => &empty,
        Some(Value::Object(map)) => map,
        Some(v) => return Err(fields.error("rope_scaling", format!("{v} is not an object"))),
    };
    let inner = Fields { path: fields.path, map };
    let theta = match inner.optional_f64("rope_theta")? {
        Some(theta) => theta,
        None => fields.optional_f64("rope_theta")?.unwrap_or(10_000.0),
    };
    let kind = inner.get("rope_type").or_else(|| inner.get("type")).and_then(Value::as_str);
    let original = match inner.optional_usize("original_max_position_embeddings")? {
        Some(original) => original,
        None => max_position_embeddings,
    };
    let scaling = match kind.unwrap_or("default") {
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
        "yarn" => RopeScaling::Yarn {
            factor: inner.f64("factor")?,
            original_max_position_embeddings: original,
            beta_fast: inner.optional_f64("beta_fast")?.unwrap_or(32.0),
            beta_slow: inner.optional_f64("beta_slow")?.unwrap_or(1.0),
            attention_factor: inner.optional_f64("attention_factor")?,
        },
        other => {
            return Err(fields.error(
                "rope_scaling.rope_type",
                format!("`{other}` is not supported; linear, dynamic, llama3 and yarn are"),
            ));
        }
    };
    Ok(RopeConfig { theta, scaling })
}
