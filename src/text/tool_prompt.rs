//! Conversations for chat templates that know no calls of functions, take their arguments as texts, or refuse a system
//! message.

use serde_json::{Value, json};

use super::python_json;
use super::tool_calls::{CallFormat, Syntax, Texts};

/// Messages with the arguments of their calls as texts.
pub(super) fn arguments_as_texts(messages: &[Value]) -> Vec<Value> {
    let mut messages = messages.to_vec();
    for message in &mut messages {
        for call in
            message.get_mut("tool_calls").and_then(Value::as_array_mut).into_iter().flatten()
        {
            let arguments = &mut call["function"]["arguments"];
            if !arguments.is_string() {
                *arguments = python_json(arguments).into();
            }
        }
    }
    messages
}

/// A conversation whose system message begins what the user says first; `None` where there are not both.
pub(super) fn without_system(messages: &[Value]) -> Option<Vec<Value>> {
    let [system, user, rest @ ..] = messages else { return None };
    if system["role"] != "system" || user["role"] != "user" {
        return None;
    }
    let mut user = user.clone();
    let words = |message: &Value| message["content"].as_str().unwrap_or_default().to_owned();
    user["content"] = format!("{}\n\n{}", words(system), words(&user)).into();
    Some([&[user], rest].concat())
}

/// A conversation with functions: they are described in the system message, calls are text in the given
/// format and results are what the user says.
pub(super) fn describe_tools(
    format: CallFormat,
    messages: &[Value],
    tools: &[Value],
) -> Vec<Value> {
    let texts = format.texts();
    let mut spelled: Vec<Value> = messages.iter().map(|said| message(texts, said)).collect();
    if tools.is_empty() {
        return spelled;
    }
    let mut text = String::from(
        "You can call functions. Each is described by a JSON object between <tools> and \
         </tools>:\n<tools>\n",
    );
    for tool in tools {
        text += &python_json(tool);
        text.push('\n');
    }
    let Texts { trigger, head, opening, arguments, syntax, closing, tail, .. } = texts;
    let (opening, arguments) = (opening.trim_end_matches('"'), arguments.trim_start_matches('"'));
    let (what, place) = match syntax {
        Syntax::Json => ("a JSON object of arguments", "<arguments>"),
        Syntax::Python => ("its arguments", "<parameter>=<value>"),
        Syntax::Xml => ("its arguments", "<parameter=<parameter>>\n<value>\n</parameter>\n"),
    };
    text += &format!(
        "</tools>\nTo call a function, answer with its name and {what}, in exactly \
         this form:\n{trigger}{head}{opening}<name>{arguments}{place}{closing}{tail}"
    );
    match spelled.first_mut().filter(|first| first["role"] == "system") {
        Some(system) => {
            let own = system["content"].as_str().unwrap_or_default();
            system["content"] = json!(format!("{own}\n\n{text}"));
        }
        None => spelled.insert(0, json!({"role": "system", "content": text})),
    }
    spelled
}

fn message(texts: &Texts, message: &Value) -> Value {
    let text = message["content"].as_str().unwrap_or_default();
    if message["role"] == "tool" {
        let result = format!("<tool_response>\n{text}\n</tool_response>");
        return json!({"role": "user", "content": result});
    }
    let Some(calls) = message["tool_calls"].as_array() else { return message.clone() };
    let Texts { trigger, head, opening, arguments, syntax, closing, between, tail, .. } = texts;
    let call = |call: &Value| {
        let name = call["function"]["name"].as_str().unwrap_or_default();
        let values = written(*syntax, &call["function"]["arguments"]);
        format!("{opening}{name}{arguments}{values}{closing}")
    };
    let calls = calls.iter().map(call).collect::<Vec<_>>().join(between);
    let line = if text.is_empty() { "" } else { "\n" };
    json!({"role": "assistant", "content": format!("{text}{line}{trigger}{head}{calls}{tail}")})
}

/// The arguments of an earlier call.
fn written(syntax: Syntax, arguments: &Value) -> String {
    let element = |(name, value): (&String, &Value)| {
        let value = value.as_str().map_or_else(|| python_json(value), str::to_owned);
        format!("<parameter={name}>\n{value}\n</parameter>\n")
    };
    match (syntax, arguments.as_object()) {
        (Syntax::Python, Some(fields)) => {
            let each = fields.iter().map(|(name, value)| format!("{name}={}", python(value)));
            each.collect::<Vec<_>>().join(", ")
        }
        (Syntax::Xml, Some(fields)) => fields.iter().map(element).collect(),
        _ => python_json(arguments),
    }
}

/// A value as Python writes it; what lies within a list or dictionary is JSON, as calls have it.
fn python(value: &Value) -> String {
    match value {
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::Null => "None".to_owned(),
        _ => python_json(value),
    }
}
