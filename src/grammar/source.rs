//! What an output must be, and why it cannot be.

use std::borrow::Cow;

use llguidance::api::TopLevelGrammar;
use serde::Serialize;
use serde_json::{Value, json};

/// White space between the tokens of JSON: some, but not without end.
const WHITESPACE: &str = r"[ \n\t]{1,16}";

/// Why a grammar cannot be used, or a sequence cannot follow it any further.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct GrammarError(pub(super) String);

/// What an output must be.
#[derive(Debug, Clone, PartialEq)]
pub enum GrammarSource {
    /// A text that the expression matches as a whole (syntax of the `regex` crate, without
    /// look-around and back-references).
    Regex(String),
    /// A grammar in the Lark syntax of `llguidance`.
    Lark(String),
    /// JSON that a schema admits.
    JsonSchema(Value),
    /// JSON that a schema admits as far as it is supported.
    LenientSchema(Value),
    /// One of these texts.
    Choice(Vec<String>),
    /// A grammar in the same Lark syntax, in which `@form` is another one.
    Around {
        /// The grammar's text.
        lark: String,
        /// What `@form` is.
        form: Box<Self>,
    },
    /// A grammar in the same Lark syntax, with schemas in it.
    Composed(Vec<Part>),
}

/// A part of a grammar.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum Part {
    /// Text in the Lark syntax.
    Lark(String),
    /// A schema, where JSON that it admits stands.
    Schema(PartSchema),
    /// Nothing of the grammar, but what it does not follow.
    Loosened(Loosened),
}

/// A schema in a grammar.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PartSchema {
    /// What has it, for messages; may be empty.
    pub subject: String,
    /// The schema.
    pub schema: Value,
    /// How closely the output follows it.
    pub adherence: Adherence,
}

/// What an output does not follow of a schema.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Loosened {
    /// What has the schema; may be empty.
    pub subject: String,
    /// The keywords that are not followed; none where it may be any JSON.
    pub keywords: Vec<&'static str>,
}

/// How closely an output follows a schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Adherence {
    /// In all it says.
    Strict,
    /// But for what is not supported of it.
    Lenient,
    /// The same, and where it cannot be followed at all, the output is any JSON of its type.
    BestEffort,
}

impl GrammarSource {
    /// Any JSON object.
    #[must_use]
    pub fn json_object() -> Self {
        Self::JsonSchema(any_object())
    }

    /// Its parts, where it has schemas that may be loosened.
    pub(super) fn parts(&self) -> Option<Cow<'_, [Part]>> {
        match self {
            Self::Composed(parts) => Some(Cow::Borrowed(parts)),
            Self::LenientSchema(schema) => {
                let (subject, adherence) = (String::new(), Adherence::Lenient);
                let schema = PartSchema { subject, schema: schema.clone(), adherence };
                Some(Cow::Owned(vec![Part::Lark("start: ".into()), Part::Schema(schema)]))
            }
            Self::Around { form, .. } => form.parts(),
            Self::Regex(_) | Self::Lark(_) | Self::JsonSchema(_) | Self::Choice(_) => None,
        }
    }

    /// The grammar that `form` stands in.
    pub(super) fn surrounding(&self) -> Option<&str> {
        match self {
            Self::Around { lark, .. } => Some(lark),
            _ => None,
        }
    }

    /// The same with another form in it; the form itself, where it stands in no grammar.
    pub(super) fn with_form(&self, form: &Self) -> Self {
        match self.surrounding() {
            Some(lark) => Self::Around { lark: lark.to_owned(), form: Box::new(form.clone()) },
            None => form.clone(),
        }
    }

    /// The grammar as the library takes it, every schema as it is.
    pub(super) fn grammar(&self) -> TopLevelGrammar {
        match self {
            Self::Regex(regex) => TopLevelGrammar::from_regex(regex),
            Self::Lark(lark) => TopLevelGrammar::from_lark(lark.clone()),
            Self::JsonSchema(schema) | Self::LenientSchema(schema) => {
                TopLevelGrammar::from_json_schema(with_whitespace(schema))
            }
            Self::Choice(choices) => {
                let quoted: Vec<String> = choices.iter().map(|c| json!(c).to_string()).collect();
                TopLevelGrammar::from_lark(format!("start: {}", quoted.join(" | ")))
            }
            Self::Around { lark, form } => {
                let mut grammar = TopLevelGrammar::from_lark(lark.clone());
                let mut forms = form.grammar().grammars;
                forms.iter_mut().for_each(|form| form.name = Some("form".into()));
                grammar.grammars.append(&mut forms);
                grammar
            }
            Self::Composed(parts) => {
                TopLevelGrammar::from_lark(lark(parts, |part| with_whitespace(&part.schema)))
            }
        }
    }
}

/// The text of a grammar's parts, with the schemas that `schema` gives for those in it.
pub(super) fn lark(parts: &[Part], mut schema: impl FnMut(&PartSchema) -> Value) -> String {
    let part = |part: &Part| match part {
        Part::Lark(text) => text.clone(),
        Part::Schema(part) => format!("%json {} ", schema(part)),
        Part::Loosened(_) => String::new(),
    };
    parts.iter().map(part).collect()
}

/// The schema of any JSON that has the type of what a schema admits.
pub(super) fn any_like(schema: &Value) -> Value {
    let known = ["object", "array", "string", "number", "integer", "boolean", "null"];
    let kind = schema["type"].as_str().filter(|kind| known.contains(kind));
    kind.map_or(json!({}), |kind| json!({"type": kind}))
}

/// The schema of any JSON object.
pub(super) fn any_object() -> Value {
    json!({"type": "object"})
}

/// A schema with bounded white space, unless it has its own rule. How strictly it is followed is not the schema's to say.
pub(super) fn with_whitespace(schema: &Value) -> Value {
    let mut schema = schema.clone();
    if let Some(fields) = schema.as_object_mut() {
        let options = fields.entry("x-guidance");
        let options = options.or_insert(json!({"whitespace_pattern": WHITESPACE}));
        options.as_object_mut().map(|options| options.remove("lenient"));
    }
    schema
}
