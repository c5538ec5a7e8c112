//! Grammars that an output must follow: JSON schemas, regular expressions and context-free grammars,
//! compiled and matched by `llguidance`. Knows tokens and masks; nothing of models or HTTP.

mod bounds;
mod compiler;
mod reference_graph;
mod schema_work;
mod source;
mod state;
mod worker;

pub use compiler::{Grammar, GrammarCompiler};
pub(crate) use source::with_whitespace;
pub use source::{GrammarError, GrammarSource};
pub use state::GrammarState;
pub use worker::{Busy, Compilation, DEADLINE, GrammarWorkers};

#[cfg(test)]
mod tests;
