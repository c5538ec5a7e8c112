//! Speculation: proposing draft tokens and deciding which of them stand.

mod controller;
mod cost;
mod proposer;
mod rejection;

pub use controller::DraftLength;
pub use cost::StepCost;
pub use proposer::{
    DraftModelProposer, DraftPass, DraftToken, MIN_DRAFT_CONFIDENCE, Proposal, ProposeTask,
    ProposerState,
};
pub use rejection::{FinalToken, Verdict, rejection_sample};
