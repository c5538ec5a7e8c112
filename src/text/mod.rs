//! Text in and out: chat template, incremental detokenizer, stop strings.

mod detokenizer;
mod stop;
mod template;

pub use detokenizer::Detokenizer;
pub use stop::StopStrings;
pub use template::{ChatTemplate, TemplateError};
