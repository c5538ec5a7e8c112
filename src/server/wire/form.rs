//! The form of an output.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

/// What the output must be: one of these at most.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct Form {
    /// Text, any JSON object, or JSON that a schema admits.
    pub(crate) response_format: Option<ResponseFormat>,
    /// vLLM's rules for the output.
    pub(crate) structured_outputs: Option<StructuredOutputs>,
    /// A JSON schema, as an object or as its text.
    pub(crate) guided_json: Option<Value>,
    /// A regular expression for the whole output, of 8 kB at most.
    pub(crate) guided_regex: Option<String>,
    /// The outputs there may be.
    pub(crate) guided_choice: Option<Vec<String>>,
    /// A grammar in the Lark syntax of `llguidance`.
    pub(crate) guided_grammar: Option<String>,
}

/// The form of an output, as OpenAI has it.
#[derive(Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum ResponseFormat {
    /// Any text.
    Text {},
    /// Any JSON object.
    JsonObject {
        /// A schema that it follows, as llama.cpp takes it.
        schema: Option<Map<String, Value>>,
    },
    /// JSON that a schema admits.
    JsonSchema {
        /// The schema.
        json_schema: NamedSchema,
    },
}

/// A JSON schema with a name.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NamedSchema {
    /// Accepted and ignored.
    #[expect(dead_code, reason = "of no effect")]
    name: Option<String>,
    /// Accepted and ignored.
    #[expect(dead_code, reason = "of no effect")]
    description: Option<String>,
    /// The schema; any JSON object where it is left out.
    pub(crate) schema: Option<Map<String, Value>>,
    /// Whether a schema is refused that is not supported in all it says. Else its output follows it as far as it is,
    /// and the header `x-pleach-loosened` names the keywords that are not followed.
    pub(crate) strict: Option<bool>,
}

/// vLLM's rules for an output: one of these.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct StructuredOutputs {
    /// A JSON schema, as an object or as its text.
    pub(crate) json: Option<Value>,
    /// A regular expression for the whole output.
    pub(crate) regex: Option<String>,
    /// The outputs there may be.
    pub(crate) choice: Option<Vec<String>>,
    /// A grammar in the Lark syntax of `llguidance`.
    pub(crate) grammar: Option<String>,
    /// Any JSON object.
    pub(crate) json_object: Option<bool>,
}
