//! Calls of functions, as models write them: `<tool_call>` around a JSON object with `name` and
//! `arguments`, the format of Hermes and of Qwen's chat templates. Models whose template knows no
//! functions are told of it in the system message.

use serde_json::{Value, json};

use super::python_json;
use super::stop::overlap;

/// What comes before a call.
pub const TRIGGER: &str = "<tool_call>";
/// What stands between the trigger and the function's name.
pub const OPENING: &str = "\n{\"name\": \"";
/// What stands between name and arguments.
pub const ARGUMENTS: &str = "\", \"arguments\": ";
/// What comes after the arguments. It has a line's end before `<`, which no JSON has.
pub const CLOSING: &str = "}\n</tool_call>";
/// What stands between a call and the trigger of the next.
pub const BETWEEN: &str = "\n";

/// A part of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Text.
    Text(String),
    /// A call of the named function begins.
    Call(String),
    /// The next part of its arguments.
    Arguments(String),
}

/// Tells text and calls apart in an answer that arrives in pieces.
#[derive(Debug, Default)]
pub struct CallParser {
    place: Place,
    /// Text that could be the beginning of what ends this place.
    held: String,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Place {
    #[default]
    Text,
    Name,
    Arguments,
    /// After a call only another one can follow.
    Between,
}

impl CallParser {
    /// The parts that a piece of text completes.
    pub fn push(&mut self, piece: &str) -> Vec<Part> {
        self.held.push_str(piece);
        let mut parts = Vec::new();
        loop {
            let opening = format!("{TRIGGER}{OPENING}");
            let (end, next) = match self.place {
                Place::Text | Place::Between => (&*opening, Place::Name),
                Place::Name => (ARGUMENTS, Place::Arguments),
                Place::Arguments => (CLOSING, Place::Between),
            };
            let Some(at) = self.held.find(end) else {
                let keep = match self.place {
                    Place::Name => self.held.len(),
                    _ => overlap(&self.held, end),
                };
                let rest = self.held.split_off(self.held.len() - keep);
                let text = std::mem::replace(&mut self.held, rest);
                parts.extend(self.part(text));
                return parts;
            };
            let rest = self.held.split_off(at + end.len());
            let mut text = std::mem::replace(&mut self.held, rest);
            text.truncate(at);
            parts.extend(self.part(text));
            self.place = next;
        }
    }

    /// What was held back, at the end.
    pub fn finish(&mut self) -> Option<Part> {
        let text = std::mem::take(&mut self.held);
        if self.place == Place::Name { None } else { self.part(text) }
    }

    fn part(&self, text: String) -> Option<Part> {
        match self.place {
            _ if text.is_empty() => None,
            Place::Name => Some(Part::Call(text)),
            Place::Text => Some(Part::Text(text)),
            Place::Arguments => Some(Part::Arguments(text)),
            Place::Between => None,
        }
    }
}

/// A conversation with functions for a template that knows none: they are described in the system
/// message, calls are text and results are what the user says.
pub(super) fn spelled_out(messages: &[Value], tools: &[Value]) -> Vec<Value> {
    let mut spelled: Vec<Value> = messages.iter().map(message).collect();
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
    text += "</tools>\nTo call a function, answer with its name and a JSON object of arguments, \
             in exactly this form:\n<tool_call>\n\
             {\"name\": <name>, \"arguments\": <arguments>}\n</tool_call>";
    match spelled.first_mut().filter(|first| first["role"] == "system") {
        Some(system) => {
            let own = system["content"].as_str().unwrap_or_default();
            system["content"] = json!(format!("{own}\n\n{text}"));
        }
        None => spelled.insert(0, json!({"role": "system", "content": text})),
    }
    spelled
}

fn message(message: &Value) -> Value {
    let text = message["content"].as_str().unwrap_or_default();
    if message["role"] == "tool" {
        let result = format!("<tool_response>\n{text}\n</tool_response>");
        return json!({"role": "user", "content": result});
    }
    let Some(calls) = message["tool_calls"].as_array() else { return message.clone() };
    let calls = calls.iter().map(|call| {
        let (name, arguments) = (&call["function"]["name"], &call["function"]["arguments"]);
        let name = name.as_str().unwrap_or_default();
        format!("{TRIGGER}{OPENING}{name}{ARGUMENTS}{}{CLOSING}", python_json(arguments))
    });
    let before = (!text.is_empty()).then(|| text.to_owned());
    let content = before.into_iter().chain(calls).collect::<Vec<_>>().join(BETWEEN);
    json!({"role": "assistant", "content": content})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(parts: Vec<Part>) -> Vec<Part> {
        let mut all: Vec<Part> = Vec::new();
        for part in parts {
            match (all.last_mut(), part) {
                (Some(Part::Text(text)), Part::Text(more)) => *text += &more,
                (Some(Part::Arguments(text)), Part::Arguments(more)) => *text += &more,
                (_, part) => all.push(part),
            }
        }
        all
    }

    /// Whatever the pieces, the parts are the same.
    #[test]
    fn calls_are_found_in_pieces_of_any_size() {
        let text = "Größe? <tool_call>\n{\"name\": \"f-1\", \"arguments\": {\"a\": \"}\\n</tool_call>\", \"b\": {}}}\n\
                    </tool_call>\n<tool_call>\n{\"name\": \"g\", \"arguments\": {}}\n</tool_call>";
        let expected = [
            Part::Text("Größe? ".into()),
            Part::Call("f-1".into()),
            Part::Arguments("{\"a\": \"}\\n</tool_call>\", \"b\": {}}".into()),
            Part::Call("g".into()),
            Part::Arguments("{}".into()),
        ];
        let characters: Vec<char> = text.chars().collect();
        for width in 1..=characters.len() {
            let mut parser = CallParser::default();
            let pieces = characters.chunks(width).map(|piece| piece.iter().collect::<String>());
            let mut parts: Vec<Part> = pieces.flat_map(|piece| parser.push(&piece)).collect();
            parts.extend(parser.finish());
            assert_eq!(joined(parts), expected, "{width}");
        }
    }

    #[test]
    fn text_that_is_no_call_is_not_lost() {
        let mut parser = CallParser::default();
        assert_eq!(parser.push("a <tool_"), [Part::Text("a ".into())]);
        assert_eq!(parser.push("box> <tool_call>\n{"), [Part::Text("<tool_box> ".into())]);
        assert_eq!(parser.finish(), Some(Part::Text("<tool_call>\n{".into())));
        let mut cut = CallParser::default();
        cut.push("<tool_call>\n{\"name\": \"f");
        assert_eq!(cut.finish(), None);
        let mut cut = CallParser::default();
        let begun = [Part::Call("f".into()), Part::Arguments("{\"a".into())];
        assert_eq!(cut.push("<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a"), begun);
        assert_eq!(cut.finish(), None);
    }
}
