//! What the handlers share: the model once it is loaded, and the room for requests.

use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use metrics_exporter_prometheus::PrometheusHandle;
use tokenizers::Tokenizer;
use tokio::sync::Semaphore;

use super::ApiError;
use crate::engine::EngineHandle;
use crate::text::ChatTemplate;

/// A loaded model, ready to answer.
pub struct Serving {
    /// Its name in the API.
    pub name: String,
    /// The engine it runs in.
    pub engine: EngineHandle,
    /// Its tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// Its chat template, where it has one.
    pub template: Option<ChatTemplate>,
    /// Tokens that end an answer.
    pub eos_token_ids: Vec<u32>,
}

impl Serving {
    /// Tokens of a text. `special` adds what the tokenizer puts around a text; a chat template has
    /// put it there already.
    pub(super) fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>, ApiError> {
        let encoding = self.tokenizer.encode(text, special);
        Ok(encoding.map_err(|e| ApiError::internal(e.to_string()))?.get_ids().to_vec())
    }
}

/// Shared by all handlers.
#[derive(Clone)]
pub struct AppState {
    serving: Arc<OnceLock<Arc<Serving>>>,
    pub(super) permits: Arc<Semaphore>,
    pub(super) metrics: PrometheusHandle,
    pub(super) started: u64,
}

impl AppState {
    /// A state without a model yet, with room for `max_requests` at a time.
    #[must_use]
    pub fn new(max_requests: usize, metrics: PrometheusHandle) -> Self {
        let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs());
        let permits = Arc::new(Semaphore::new(max_requests.min(Semaphore::MAX_PERMITS)));
        Self { serving: Arc::default(), permits, metrics, started }
    }

    /// Installs the loaded model; the first one stays.
    pub fn serve(&self, serving: Serving) {
        let _ = self.serving.set(Arc::new(serving));
    }

    /// The model, if requests can be served.
    ///
    /// # Errors
    /// 503 while the model loads or after the engine has stopped.
    pub fn serving(&self) -> Result<&Arc<Serving>, ApiError> {
        let serving = self
            .serving
            .get()
            .ok_or_else(|| ApiError::unavailable("the model is still loading"))?;
        if serving.engine.is_alive() {
            Ok(serving)
        } else {
            Err(ApiError::unavailable("the engine has stopped"))
        }
    }
}
