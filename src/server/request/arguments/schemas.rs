//! The schemas of values, out of the schema of the arguments.

use serde_json::{Map, Value};

use crate::grammar::{Adherence, Part, PartSchema};

/// A schema of arguments, in which those of values stand.
pub(super) struct Schemas<'a> {
    pub(super) subject: &'a str,
    pub(super) whole: &'a Map<String, Value>,
    pub(super) adherence: Adherence,
}

impl Schemas<'_> {
    /// JSON that a value's schema admits, with the definitions it refers to.
    pub(super) fn json(&self, schema: &Value) -> Part {
        let mut schema = schema.clone();
        let refers = schema.to_string().contains("\"$ref\"");
        if let Some(fields) = schema.as_object_mut().filter(|_| refers) {
            for key in ["$defs", "definitions"] {
                if let Some(definitions) = self.whole.get(key) {
                    fields.entry(key).or_insert(definitions.clone());
                }
            }
        }
        let (subject, adherence) = (self.subject.to_owned(), self.adherence);
        Part::Schema(PartSchema { subject, schema, adherence })
    }
}
