//! Grammars that an output must follow: JSON schemas, regular expressions and context-free grammars,
//! compiled and matched by `llguidance`. Knows tokens and masks; nothing of models or HTTP.

mod bounds;
mod compiled;
mod compiler;
mod composition;
mod loosening;
mod reference_graph;
mod schema_work;
mod source;
mod state;
mod worker;

pub use compiled::Grammar;
pub use compiler::GrammarCompiler;
pub use source::{Adherence, GrammarError, GrammarSource, Loosened, Part, PartSchema};
pub use state::GrammarState;
pub use worker::{Busy, Compilation, DEADLINE, GrammarWorkers};

#[cfg(test)]
mod tests;
