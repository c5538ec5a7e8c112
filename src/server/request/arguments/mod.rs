//! The grammar of a call's arguments, as the model's format writes them.

mod python;
mod schemas;
mod xml;

use schemas::Schemas;
use serde_json::{Value, json};

use crate::grammar::{Adherence, Loosened, Part, PartSchema};
use crate::server::error::ApiError;
use crate::text::tool_calls::{Syntax, parameters};

/// Keywords about an object as a whole, which only grammars of JSON follow.
const OF_ALL: [&str; 14] = [
    "$ref",
    "allOf",
    "anyOf",
    "oneOf",
    "not",
    "if",
    "enum",
    "const",
    "minProperties",
    "maxProperties",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "patternProperties",
];

/// The rule `rule` for arguments that `schema` admits, and those that it refers to. Where they are not one JSON object,
/// parameters come in the order in which the schema lists them.
///
/// # Errors
/// A name that the syntax cannot write, or a keyword of a strict schema that it does not follow.
pub(super) fn grammar(
    rule: &str,
    syntax: Syntax,
    schema: PartSchema,
) -> Result<Vec<Part>, ApiError> {
    if syntax == Syntax::Json {
        let begin = Part::Lark(format!("{rule}: "));
        return Ok(vec![begin, Part::Schema(schema), Part::Lark("\n".into())]);
    }
    let PartSchema { subject, schema, adherence } = &schema;
    let invalid = |message: String| ApiError::invalid("tools", format!("`tools`: {message}"));
    let whole = schema.as_object().cloned().unwrap_or_default();
    let mut parts = Vec::new();
    let parameters = parameters(&whole);
    let keywords = OF_ALL.into_iter().filter(|keyword| whole.contains_key(*keyword));
    // Names that are required and not allowed are none.
    let required = whole.get("required").and_then(Value::as_array).map_or(0, Vec::len);
    let lacking = required > parameters.iter().filter(|parameter| parameter.required).count();
    let keywords: Vec<_> = keywords.chain(lacking.then_some("required")).collect();
    if let Some(keyword) = keywords.first() {
        if *adherence == Adherence::Strict {
            let rule = "is not supported beside `properties` in the format in which this model writes calls";
            return Err(invalid(format!("{subject}: `{keyword}` {rule}")));
        }
        parts.push(Part::Loosened(Loosened { subject: subject.clone(), keywords }));
    }
    let marks: &[char] = match syntax {
        Syntax::Xml => &['>', '\n'],
        Syntax::Json | Syntax::Python => &['=', ',', ')', ' ', '\t', '\r', '\n'],
    };
    if let Some(name) = parameters.iter().map(|it| &it.name).find(|name| name.contains(marks)) {
        let rule =
            "cannot be told from what follows it in the format in which this model writes calls";
        return Err(invalid(format!("{subject}: the name {} {rule}", json!(name))));
    }
    let schemas = Schemas { subject, whole: &whole, adherence: *adherence };
    parts.extend(match syntax {
        Syntax::Json | Syntax::Python => python::rules(rule, &parameters, &schemas),
        Syntax::Xml => xml::rules(rule, &parameters, &schemas),
    });
    Ok(parts)
}
