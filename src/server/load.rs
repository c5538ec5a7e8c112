//! A model that runs becomes one that serves.

use super::drafts::Drafts;
use super::models::Models;
use super::serving::Serving;
use crate::cli::Config;
use crate::loading::{LoadError, RunningModel, start};
use crate::observe::exporter;

/// Fetches and loads the model and its draft, and starts the engine.
///
/// # Errors
/// [`LoadError`] where the model itself cannot be served.
pub fn load(config: &Config) -> Result<Models, LoadError> {
    let RunningModel {
        name,
        summary,
        aliases,
        tokenizer,
        template,
        eos_token_ids,
        sampling,
        draft,
        loader,
        engine,
        thread: _,
    } = start(config)?;
    let serving = Serving::new(name, engine, tokenizer, template, eos_token_ids);
    let serving = serving.sampling_by(sampling).described(config.model.to_string(), summary);
    let serving = serving.with_adapters(config.lora.clone());
    let serving = serving.with_waiting(config.max_queue).named(&config.served_model_names, aliases);
    exporter::begin(serving.name());
    let drafts = Drafts::new(serving.name(), draft, loader);
    Ok(serving.with_drafts(drafts).into())
}
