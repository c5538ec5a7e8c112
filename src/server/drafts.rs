//! The drafts of a served model, which may change while it serves.

use std::sync::{Mutex, PoisonError};

use super::wire::{DraftComparison, DraftStatus};
use crate::engine::{Comparison, Outcome};
use crate::loading::DraftLoader;
use crate::metrics::INFO;

/// The drafts of a served model, by name.
#[derive(Default)]
pub(super) struct Drafts {
    model: String,
    /// What loads another; `None` where it cannot be changed.
    pub(super) loader: Option<DraftLoader>,
    /// Held while a draft is loaded and handed to the engine.
    pub(super) change: tokio::sync::Mutex<()>,
    serving: Mutex<Option<String>>,
}

impl Drafts {
    /// A model, by the name that its answers carry, that begins with the draft of this name.
    pub(super) fn new(model: &str, serving: Option<String>, loader: Option<DraftLoader>) -> Self {
        info(model, serving.as_deref()).set(1.0);
        let (change, serving) = (tokio::sync::Mutex::default(), Mutex::new(serving));
        Self { model: model.to_owned(), loader, change, serving }
    }

    /// Which draft serves, and how a comparison stands, in which the new one may have won.
    pub(super) fn status(&self, comparison: Option<&Comparison>) -> DraftStatus {
        let mut serving = self.serving.lock().unwrap_or_else(PoisonError::into_inner);
        let won = comparison.filter(|it| it.outcome == Some(Outcome::Switched));
        if let Some(Comparison { draft, .. }) = won
            && serving.as_ref() != Some(draft)
        {
            info(&self.model, serving.as_deref()).set(0.0);
            info(&self.model, Some(draft)).set(1.0);
            *serving = Some(draft.clone());
        }
        DraftStatus { draft: serving.clone(), comparison: comparison.map(DraftComparison::from) }
    }
}

/// What tells the metrics which model is served by which draft.
fn info(model: &str, draft: Option<&str>) -> metrics::Gauge {
    let labels = [
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("model", model.to_owned()),
        ("draft", draft.unwrap_or("none").to_owned()),
    ];
    metrics::gauge!(INFO, &labels)
}
