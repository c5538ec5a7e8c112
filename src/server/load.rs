//! A model that runs becomes one that serves.

use std::thread::JoinHandle;

use super::drafts::Drafts;
use super::serving::Serving;
use crate::cli::Config;
use crate::loading::{LoadError, RunningModel, start};

/// Fetches and loads the model and its draft, and starts the engine, which runs on the thread.
///
/// # Errors
/// [`LoadError`] where the model itself cannot be served.
pub fn load(config: &Config) -> Result<(Serving, JoinHandle<()>), LoadError> {
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
        thread,
    } = start(config)?;
    let drafts = Drafts::new(&name, draft, loader);
    let serving =
        Serving::new(name, engine, tokenizer, template, eos_token_ids).with_drafts(drafts);
    let serving = serving.sampling_by(sampling).described(config.model.to_string(), summary);
    let serving = serving.with_adapters(config.lora.clone());
    Ok((serving.named(&config.served_model_names, aliases), thread))
}
