//! Text in and out: chat template, reasoning, calls of functions, incremental detokenizer, stop strings.

mod chat_template;
mod detokenizer;
mod python_json;
pub mod reasoning;
mod stop_strings;
pub mod tool_calls;
mod tool_prompt;

pub use chat_template::{ChatTemplate, Ending, TemplateError};
pub use detokenizer::{Continuations, Detokenizer, Mark};
use python_json::{JsonStyle, python_json};
pub use reasoning::{ThinkTags, Thinking};
pub use stop_strings::StoppingText;
pub use tool_calls::CallFormat;
