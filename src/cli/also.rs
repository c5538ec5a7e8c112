//! Models that are served beside the main one: a configuration for each.

use super::config::Config;
use super::default_draft::draft_of;
use super::flags::NamedSource;

/// Why models cannot be served beside each other.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AlsoError {
    /// Requests for one would be requests for the other.
    #[error("--also {also}: {other} has this name already; give one of them another")]
    Name {
        /// The model.
        also: String,
        /// What has its name.
        other: String,
    },
    /// A draft of no model.
    #[error("--also-draft {draft}: there is no --also {name}=SOURCE")]
    NoModel {
        /// The draft.
        draft: String,
        /// The name of the model that is missing.
        name: String,
    },
    /// Two drafts of one model.
    #[error("--also-draft {draft}: --also-draft {other} is for the same model; leave one out")]
    TwoDrafts {
        /// The draft.
        draft: String,
        /// The other one.
        other: String,
    },
}

/// The error of a model whose name `other` has.
fn taken(also: &NamedSource, other: String) -> AlsoError {
    AlsoError::Name { also: also.to_string(), other }
}

/// What has a name: the first of `all` that has it.
fn named<'a>(all: &'a [NamedSource], name: &str) -> Option<&'a NamedSource> {
    all.iter().find(|it| it.name == name)
}

impl Config {
    /// The configurations of the models beside the main one, by their names: what is the main model's alone (names,
    /// adapters, chat template, format of calls) is left out.
    ///
    /// # Errors
    /// [`AlsoError`] where a name is there twice, or a draft has no model.
    pub fn beside(&self) -> Result<Vec<(String, Self)>, AlsoError> {
        for (at, draft) in self.also_drafts.iter().enumerate() {
            let (name, draft) = (&draft.name, draft.to_string());
            if named(&self.also, name).is_none() {
                return Err(AlsoError::NoModel { draft, name: name.clone() });
            }
            if let Some(other) = named(&self.also_drafts[..at], name) {
                return Err(AlsoError::TwoDrafts { draft, other: other.to_string() });
            }
        }
        let mut beside = Vec::new();
        for (at, also) in self.also.iter().enumerate() {
            self.check_name(also, &self.served_model_names)?;
            if let Some(other) = named(&self.also[..at], &also.name) {
                return Err(taken(also, format!("--also {other}")));
            }
            if let Some(adapter) = self.lora.iter().find(|adapter| adapter.name == also.name) {
                return Err(taken(also, format!("the adapter {}", adapter.path.display())));
            }
            let given = named(&self.also_drafts, &also.name).map(|draft| draft.source.clone());
            let speculates = self.engine.num_speculative_tokens > 0;
            let config = Self {
                model: also.source.clone(),
                draft: draft_of(&also.source, given, speculates),
                served_model_names: Vec::new(),
                lora: Vec::new(),
                tool_call_parser: None,
                chat_template: None,
                also: Vec::new(),
                also_drafts: Vec::new(),
                ..self.clone()
            };
            beside.push((also.name.clone(), config));
        }
        Ok(beside)
    }

    /// Checks that the main model, called by `names`, leaves the models beside it theirs.
    ///
    /// # Errors
    /// [`AlsoError`] naming both.
    pub fn check_names(&self, names: &[String]) -> Result<(), AlsoError> {
        self.also.iter().try_for_each(|also| self.check_name(also, names))
    }

    fn check_name(&self, also: &NamedSource, names: &[String]) -> Result<(), AlsoError> {
        if names.contains(&also.name) {
            return Err(taken(also, format!("the main model (--model {})", self.model)));
        }
        Ok(())
    }
}
