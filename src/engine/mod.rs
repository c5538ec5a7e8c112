//! Runs many sequences through one target and one draft model: `Engine::step` is schedule →
//! propose → verify → commit. tokio appears only in [`EngineHandle`].

mod commit;
mod comparison;
mod config;
mod core;
mod decode_time;
mod handle;
mod measure;
mod offline;
mod readout;
mod report;
mod request;
mod rounds;
mod scheduler;
mod sequence;
mod stats;
#[cfg(test)]
mod test_model;

pub use comparison::{Comparison, DraftScore, Outcome, expected_speedup};
pub use config::{CacheNeeds, EngineConfig, EngineError};
pub use core::Engine;
pub use decode_time::DecodeTime;
pub use handle::{EngineHandle, SubmitError};
pub use measure::MeasuredCosts;
pub use offline::{Answer, Batch};
pub use request::{
    EngineLimits, Event, FinishReason, MAX_TOP_LOGPROBS, PromptToken, Readout, Request,
    RequestError, RequestId, TokenOut, TokenSource,
};
pub use scheduler::{Schedule, Scheduled, Scheduler};
pub use stats::{
    EngineStats, NoDraft, PassCost, PassCosts, ProposerCounts, ProposerSeconds, SequenceStats,
};
