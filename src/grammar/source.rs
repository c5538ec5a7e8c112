//! What an output must be, and why it cannot be.

use llguidance::api::TopLevelGrammar;
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
    /// One of these texts.
    Choice(Vec<String>),
    /// A grammar in the same Lark syntax, in which `@form` is another one.
    Around {
        /// The grammar's text.
        lark: String,
        /// What `@form` is.
        form: Box<Self>,
    },
}

impl GrammarSource {
    /// Any JSON object.
    #[must_use]
    pub fn json_object() -> Self {
        Self::JsonSchema(json!({"type": "object"}))
    }

    /// The grammar as the library takes it.
    pub(super) fn grammar(&self) -> TopLevelGrammar {
        match self {
            Self::Regex(regex) => TopLevelGrammar::from_regex(regex),
            Self::Lark(lark) => TopLevelGrammar::from_lark(lark.clone()),
            Self::JsonSchema(schema) => TopLevelGrammar::from_json_schema(with_whitespace(schema)),
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
        }
    }
}

/// A schema with bounded white space, unless it has its own rule.
pub(crate) fn with_whitespace(schema: &Value) -> Value {
    let mut schema = schema.clone();
    if let Some(fields) = schema.as_object_mut() {
        fields.entry("x-guidance").or_insert(json!({"whitespace_pattern": WHITESPACE}));
    }
    schema
}
