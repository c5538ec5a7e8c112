//! `config.json` (and `generation_config.json`, `pleach.json`) of a Hugging Face folder.

use std::path::Path;

use serde_json::{Map, Value};

use super::fields::{Fields, object};
use super::{CheckpointError, rope};
use crate::checkpoint::architecture::{Attachment, Family, ModelConfig, RopeConfig, SlidingWindow};

/// What a file says of its model.
pub(super) struct Description {
    pub(super) config: ModelConfig,
    pub(super) draft_vocab: Option<Vec<u32>>,
    pub(super) attachment: Option<Attachment>,
}

/// What a folder says of its model.
pub(super) fn read(folder: &Path) -> Result<Description, CheckpointError> {
    let path = folder.join("config.json");
    let map = object(&path)?.ok_or_else(|| {
        CheckpointError::corrupt(&path, "is missing: not a Hugging Face model folder")
    })?;
    let fields = Fields { path: &path, prefix: "", map: &map };
    let mut config = config(&fields)?;
    warn_of_unknown(&fields);
    let generation = folder.join("generation_config.json");
    if let Some(map) = object(&generation)? {
        // What transformers generates by comes first.
        let fields = Fields { path: &generation, prefix: "", map: &map };
        let own = std::mem::replace(&mut config.eos_token_ids, fields.token_ids("eos_token_id")?);
        config.end_at(own);
    }
    config.check().map_err(|(field, reason)| fields.error(field, reason))?;
    let extension = folder.join("pleach.json");
    let Some(map) = object(&extension)? else {
        return Ok(Description { config, draft_vocab: None, attachment: None });
    };
    let fields = Fields { path: &extension, prefix: "", map: &map };
    let draft_vocab = fields.token_ids("draft_vocab")?;
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

/// Fields of `config.json` that are read, or that change nothing in a forward pass without training.
const KNOWN: [&str; 50] = [
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_name_or_path",
    "architectures",
    "attention_bias",
    "attention_dropout",
    "attn_implementation",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "id2label",
    "initializer_range",
    "intermediate_size",
    "is_llama_config",
    "label2id",
    "layer_types",
    "max_position_embeddings",
    "max_window_layers",
    "mlp_bias",
    "model_type",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "partial_rotary_factor",
    "pretraining_tp",
    "quantization_config",
    "return_dict",
    "rms_norm_eps",
    "rope_interleaved",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "sliding_window",
    "tie_word_embeddings",
    "tokenizer_class",
    "torch_dtype",
    "transformers.js_config",
    "transformers_version",
    "unk_token_id",
    "unsloth_fixed",
    "unsloth_version",
    "use_cache",
    "use_sliding_window",
    "vocab_size",
];

/// Fields that would change the computation, and the value at which they do not.
const NEUTRAL: [(&str, f64); 9] = [
    ("partial_rotary_factor", 1.0),
    ("rotary_pct", 1.0),
    ("embedding_multiplier", 1.0),
    ("residual_multiplier", 1.0),
    ("logits_scaling", 1.0),
    ("final_logit_softcapping", 0.0),
    ("attn_logit_softcapping", 0.0),
    ("num_experts", 0.0),
    ("num_local_experts", 0.0),
];

fn warn_of_unknown(fields: &Fields) {
    let neutral = |name: &str| NEUTRAL.iter().any(|(field, _)| *field == name);
    let unknown: Vec<&str> = fields
        .map
        .iter()
        .filter(|(name, value)| !value.is_null() && !neutral(name))
        .map(|(name, _)| name.as_str())
        .filter(|name| !KNOWN.contains(name))
        .collect();
    if !unknown.is_empty() {
        let file = fields.path.display();
        tracing::warn!(%file, fields = unknown.join(", "), "fields that are not known are ignored");
    }
}

fn config(fields: &Fields) -> Result<ModelConfig, CheckpointError> {
    let model_type = fields.get("model_type").and_then(Value::as_str).unwrap_or_default();
    let family = match model_type {
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
    if let Some(quantization) = fields.get("quantization_config") {
        let method = quantization.get("quant_method").and_then(Value::as_str).unwrap_or("unnamed");
        let reason = format!(
            "weights quantised by `{method}` are not supported; take the folder of the unquantised \
             model or a .gguf file"
        );
        return Err(fields.error("quantization_config", reason));
    }
    for (field, neutral) in NEUTRAL {
        if let Some(value) = fields.optional_f64(field)?.filter(|value| *value != neutral) {
            return Err(fields.error(field, format!("{value} is not supported")));
        }
    }
    if let Some(act) = fields.get("hidden_act").and_then(Value::as_str)
        && act != "silu"
    {
        return Err(fields.error("hidden_act", format!("`{act}` is not supported; silu is")));
    }
    let hidden_size = fields.usize("hidden_size")?;
    let heads = fields.usize("num_attention_heads")?;
    let max_position_embeddings = fields.usize("max_position_embeddings")?;
    let num_hidden_layers = fields.usize("num_hidden_layers")?;
    let sliding_window = sliding_window(fields, model_type, num_hidden_layers)?;
    let (rope, original) = rope(fields, max_position_embeddings)?;
    Ok(ModelConfig {
        family,
        vocab_size: fields.usize("vocab_size")?,
        hidden_size,
        intermediate_size: fields.usize("intermediate_size")?,
        num_hidden_layers,
        num_attention_heads: heads,
        num_key_value_heads: fields.optional_usize("num_key_value_heads")?.unwrap_or(heads),
        head_dim: match fields.optional_usize("head_dim")? {
            Some(dim) => dim,
            None => hidden_size.checked_div(heads).unwrap_or(0),
        },
        max_position_embeddings: rope.scaling.reach(max_position_embeddings, original),
        rms_norm_eps: fields.f64("rms_norm_eps")?,
        rope,
        sliding_window,
        tie_word_embeddings: fields.bool("tie_word_embeddings")?,
        bos_token_id: fields.token_ids("bos_token_id")?.first().copied(),
        eos_token_ids: fields.token_ids("eos_token_id")?,
    })
}

/// Which blocks have a window: `layer_types` where that is given, else what the model type says of
/// `sliding_window`.
fn sliding_window(
    fields: &Fields,
    model_type: &str,
    blocks: usize,
) -> Result<Option<SlidingWindow>, CheckpointError> {
    let window = match model_type {
        "mistral" => fields.optional_usize("sliding_window")?,
        "qwen2" | "qwen3" if fields.bool("use_sliding_window")? => {
            fields.optional_usize("sliding_window")?
        }
        _ => None,
    };
    let first = match model_type {
        "mistral" => 0,
        _ => fields.optional_usize("max_window_layers")?.unwrap_or(0),
    };
    let own = window.map(|window| SlidingWindow::from_layer(window, first, blocks.min(1 << 20)));
    let Some(types) = fields.get("layer_types") else { return Ok(own.filter(has_layers)) };
    let layers = layer_types(types).ok_or_else(|| {
        let reason = "is no list of `full_attention` and `sliding_attention`";
        fields.error("layer_types", reason)
    })?;
    if layers.len() != blocks {
        let reason = format!("{} entries for {blocks} blocks", layers.len());
        return Err(fields.error("layer_types", reason));
    }
    let Some(own) = own else {
        if layers.contains(&true) {
            let reason = format!(
                "names `sliding_attention`, which {model_type} has only with a `sliding_window` \
                 that is in use"
            );
            return Err(fields.error("layer_types", reason));
        }
        return Ok(None);
    };
    if model_type == "mistral" && layers != own.layers {
        let reason = "is not what `sliding_window` says: mistral's is in every block";
        return Err(fields.error("layer_types", reason));
    }
    Ok(Some(SlidingWindow { window: own.window, layers }).filter(has_layers))
}

fn has_layers(window: &SlidingWindow) -> bool {
    window.layers.contains(&true)
}

/// Whether each block of a `layer_types` list has a window.
pub(super) fn layer_types(types: &Value) -> Option<Vec<bool>> {
    let one = |kind: &Value| match kind.as_str()? {
        "full_attention" => Some(false),
        "sliding_attention" => Some(true),
        _ => None,
    };
    types.as_array()?.iter().map(one).collect()
}

/// `rope_theta` and `rope_scaling`, or both in the newer `rope_parameters`; and the positions that are
/// scaled.
fn rope(fields: &Fields, positions: usize) -> Result<(RopeConfig, usize), CheckpointError> {
    let names = ["rope_parameters", "rope_scaling"];
    let found = names.iter().find_map(|name| Some((*name, fields.get(name)?)));
    let empty = Map::new();
    let (name, map) = match found {
        None => ("rope_scaling", &empty),
        Some((name, Value::Object(map))) => (name, map),
        Some((name, v)) => return Err(fields.error(name, format!("{v} is not an object"))),
    };
    if let Some((kind, _)) = map.iter().find(|(_, value)| value.is_object()) {
        let reason =
            format!("`{kind}` is an object: rotary settings per kind of block are not supported");
        return Err(fields.error(name, reason));
    }
    let prefix = format!("{name}.");
    let inner = Fields { path: fields.path, prefix: &prefix, map };
    if let Some(share) = inner.optional_f64("partial_rotary_factor")?.filter(|share| *share != 1.0)
    {
        return Err(inner.error("partial_rotary_factor", format!("{share} is not supported")));
    }
    let theta = match inner.optional_f64("rope_theta")? {
        Some(theta) => theta,
        None => fields.optional_f64("rope_theta")?.unwrap_or(10_000.0),
    };
    let original = inner.optional_usize("original_max_position_embeddings")?.unwrap_or(positions);
    Ok((RopeConfig { theta, scaling: rope::parse(&inner, positions)? }, original))
}
