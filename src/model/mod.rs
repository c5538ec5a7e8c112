//! model.

mod config;
mod forward;

pub use config::{Family, ModelConfig, RopeConfig, RopeScaling, SlidingWindow};
pub use forward::{Forward, Rows};
