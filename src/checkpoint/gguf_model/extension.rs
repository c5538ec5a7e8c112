//! What GGUF's own keys cannot say.

use std::path::Path;

use serde_json::{Map, Value as Json};

use crate::checkpoint::CheckpointError;
use crate::checkpoint::architecture::RopeScaling;
use crate::checkpoint::fields::Fields;
use crate::checkpoint::gguf::Gguf;
use crate::checkpoint::hf_config::{layer_types, unrotated_blocks};
use crate::checkpoint::rope as scaling;

/// The key of what Hugging Face's `config.json` can say and GGUF has no keys for, as JSON: `rope_scaling`,
/// `layer_types`, `no_rope_layers`, `partial_rotary_factor`, `query_pre_attn_scalar` and `embedding_multiplier`.
pub(in crate::checkpoint) const EXTENSION: &str = "pleach.config";

/// What stands under [`EXTENSION`].
pub(super) struct Extension<'a> {
    path: &'a Path,
    map: Map<String, Json>,
}

impl<'a> Extension<'a> {
    /// What a file says.
    ///
    /// # Errors
    /// If it is no JSON object.
    pub(super) fn of(gguf: &'a Gguf) -> Result<Option<Self>, CheckpointError> {
        let Some(value) = gguf.get(EXTENSION) else { return Ok(None) };
        let map = value.as_str().and_then(|text| serde_json::from_str(text).ok());
        let map = map.ok_or_else(|| {
            CheckpointError::field(gguf.path(), EXTENSION, "is no JSON object".to_owned())
        })?;
        Ok(Some(Extension { path: gguf.path(), map }))
    }
}

impl Extension<'_> {
    pub(super) fn scaling(&self, positions: usize) -> Result<Option<RopeScaling>, CheckpointError> {
        let Some(Json::Object(map)) = self.map.get("rope_scaling") else { return Ok(None) };
        let fields = Fields { path: self.path, prefix: "pleach.config: rope_scaling.", map };
        scaling::parse(&fields, positions).map(Some)
    }

    /// A number beside those of GGUF's own keys.
    pub(super) fn number(&self, name: &str) -> Result<Option<f64>, CheckpointError> {
        Fields { path: self.path, prefix: "pleach.config: ", map: &self.map }.optional_f64(name)
    }

    pub(super) fn unrotated(&self) -> Result<Option<Vec<bool>>, CheckpointError> {
        let Some(list) = self.map.get("no_rope_layers") else { return Ok(None) };
        let wrong =
            || CheckpointError::field(self.path, EXTENSION, "no_rope_layers is no such list");
        unrotated_blocks(list).ok_or_else(wrong).map(Some)
    }

    pub(super) fn layers(&self) -> Result<Option<Vec<bool>>, CheckpointError> {
        let Some(types) = self.map.get("layer_types") else { return Ok(None) };
        let wrong = || CheckpointError::field(self.path, EXTENSION, "layer_types is no such list");
        layer_types(types).ok_or_else(wrong).map(Some)
    }
}
