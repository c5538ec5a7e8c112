//! Functions that the model may call: who may be called, as a grammar of the answer, and the calls that
//! an answer makes.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::ApiError;
use super::pieces::Said;
use super::wire::{Function, Tool, ToolChoice, ToolMode, Tools};
use crate::grammar::{GrammarSource, with_whitespace};
use crate::text::calls::{CallParser, Part, Texts};
use crate::text::{CallFormat, Mark};

/// Calls in one answer at most.
const MAX_CALLS: usize = 32;

/// What an answer may call.
pub(super) struct Callable {
    /// The tools as chat templates read them.
    pub(super) tools: Vec<Value>,
    functions: Vec<Function>,
    required: bool,
    parallel: bool,
}

impl Callable {
    /// What a request lets the model call; `None` for nothing.
    pub(super) fn new(wanted: Tools) -> Result<Option<Self>, ApiError> {
        let tools = wanted.tools.unwrap_or_default();
        check(&tools)?;
        let rendered = tools.iter().map(|tool| json!(tool)).collect();
        let mut functions: Vec<Function> = tools.into_iter().map(|tool| tool.function).collect();
        let mut parallel = wanted.parallel_tool_calls.unwrap_or(true);
        let invalid = |message: &str| Err(ApiError::invalid("tool_choice", message));
        let required = match wanted.tool_choice {
            Some(ToolChoice::Mode(ToolMode::None)) => return Ok(None),
            Some(ToolChoice::Mode(ToolMode::Auto)) | None => false,
            Some(ToolChoice::Mode(ToolMode::Required)) if functions.is_empty() => {
                return invalid("`tool_choice` needs `tools`");
            }
            Some(ToolChoice::Mode(ToolMode::Required)) => true,
            Some(ToolChoice::Named(named)) => {
                functions.retain(|function| function.name == named.function.name);
                if functions.is_empty() {
                    return invalid("`tool_choice` names a function that `tools` has not");
                }
                parallel = false;
                true
            }
        };
        let callable = Self { tools: rendered, functions, required, parallel };
        Ok((!callable.functions.is_empty()).then_some(callable))
    }

    /// The grammar of an answer: text or calls in a format, or calls alone where they are required. Of
    /// the format's texts, `marks` are special tokens. `form` is the rule for the text, with the field that
    /// gives it.
    pub(super) fn grammar(
        &self,
        format: CallFormat,
        marks: &[Mark],
        form: Option<(&'static str, GrammarSource)>,
    ) -> Result<GrammarSource, ApiError> {
        let Texts { trigger, head, opening, arguments, closing, between, tail } = format.texts();
        let mut lark = String::from("%llguidance {}\n");
        let more = match self.parallel {
            true => format!("( {} call ){{0,{}}}", literal(between, marks), MAX_CALLS - 1),
            false => String::new(),
        };
        let (head, tail) = (literal(head, marks), literal(tail, marks));
        let begin = if trigger.is_empty() { "" } else { "begin" };
        let calls = format!("{begin} {head} call {more} {tail}");
        let special = marks.iter().any(|(_, mark)| mark == trigger);
        let trigger = literal(trigger, marks);
        let text = match form {
            None => String::from("TEXT"),
            Some((_, GrammarSource::JsonSchema(schema))) => {
                format!("%json {}", with_whitespace(&schema))
            }
            Some((field, _)) => {
                let message = format!("`{field}`: beside `tools`, only JSON schemas are supported");
                return Err(ApiError::invalid(field, message));
            }
        };
        let free = !self.required && text == "TEXT";
        if self.required {
            let _ = writeln!(lark, "start: {calls}");
        } else {
            let _ = writeln!(lark, "start: text | {calls}\ntext: {text}");
        }
        // Before the first call stands any text; without a trigger, calls are told by their brace.
        if free {
            let any = if begin.is_empty() { "([^{](.|\\n)*)?" } else { "(.|\\n)*" };
            let _ = writeln!(lark, "TEXT: /{any}/");
        }
        let _ = match begin {
            "" => Ok(()),
            _ if free && special => writeln!(lark, "begin: TEXT {trigger} | {trigger}"),
            _ if free => writeln!(lark, "begin[lazy]: TEXT {trigger}"),
            _ => writeln!(lark, "begin: {trigger}"),
        };
        let names: Vec<String> = (0..self.functions.len()).map(|i| format!("call_{i}")).collect();
        let _ = writeln!(lark, "call: {}", names.join(" | "));
        for (name, function) in names.iter().zip(&self.functions) {
            let before = literal(&format!("{opening}{}{arguments}", function.name), marks);
            let schema = with_whitespace(&parameters(function)?);
            let _ = writeln!(lark, "{name}: {before} %json {schema} {}", literal(closing, marks));
        }
        Ok(GrammarSource::Lark(lark))
    }
}

/// A text in a grammar, where `marks` are special tokens.
fn literal(text: &str, marks: &[Mark]) -> String {
    let found = marks.iter().filter_map(|(id, mark)| Some((text.find(mark)?, mark.len(), id)));
    match found.min() {
        Some((at, length, id)) => {
            let (before, after) = (&text[..at], &text[at + length..]);
            format!("{} <[{id}]> {}", literal(before, marks), literal(after, marks))
        }
        None if text.is_empty() => String::new(),
        None => json!(text).to_string(),
    }
}

fn check(tools: &[Tool]) -> Result<(), ApiError> {
    let invalid = |message: String| Err(ApiError::invalid("tools", message));
    for (place, tool) in tools.iter().enumerate() {
        let name = &tool.function.name;
        let known = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        if name.is_empty() || name.len() > 64 || !name.bytes().all(known) {
            let rule = "a name has 1 to 64 letters, digits, `_` and `-`";
            return invalid(format!("`tools[{place}].function.name`: {rule}"));
        }
        if tools[..place].iter().any(|other| other.function.name == *name) {
            return invalid(format!("`tools`: `{name}` is there twice"));
        }
    }
    Ok(())
}

/// The schema of a function's arguments: an object, without properties that it does not list unless it
/// says so.
fn parameters(function: &Function) -> Result<Value, ApiError> {
    let mut schema: Map<String, Value> = function.parameters.clone().unwrap_or_default();
    if schema.entry("type").or_insert(json!("object")) != "object" {
        let name = &function.name;
        let message = format!("`tools`: the parameters of `{name}` must be of type `object`");
        return Err(ApiError::invalid("tools", message));
    }
    let elsewhere = ["$ref", "anyOf", "allOf", "oneOf", "patternProperties"];
    if !elsewhere.iter().any(|key| schema.contains_key(*key)) {
        schema.entry("additionalProperties").or_insert(json!(false));
    }
    Ok(schema.into())
}

/// The calls of one choice, as its text grows.
pub(super) struct Calls {
    format: CallFormat,
    parser: CallParser,
    /// Calls begun.
    pub(super) begun: usize,
}

impl Calls {
    /// Of a choice in which calls are written in a format.
    pub(super) fn new(format: CallFormat) -> Self {
        Self { format, parser: CallParser::new(format), begun: 0 }
    }

    /// What a piece of text says: text, then calls. The last piece gets what is left.
    pub(super) fn push(&mut self, piece: &str, last: bool) -> Vec<Said> {
        let mut parts = self.parser.push(piece);
        if last {
            parts.extend(self.parser.finish());
        }
        let (mut text, mut calls) = (String::new(), Vec::new());
        for part in parts {
            match (part, calls.last_mut()) {
                (Part::Text(more), _) => text += &more,
                (Part::Call(name), _) => {
                    calls.push(Said::Call { id: new_id(self.format), name });
                    self.begun += 1;
                }
                (Part::Arguments(more), Some(Said::Arguments(arguments))) => *arguments += &more,
                (Part::Arguments(more), _) => calls.push(Said::Arguments(more)),
            }
        }
        let text = Some(text).filter(|text| !text.is_empty()).map(Said::Text);
        text.into_iter().chain(calls).collect()
    }
}

fn new_id(format: CallFormat) -> String {
    match format {
        // The only form that Mistral's templates take.
        CallFormat::Mistral => (0..9).map(|_| fastrand::alphanumeric()).collect(),
        _ => format!("call_{}", uuid::Uuid::new_v4().simple()),
    }
}
