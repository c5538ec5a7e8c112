//! Runs many sequences through one target and one draft model: `Engine::step` is schedule →
//! propose → verify → commit. tokio appears only in [`EngineHandle`].

mod config;
mod request;
mod rows;
mod stats;

pub use config::{EngineConfig, EngineError};
pub use request::{
    EngineLimits, Event, FinishReason, MAX_TOP_LOGPROBS, Request, RequestError, RequestId,
    TokenOut, TokenSource,
};
pub use rows::{Forward, Rows};
pub use stats::{EngineStats, PassCost, PassCosts, SequenceStats};
