//! Models that run become models that serve.

use super::adapters::Adapters;
use super::drafts::Drafts;
use super::models::Models;
use super::serving::Serving;
use crate::cli::Config;
use crate::loading::{LoadError, RunningModel, start};
use crate::observe::exporter;

/// Fetches and loads the models and their drafts, and starts their engines.
///
/// # Errors
/// [`LoadError`] where a model cannot be served.
pub fn load(config: &Config) -> Result<Models, LoadError> {
    let mut models = start(config)?.into_iter().map(serving);
    let main = models.next().expect("invariant: the main model comes first");
    Ok(Models::new(main, models.collect()))
}

fn serving(model: RunningModel) -> Serving {
    let RunningModel {
        config,
        name,
        summary,
        aliases,
        tokenizer,
        template,
        eos_token_ids,
        sampling,
        draft,
        adapters,
        loaders,
        engine,
    } = model;
    let serving = Serving::new(name, engine, tokenizer, template, eos_token_ids)
        .named(&config.served_model_names, aliases)
        .with_waiting(config.max_queue)
        .sampling_by(sampling)
        .described(config.model.to_string(), summary);
    exporter::begin(serving.name());
    let drafts = Drafts::new(serving.name(), draft, Some(loaders.drafts));
    serving.with_drafts(drafts).with_adapters(Adapters::new(adapters, Some(loaders.adapters)))
}
