//! Faults and bad intent, against the real program: real sockets, real signals.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

#[path = "faults/access.rs"]
mod access;
#[path = "faults/bounds.rs"]
mod bounds;
#[path = "faults/draft.rs"]
mod draft;
#[path = "faults/engine.rs"]
mod engine;
#[path = "support/gguf.rs"]
mod gguf;
#[path = "faults/memory.rs"]
mod memory;
#[path = "support/random_model.rs"]
mod random_model;
#[path = "faults/shutdown.rs"]
mod shutdown;
mod support;
