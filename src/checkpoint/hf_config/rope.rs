//! The rotary embeddings of `config.json`.

use serde_json::{Map, Value};

use super::{CheckpointError, Fields};
use crate::checkpoint::architecture::{RopeConfig, RopeScaling};
use crate::checkpoint::rope::parse;

/// The rotary embeddings of a model.
pub(super) struct Ropes {
    /// Of all blocks, or of those without a window.
    pub(super) global: RopeConfig,
    /// Of the blocks with a window, where it is another one.
    pub(super) local: Option<RopeConfig>,
    /// The positions that `global` scales.
    pub(super) original: usize,
}

/// Those that Gemma 3 has for its two kinds of blocks: both in `rope_parameters`, or in older files the one for blocks
/// without a window as other models have it, beside `rope_local_base_freq`.
pub(super) fn of_two_kinds(fields: &Fields, positions: usize) -> Result<Ropes, CheckpointError> {
    const NAME: &str = "rope_parameters";
    let kinds = fields.get(NAME).and_then(Value::as_object);
    let kinds = kinds.filter(|map| map.values().any(Value::is_object));
    let Some(map) = kinds else {
        let (global, original) = of_one_kind(fields, positions)?;
        let theta = fields.optional_f64("rope_local_base_freq")?.unwrap_or(10_000.0);
        let local = Some(RopeConfig { theta, scaling: RopeScaling::None });
        return Ok(Ropes { global, local, original });
    };
    let one = |kind: &str, theta: f64| {
        let prefix = format!("{NAME}.{kind}.");
        let map = map.get(kind).and_then(Value::as_object);
        let map = map.ok_or_else(|| fields.error(NAME, format!("has no object `{kind}`")))?;
        parameters(&Fields { path: fields.path, prefix: &prefix, map }, theta, positions)
    };
    let (global, original) = one("full_attention", 1_000_000.0)?;
    let (local, _) = one("sliding_attention", 10_000.0)?;
    Ok(Ropes { global, local: Some(local), original })
}

/// `rope_theta` and `rope_scaling`, or both in the newer `rope_parameters`; and the positions that are
/// scaled.
pub(super) fn of_one_kind(
    fields: &Fields,
    positions: usize,
) -> Result<(RopeConfig, usize), CheckpointError> {
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
    // Phi-3's files of before transformers 5 say beside the scaling how long the model was trained.
    let mut map = map.clone();
    const ORIGINAL: &str = "original_max_position_embeddings";
    if let Some(original) = fields.get(ORIGINAL).filter(|_| !map.contains_key(ORIGINAL)) {
        map.insert(ORIGINAL.into(), original.clone());
    }
    let inner = Fields { path: fields.path, prefix: &prefix, map: &map };
    let partial = fields.get("model_type").and_then(Value::as_str) == Some("phi3");
    let share = inner.optional_f64("partial_rotary_factor")?;
    if let Some(share) = share.filter(|share| !partial && *share != 1.0) {
        return Err(inner.error("partial_rotary_factor", format!("{share} is not supported")));
    }
    let theta = fields.optional_f64("rope_theta")?.unwrap_or(10_000.0);
    parameters(&inner, theta, positions)
}

/// Base and scaling of one object, the base `theta` where it has none; and the positions that are scaled.
fn parameters(
    inner: &Fields,
    theta: f64,
    positions: usize,
) -> Result<(RopeConfig, usize), CheckpointError> {
    let theta = inner.optional_f64("rope_theta")?.unwrap_or(theta);
    let original = inner.optional_usize("original_max_position_embeddings")?.unwrap_or(positions);
    Ok((RopeConfig { theta, scaling: parse(inner, positions)? }, original))
}

/// Values of a head that turn, where they are not all: `partial_rotary_factor`, in `rope_parameters` or beside.
pub(super) fn rotated(fields: &Fields, head_dim: usize) -> Result<Option<usize>, CheckpointError> {
    const NAME: &str = "partial_rotary_factor";
    let inner = fields.get("rope_parameters").and_then(|value| value.get(NAME)?.as_f64());
    let share = match inner {
        Some(share) => share,
        None => fields.optional_f64(NAME)?.unwrap_or(1.0),
    };
    if !(share > 0.0 && share <= 1.0) {
        return Err(fields.error(NAME, format!("{share} is no share of a head")));
    }
    let rotated = (head_dim as f64 * share) as usize;
    Ok(Some(rotated).filter(|rotated| *rotated != head_dim))
}
