//! The models that are served.

use schemars::JsonSchema;
use serde::Serialize;

/// The models served.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ModelList {
    /// `list`.
    pub(crate) object: &'static str,
    /// One per name.
    pub(crate) data: Vec<Model>,
}

/// A model served.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Model {
    /// Its name.
    pub(crate) id: String,
    /// `model`.
    pub(crate) object: &'static str,
    /// When the server was started, in seconds since 1970.
    pub(crate) created: u64,
    /// `pleach`.
    pub(crate) owned_by: &'static str,
    /// How many tokens a sequence may have.
    pub(crate) max_model_len: usize,
}
