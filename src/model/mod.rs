//! model.

mod config;

pub use config::{Family, ModelConfig, RopeConfig, RopeScaling, SlidingWindow};
