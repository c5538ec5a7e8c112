//! A model that runs becomes one that serves.

use super::drafts::Drafts;
use super::models::Models;
use super::serving::Serving;
use crate::cli::Config;
use crate::loading::{LoadError, RunningModel, start};

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
    let drafts = Drafts::new(&name, draft, loader);
    let serving =
        Serving::new(name, engine, tokenizer, template, eos_token_ids).with_drafts(drafts);
    let serving = serving.sampling_by(sampling).described(config.model.to_string(), summary);
    let serving = serving.with_adapters(config.lora.clone());
    let serving = serving.with_waiting(config.max_queue);
    Ok(serving.named(&config.served_model_names, aliases).into())
}
