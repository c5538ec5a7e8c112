//! Speculation: proposing draft tokens and deciding which of them stand.

mod acceptance;
mod cascade;
mod cost;
mod draft_cache;
mod draft_model;
mod ngram;
mod prediction;
mod prices;
mod proposer;
mod rejection;

pub use acceptance::Acceptance;
pub use cascade::{Cascade, ProposeTask};
pub use cost::{Load, StepCost};
pub use draft_model::{DraftModel, DraftPass};
pub use ngram::{Match, NgramIndex};
pub use prediction::Prediction;
pub use prices::{Costs, DraftStep, Prices};
pub use proposer::{Decided, DraftToken, Proposal, Proposer, Proposers, Speculation};
pub use rejection::{FinalToken, Verdict, rejection_sample};
