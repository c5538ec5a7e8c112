//! What loads and unloads LoRA adapters, as vLLM names it.

use schemars::JsonSchema;
use serde::Deserialize;

/// An adapter to load.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct AdapterLoad {
    /// The name that requests call it by in `model`.
    pub(crate) lora_name: String,
    /// Its folder, in PEFT's format, on the server's machine.
    pub(crate) lora_path: String,
    /// The model that it adds to; the main one where it is left out.
    pub(crate) model: Option<String>,
    /// Whether it may take the place of an adapter of the same name.
    #[serde(default)]
    pub(crate) load_inplace: bool,
}

/// An adapter to unload.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct AdapterUnload {
    /// Its name.
    pub(crate) lora_name: String,
    /// A number that clients of vLLM may send, without effect.
    #[serde(rename = "lora_int_id")]
    pub(crate) _number: Option<u64>,
}
