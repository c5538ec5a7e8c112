//! How requests are let in: connections, keys, certificates and origins, as they are configured.

use std::path::PathBuf;

use axum::http::{HeaderName, HeaderValue, Method};
use tower_http::cors::{AllowHeaders, Any, CorsLayer};

use super::generate::loosened;
use super::keys::{Keys, KeysError, LIMIT_HEADERS};
use super::transport::tls::{Tls, TlsError};
use crate::cli::{self, Config, ConnectionLimits};

/// How requests are let in.
#[derive(Default)]
pub(super) struct Access {
    pub(super) limits: ConnectionLimits,
    pub(super) keys: Option<Keys>,
    pub(super) admin_key: Option<Keys>,
    pub(super) tls: Option<Tls>,
    pub(super) cors: Option<CorsLayer>,
    pub(super) log_prompts: bool,
    /// Whether adapters may be loaded and unloaded.
    pub(super) runtime_lora: bool,
    /// Whether metrics have a listener of their own.
    pub(super) metrics_apart: bool,
}

/// Why a server cannot be set up as asked.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each names its own fault")]
pub enum SetupError {
    #[error(transparent)]
    Keys(#[from] KeysError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("--tls-certificate and --tls-key need each other")]
    HalfTls,
    #[error("--record-traffic {}: {error}", folder.display())]
    Recording { folder: PathBuf, error: std::io::Error },
    #[error("--cors-origin {0} is no origin")]
    Origin(String),
}

impl Access {
    /// Opens the keys and the certificate of a configuration.
    ///
    /// # Errors
    /// [`SetupError`] naming the file or flag.
    pub(super) fn configured(config: &Config) -> Result<Self, SetupError> {
        let cli::Access {
            api_key,
            api_keys,
            admin_key,
            tls_certificate,
            tls_key,
            cors_origins,
            log_prompts,
            runtime_lora,
        } = &config.access;
        let admin_key = admin_key.as_deref().map(|key| ("--admin-key (PLEACH_ADMIN_KEY)", key));
        let admin_key = admin_key.map(|key| Keys::open(None, Some(key))).transpose()?;
        let api_key = api_key.as_deref().map(|key| ("--api-key (PLEACH_API_KEY)", key));
        let keys = (api_key.is_some() || api_keys.is_some())
            .then(|| Keys::open(api_keys.as_deref(), api_key))
            .transpose()?;
        let tls = match (tls_certificate, tls_key) {
            (Some(certificate), Some(key)) => Some(Tls::open(certificate, key)?),
            (None, None) => None,
            _ => return Err(SetupError::HalfTls),
        };
        let cors = (!cors_origins.is_empty()).then(|| cors(cors_origins)).transpose()?;
        let limits = config.connections.clone();
        let (log_prompts, metrics_apart) = (*log_prompts, config.metrics_address.is_some());
        let runtime_lora = *runtime_lora;
        Ok(Self { limits, keys, admin_key, tls, cors, log_prompts, runtime_lora, metrics_apart })
    }

    /// Reads the files of keys and of the certificate again. What is wrong with one of them is logged, and what it held
    /// before stays.
    pub(super) fn reload(&self) {
        match self.keys.as_ref().map(Keys::reload) {
            Some(Ok(Some(keys))) => tracing::info!(keys, "the keys were read again"),
            Some(Err(error)) => tracing::error!(%error, "the keys stay as they were"),
            Some(Ok(None)) | None => {}
        }
        match self.tls.as_ref().map(Tls::reload) {
            Some(Ok(())) => tracing::info!("the certificate was read again"),
            Some(Err(error)) => tracing::error!(%error, "the certificate stays as it was"),
            None => {}
        }
    }
}

/// Lets pages of these origins ask; `*` stands for any.
fn cors(origins: &[String]) -> Result<CorsLayer, SetupError> {
    let layer = CorsLayer::new()
        .allow_methods([Method::GET, Method::POST])
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(
            ["x-request-id", "retry-after", loosened::NAME]
                .into_iter()
                .chain(LIMIT_HEADERS)
                .map(HeaderName::from_static)
                .collect::<Vec<_>>(),
        );
    if origins.iter().any(|origin| origin == "*") {
        return Ok(layer.allow_origin(Any));
    }
    let parse = |origin: &String| {
        HeaderValue::from_str(origin).map_err(|_| SetupError::Origin(origin.clone()))
    };
    Ok(layer.allow_origin(origins.iter().map(parse).collect::<Result<Vec<_>, _>>()?))
}
