//! What a request says about the form of its output, as a grammar.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{ApiError, Body};
use crate::grammar::GrammarSource;

/// `response_format` as OpenAI has it.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum ResponseFormat {
    Text {},
    JsonObject {},
    JsonSchema { json_schema: JsonSchema },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonSchema {
    #[expect(dead_code, reason = "required by the API, of no effect")]
    name: String,
    #[serde(default, rename = "description")]
    _description: Option<String>,
    schema: Option<Map<String, Value>>,
    /// The output follows the schema either way.
    #[serde(default, rename = "strict")]
    _strict: Option<bool>,
}

/// vLLM's `structured_outputs`: one of these.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct StructuredOutputs {
    json: Option<Value>,
    regex: Option<String>,
    choice: Option<Vec<String>>,
    grammar: Option<String>,
    json_object: Option<bool>,
}

/// The grammar that a body asks for, and the field that asks: `response_format`,
/// `structured_outputs`, or one of the older `guided_*` fields of vLLM.
pub(super) fn take(body: &mut Body) -> Result<Option<(&'static str, GrammarSource)>, ApiError> {
    let mut found = Vec::new();
    let mut add = |field, source: Option<GrammarSource>| {
        found.extend(source.map(|source| (field, source)));
    };
    add(
        "response_format",
        match body.take("response_format")? {
            None | Some(ResponseFormat::Text {}) => None,
            Some(ResponseFormat::JsonObject {}) => Some(GrammarSource::json_object()),
            Some(ResponseFormat::JsonSchema { json_schema }) => Some(match json_schema.schema {
                Some(schema) => GrammarSource::JsonSchema(schema.into()),
                None => GrammarSource::json_object(),
            }),
        },
    );
    let outputs: StructuredOutputs = body.or("structured_outputs", Default::default())?;
    let field = "structured_outputs";
    add(field, outputs.json.map(|schema| json(field, schema)).transpose()?);
    add(field, outputs.regex.map(GrammarSource::Regex));
    add(field, outputs.choice.map(GrammarSource::Choice));
    add(field, outputs.grammar.map(GrammarSource::Lark));
    add(field, outputs.json_object.filter(|on| *on).map(|_| GrammarSource::json_object()));
    let field = "guided_json";
    add(field, body.take(field)?.map(|schema| json(field, schema)).transpose()?);
    add("guided_regex", body.take("guided_regex")?.map(GrammarSource::Regex));
    add("guided_choice", body.take("guided_choice")?.map(GrammarSource::Choice));
    add("guided_grammar", body.take("guided_grammar")?.map(GrammarSource::Lark));
    if let [_, (field, _), ..] = found[..] {
        let message = format!("`{field}`: only one rule for the output's form may be given");
        return Err(ApiError::invalid(field, message));
    }
    Ok(found.pop())
}

/// A schema, as an object or as its text.
fn json(field: &str, schema: Value) -> Result<GrammarSource, ApiError> {
    let schema = match schema {
        Value::String(text) => serde_json::from_str(&text)
            .map_err(|e| ApiError::invalid(field, format!("`{field}` is not JSON: {e}")))?,
        other => other,
    };
    Ok(GrammarSource::JsonSchema(schema))
}
