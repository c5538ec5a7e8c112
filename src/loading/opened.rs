//! A model's files, open: what is known before its weights are loaded.

use std::path::Path;

use tokenizers::Tokenizer;

use super::adapters;
use super::error::LoadError;
use crate::checkpoint::adapter::Adapter;
use crate::checkpoint::source::{Choice, Source, resolve};
use crate::checkpoint::{ChatTemplates, Checkpoint, Summary};
use crate::cli::{Config, LoraModule};
use crate::sampling::{SamplingDefaults, SamplingParams};
use crate::text::{ChatTemplate, TemplateError};

/// A model's files, open.
pub(super) struct Opened {
    /// Its own configuration.
    pub(super) config: Config,
    pub(super) checkpoint: Checkpoint,
    pub(super) summary: Summary,
    /// What requests may call it besides its name.
    pub(super) aliases: Vec<String>,
    pub(super) template: Option<ChatTemplate>,
    pub(super) tokenizer: Tokenizer,
    /// Its adapters, as configured and as their files have them.
    pub(super) adapters: Vec<(LoraModule, Adapter)>,
}

impl Opened {
    /// Fetches the model and opens it.
    pub(super) fn open(config: Config) -> Result<Self, LoadError> {
        let path = resolve(&config.model, &config.cache_dir)?;
        let mut checkpoint = Checkpoint::open(&path)?;
        if let Source::Hub { repo, choice: Choice::Folder, .. } = &config.model {
            // The folder has the name of a commit.
            checkpoint.name = repo.rsplit('/').next().unwrap_or(repo).to_owned();
        }
        let summary = checkpoint.summary();
        let template = template(&mut checkpoint, &config)?;
        let aliases = aliases(&config.model, &path);
        let tokenizer = checkpoint.tokenizer.take().ok_or(LoadError::NoTokenizer(path))?;
        let own = [std::slice::from_ref(&checkpoint.name), &aliases, &config.served_model_names];
        let own = own.concat();
        config.check_names(&own)?;
        let adapters = adapters::read(&config.lora, &own)?;
        Ok(Self { config, checkpoint, summary, aliases, template, tokenizer, adapters })
    }

    /// The same of a model that is served under this name alone, with no longer a context than its own.
    pub(super) fn open_as(name: &str, config: Config) -> Result<Self, LoadError> {
        let mut model = Self::open(config)?;
        name.clone_into(&mut model.checkpoint.name);
        model.aliases.clear();
        let positions = model.checkpoint.config.max_position_embeddings;
        let longest = &mut model.config.engine.max_model_len;
        *longest = longest.map(|wanted| wanted.min(positions));
        Ok(model)
    }

    /// The name that the model's answers carry.
    pub(super) fn served_name(&self) -> &str {
        self.config.served_model_names.first().unwrap_or(&self.checkpoint.name)
    }

    /// How tokens are drawn where a request does not say: as the configuration has it, then as the model has it.
    pub(super) fn sampling(&self) -> SamplingParams {
        let own = SamplingDefaults::of_model(&self.checkpoint.generation).unwrap_or_else(|error| {
            tracing::warn!(%error, "the model's own sampling parameters are of no use");
            SamplingDefaults::default()
        });
        let params = self.config.sampling_defaults.clone().or(own).params();
        if params != SamplingParams::default() {
            let SamplingParams { temperature, top_k, top_p, min_p, repetition_penalty, .. } =
                params;
            tracing::info!(
                temperature,
                top_k,
                top_p,
                min_p,
                repetition_penalty,
                "sampling by default"
            );
        }
        params
    }
}

/// The chat template, the model's own or the configuration's, which writes calls as the configuration says; the model's
/// configuration takes from it where a turn ends, and from the server's how long a context is to be.
fn template(
    checkpoint: &mut Checkpoint,
    config: &Config,
) -> Result<Option<ChatTemplate>, TemplateError> {
    let own = config.chat_template.is_none();
    if let Some(template) = config.chat_template.clone() {
        checkpoint.chat_templates = ChatTemplates { default: Some(template), tool_use: None };
    }
    let template = match checkpoint.compile_template() {
        Err(error) if own => {
            tracing::warn!(%error, "the model's chat template is of no use; --chat-template takes another");
            None
        }
        template => template?,
    };
    let variables = config.chat_template_kwargs.clone();
    let template = template.map(|template| template.with_variables(variables));
    checkpoint.end_at_turns(template.as_ref());
    stretch_positions(checkpoint, config);
    Ok(match config.tool_call_parser {
        Some(format) => template.map(|template| template.with_calls(format)),
        None => template,
    })
}

/// Makes room in dynamically scaled positions for the context that is to be served.
pub(super) fn stretch_positions(checkpoint: &mut Checkpoint, config: &Config) {
    if let Some(wanted) = config.engine.max_model_len {
        checkpoint.config.stretch_positions(wanted);
    }
}

/// What a model is called besides its name.
fn aliases(source: &Source, path: &Path) -> Vec<String> {
    let mut aliases = vec![source.to_string()];
    aliases.extend(path.file_name().map(|name| name.to_string_lossy().into_owned()));
    if let Source::Hub { repo, .. } = source {
        aliases.extend([repo.clone(), format!("hf:{repo}")]);
    }
    aliases
}
