//! Speculation: proposing draft tokens and deciding which of them stand. [`DraftController`] owns what an engine's
//! drafting needs, [`SpeculationState`] what it remembers of one sequence.

mod acceptance;
mod cascade;
mod chain;
mod controller;
mod cost;
mod draft_cache;
mod draft_model;
mod ngram;
mod prediction;
mod prices;
mod proposal;
mod rejection;
mod state;
mod task;
mod trials;

pub use acceptance::Acceptance;
pub use controller::{DraftController, DraftReport};
pub use cost::{StepCost, Work};
pub use draft_model::{DraftModel, DraftPass};
pub use ngram::{Match, NgramIndex};
pub use prediction::PredictedOutput;
pub use prices::{Costs, DraftStep, Prices};
pub use proposal::{ByProposer, Decided, DraftToken, Proposal, Proposer, Proposers};
pub use rejection::{FinalToken, Verdict, rejection_sample};
pub use state::SpeculationState;
pub use task::ProposeTask;
