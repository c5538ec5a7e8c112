//! Functions that the model may call, as every API's request is read into them, and the grammar of an answer
//! that may call them.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use crate::grammar::{Adherence, GrammarSource, Part, PartSchema};
use crate::server::bounds::TOOLS;
use crate::server::error::ApiError;
use crate::server::request::arguments;
use crate::server::request::lark::{any_text_but, literal};
use crate::text::tool_calls::{Around, Signature, Signatures, Texts};
use crate::text::{CallFormat, Mark};

/// Calls in one answer at most.
const MAX_CALLS: usize = 32;

/// A function that the model may call.
pub(crate) struct Function {
    pub(crate) name: String,
    /// What it does, for the model.
    pub(crate) description: Option<String>,
    /// JSON schema of its arguments, an object.
    pub(crate) parameters: Option<Map<String, Value>>,
    /// Whether its arguments follow the schema in all it says, or as far as that is supported.
    pub(crate) strict: bool,
}

impl Function {
    /// The function as chat templates read it.
    fn template(&self) -> Value {
        let mut function = Map::new();
        function.insert("name".into(), self.name.clone().into());
        let description = self.description.clone();
        function.extend(description.map(|text| ("description".into(), text.into())));
        let parameters = self.parameters.clone();
        function.extend(parameters.map(|schema| ("parameters".into(), schema.into())));
        json!({"type": "function", "function": function})
    }
}

/// Which of the functions a request lets the model call.
pub(crate) enum CallChoice {
    /// None, and the model is not told of them.
    None,
    /// Any or none: the model decides.
    Auto,
    /// Any, and at least one.
    Required,
    /// This one, once.
    Named(String),
}

/// What an answer may call.
pub(crate) struct Callable {
    /// The functions as chat templates read them.
    pub(crate) rendered: Vec<Value>,
    functions: Vec<Function>,
    required: bool,
    parallel: bool,
}

impl Callable {
    /// What a request lets the model call, several times where that is `parallel`; `None` for nothing.
    ///
    /// # Errors
    /// `tools` or `tool_choice`, which every API has by these names.
    pub(crate) fn new(
        mut functions: Vec<Function>,
        choice: CallChoice,
        mut parallel: bool,
    ) -> Result<Option<Self>, ApiError> {
        check(&functions)?;
        let rendered = functions.iter().map(Function::template).collect();
        let invalid = |message: &str| Err(ApiError::invalid("tool_choice", message));
        let required = match choice {
            CallChoice::None => return Ok(None),
            CallChoice::Auto => false,
            CallChoice::Required if functions.is_empty() => {
                return invalid("`tool_choice` needs `tools`");
            }
            CallChoice::Required => true,
            CallChoice::Named(name) => {
                functions.retain(|function| function.name == name);
                if functions.is_empty() {
                    return invalid("`tool_choice` names a function that `tools` does not list");
                }
                parallel = false;
                true
            }
        };
        let callable = Self { rendered, functions, required, parallel };
        Ok((!callable.functions.is_empty()).then_some(callable))
    }

    /// Whether an answer may be text.
    pub(crate) fn may_speak(&self) -> bool {
        !self.required
    }

    /// The parameters of the functions.
    pub(crate) fn signatures(&self) -> Signatures {
        let signature = |function: &Function| {
            Signature::new(
                function.name.clone(),
                function.parameters.as_ref().unwrap_or(&Map::new()),
            )
        };
        self.functions.iter().map(signature).collect()
    }

    /// The grammar of an answer: text or calls in a format, or calls alone where they are required. Of
    /// the format's texts, `marks` are special tokens. `form` is the rule for the text, with the field that
    /// gives it; without one, the text is free, but does not begin with `but`.
    pub(crate) fn grammar(
        &self,
        format: CallFormat,
        marks: &[Mark],
        form: Option<(&'static str, GrammarSource)>,
        but: Option<&str>,
    ) -> Result<GrammarSource, ApiError> {
        let texts = format.texts();
        let Texts { trigger, head, opening, around, .. } = texts;
        let begin = if trigger.is_empty() { "" } else { "begin" };
        let first = format!("{head}{opening}").chars().next().map(String::from);
        let is_special = |text: &str| marks.iter().any(|(_, mark)| *mark == text);
        let special = is_special(trigger);
        // Marks around calls are told from text where they are special tokens.
        let around = around.filter(|around| around.marks.iter().all(|mark| is_special(mark)));
        let also = around.and_then(|around| around.also);
        let marked = around.map_or_else(String::new, |Around { marks: [before, after], also }| {
            let within = if also.is_some() { "( calls | others )" } else { "calls" };
            format!(" | {} {within} {}", literal(before, marks), literal(after, marks))
        });
        let text = form.map(|(field, source)| text_schema(field, source)).transpose()?;
        let free = !self.required && text.is_none();
        let mut lark = format!(
            "%llguidance {{}}\nstart: {}calls{marked}\n",
            if self.required { "" } else { "text | " }
        );
        // Before the first call stands any text; without a trigger, calls are told by their first character.
        if free {
            let any = match but {
                _ if begin.is_empty() => any_text_but(&first.unwrap_or_default()),
                Some(tag) => any_text_but(tag),
                None => "(.|\\n)*".to_owned(),
            };
            let _ = writeln!(lark, "text: TEXT\nTEXT: /{any}/");
        }
        let trigger = literal(trigger, marks);
        let _ = match begin {
            "" => Ok(()),
            _ if free && special => writeln!(lark, "begin: TEXT {trigger} | {trigger}"),
            _ if free => writeln!(lark, "begin[lazy]: TEXT {trigger}"),
            _ => writeln!(lark, "begin: {trigger}"),
        };
        let mut parts = vec![Part::Lark(lark)];
        if let Some(schema) = text.filter(|_| !self.required) {
            parts.extend([
                Part::Lark("text: ".into()),
                Part::Schema(schema),
                Part::Lark("\n".into()),
            ]);
        }
        parts.extend(self.calls(["calls", "call"], begin, texts, marks)?);
        if let Some(also) = also {
            parts.extend(self.calls(["others", "other"], "", also, marks)?);
        }
        Ok(GrammarSource::Composed(parts))
    }

    /// The rules `all`, for calls as `texts` has them behind what the rule `begin` says, and `one`, for one of them.
    fn calls(
        &self,
        [all, one]: [&str; 2],
        begin: &str,
        texts: &Texts,
        marks: &[Mark],
    ) -> Result<Vec<Part>, ApiError> {
        let Texts { head, opening, arguments, syntax, closing, between, tail, .. } = texts;
        let more = match self.parallel {
            true => format!("( {} {one} ){{0,{}}}", literal(between, marks), MAX_CALLS - 1),
            false => String::new(),
        };
        let (head, tail) = (literal(head, marks), literal(tail, marks));
        let names: Vec<String> = (0..self.functions.len()).map(|i| format!("{one}_{i}")).collect();
        let mut parts = vec![Part::Lark(format!(
            "{all}: {begin} {head} {one} {more} {tail}\n{one}: {}\n",
            names.join(" | ")
        ))];
        for (name, function) in names.iter().zip(&self.functions) {
            let before = literal(&format!("{opening}{}{arguments}", function.name), marks);
            let closing = literal(closing, marks);
            parts.push(Part::Lark(format!("{name}: {before} {name}_a {closing}\n")));
            let schema = parameters(function)?;
            parts.extend(arguments::grammar(&format!("{name}_a"), *syntax, schema)?);
        }
        Ok(parts)
    }
}

/// The schema of an answer's text, which `field` gives.
fn text_schema(field: &str, source: GrammarSource) -> Result<PartSchema, ApiError> {
    let (schema, adherence) = match source {
        GrammarSource::JsonSchema(schema) => (schema, Adherence::Strict),
        GrammarSource::LenientSchema(schema) => (schema, Adherence::Lenient),
        _ => {
            let message = format!("`{field}`: beside `tools`, only JSON schemas are supported");
            return Err(ApiError::invalid(field, message));
        }
    };
    Ok(PartSchema { subject: field.to_owned(), schema, adherence })
}

fn check(functions: &[Function]) -> Result<(), ApiError> {
    let invalid = |message: String| Err(ApiError::invalid("tools", message));
    // Namespaces bring several each.
    if functions.len() > TOOLS {
        return invalid(format!("`tools` has {} functions; {TOOLS} are the most", functions.len()));
    }
    for (place, Function { name, .. }) in functions.iter().enumerate() {
        let known = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        if name.is_empty() || name.len() > 64 || !name.bytes().all(known) {
            let rule = "the function's name must have 1 to 64 letters, digits, `_` and `-`";
            return invalid(format!("`tools[{place}]`: {rule}"));
        }
        if functions[..place].iter().any(|other| other.name == *name) {
            return invalid(format!("`tools`: `{name}` is there twice"));
        }
    }
    Ok(())
}

/// The schema of a function's arguments: an object, without properties that it does not list, unless it says so or
/// requires others.
fn parameters(function: &Function) -> Result<PartSchema, ApiError> {
    let mut schema: Map<String, Value> = function.parameters.clone().unwrap_or_default();
    let object = json!("object");
    let kind = schema.entry("type").or_insert(json!("object"));
    if kind.as_array().is_some_and(|kinds| kinds.contains(&object)) {
        *kind = object.clone();
    }
    if *kind != object {
        let name = &function.name;
        let message = format!("`tools`: the parameters of `{name}` must be of type `object`");
        return Err(ApiError::invalid("tools", message));
    }
    let elsewhere = ["$ref", "anyOf", "allOf", "oneOf", "patternProperties"];
    let listed = schema.get("properties").and_then(Value::as_object);
    let listed = |name: &Value| {
        listed.is_some_and(|all| name.as_str().is_some_and(|name| all.contains_key(name)))
    };
    let requires_others = schema.get("required").and_then(Value::as_array);
    let requires_others = requires_others.is_some_and(|names| !names.iter().all(listed));
    if !requires_others && !elsewhere.iter().any(|key| schema.contains_key(*key)) {
        schema.entry("additionalProperties").or_insert(json!(false));
    }
    let adherence = if function.strict { Adherence::Strict } else { Adherence::BestEffort };
    Ok(PartSchema { subject: format!("tool {}", function.name), schema: schema.into(), adherence })
}
