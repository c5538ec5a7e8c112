//! The models that are served, and which of them a request asks.

use std::sync::Arc;

use super::adapters::ServedAdapter;
use super::error::ApiError;
use super::serving::Serving;

/// The models that are served.
pub struct Models {
    /// The main one comes first.
    all: Vec<Arc<Serving>>,
    /// Held while an adapter is loaded: a name is that of one model or adapter.
    pub(super) loading: Arc<tokio::sync::Mutex<()>>,
}

/// What a request asks: a model, perhaps through one of its adapters.
#[derive(Clone)]
pub struct Asked {
    /// The model.
    pub serving: Arc<Serving>,
    /// The adapter.
    pub(super) adapter: Option<Arc<ServedAdapter>>,
}

impl Asked {
    /// The name of what answers.
    pub(super) fn name(&self) -> &str {
        self.adapter.as_ref().map_or_else(|| self.serving.name(), |adapter| adapter.name())
    }
}

impl Models {
    /// The main model, and those beside it.
    #[must_use]
    pub fn new(main: Serving, beside: Vec<Serving>) -> Self {
        let all = std::iter::once(main).chain(beside).map(Arc::new).collect();
        Self { all, loading: Arc::default() }
    }

    /// The model that is asked where a request names none.
    #[must_use]
    pub fn main(&self) -> &Arc<Serving> {
        &self.all[0]
    }

    pub(super) fn all(&self) -> &[Arc<Serving>] {
        &self.all
    }

    /// What a request of this `model` asks.
    pub(super) fn asked(&self, model: Option<&str>) -> Result<Asked, ApiError> {
        let Some(model) = model else {
            return Ok(Asked { serving: Arc::clone(self.main()), adapter: None });
        };
        let mut called = self.all.iter().filter_map(|serving| {
            let adapter = serving.called(model)?;
            Some(Asked { serving: Arc::clone(serving), adapter })
        });
        called.next().ok_or_else(|| {
            let served: Vec<_> = self.all.iter().flat_map(|it| it.answering_names()).collect();
            ApiError::no_such_model(model, &served.join("`, `"))
        })
    }
}

impl From<Serving> for Models {
    fn from(main: Serving) -> Self {
        Self::new(main, Vec::new())
    }
}
