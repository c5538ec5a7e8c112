//! The grammar of Python's keyword arguments.

use std::borrow::Cow;

use serde_json::{Value, json};

use super::schemas::Schemas;
use crate::grammar::Part;
use crate::text::tool_calls::{Parameter, resolved};

/// A string in single quotes.
const QUOTED: &str = r#"/'([^'\\\x00-\x1f]|\\['"\\nrt])*'/"#;

/// The rule `rule` for parameters, and those that it refers to: `_F` and a number begin with that parameter or one behind
/// it, `_M` and a number go on with it.
pub(super) fn rules(rule: &str, parameters: &[Parameter], schemas: &Schemas<'_>) -> Vec<Part> {
    let mut parts = vec![Part::Lark(format!("{rule}: {rule}_f0\n"))];
    for (place, Parameter { name, schema, required }) in parameters.iter().enumerate() {
        let (this, next) = (format!("{rule}_{place}"), place + 1);
        let (other, perhaps) = match required {
            true => (String::new(), ""),
            false => (format!(" | {rule}_f{next}"), "?"),
        };
        let name = json!(format!("{name}="));
        parts.push(Part::Lark(format!(
            "{rule}_f{place}: {this} {rule}_m{next}{other}\n\
             {rule}_m{place}: (\", \" {this}){perhaps} {rule}_m{next}\n\
             {this}: {name} {this}_v\n{this}_v: "
        )));
        parts.extend(value(schema, schemas));
        parts.push(Part::Lark("\n".into()));
    }
    let last = parameters.len();
    parts.push(Part::Lark(format!("{rule}_f{last}: \"\"\n{rule}_m{last}: \"\"\n")));
    parts
}

/// The alternatives of a value.
fn value(schema: &Value, schemas: &Schemas<'_>) -> Vec<Part> {
    let mut parts = Vec::new();
    for (place, schema) in alternatives(resolved(schema, schemas.whole)).iter().enumerate() {
        if place > 0 {
            parts.push(Part::Lark(" | ".into()));
        }
        let schema = resolved(schema, schemas.whole);
        match constants(schema) {
            Some(constants) => parts.push(Part::Lark(constants.join(" | "))),
            None => parts.push(schemas.json(schema)),
        }
        if *schema == json!({"type": "string"}) {
            parts.push(Part::Lark(format!(" | {QUOTED}")));
        }
    }
    parts
}

/// The schemas of which a value has one, without what only describes it.
fn alternatives(schema: &Value) -> Vec<Cow<'_, Value>> {
    let words = ["title", "description", "default", "examples", "deprecated"];
    let Some(fields) = schema.as_object() else { return vec![Cow::Borrowed(schema)] };
    let says: Vec<_> = fields.iter().filter(|(key, _)| !words.contains(&&***key)).collect();
    match says[..] {
        [(key, Value::Array(any))] if ["anyOf", "oneOf"].contains(&&**key) && !any.is_empty() => {
            any.iter().flat_map(alternatives).collect()
        }
        [(key, Value::Array(kinds))] if key == "type" && !kinds.is_empty() => {
            kinds.iter().map(|kind| Cow::Owned(json!({"type": kind}))).collect()
        }
        _ => vec![Cow::Owned(Value::Object(
            says.into_iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
        ))],
    }
}

/// The texts of the values that a schema admits, where it lists them, or they are constants of Python.
fn constants(schema: &Value) -> Option<Vec<String>> {
    let fields = schema.as_object()?;
    let written = |value: &Value| match value {
        Value::Bool(true) => Some("\"True\"".to_owned()),
        Value::Bool(false) => Some("\"False\"".to_owned()),
        Value::Null => Some("\"None\"".to_owned()),
        Value::String(_) | Value::Number(_) => Some(json!(value.to_string()).to_string()),
        _ => None,
    };
    let listed = match (fields.get("enum"), fields.get("const"), fields.get("type")) {
        (Some(Value::Array(all)), None, kind) => {
            let known = |value: &&Value| kind.is_none_or(|kind| has_type(value, kind));
            all.iter().filter(known).cloned().collect()
        }
        (None, Some(value), None) => vec![value.clone()],
        (None, None, Some(kind)) if kind == "boolean" => vec![json!(true), json!(false)],
        (None, None, Some(kind)) if kind == "null" => vec![Value::Null],
        _ => return None,
    };
    let alone = fields.keys().all(|key| ["enum", "const", "type"].contains(&&**key));
    let texts: Option<Vec<String>> = listed.iter().map(written).collect();
    texts.filter(|texts| alone && !texts.is_empty())
}

/// Whether a value has the type, or one of the types, of a schema's `type`.
fn has_type(value: &Value, kind: &Value) -> bool {
    let is = |kind: &str| match value {
        Value::String(_) => kind == "string",
        Value::Bool(_) => kind == "boolean",
        Value::Null => kind == "null",
        Value::Number(number) => kind == "number" || kind == "integer" && !number.is_f64(),
        _ => false,
    };
    match kind {
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).any(is),
        _ => kind.as_str().is_some_and(is),
    }
}
