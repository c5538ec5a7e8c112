//! Faults and bad intent, against the real program: real sockets, real signals.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod access;
mod bounds;
mod draft;
mod engine;
mod keys;
mod memory;
mod shutdown;
#[path = "../support/mod.rs"]
mod support;
mod watchers;
