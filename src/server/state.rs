//! What the handlers share: the model once it is loaded, and the room for requests.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use metrics_exporter_prometheus::PrometheusHandle;
use tokenizers::Tokenizer;
use tokio::sync::{Semaphore, SetOnce};
use tokio_rustls::TlsAcceptor;

use super::{ApiError, ConnectionLimits};
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
    /// Bytes that one token stands for, at most.
    longest_token: usize,
}

/// Bytes of a text above which other requests must not wait while it is taken apart.
const LONG_TEXT: usize = 16 << 10;

impl Serving {
    /// A model as loaded.
    #[must_use]
    pub fn new(
        name: String,
        engine: EngineHandle,
        tokenizer: Tokenizer,
        template: Option<ChatTemplate>,
        eos_token_ids: Vec<u32>,
    ) -> Self {
        let longest_token = tokenizer.get_vocab(true).keys().map(String::len).max();
        let (tokenizer, longest_token) = (Arc::new(tokenizer), longest_token.unwrap_or(1).max(1));
        Self { name, engine, tokenizer, template, eos_token_ids, longest_token }
    }

    /// Tokens of a text. `special` adds what the tokenizer puts around a text; a chat template has
    /// put it there already.
    pub(super) fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>, ApiError> {
        let limit = self.engine.limits().max_model_len;
        // Too long by any count: not worth the time to find out how long.
        if text.len() / self.longest_token > limit {
            let message = format!("prompt has {} bytes; the context limit is {limit}", text.len());
            return Err(ApiError::invalid("prompt", format!("{message} tokens")));
        }
        let encode = || self.tokenizer.encode(text, special);
        let quick = text.len() < LONG_TEXT;
        let encoding = if quick { encode() } else { tokio::task::block_in_place(encode) };
        Ok(encoding.map_err(|e| ApiError::internal(e.to_string()))?.get_ids().to_vec())
    }
}

/// Shared by all handlers.
#[derive(Clone)]
pub struct AppState {
    serving: Arc<SetOnce<Arc<Serving>>>,
    pub(super) permits: Arc<Semaphore>,
    pub(super) metrics: PrometheusHandle,
    pub(super) started: u64,
    limits: Arc<ConnectionLimits>,
    tls: Option<TlsAcceptor>,
}

impl AppState {
    /// A state without a model yet, with room for `max_requests` at a time.
    #[must_use]
    pub fn new(max_requests: usize, metrics: PrometheusHandle) -> Self {
        let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs());
        let permits = Arc::new(Semaphore::new(max_requests.min(Semaphore::MAX_PERMITS)));
        let (serving, limits) = (Arc::default(), Arc::default());
        Self { serving, permits, metrics, started, limits, tls: None }
    }

    /// The same with other bounds on connections.
    #[must_use]
    pub fn with_limits(self, limits: ConnectionLimits) -> Self {
        Self { limits: Arc::new(limits), ..self }
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

    /// Resolves when there was an engine and it no longer serves.
    pub(super) async fn engine_stopped(&self) {
        self.serving.wait().await.engine.stopped().await;
    }

    /// Ends all running requests with an error.
    pub(super) fn stop_engine(&self) {
        if let Some(serving) = self.serving.get() {
            serving.engine.stop();
        }
    }

    pub(super) fn limits(&self) -> &ConnectionLimits {
        &self.limits
    }

    pub(super) fn tls(&self) -> Option<&TlsAcceptor> {
        self.tls.as_ref()
    }
}
