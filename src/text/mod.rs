//! Text in and out: chat template, calls of functions, incremental detokenizer, stop strings.

pub mod calls;
mod detokenizer;
mod python_json;
mod spelled_out;
mod stop;
mod template;

pub use calls::CallFormat;
pub use detokenizer::{Continuations, Detokenizer, Mark};
use python_json::{indented_python_json, python_json};
pub use stop::StoppingText;
pub use template::{ChatTemplate, Ending, TemplateError};
