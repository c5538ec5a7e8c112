//! What the handlers share: the models once they are loaded, and the bounds on what is prepared.

use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::{Semaphore, SetOnce};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tower_http::cors::CorsLayer;

use super::access::{Access, SetupError};
use super::bounds::BODIES_BYTES;
use super::error::ApiError;
use super::keys::Keys;
use super::models::{Asked, Models};
use super::request::body::Body;
use super::transport::tls::Tls;
use super::wire::AskedModel;
use crate::cli::{Config, ConnectionLimits};
use crate::observe::traffic::Recorder;

/// Shared by all handlers.
#[derive(Clone)]
pub struct AppState {
    models: Arc<SetOnce<Models>>,
    /// Bytes that large bodies may still hold.
    pub(super) bodies: Arc<Semaphore>,
    /// Permits to prepare requests and to write long answers, one for each core.
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
    /// A state without models yet.
    #[must_use]
    pub fn new(metrics: PrometheusHandle) -> Self {
        let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs());
        let (models, access, draining) = (Arc::default(), Arc::default(), Arc::default());
        let bodies = Arc::new(Semaphore::new(BODIES_BYTES));
        let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
        let preparing = Arc::new(Semaphore::new(threads));
        let (recorder, step_timeout) = (None, None);
        Self {
            models,
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

    /// Does the work that comes before a request can run: reading it, its template, its tokens. Gives what the request
    /// asks, too.
    pub(super) async fn prepare<T: Send + 'static>(
        &self,
        bytes: Result<Bytes, BytesRejection>,
        work: impl FnOnce(&Asked, Body) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<(Asked, T), ApiError> {
        self.models()?;
        let state = self.clone();
        let work = self.aside(move || {
            let mut body = Body::parse(bytes)?;
            let AskedModel { model } = body.read()?;
            let asked = state.asked(model.as_deref())?;
            let prepared = work(&asked, body)?;
            Ok((asked, prepared))
        });
        work.await
    }

    /// Does work that may take long, on as many threads as there are cores: never on those that answer others.
    pub(super) async fn aside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let permit = Arc::clone(&self.preparing).acquire_owned().await;
        let permit = permit.expect("invariant: the semaphore is never closed");
        let span = tracing::Span::current();
        let work = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            span.in_scope(work)
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

    /// Installs the loaded models; the first ones stay.
    pub fn serve(&self, models: impl Into<Models>) {
        let _ = self.models.set(models.into());
    }

    /// The models.
    ///
    /// # Errors
    /// 503 while they load.
    pub(super) fn models(&self) -> Result<&Models, ApiError> {
        self.models.get().ok_or_else(|| ApiError::unavailable("the model is still loading"))
    }

    /// What a request of this `model` asks, if it can be served.
    ///
    /// # Errors
    /// 503 while the models load or after the engine has stopped, 404 where none is called so.
    pub fn asked(&self, model: Option<&str>) -> Result<Asked, ApiError> {
        let asked = self.models()?.asked(model)?;
        if asked.serving.engine.is_alive() {
            Ok(asked)
        } else {
            Err(ApiError::unavailable("the engine has stopped"))
        }
    }

    /// Whether all engines get on with their work.
    ///
    /// # Errors
    /// 503 while the models load, where an engine has stopped, and where a step takes longer than it may.
    pub(super) fn works(&self) -> Result<(), ApiError> {
        for serving in self.models()?.all() {
            if !serving.engine.is_alive() {
                return Err(ApiError::unavailable("the engine has stopped"));
            }
            let standing_still = serving.engine.standing_still();
            if self.step_timeout.is_some_and(|limit| standing_still > limit) {
                return Err(ApiError::unavailable(&format!(
                    "the engine hangs: no step has ended for {} seconds; start the server anew, or raise --step-timeout",
                    standing_still.as_secs()
                )));
            }
        }
        Ok(())
    }

    /// Resolves when there were engines and one of them no longer serves.
    pub(super) async fn engine_stopped(&self) {
        let mut ends = JoinSet::new();
        for serving in self.models.wait().await.all() {
            let engine = serving.engine.clone();
            ends.spawn(async move { engine.stopped().await });
        }
        ends.join_next().await;
    }

    /// Ends all running requests with an error.
    pub(super) fn stop_engines(&self) {
        for serving in self.models.get().into_iter().flat_map(Models::all) {
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

    pub(super) fn allows_runtime_lora(&self) -> bool {
        self.access.runtime_lora
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

    /// Where this request's answers are recorded, if they are: what the main model says as it is, from which its draft
    /// learns.
    pub(super) fn recorder(&self, asked: &Asked) -> Option<Arc<Recorder>> {
        let main = Arc::ptr_eq(&asked.serving, self.models.get()?.main());
        self.recorder.as_ref().filter(|_| main && asked.adapter.is_none())?.sample()
    }

    pub(super) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }
}
