//! What a request says about the form of its output, as a grammar.

use serde_json::{Map, Value};

use super::json;
use crate::grammar::GrammarSource;
use crate::server::error::ApiError;
use crate::server::wire::{Form, ResponseFormat};

/// The grammar that a request asks for, and the field that asks.
pub(crate) fn grammar(form: Form) -> Result<Option<(&'static str, GrammarSource)>, ApiError> {
    let mut found = Vec::new();
    let mut add = |field, source: Option<GrammarSource>| {
        found.extend(source.map(|source| (field, source)));
    };
    let format = form.response_format.and_then(|format| match format {
        ResponseFormat::Text {} => None,
        ResponseFormat::JsonObject { schema: None } => Some(GrammarSource::json_object()),
        ResponseFormat::JsonObject { schema: Some(schema) } => Some(named(schema, None)),
        ResponseFormat::JsonSchema { json_schema } => Some(match json_schema.schema {
            Some(schema) => named(schema, json_schema.strict),
            None => GrammarSource::json_object(),
        }),
    });
    add("response_format", format);
    if let Some(outputs) = form.structured_outputs {
        let field = "structured_outputs";
        add(field, outputs.json.map(|schema| schema_of(field, schema)).transpose()?);
        add(field, outputs.regex.map(GrammarSource::Regex));
        add(field, outputs.choice.map(GrammarSource::Choice));
        add(field, outputs.grammar.map(GrammarSource::Lark));
        add(field, outputs.json_object.filter(|on| *on).map(|_| GrammarSource::json_object()));
    }
    add(
        "guided_json",
        form.guided_json.map(|schema| schema_of("guided_json", schema)).transpose()?,
    );
    add("guided_regex", form.guided_regex.map(GrammarSource::Regex));
    add("guided_choice", form.guided_choice.map(GrammarSource::Choice));
    add("guided_grammar", form.guided_grammar.map(GrammarSource::Lark));
    if let [_, (field, _), ..] = found[..] {
        let message = format!("`{field}`: only one rule for the output's form may be given");
        return Err(ApiError::invalid(field, message));
    }
    Ok(found.pop())
}

/// A schema that the output follows in all it says where that is `strict`, or else as far as it is supported.
pub(crate) fn named(schema: Map<String, Value>, strict: Option<bool>) -> GrammarSource {
    match strict {
        Some(true) => GrammarSource::JsonSchema(schema.into()),
        _ => GrammarSource::LenientSchema(schema.into()),
    }
}

/// A schema, as an object or as its text.
fn schema_of(field: &str, schema: Value) -> Result<GrammarSource, ApiError> {
    let schema = match schema {
        Value::String(text) => json::read(text.as_bytes(), Some(field))?,
        other => other,
    };
    Ok(GrammarSource::JsonSchema(schema))
}
