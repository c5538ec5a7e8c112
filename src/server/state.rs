//! What the handlers share: the model once it is loaded, and the room for requests.

use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::{Semaphore, SetOnce};
use tokio_rustls::TlsAcceptor;
use tower_http::cors::CorsLayer;

use super::access::{Access, SetupError};
use super::bounds::BODIES_BYTES;
use super::error::ApiError;
use super::keys::Keys;
use super::queue::Queue;
use super::serving::Serving;
use super::transport::tls::Tls;
use crate::cli::{Config, ConnectionLimits};
use crate::observe::traffic::Recorder;

/// Shared by all handlers.
#[derive(Clone)]
pub struct AppState {
    serving: Arc<SetOnce<Arc<Serving>>>,
    pub(super) queue: Arc<Queue>,
    /// Bytes that large bodies may still hold.
    pub(super) bodies: Arc<Semaphore>,
    /// Permits to prepare requests, one for each core.
    preparing: Arc<Semaphore>,
    pub(super) metrics: PrometheusHandle,
    pub(super) started: u64,
    access: Arc<Access>,
    recorder: Option<Arc<Recorder>>,
    draining: Arc<AtomicBool>,
    /// How long a step of the engine may take.
    step_timeout: Option<Duration>,
}

impl AppState {
    /// A state without a model yet, with room for `running` sequences and `waiting` more.
    #[must_use]
    pub fn new(running: usize, waiting: usize, metrics: PrometheusHandle) -> Self {
        let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs());
        let queue = Arc::new(Queue::new(running, waiting));
        let (serving, access, draining) = (Arc::default(), Arc::default(), Arc::default());
        let bodies = Arc::new(Semaphore::new(BODIES_BYTES));
        let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
        let preparing = Arc::new(Semaphore::new(threads));
        let (recorder, step_timeout) = (None, None);
        Self {
            serving,
            queue,
            bodies,
            preparing,
            metrics,
            started,
            access,
            recorder,
            draining,
            step_timeout,
        }
    }

    /// Does the work that comes before a request can run (reading it, its template, its tokens), on as many threads
    /// as there are cores: never on those that answer others.
    pub(super) async fn prepare<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Serving) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let serving = Arc::clone(self.serving()?);
        let permit = Arc::clone(&self.preparing).acquire_owned().await;
        let permit = permit.expect("invariant: the semaphore is never closed");
        let span = tracing::Span::current();
        let work = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            span.in_scope(|| work(&serving))
        });
        match work.await {
            Ok(result) => result,
            Err(error) => match error.try_into_panic() {
                Ok(bug) => std::panic::resume_unwind(bug),
                Err(_) => Err(ApiError::unavailable("the server is shutting down")),
            },
        }
    }

    /// Sets limits, keys, certificate, origins, recording and the time of a step as a configuration has them.
    ///
    /// # Errors
    /// [`SetupError`] naming the file or flag.
    pub fn configure(self, config: &Config) -> Result<Self, SetupError> {
        let access = Arc::new(Access::configured(config)?);
        let recorder = config.recording.clone().map(|recording| {
            let folder = recording.folder.clone();
            tracing::info!(folder = %folder.display(), share = recording.share, "recording traffic");
            Recorder::start(recording).map_err(|error| SetupError::Recording { folder, error })
        });
        let recorder = recorder.transpose()?.map(Arc::new);
        Ok(Self { access, recorder, step_timeout: config.step_timeout, ..self })
    }

    /// Reads the files of keys and of the certificate again, for what is asked from now on.
    pub fn reload(&self) {
        self.access.reload();
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

    /// Whether the engine gets on with its work.
    ///
    /// # Errors
    /// 503 like [`serving`](Self::serving), and where a step takes longer than it may.
    pub(super) fn works(&self) -> Result<(), ApiError> {
        let standing_still = self.serving()?.engine.standing_still();
        match self.step_timeout {
            Some(limit) if standing_still > limit => Err(ApiError::unavailable(&format!(
                "the engine hangs: no step has ended for {} seconds; start the server anew, or raise --step-timeout",
                standing_still.as_secs()
            ))),
            _ => Ok(()),
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
        &self.access.limits
    }

    pub(super) fn tls(&self) -> Option<TlsAcceptor> {
        self.access.tls.as_ref().map(Tls::acceptor)
    }

    pub(super) fn keys(&self) -> Option<&Keys> {
        self.access.keys.as_ref()
    }

    pub(super) fn admin_key(&self) -> Option<&Keys> {
        self.access.admin_key.as_ref()
    }

    pub(super) fn cors(&self) -> Option<&CorsLayer> {
        self.access.cors.as_ref()
    }

    pub(super) fn logs_prompts(&self) -> bool {
        self.access.log_prompts
    }

    pub(super) fn metrics_apart(&self) -> bool {
        self.access.metrics_apart
    }

    /// Where this request's answers are recorded, if they are.
    pub(super) fn recorder(&self) -> Option<Arc<Recorder>> {
        self.recorder.as_ref()?.sample()
    }

    pub(super) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }
}
