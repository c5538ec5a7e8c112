//! The grammar of a call's arguments, as the model's format writes them.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use crate::grammar::{Adherence, Loosened, Part, PartSchema};
use crate::server::error::ApiError;
use crate::text::tool_calls::{Kind, Parameter, Syntax, parameters, text_schema};

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
    let mut all = format!("{rule}:");
    for (place, Parameter { name, required, .. }) in parameters.iter().enumerate() {
        if name.contains(['>', '\n']) {
            let rule = "has a line break or `>`, which the format in which this model writes calls cannot tell from \
                        what ends a name";
            return Err(invalid(format!("{subject}: the name {} {rule}", json!(name))));
        }
        let _ = write!(all, " {rule}_{place}{}", if *required { "" } else { "?" });
    }
    parts.push(Part::Lark(if parameters.is_empty() {
        format!("{rule}: \"\"\n")
    } else {
        all + "\n"
    }));
    for (place, Parameter { name, schema: value, .. }) in parameters.iter().enumerate() {
        let opening = json!(format!("<parameter={name}>\n"));
        parts.push(Part::Lark(format!("{rule}_{place}: {opening} {rule}_{place}_v\n")));
        let rule = format!("{rule}_{place}_v");
        match text_schema(value, &whole) {
            Some((text, kind)) => parts.push(Part::Lark(bare(&rule, &text, kind))),
            None => {
                let schema = alone(value, &whole);
                let value = PartSchema { subject: subject.clone(), schema, adherence: *adherence };
                parts.push(Part::Lark(format!("{rule}: ")));
                parts.push(Part::Schema(value));
                parts.push(Part::Lark("\"\\n</parameter>\\n\"\n".into()));
            }
        }
    }
    Ok(parts)
}

/// The rule for a text without quotes, up to what ends it.
fn bare(rule: &str, schema: &Value, kind: Kind) -> String {
    let constant = schema.get("const").map(std::slice::from_ref);
    if let Some(choices) = schema["enum"].as_array().map(|all| &all[..]).or(constant) {
        let choices = choices.iter().filter_map(Value::as_str);
        let choices: Vec<_> =
            choices.map(|text| json!(format!("{text}\n</parameter>\n")).to_string()).collect();
        return format!("{rule}: {}\n", choices.join(" | "));
    }
    // What ends the text cannot stand where the text must go on, if no line ends there.
    let least = schema["minLength"].as_u64().unwrap_or(0);
    let most = schema["maxLength"].as_u64();
    let more = most.map_or("*".to_owned(), |most| format!("{{0,{}}}", most - least));
    let begin = if least > 0 { format!("[^\\n]{{{least}}}") } else { String::new() };
    let text = format!("{begin}(.|\\n){more}");
    let text = if kind == Kind::OptionalText { format!("(null|{text})") } else { text };
    format!("{rule}[lazy]: /{text}\\n<\\/parameter>\\n/\n")
}

/// A schema that stands in the schema `whole`, with the definitions it refers to.
fn alone(schema: &Value, whole: &Map<String, Value>) -> Value {
    let mut schema = schema.clone();
    let refers = schema.to_string().contains("\"$ref\"");
    if let Some(fields) = schema.as_object_mut().filter(|_| refers) {
        for key in ["$defs", "definitions"] {
            if let Some(definitions) = whole.get(key) {
                fields.entry(key).or_insert(definitions.clone());
            }
        }
    }
    schema
}
