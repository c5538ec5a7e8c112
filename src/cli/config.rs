//! The server's configuration: what its flags, the environment and the file come to.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use pleach_kernels::best_threads;
use serde_json::{Map, Value};

use super::default_draft::draft_of;
use super::device::ComputeDevice;
use super::flags::{Args, KvCacheDtype, LoraModule, NamedSource};
use crate::checkpoint::source::{self, Source};
use crate::engine::EngineConfig;
use crate::observe::traffic::Recording;
use crate::sampling::SamplingDefaults;
use crate::text::CallFormat;

/// A server's configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// The model to serve.
    pub model: Source,
    /// The draft, where one is to be used.
    pub draft: Option<Source>,
    /// Where to listen.
    pub address: SocketAddr,
    /// Where to listen for those who watch the server, where they have a listener of their own.
    pub metrics_address: Option<SocketAddr>,
    /// Where models compute.
    pub device: ComputeDevice,
    /// How the K/V caches hold keys and values.
    pub kv_cache_dtype: KvCacheDtype,
    /// Threads that compute.
    pub threads: usize,
    /// Limits of the engine.
    pub engine: EngineConfig,
    /// Requests that may wait.
    pub max_queue: usize,
    /// How long a step of the engine may take before the server counts as hanging; `None` for any time.
    pub step_timeout: Option<Duration>,
    /// Bounds on connections.
    pub connections: ConnectionLimits,
    /// Keys, certificate and origins.
    pub access: Access,
    /// Where fetched models are kept.
    pub cache_dir: PathBuf,
    /// What is recorded of the traffic.
    pub recording: Option<Recording>,
    /// The model's names in the API; none for that of its file.
    pub served_model_names: Vec<String>,
    /// The model's LoRA adapters.
    pub lora: Vec<LoraModule>,
    /// Models beside it.
    pub also: Vec<NamedSource>,
    /// Their drafts, by the models' names.
    pub also_drafts: Vec<NamedSource>,
    /// How the model writes calls of functions; `None` for its chat template's format.
    pub tool_call_parser: Option<CallFormat>,
    /// The chat template (Jinja) in place of the model's own.
    pub chat_template: Option<String>,
    /// Variables for the chat template of every conversation.
    pub chat_template_kwargs: Map<String, Value>,
    /// Sampling parameters of requests that leave them out, before the model's own.
    pub sampling_defaults: SamplingDefaults,
}

/// Who may ask, and over which kind of connection.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// A key without limits.
    pub api_key: Option<String>,
    /// A file of keys.
    pub api_keys: Option<PathBuf>,
    /// A key for /admin.
    pub admin_key: Option<String>,
    /// Certificate chain, PEM.
    pub tls_certificate: Option<PathBuf>,
    /// Its private key, PEM.
    pub tls_key: Option<PathBuf>,
    /// Origins whose pages may ask; `*` for all.
    pub cors_origins: Vec<String>,
    /// Whether request bodies are logged.
    pub log_prompts: bool,
    /// Whether adapters may be loaded and unloaded while the server runs.
    pub runtime_lora: bool,
}

/// Bounds on connections.
#[derive(Debug, Clone)]
pub struct ConnectionLimits {
    /// Connections at a time; further ones wait to be accepted.
    pub connections: usize,
    /// How long a client may take to send a request's head, or its body, how long a connection may
    /// idle between requests, and how long a client may take nothing of its answer.
    pub patience: Duration,
    /// How long running requests may go on after a shutdown was asked for.
    pub drain: Duration,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            connections: 4096,
            patience: Duration::from_secs(30),
            drain: Duration::from_secs(30),
        }
    }
}

impl From<Args> for Config {
    fn from(args: Args) -> Self {
        let num_speculative_tokens =
            if args.no_speculation { 0 } else { args.num_speculative_tokens };
        let speculates = num_speculative_tokens > 0;
        let draft = draft_of(&args.model, args.draft, speculates);
        let defaults = EngineConfig::default();
        let seconds = |bound| (bound > 0).then(|| Duration::from_secs(bound));
        Self {
            model: args.model,
            draft,
            address: (args.host, args.port).into(),
            metrics_address: args.metrics_address,
            device: args.device.choice.device,
            kv_cache_dtype: args.kv_cache_dtype,
            threads: args.threads.unwrap_or_else(best_threads).max(1),
            engine: EngineConfig {
                max_num_seqs: args.max_num_seqs,
                max_num_batched_tokens: args.max_num_batched_tokens,
                max_model_len: args.max_model_len,
                num_blocks: args.kv_blocks,
                gpu_memory_utilization: args.device.gpu_memory_utilization,
                prefix_caching: !args.no_prefix_caching,
                num_speculative_tokens,
                ngram: !args.fixed_drafts,
                adaptive: !args.fixed_drafts,
                request_timeout: seconds(args.request_timeout),
                ..defaults
            },
            max_queue: args.max_queue,
            step_timeout: seconds(args.step_timeout),
            access: Access {
                api_key: args.api_key,
                api_keys: args.api_keys,
                admin_key: args.admin_key,
                tls_certificate: args.tls_certificate,
                tls_key: args.tls_key,
                cors_origins: args.cors_origin,
                log_prompts: args.log_prompts,
                runtime_lora: args.allow_runtime_lora,
            },
            connections: ConnectionLimits {
                connections: args.max_connections.max(1),
                patience: Duration::from_secs(args.client_timeout.max(1)),
                drain: Duration::from_secs(args.drain_timeout),
            },
            cache_dir: args.cache_dir.unwrap_or_else(source::default_cache_dir),
            recording: args.record_traffic.map(|folder| Recording {
                folder,
                share: args.record_share,
                max_bytes: u64::from(args.record_megabytes) * 1_000_000,
            }),
            served_model_names: args.served_model_name,
            lora: args.lora,
            also: args.also,
            also_drafts: args.also_draft,
            tool_call_parser: args.tool_call_parser,
            chat_template: args.chat_template,
            chat_template_kwargs: args.chat_template_kwargs.unwrap_or_default(),
            sampling_defaults: args.override_generation_config.unwrap_or_default(),
        }
    }
}
