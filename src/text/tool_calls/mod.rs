//! Calls of functions, as models write them.

mod arguments;
mod format;
mod held;
mod json;
mod parser;
mod python;
mod signature;
mod xml;

pub use format::{Around, CallFormat, Syntax, Texts};
pub use parser::{CallParser, Part};
pub use signature::{Kind, Parameter, Signature, Signatures, parameters, resolved, text_schema};
