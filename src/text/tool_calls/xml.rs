//! Arguments that are elements `<parameter=NAME>`, with texts that have no quotes.

use serde::de::IgnoredAny;
use serde_json::json;

use super::held::until;
use super::json::escaped;
use super::signature::{Kind, Signature, VALUE_END};

const OPENING: &str = "<parameter=";
/// What follows the last parameter.
const LAST: &str = "</function>";

/// Elements that arrive in pieces.
#[derive(Debug)]
pub(super) struct Elements {
    signature: Option<Signature>,
    place: Place,
    /// Parameters begun.
    begun: usize,
}

#[derive(Debug, Clone, Copy)]
enum Place {
    Start,
    Between,
    Value(Kind),
    /// Within a text whose quotation is open.
    Text,
}

impl Elements {
    pub(super) fn new(signature: Option<Signature>) -> Self {
        Self { signature, place: Place::Start, begun: 0 }
    }

    /// Takes what it can from the held text; gives what that adds to a JSON object, and whether that is whole.
    pub(super) fn read(&mut self, held: &mut String) -> (String, bool) {
        let mut json = String::new();
        loop {
            let (next, ended) = match self.place {
                Place::Start => {
                    json.push('{');
                    (Some(Place::Between), false)
                }
                Place::Between => self.parameter(held, &mut json),
                Place::Value(kind) => (value(kind, held, &mut json), false),
                Place::Text => {
                    let (text, found) = until(held, VALUE_END);
                    json += &escaped(&text);
                    json += if found { "\"" } else { "" };
                    (found.then_some(Place::Between), false)
                }
            };
            let Some(next) = next.filter(|_| !ended) else { return (json, ended) };
            self.place = next;
        }
    }

    /// Takes the name of the next parameter, or finds that there is none.
    fn parameter(&mut self, held: &mut String, json: &mut String) -> (Option<Place>, bool) {
        let opening = held.find(OPENING);
        if let Some(last) = held.find(LAST).filter(|last| opening.is_none_or(|at| *last < at)) {
            held.drain(..last);
            json.push('}');
            return (None, true);
        }
        let name = opening.map(|at| at + OPENING.len());
        let end = name.and_then(|name| Some((name, name + held[name..].find(">\n")?)));
        let Some((name, end)) = end else { return (None, false) };
        let name = held.drain(..end + 2).as_str()[name..end].to_owned();
        *json += if self.begun > 0 { ", " } else { "" };
        *json += &format!("{}: ", json!(name));
        self.begun += 1;
        let kind = self.signature.as_ref().map_or(Kind::Text, |signature| signature.kind(&name));
        (Some(Place::Value(kind)), false)
    }
}

/// Begins to take a value; gives what follows, once that is known.
fn value(kind: Kind, held: &mut String, json: &mut String) -> Option<Place> {
    const NULL: &str = "null\n</parameter>";
    match kind {
        Kind::OptionalText if NULL.starts_with(&**held) && held.len() < NULL.len() => None,
        Kind::Text | Kind::OptionalText if kind == Kind::Text || !held.starts_with(NULL) => {
            json.push('"');
            Some(Place::Text)
        }
        _ => {
            let end = held.find(VALUE_END)?;
            let rest = held.split_off(end + VALUE_END.len());
            let text = std::mem::replace(held, rest);
            let text = &text[..end];
            match serde_json::from_str::<IgnoredAny>(text) {
                Ok(_) => *json += text.trim(),
                Err(_) => *json += &json!(text).to_string(),
            }
            Some(Place::Between)
        }
    }
}
