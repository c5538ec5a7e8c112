//! The models that are served, and which of them a request asks.

use std::sync::Arc;

use super::error::ApiError;
use super::serving::Serving;

/// The models that are served; the main one comes first.
pub struct Models(Vec<Arc<Serving>>);

/// What a request asks: a model, perhaps through one of its adapters.
#[derive(Clone)]
pub struct Asked {
    /// The model.
    pub serving: Arc<Serving>,
    /// The adapter.
    pub(super) adapter: Option<usize>,
}

impl Asked {
    /// The name of what answers.
    pub(super) fn name(&self) -> &str {
        self.serving.name_of(self.adapter)
    }
}

impl Models {
    /// The main model, and those beside it.
    #[must_use]
    pub fn new(main: Serving, beside: Vec<Serving>) -> Self {
        Self(std::iter::once(main).chain(beside).map(Arc::new).collect())
    }

    /// The model that is asked where a request names none.
    #[must_use]
    pub fn main(&self) -> &Arc<Serving> {
        &self.0[0]
    }

    pub(super) fn all(&self) -> &[Arc<Serving>] {
        &self.0
    }

    /// What a request of this `model` asks.
    pub(super) fn asked(&self, model: Option<&str>) -> Result<Asked, ApiError> {
        let Some(model) = model else {
            return Ok(Asked { serving: Arc::clone(self.main()), adapter: None });
        };
        let mut called = self.0.iter().filter_map(|serving| {
            let adapter = serving.called(model)?;
            Some(Asked { serving: Arc::clone(serving), adapter })
        });
        called.next().ok_or_else(|| {
            let served: Vec<&str> = self.0.iter().flat_map(|it| it.answering_names()).collect();
            ApiError::no_such_model(model, &served.join("`, `"))
        })
    }
}

impl From<Serving> for Models {
    fn from(main: Serving) -> Self {
        Self::new(main, Vec::new())
    }
}
