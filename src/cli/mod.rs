//! What the program is asked to do: flags, environment and a file of settings become one [`Config`].

mod also;
mod config;
mod config_file;
mod default_draft;
mod device;
mod flags;
pub(crate) mod toml_file;

pub use also::AlsoError;
pub use config::{Access, Config, ConnectionLimits};
pub use config_file::{ConfigError, parse};
pub use default_draft::default_draft;
pub use device::{ComputeDevice, DeviceArgs, DeviceChoice};
pub use flags::{Args, CheckArgs, Cli, Command, KvCacheDtype, LogFormat, LoraModule, NamedSource};
pub use toml_file::FileError;
