//! What the handlers share: the model once it is loaded, and the room for requests.

use std::num::NonZero;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::http::{HeaderName, HeaderValue, Method};
use metrics_exporter_prometheus::PrometheusHandle;
use tokenizers::Tokenizer;
use tokio::sync::{Semaphore, SetOnce, oneshot};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tower_http::cors::{AllowHeaders, Any, CorsLayer};

use super::admin::Drafts;
use super::bounds::BODIES_BYTES;
use super::keys::Keys;
use super::queue::Queue;
use super::{ApiError, TlsError, tls};
use crate::config::{Access, Config, ConnectionLimits};
use crate::config_file::FileError;
use crate::engine::EngineHandle;
use crate::grammar::{Busy, DEADLINE, Grammar, GrammarCompiler, GrammarSource, GrammarWorkers};
use crate::text::{CallFormat, ChatTemplate, Mark};
use crate::traffic::Recorder;

/// A loaded model, ready to answer.
pub struct Serving {
    /// Its names in the API; answers carry the first.
    pub(super) names: Vec<String>,
    /// What it is called besides: as a file, as a source.
    aliases: Vec<String>,
    /// The engine it runs in.
    pub engine: EngineHandle,
    /// Its tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// Its chat template, where it has one.
    pub template: Option<ChatTemplate>,
    /// Tokens that end an answer.
    pub eos_token_ids: Vec<u32>,
    /// Compile grammars for its tokens, unless those have no known bytes.
    pub grammars: Option<GrammarWorkers>,
    /// Its drafts.
    pub(super) drafts: Drafts,
    /// Bytes that one token stands for, at most.
    longest_token: usize,
}

impl Serving {
    /// A model as loaded, under its name.
    #[must_use]
    pub fn new(
        name: String,
        engine: EngineHandle,
        tokenizer: Tokenizer,
        template: Option<ChatTemplate>,
        eos_token_ids: Vec<u32>,
    ) -> Self {
        let longest_token = tokenizer.get_vocab(true).keys().map(String::len).max();
        let vocab_size = engine.limits().vocab_size;
        let compiler = GrammarCompiler::new(&tokenizer, vocab_size, &eos_token_ids);
        let compiler = compiler.map_err(|error| error.to_string());
        let start = |compiler| GrammarWorkers::start(Arc::new(compiler)).map_err(|e| e.to_string());
        let grammars = compiler
            .and_then(start)
            .inspect_err(|error| tracing::warn!(error, "serving without grammars"))
            .ok();
        let (tokenizer, longest_token) = (Arc::new(tokenizer), longest_token.unwrap_or(1).max(1));
        let (names, aliases) = (vec![name], Vec::new());
        Self {
            names,
            aliases,
            engine,
            tokenizer,
            template,
            eos_token_ids,
            grammars,
            drafts: Drafts::default(),
            longest_token,
        }
    }

    /// The same under `names`, where there are any, and answering to `aliases` too.
    #[must_use]
    pub fn named(mut self, names: &[String], aliases: Vec<String>) -> Self {
        self.aliases = aliases;
        if !names.is_empty() {
            self.aliases.append(&mut self.names);
            self.names = names.to_vec();
        }
        self
    }

    /// The same with drafts that can be changed.
    #[must_use]
    pub(super) fn with_drafts(self, drafts: Drafts) -> Self {
        Self { drafts, ..self }
    }

    /// The model's name in answers.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.names[0]
    }

    /// Checks that a request means this model: it may leave the name out.
    pub(super) fn check_model(&self, model: Option<&str>) -> Result<(), ApiError> {
        match model {
            Some(model) if !self.names.iter().chain(&self.aliases).any(|name| name == model) => {
                Err(ApiError::no_such_model(model, self.name()))
            }
            _ => Ok(()),
        }
    }

    /// Compiles what `field` asks for, on threads of its own and within a time.
    pub(super) async fn compile(
        &self,
        field: &str,
        source: GrammarSource,
    ) -> Result<Grammar, ApiError> {
        let workers = self.grammars.as_ref().ok_or_else(|| {
            ApiError::invalid(field, format!("`{field}` is not supported with this model"))
        })?;
        let busy = |busy: Busy| ApiError::rate_limited(&busy.to_string(), 1);
        let (sender, compiled) = oneshot::channel();
        let compilation = workers.submit(source, move |result| drop(sender.send(result)));
        let compilation = compilation.map_err(busy)?;
        let result = match timeout(DEADLINE, compiled).await {
            Ok(Ok(result)) => result,
            // It waited for as long.
            Ok(Err(_)) => return Err(busy(Busy)),
            Err(_) => Err(compilation.overdue().map_err(busy)?),
        };
        result.map_err(|e| ApiError::invalid(field, format!("`{field}`: {e}")))
    }

    /// The texts of a format of calls that are special tokens here.
    pub(super) fn marks(&self, format: CallFormat) -> Vec<Mark> {
        let special = |mark: &&str| self.tokenizer.get_added_vocabulary().is_special_token(mark);
        let marks = format.marks().iter().copied().filter(special);
        marks.filter_map(|mark| Some((self.tokenizer.token_to_id(mark)?, mark))).collect()
    }

    /// The bytes of a token: those of its text, where it is special or its bytes are unknown.
    pub(super) fn token_bytes(&self, id: u32, text: &str) -> Vec<u8> {
        let known = self.grammars.as_ref();
        let known = known.and_then(|grammars| grammars.compiler().token_bytes(id));
        known.map_or_else(|| text.as_bytes().to_vec(), <[u8]>::to_vec)
    }

    /// Text of a field's tokens.
    pub(super) fn decode(&self, field: &str, tokens: &[u32]) -> Result<String, ApiError> {
        let vocab_size = self.engine.limits().vocab_size;
        if tokens.iter().any(|&id| id as usize >= vocab_size) {
            let message = format!("the token ids of `{field}` must lie below {vocab_size}");
            return Err(ApiError::invalid(field, message));
        }
        let text = self.tokenizer.decode(tokens, false);
        text.map_err(|e| ApiError::invalid(field, e.to_string()))
    }

    /// Tokens of a field's text. `special` adds what the tokenizer puts around a text; a chat template has
    /// put it there already.
    pub(super) fn encode(
        &self,
        field: &str,
        text: &str,
        special: bool,
    ) -> Result<Vec<u32>, ApiError> {
        let limit = self.engine.limits().max_model_len;
        // Too long by any count: not worth the time to find out how long.
        if text.len() / self.longest_token > limit {
            return Err(ApiError::too_long(field, &format!("{} bytes", text.len()), limit));
        }
        let encoding = self.tokenizer.encode(text, special);
        Ok(encoding.map_err(|e| ApiError::internal(e.to_string()))?.get_ids().to_vec())
    }
}

/// Shared by all handlers.
#[derive(Clone)]
pub struct AppState {
    serving: Arc<SetOnce<Arc<Serving>>>,
    pub(super) queue: Arc<Queue>,
    /// Bytes that large bodies may still hold.
    pub(super) bodies: Arc<Semaphore>,
    /// Room for those who read requests.
    preparing: Arc<Semaphore>,
    pub(super) metrics: PrometheusHandle,
    pub(super) started: u64,
    http: Arc<Http>,
    recorder: Option<Arc<Recorder>>,
    draining: Arc<AtomicBool>,
}

/// How requests are let in.
#[derive(Default)]
struct Http {
    limits: ConnectionLimits,
    keys: Option<Keys>,
    admin_key: Option<Keys>,
    tls: Option<TlsAcceptor>,
    cors: Option<CorsLayer>,
    log_prompts: bool,
}

/// Why a server cannot be set up as asked.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each names its own fault")]
pub enum SetupError {
    #[error(transparent)]
    Keys(#[from] FileError),
    #[error("{setting} {reason}")]
    Key { setting: &'static str, reason: &'static str },
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("--tls-certificate and --tls-key need each other")]
    HalfTls,
    #[error("--record-traffic {}: {error}", folder.display())]
    Recording { folder: PathBuf, error: std::io::Error },
    #[error("--cors-origin {0} is no origin")]
    Origin(String),
}

impl AppState {
    /// A state without a model yet, with room for `running` sequences and `waiting` more.
    #[must_use]
    pub fn new(running: usize, waiting: usize, metrics: PrometheusHandle) -> Self {
        let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs());
        let queue = Arc::new(Queue::new(running, waiting));
        let (serving, http, draining) = (Arc::default(), Arc::default(), Arc::default());
        let bodies = Arc::new(Semaphore::new(BODIES_BYTES));
        let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
        let preparing = Arc::new(Semaphore::new(threads));
        let recorder = None;
        Self { serving, queue, bodies, preparing, metrics, started, http, recorder, draining }
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

    /// The same with the limits, keys, certificate and origins of a configuration.
    ///
    /// # Errors
    /// [`SetupError`] naming the file or flag.
    pub fn configure(self, config: &Config) -> Result<Self, SetupError> {
        let Access {
            api_key,
            api_keys,
            admin_key,
            tls_certificate,
            tls_key,
            cors_origins,
            log_prompts,
        } = &config.access;
        let admin_key = admin_key.as_deref().map(|key| ("--admin-key (PLEACH_ADMIN_KEY)", key));
        let admin_key = admin_key.map(|key| Keys::open(None, Some(key))).transpose()?;
        let api_key = api_key.as_deref().map(|key| ("--api-key (PLEACH_API_KEY)", key));
        let keys = (api_key.is_some() || api_keys.is_some())
            .then(|| Keys::open(api_keys.as_deref(), api_key))
            .transpose()?;
        let tls = match (tls_certificate, tls_key) {
            (Some(certificate), Some(key)) => Some(tls::acceptor(certificate, key)?),
            (None, None) => None,
            _ => return Err(SetupError::HalfTls),
        };
        let cors = (!cors_origins.is_empty()).then(|| cors(cors_origins)).transpose()?;
        let limits = config.connections.clone();
        let http = Http { limits, keys, admin_key, tls, cors, log_prompts: *log_prompts };
        let recorder = config.recording.clone().map(|recording| {
            let folder = recording.folder.clone();
            tracing::info!(folder = %folder.display(), share = recording.share, "recording traffic");
            Recorder::start(recording).map_err(|error| SetupError::Recording { folder, error })
        });
        let recorder = recorder.transpose()?.map(Arc::new);
        Ok(Self { http: Arc::new(http), recorder, ..self })
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
        &self.http.limits
    }

    pub(super) fn tls(&self) -> Option<&TlsAcceptor> {
        self.http.tls.as_ref()
    }

    pub(super) fn keys(&self) -> Option<&Keys> {
        self.http.keys.as_ref()
    }

    pub(super) fn admin_key(&self) -> Option<&Keys> {
        self.http.admin_key.as_ref()
    }

    pub(super) fn cors(&self) -> Option<&CorsLayer> {
        self.http.cors.as_ref()
    }

    pub(super) fn logs_prompts(&self) -> bool {
        self.http.log_prompts
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

/// Lets pages of these origins ask; `*` stands for any.
fn cors(origins: &[String]) -> Result<CorsLayer, SetupError> {
    let layer = CorsLayer::new()
        .allow_methods([Method::GET, Method::POST])
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([HeaderName::from_static("x-request-id")]);
    if origins.iter().any(|origin| origin == "*") {
        return Ok(layer.allow_origin(Any));
    }
    let parse = |origin: &String| {
        HeaderValue::from_str(origin).map_err(|_| SetupError::Origin(origin.clone()))
    };
    Ok(layer.allow_origin(origins.iter().map(parse).collect::<Result<Vec<_>, _>>()?))
}
