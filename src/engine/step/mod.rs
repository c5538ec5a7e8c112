//! The parts of a step, one after the other: which rows run, what is drafted, what the target says, and what stands;
//! then what it took. Each takes what it needs of the engine.

mod account;
mod commit;
mod propose;
mod schedule;
mod verify;
mod work;

pub(super) use account::{account, cost};
pub(super) use commit::Commit;
pub(super) use propose::propose;
pub(super) use schedule::{begun, preempted, schedule};
pub(super) use verify::Verifier;
pub(super) use work::{prompt_rows, with_drafts};
