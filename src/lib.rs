//! pleach: a language model that is its own drafter.
//!
//! One request, in order: [`server`] parses it, [`text`] turns it into tokens, [`engine`] schedules it, [`speculation`]
//! proposes draft tokens, [`model`] verifies them in one ragged pass through [`pleach_kernels`], [`sampling`] and
//! [`speculation`] decide which stand, and the events travel back the same way.
//!
//! Dependencies point one way: `server → engine → {speculation, model, sampling, kv_cache} → pleach_kernels`. tokio and
//! axum stay above [`engine::EngineHandle`]; `unsafe` code is in the kernels alone.

pub mod check;
pub mod checkpoint;
pub mod cli;
pub mod engine;
pub mod grammar;
pub mod kv_cache;
pub mod loading;
pub mod memory;
pub mod metrics;
pub mod model;
pub mod observe;
pub mod prompts;
pub mod sampling;
pub mod server;
pub mod speculation;
pub mod text;
