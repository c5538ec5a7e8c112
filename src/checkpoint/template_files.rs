//! The chat templates that a model's files have.

use std::path::Path;

use serde_json::Value as Json;

use super::gguf::{Gguf, Value};
use super::settings::{TEMPLATE, TOKENIZER, TOOL_TEMPLATE};
use super::{CheckpointError, fields};

/// Chat templates (Jinja), by what they are for. Those under other names are for what nothing here asks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChatTemplates {
    /// Of every conversation; of those without functions, where `tool_use` is there.
    pub default: Option<String>,
    /// Of conversations with functions.
    pub tool_use: Option<String>,
}

impl ChatTemplates {
    /// Those of a Hugging Face folder. Files of their own come before those in the tokenizer's settings, as in
    /// `transformers`.
    pub(super) fn of_folder(folder: &Path) -> Result<Self, CheckpointError> {
        let read = |name| {
            let path = folder.join(name);
            let text = path.exists().then(|| std::fs::read_to_string(&path)).transpose();
            text.map_err(|error| CheckpointError::Io { path: path.clone(), error })
        };
        let (default, tool_use) = (read(TEMPLATE)?, read(TOOL_TEMPLATE)?);
        if default.is_some() {
            return Ok(Self { default, tool_use });
        }
        let settings = fields::object(&folder.join(TOKENIZER))?;
        let set = settings.as_ref().and_then(|settings| settings.get("chat_template"));
        let set = set.map(Self::of_settings).unwrap_or_default();
        Ok(Self { tool_use: tool_use.or(set.tool_use), ..set })
    }

    /// Those of the field `chat_template`: a text, or a list of objects with `name` and `template`.
    fn of_settings(field: &Json) -> Self {
        let text = |template: &Json| template["template"].as_str().map(str::to_owned);
        match field {
            Json::String(default) => Self { default: Some(default.clone()), tool_use: None },
            Json::Array(all) => {
                let named = |name| all.iter().find(|template| template["name"] == name);
                let default = named("default").or(all.first());
                Self { default: default.and_then(text), tool_use: named("tool_use").and_then(text) }
            }
            _ => Self::default(),
        }
    }

    /// Those of a GGUF file.
    pub(super) fn of_gguf(gguf: &Gguf) -> Self {
        let text = |key| gguf.get(key).and_then(Value::as_str).map(str::to_owned);
        let tool_use = text("tokenizer.chat_template.tool_use");
        let default = text("tokenizer.chat_template").or_else(|| tool_use.clone());
        Self { default, tool_use }
    }

    /// The field `chat_template` that [`of_settings`](Self::of_settings) reads.
    pub(super) fn to_settings(&self) -> Json {
        match self {
            Self { default: Some(default), tool_use: Some(tool_use) } => serde_json::json!([
                {"name": "default", "template": default},
                {"name": "tool_use", "template": tool_use},
            ]),
            Self { default, .. } => serde_json::json!(default),
        }
    }
}
