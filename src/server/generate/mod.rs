//! From a request in any dialect to the pieces of its answer.

pub(crate) mod chat_prompt;
pub(crate) mod drawing;
pub(crate) mod generation;
pub(crate) mod loosened;
pub(crate) mod pieces;
pub(crate) mod repetition;
pub(crate) mod running;
pub(crate) mod said;
pub(crate) mod speech;
pub(crate) mod tool_calls;
