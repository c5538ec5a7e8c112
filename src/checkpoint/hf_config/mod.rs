//! `config.json` (and `generation_config.json`, `pleach.json`) of a Hugging Face folder.

mod design;
mod known;
mod layers;
mod rope;

use std::path::Path;

use serde_json::{Map, Value};

use super::CheckpointError;
use super::fields::{Fields, object};
use crate::checkpoint::architecture::{Attachment, Design, Family, ModelConfig};
pub(super) use design::root;
use layers::sliding_window;
pub(super) use layers::{layer_types, unrotated_blocks};
use rope::Ropes;

/// What a folder says of the tokens of a trimmed head, and of what an attached drafter reads.
pub const NOTE: &str = "pleach.json";

/// The values of `model_type` that are read.
const MODEL_TYPES: &str = "llama, mistral, phi3, smollm3, qwen2, qwen3, gemma2 and gemma3_text";

/// What a file says of its model.
pub(super) struct Description {
    pub(super) config: ModelConfig,
    pub(super) draft_vocab: Option<Vec<u32>>,
    pub(super) attachment: Option<Attachment>,
    /// `generation_config.json`, where there is one.
    pub(super) generation: Map<String, Value>,
}

/// What a folder says of its model.
pub(super) fn read(folder: &Path) -> Result<Description, CheckpointError> {
    let path = folder.join("config.json");
    let map = object(&path)?.ok_or_else(|| {
        CheckpointError::corrupt(&path, "is missing: not a Hugging Face model folder")
    })?;
    let fields = Fields { path: &path, prefix: "", map: &map };
    let mut config = config(&fields)?;
    known::warn_of_unknown(&fields);
    let generation = folder.join("generation_config.json");
    let map = object(&generation)?;
    if let Some(map) = &map {
        // What transformers generates by comes first.
        let fields = Fields { path: &generation, prefix: "", map };
        let own = std::mem::replace(&mut config.eos_token_ids, fields.token_ids("eos_token_id")?);
        config.end_at(own);
    }
    let generation = map.unwrap_or_default();
    config.check().map_err(|(field, reason)| fields.error(field, reason))?;
    let extension = folder.join(NOTE);
    let Some(map) = object(&extension)? else {
        return Ok(Description { config, draft_vocab: None, attachment: None, generation });
    };
    let fields = Fields { path: &extension, prefix: "", map: &map };
    let draft_vocab = fields.token_ids("draft_vocab")?;
    let draft_vocab = Some(draft_vocab).filter(|ids| !ids.is_empty());
    let attachment = attachment(&extension, &map)?;
    Ok(Description { config, draft_vocab, attachment, generation })
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
    let model_type = fields.get("model_type").and_then(Value::as_str).unwrap_or_default();
    let family = match model_type {
        "llama" | "mistral" | "phi3" | "smollm3" => Family::Llama,
        "qwen2" => Family::Qwen2,
        "qwen3" => Family::Qwen3,
        "gemma2" => Family::Gemma2,
        "gemma3_text" => Family::Gemma3,
        other => {
            let reason = format!("`{other}` is not supported; {MODEL_TYPES} are");
            return Err(fields.error("model_type", reason));
        }
    };
    let gemma = matches!(family, Family::Gemma2 | Family::Gemma3);
    let read: &[&str] = match model_type {
        "phi3" => &["partial_rotary_factor"],
        _ if gemma => &design::GEMMA_FIELDS,
        _ => &[],
    };
    known::refuse_unsupported(fields, read)?;
    let hidden_size = fields.usize("hidden_size")?;
    let heads = fields.usize("num_attention_heads")?;
    let max_position_embeddings = fields.usize("max_position_embeddings")?;
    let num_hidden_layers = fields.usize("num_hidden_layers")?;
    let sliding_window = sliding_window(fields, model_type, num_hidden_layers)?;
    let Ropes { global: rope, local, original } = match family {
        Family::Gemma3 => rope::of_two_kinds(fields, max_position_embeddings)?,
        _ => {
            let (global, original) = rope::of_one_kind(fields, max_position_embeddings)?;
            Ropes { global, local: None, original }
        }
    };
    let head_dim = match fields.optional_usize("head_dim")? {
        Some(dim) => dim,
        None if gemma => 256,
        None => hidden_size.checked_div(heads).unwrap_or(0),
    };
    let unrotated = match model_type {
        "smollm3" => layers::unrotated(fields, num_hidden_layers)?,
        _ => Vec::new(),
    };
    let rotated = match model_type {
        "phi3" => rope::rotated(fields, head_dim)?,
        _ => None,
    };
    let design = Design {
        local_rope: local,
        unrotated,
        rotated,
        ..design::of(fields, family, hidden_size)?
    };
    // Gemma's own defaults, which its files leave out.
    let tied = match fields.get("tie_word_embeddings") {
        None => gemma || model_type == "smollm3",
        Some(_) => fields.bool("tie_word_embeddings")?,
    };
    Ok(ModelConfig {
        family,
        vocab_size: fields.usize("vocab_size")?,
        hidden_size,
        intermediate_size: fields.usize("intermediate_size")?,
        num_hidden_layers,
        num_attention_heads: heads,
        num_key_value_heads: fields.optional_usize("num_key_value_heads")?.unwrap_or(heads),
        head_dim,
        max_position_embeddings: rope.scaling.reach(max_position_embeddings, original),
        rms_norm_eps: fields.f64("rms_norm_eps")?,
        rope,
        sliding_window,
        design,
        tie_word_embeddings: tied,
        bos_token_id: fields.token_ids("bos_token_id")?.first().copied(),
        eos_token_ids: fields.token_ids("eos_token_id")?,
    })
}
