//! The default model through decoder, engine, speculation and adapters, and models of other programs' making.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod adapters;
mod decoder;
mod engine;
mod goldens;
mod speculation;
#[path = "../support/mod.rs"]
mod support;
