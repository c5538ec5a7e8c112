//! The arguments of a call, read in any syntax as the text of a JSON object.

use super::format::Syntax;
use super::json::Object;
use super::python::Keywords;
use super::signature::Signature;
use super::xml::Elements;

/// Arguments that arrive in pieces.
#[derive(Debug)]
pub(super) enum Arguments {
    Json(Object),
    Xml(Elements),
    Python(Keywords),
}

impl Arguments {
    /// Those of a call of the function that has this signature.
    pub(super) fn new(syntax: Syntax, signature: Option<&Signature>) -> Self {
        match syntax {
            Syntax::Json => Self::Json(Object::default()),
            Syntax::Xml => Self::Xml(Elements::new(signature.cloned())),
            Syntax::Python => Self::Python(Keywords::new()),
        }
    }

    /// Takes what it can from the held text; gives what that adds to the JSON, and whether that is whole.
    pub(super) fn read(&mut self, held: &mut String) -> (String, bool) {
        match self {
            Self::Json(object) => {
                let end = object.end(held);
                let rest = held.split_off(end.unwrap_or(held.len()));
                (std::mem::replace(held, rest), end.is_some())
            }
            Self::Xml(elements) => elements.read(held),
            Self::Python(keywords) => keywords.read(held),
        }
    }
}
