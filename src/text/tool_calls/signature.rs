//! What a function's schema says of how the values of its parameters are written, where texts have no quotes.

use std::borrow::Cow;
use std::sync::Arc;

use serde_json::{Map, Value, json};

/// What ends a value without quotes.
pub(super) const VALUE_END: &str = "\n</parameter>";
/// The longest text whose length a rule bounds.
const MAX_LENGTH: u64 = 1 << 14;

/// How a value is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// As the text that it is.
    Text,
    /// The same, or `null`.
    OptionalText,
    /// As JSON.
    Json,
}

/// The parameters of a function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    name: String,
    parameters: Vec<(String, Kind)>,
}

/// A parameter of a function.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameter {
    /// Its name.
    pub name: String,
    /// The schema of its values.
    pub schema: Value,
    /// Whether no call can do without it.
    pub required: bool,
}

/// The parameters that a schema lists, and those that it requires besides.
#[must_use]
pub fn parameters(schema: &Map<String, Value>) -> Vec<Parameter> {
    let required = schema.get("required").and_then(Value::as_array).map_or(&[][..], |all| all);
    let listed = schema.get("properties").and_then(Value::as_object).into_iter().flatten();
    let listed = listed.map(|(name, value)| {
        let required = required.iter().any(|other| other == name);
        Parameter { name: name.clone(), schema: value.clone(), required }
    });
    let mut all: Vec<Parameter> = listed.collect();
    let other = match schema.get("additionalProperties") {
        Some(Value::Bool(false)) => return all,
        Some(other @ Value::Object(_)) => other.clone(),
        _ => json!({"type": "string"}),
    };
    for name in required.iter().filter_map(Value::as_str) {
        if all.iter().all(|parameter| parameter.name != name) {
            all.push(Parameter { name: name.to_owned(), schema: other.clone(), required: true });
        }
    }
    all
}

/// The functions that an answer may call.
pub type Signatures = Arc<[Signature]>;

impl Signature {
    /// Of a function whose arguments have a schema.
    #[must_use]
    pub fn new(name: String, schema: &Map<String, Value>) -> Self {
        let kind = |Parameter { name, schema: value, .. }| {
            let kind = text_schema(&value, schema).map_or(Kind::Json, |(_, kind)| kind);
            (name, kind)
        };
        Self { name, parameters: parameters(schema).into_iter().map(kind).collect() }
    }

    /// The one of them that has a name.
    pub(super) fn named<'a>(all: &'a [Self], name: &str) -> Option<&'a Self> {
        all.iter().find(|signature| signature.name == name)
    }

    /// How the value of a parameter is written; one that the schema does not list is a text.
    pub(super) fn kind(&self, name: &str) -> Kind {
        let known = self.parameters.iter().find(|(known, _)| known == name);
        known.map_or(Kind::Text, |(_, kind)| *kind)
    }
}

/// The schema of the texts that a schema admits, which stands in the schema `whole`, where it admits nothing but texts, or
/// texts and null, and a rule for texts without quotes can say all that it says.
#[must_use]
pub fn text_schema<'a>(
    schema: &'a Value,
    whole: &'a Map<String, Value>,
) -> Option<(Cow<'a, Value>, Kind)> {
    let schema = resolved(schema, whole);
    if is_text(schema) {
        return Some((Cow::Borrowed(schema), Kind::Text));
    }
    let fields = schema.as_object()?;
    let is_open =
        |text: &Value| is_text(text) && !CHOICES.iter().any(|key| text.get(key).is_some());
    if let Some(kinds) = fields.get("type").and_then(Value::as_array) {
        let mut text = schema.clone();
        text["type"] = json!("string");
        let both =
            kinds.len() == 2 && ["string", "null"].iter().all(|it| kinds.contains(&json!(it)));
        return (both && is_open(&text)).then_some((Cow::Owned(text), Kind::OptionalText));
    }
    let said = |key: &str| FORMS.contains(&key) || CHOICES.contains(&key);
    let mut said = fields.iter().filter(|(key, _)| said(key));
    let (("anyOf" | "oneOf", Value::Array(either)), None) =
        (said.next().map(|(key, value)| (&**key, value))?, said.next())
    else {
        return None;
    };
    let [one, other] = &either[..] else { return None };
    let is_null = |schema: &Value| schema["type"] == "null";
    let text = resolved(if is_null(one) { other } else { one }, whole);
    let fits = is_null(one) != is_null(other) && is_open(text);
    fits.then_some((Cow::Borrowed(text), Kind::OptionalText))
}

/// Keywords by which a schema says which texts it admits.
const CHOICES: [&str; 2] = ["enum", "const"];
/// Those by which it says more of them than that and how long they are, or refers to what does.
const FORMS: [&str; 10] = [
    "$ref",
    "$dynamicRef",
    "$recursiveRef",
    "allOf",
    "anyOf",
    "oneOf",
    "not",
    "if",
    "pattern",
    "format",
];

/// What a schema refers to, where it does that alone.
#[must_use]
pub fn resolved<'a>(mut schema: &'a Value, whole: &'a Map<String, Value>) -> &'a Value {
    for _ in 0..16 {
        let Some(fields) = schema.as_object() else { return schema };
        let says = |key: &String| {
            let length = ["type", "minLength", "maxLength"].contains(&&**key);
            length || key != "$ref" && FORMS.contains(&&**key) || CHOICES.contains(&&**key)
        };
        let target = fields.get("$ref").and_then(Value::as_str);
        let Some(path) = target.and_then(|target| target.strip_prefix("#/")) else { return schema };
        if fields.keys().any(says) {
            return schema;
        }
        let mut steps = path.split('/').map(|step| step.replace("~1", "/").replace("~0", "~"));
        let first = steps.next().and_then(|step| whole.get(&step));
        let found = steps.fold(first, |value, step| match value? {
            Value::Object(fields) => fields.get(&step),
            Value::Array(items) => items.get(step.parse::<usize>().ok()?),
            _ => None,
        });
        let Some(found) = found else { return schema };
        schema = found;
    }
    schema
}

/// Whether a schema admits texts alone, and says no more of them than which they are, or how long.
fn is_text(schema: &Value) -> bool {
    let Some(fields) = schema.as_object() else { return false };
    let length = |key: &str| fields.get(key).map(|length| length.as_u64().unwrap_or(u64::MAX));
    let (least, most) = (length("minLength"), length("maxLength"));
    let fits = match (fields.get("enum"), fields.get("const"), least.or(most)) {
        (None, None, _) => {
            let (least, most) = (least.unwrap_or(0), most.unwrap_or(MAX_LENGTH));
            least <= most && most <= MAX_LENGTH && fields.get("type").is_some()
        }
        (Some(Value::Array(choices)), None, None) => {
            !choices.is_empty() && choices.iter().all(is_plain)
        }
        (None, Some(choice), None) => is_plain(choice),
        _ => false,
    };
    let typed = fields.get("type").is_none_or(|kind| kind == "string");
    fits && typed && !FORMS.iter().any(|key| fields.contains_key(*key))
}

/// Whether a value is a text that can be told from what ends it.
fn is_plain(value: &Value) -> bool {
    let ends = |text: &str| format!("{text}{VALUE_END}").find(VALUE_END) == Some(text.len());
    value.as_str().is_some_and(ends)
}
