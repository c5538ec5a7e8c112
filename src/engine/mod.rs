//! Runs many sequences through one target and one draft model: `Engine::step` is schedule →
//! propose → verify → commit. tokio appears only in [`EngineHandle`] and its [`Turns`].

mod cache_size;
mod comparison;
mod config;
mod decode_time;
mod draft_comparison;
mod draft_sample;
#[expect(clippy::module_inception, reason = "the engine's own file, beside those of its parts")]
mod engine;
mod handle;
mod offline;
mod on_cuda;
mod profile;
mod progress;
mod prompt_pace;
mod prompt_readout;
mod request;
mod row_budget;
mod scheduler;
mod sequence;
mod sequences;
mod stats;
mod step;
mod tally;
#[cfg(test)]
mod test_model;
mod token;
mod turns;

pub use cache_size::CacheNeeds;
pub use comparison::{Comparison, DraftScore, Outcome, expected_speedup};
pub use config::{EngineConfig, EngineError, EngineLimits};
pub use draft_comparison::Candidate;
pub use engine::Engine;
pub use handle::{EngineHandle, SubmitError};
pub use offline::{Answer, OfflineBatch};
pub use profile::MeasuredCosts;
pub use request::{
    Event, FinishReason, MAX_TOP_LOGPROBS, Readout, Request, RequestError, RequestId,
};
pub use scheduler::{Schedule, Scheduled, Scheduler};
pub use stats::{
    DecodeTime, EngineStats, NoDraft, PassCost, PassCosts, ProposerCounts, ProposerSeconds,
    RoundCounts, SequenceStats,
};
pub use token::{PromptToken, TokenOut, TokenSource};
pub use turns::Turns;
