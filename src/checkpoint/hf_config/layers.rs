//! Which blocks of a Hugging Face model attend through a window.

use serde_json::Value;

use super::{CheckpointError, Fields};
use crate::checkpoint::architecture::SlidingWindow;

/// Which blocks have a window: `layer_types` where that is given, else what the model type says of
/// `sliding_window`.
pub(super) fn sliding_window(
    fields: &Fields,
    model_type: &str,
    blocks: usize,
) -> Result<Option<SlidingWindow>, CheckpointError> {
    let window = match model_type {
        "mistral" | "phi3" => fields.optional_usize("sliding_window")?,
        // What transformers takes where the field is not there.
        "gemma2" | "gemma3_text" if !fields.map.contains_key("sliding_window") => Some(4096),
        "gemma2" | "gemma3_text" => fields.optional_usize("sliding_window")?,
        "qwen2" | "qwen3" if fields.bool("use_sliding_window")? => {
            fields.optional_usize("sliding_window")?
        }
        _ => None,
    };
    let first = match model_type {
        "mistral" | "phi3" => 0,
        _ => fields.optional_usize("max_window_layers")?.unwrap_or(0),
    };
    let period = match model_type {
        "gemma2" => Some(2),
        "gemma3_text" => Some(period(fields)?),
        _ => None,
    };
    let blocks_at_most = blocks.min(1 << 20);
    let own = window.map(|window| match period {
        Some(period) => SlidingWindow::but_every(period, window, blocks_at_most),
        None => SlidingWindow::from_layer(window, first, blocks_at_most),
    });
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

/// Of how many blocks of a Gemma 3 one has no window.
fn period(fields: &Fields) -> Result<usize, CheckpointError> {
    let mut period = None;
    for name in ["sliding_window_pattern", "_sliding_window_pattern"] {
        period = period.or(fields.optional_usize(name)?);
    }
    match period.unwrap_or(6) {
        0 => Err(fields.error("sliding_window_pattern", "is 0")),
        period => Ok(period),
    }
}

fn has_layers(window: &SlidingWindow) -> bool {
    window.layers.contains(&true)
}

/// Whether each block of a `layer_types` list has a window.
pub(in crate::checkpoint) fn layer_types(types: &Value) -> Option<Vec<bool>> {
    let one = |kind: &Value| match kind.as_str()? {
        "full_attention" => Some(false),
        "sliding_attention" => Some(true),
        _ => None,
    };
    types.as_array()?.iter().map(one).collect()
}

/// Which blocks of a SmolLM3 leave queries and keys as they are: those with a 0 in `no_rope_layers`, or the last of
/// every `no_rope_layer_interval`.
pub(super) fn unrotated(fields: &Fields, blocks: usize) -> Result<Vec<bool>, CheckpointError> {
    if fields.bool("use_sliding_window")? {
        let reason = "true is not supported for smollm3";
        return Err(fields.error("use_sliding_window", reason));
    }
    if let Some(list) = fields.get("no_rope_layers") {
        return unrotated_blocks(list)
            .ok_or_else(|| fields.error("no_rope_layers", "is no list of 0 and 1"));
    }
    match fields.optional_usize("no_rope_layer_interval")?.unwrap_or(4) {
        0 => Err(fields.error("no_rope_layer_interval", "is 0")),
        interval => {
            Ok((0..blocks.min(1 << 20)).map(|i| (i + 1).is_multiple_of(interval)).collect())
        }
    }
}

/// Whether each block of a `no_rope_layers` list does not rotate.
pub(in crate::checkpoint) fn unrotated_blocks(list: &Value) -> Option<Vec<bool>> {
    list.as_array()?.iter().map(|rotates| Some(rotates.as_u64()? == 0)).collect()
}
