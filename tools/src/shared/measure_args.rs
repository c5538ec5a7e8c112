//! Which models a command measures, and on which answers.

use std::path::PathBuf;

use anyhow::Result;
use pleach::checkpoint::source::Source;
use pleach::cli::{DeviceArgs, KvCacheDtype};
use serde::Serialize;

use super::model_args::ModelArgs;
use super::models::Loaded;
use super::place::Place;

/// Which models are measured, and on which answers to prompts.
#[derive(Debug, Clone, clap::Args, Serialize)]
pub(crate) struct MeasureArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) device: DeviceArgs,
    /// The draft. Default: for the default model, the draft in `drafts/`.
    #[arg(long, env = "PLEACH_DRAFT", value_name = "SOURCE")]
    pub(crate) draft: Option<Source>,
    /// How keys and values are held: `auto` or `int8`, as `pleach --kv-cache-dtype`.
    #[arg(long, env = "PLEACH_KV_CACHE_DTYPE", value_enum, default_value_t = KvCacheDtype::Auto)]
    pub(crate) kv_cache_dtype: KvCacheDtype,
    /// Prompts (JSONL with "id", "category" and "turns").
    #[arg(long, env = "PLEACH_PROMPTS", value_name = "JSONL")]
    pub(crate) prompts: Option<PathBuf>,
    /// Use at most so many prompts, spread evenly over the file.
    #[arg(long)]
    pub(crate) limit: Option<usize>,
    /// Tokens of an answer to a prompt, at most.
    #[arg(long, default_value_t = 128)]
    pub(crate) max_tokens: usize,
    /// Temperature of the answers to prompts; 0 takes the likeliest token.
    #[arg(long, default_value_t = 0.0)]
    pub(crate) temperature: f32,
}

impl MeasureArgs {
    /// Answers of up to 128 tokens at temperature 0 with this model and this draft.
    pub(crate) fn of(
        model: &ModelArgs,
        device: DeviceArgs,
        draft: Source,
        prompts: Option<PathBuf>,
    ) -> Self {
        Self {
            model: model.clone(),
            device,
            draft: Some(draft),
            kv_cache_dtype: KvCacheDtype::Auto,
            prompts,
            limit: None,
            max_tokens: 128,
            temperature: 0.0,
        }
    }

    /// Loads the model, and the draft where there is one.
    pub(crate) fn load(&self) -> Result<Loaded> {
        let Self { model, device, draft, kv_cache_dtype: cache, .. } = self;
        let checkpoint = model.open()?;
        let draft = model.open_draft(draft.as_ref())?;
        let place = Place::open(device.choice, &checkpoint)?;
        Loaded::load(model, checkpoint, draft, *cache, place)
    }
}
