//! The parser of an answer that makes calls.

use super::arguments::Arguments;
use super::format::{Around, CallFormat, Texts};
use super::held::until;
use super::signature::{Signature, Signatures};

/// A part of an answer: text, or a part of a call.
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
#[derive(Debug)]
pub struct CallParser {
    texts: &'static Texts,
    place: Place,
    functions: Signatures,
    /// Text that is not known yet to be one thing or the other.
    held: String,
    /// What stood before the first name.
    before: String,
    arguments: Arguments,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Where calls may begin.
    Text,
    /// Where they can no longer.
    TextAlone,
    Name,
    Arguments,
    /// After a call only another one can follow.
    Between,
}

impl CallParser {
    /// A parser at the start of an answer, which may call these functions.
    #[must_use]
    pub fn new(format: CallFormat, functions: Signatures) -> Self {
        let (texts, place) = (format.texts(), Place::Text);
        let arguments = Arguments::new(texts.syntax, None);
        let (held, before) = (String::new(), String::new());
        Self { texts, place, functions, held, before, arguments }
    }

    /// The parts that a piece of text completes.
    pub fn push(&mut self, piece: &str) -> Vec<Part> {
        self.held.push_str(piece);
        let mut parts = Vec::new();
        while self.step(&mut parts) {}
        parts
    }

    /// Whether a call has begun whose arguments have not ended.
    #[must_use]
    pub fn in_call(&self) -> bool {
        self.place == Place::Arguments
    }

    /// What was held back, at the end.
    pub fn finish(&mut self) -> Option<Part> {
        let text = std::mem::take(&mut self.held);
        match self.place {
            Place::Text | Place::TextAlone => some_text(text),
            Place::Name | Place::Arguments | Place::Between => None,
        }
    }

    /// Takes what it can from the held text; returns whether there may be more to take.
    fn step(&mut self, parts: &mut Vec<Part>) -> bool {
        let Texts { trigger, head, opening, arguments, between, around, .. } = self.texts;
        match self.place {
            Place::TextAlone => {
                parts.extend(some_text(std::mem::take(&mut self.held)));
                false
            }
            Place::Text if trigger.is_empty() => {
                let way = |before: &str, texts: &'static Texts| {
                    (format!("{before}{}{}", texts.head, texts.opening), texts)
                };
                let marked = around.iter().flat_map(|Around { marks: [before, _], also }| {
                    [Some(self.texts), *also].into_iter().flatten().map(move |it| way(before, it))
                });
                let ways: Vec<_> = std::iter::once(way("", self.texts)).chain(marked).collect();
                if let Some((way, texts)) = ways.iter().find(|it| self.held.starts_with(&it.0)) {
                    self.held.drain(..way.len());
                    (self.before, self.texts, self.place) = (way.clone(), *texts, Place::Name);
                    return true;
                }
                let open = ways.iter().any(|(way, _)| way.starts_with(&self.held));
                self.place = if open { Place::Text } else { Place::TextAlone };
                !open
            }
            Place::Text => {
                self.before = format!("{trigger}{head}{opening}");
                let (text, found) = until(&mut self.held, &self.before);
                parts.extend(some_text(text));
                self.place = if found { Place::Name } else { Place::Text };
                found
            }
            Place::Name => {
                let named = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
                let end = self.held.bytes().position(|byte| !named(byte));
                let (name, rest) = self.held.split_at(end.unwrap_or(self.held.len()));
                if let Some(rest) = rest.strip_prefix(arguments).filter(|_| !name.is_empty()) {
                    let signature = Signature::named(&self.functions, name);
                    self.arguments = Arguments::new(self.texts.syntax, signature);
                    parts.push(Part::Call(name.to_owned()));
                    (self.held, self.place) = (rest.to_owned(), Place::Arguments);
                    return true;
                }
                if arguments.starts_with(rest) && !(name.is_empty() && end.is_some()) {
                    return false;
                }
                // No name has been found: then this is something else.
                self.held.insert_str(0, &self.before);
                self.place = Place::TextAlone;
                true
            }
            Place::Arguments => {
                let (text, ended) = self.arguments.read(&mut self.held);
                parts.extend((!text.is_empty()).then_some(Part::Arguments(text)));
                self.place = if ended { Place::Between } else { Place::Arguments };
                ended
            }
            Place::Between => {
                let (_, found) = until(&mut self.held, &format!("{between}{opening}"));
                self.place = if found { Place::Name } else { Place::Between };
                found
            }
        }
    }
}

fn some_text(text: String) -> Option<Part> {
    Some(text).filter(|text| !text.is_empty()).map(Part::Text)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::super::format::Syntax;
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

    fn parse(format: CallFormat, text: &str, width: usize) -> Vec<Part> {
        parse_of(&Arc::default(), format, text, width)
    }

    fn parse_of(functions: &Signatures, format: CallFormat, text: &str, width: usize) -> Vec<Part> {
        let mut parser = CallParser::new(format, functions.clone());
        let characters: Vec<char> = text.chars().collect();
        let pieces = characters.chunks(width).map(|piece| piece.iter().collect::<String>());
        let mut parts: Vec<Part> = pieces.flat_map(|piece| parser.push(&piece)).collect();
        parts.extend(parser.finish());
        joined(parts)
    }

    /// Whatever the pieces, the parts are the same.
    #[test]
    fn calls_are_found_in_pieces_of_any_size() {
        // Whatever could end a call is in there as a text.
        let nasty = r#"{"a": "}\n</tool_call>\"}]; {\"name\": \"", "b": [{}, {"c": 1}]}"#;
        let json = |format: &CallFormat| format.texts().syntax == Syntax::Json;
        for format in CallFormat::ALL.into_iter().filter(json) {
            let Texts { trigger, head, opening, arguments, closing, between, tail, .. } =
                format.texts();
            let before = if trigger.is_empty() { "" } else { "Größe? " };
            let call = |name, json| format!("{opening}{name}{arguments}{json}{closing}");
            let (first, second) = (call("f-1", nasty), call("g", "{}"));
            let text = format!("{before}{trigger}{head}{first}{between}{second}{tail}");
            let mut expected = vec![
                Part::Call("f-1".into()),
                Part::Arguments(nasty.into()),
                Part::Call("g".into()),
                Part::Arguments("{}".into()),
            ];
            if !before.is_empty() {
                expected.insert(0, Part::Text(before.into()));
            }
            for width in 1..=text.chars().count() {
                assert_eq!(parse(format, &text, width), expected, "{format} {width}");
            }
        }
    }

    #[test]
    fn text_that_is_no_call_is_not_lost() {
        let mut parser = CallParser::new(CallFormat::Hermes, Arc::default());
        assert_eq!(parser.push("a <tool_"), [Part::Text("a ".into())]);
        assert_eq!(parser.push("box> <tool_call>\n{"), [Part::Text("<tool_box> ".into())]);
        assert_eq!(parser.finish(), Some(Part::Text("<tool_call>\n{".into())));
        let mut cut = CallParser::new(CallFormat::Hermes, Arc::default());
        cut.push("<tool_call>\n{\"name\": \"f");
        assert_eq!(cut.finish(), None);
        let mut cut = CallParser::new(CallFormat::Hermes, Arc::default());
        let begun = [Part::Call("f".into()), Part::Arguments("{\"a".into())];
        assert_eq!(cut.push("<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a"), begun);
        assert_eq!(cut.finish(), None);
        for text in [
            "Well, {\"name\": \"f\", \"parameters\": {}}",
            "{\"name\": \"Bob\", \"age\": 3}",
            "{\"n",
        ] {
            for width in 1..text.len() {
                let parts = parse(CallFormat::Llama3Json, text, width);
                assert_eq!(parts, [Part::Text(text.into())], "{width}");
            }
        }
    }

    /// The names and arguments of an answer that makes calls alone.
    fn calls_of(parts: &[Part]) -> Vec<(String, String)> {
        let mut calls: Vec<(String, String)> = Vec::new();
        for part in parts {
            match part {
                Part::Call(name) => calls.push((name.clone(), String::new())),
                Part::Arguments(json) => calls.last_mut().unwrap().1 += json,
                Part::Text(text) => panic!("{text}"),
            }
        }
        calls
    }

    #[test]
    fn keywords_become_json() {
        let text = r#"[f(a=1, b_2='it\'s "so"\n\x41\u00e4', c=[1, 'x', (True, None),], d={"k": {'l': -1.5e3}}, e=None,
            f=word, g="\ud83d\ude00)", h=false), g(), f(a="]")]"#;
        let expected = json!({"a": 1, "b_2": "it's \"so\"\nAä", "c": [1, "x", [true, null]],
            "d": {"k": {"l": -1500.0}}, "e": null, "f": "word", "g": "😀)", "h": false});
        for width in 1..=text.chars().count() {
            let calls = calls_of(&parse(CallFormat::Pythonic, text, width));
            let names: Vec<&str> = calls.iter().map(|(name, _)| &**name).collect();
            assert_eq!(names, ["f", "g", "f"], "{width}");
            let value = |at: usize| serde_json::from_str::<Value>(&calls[at].1).unwrap();
            assert_eq!(value(0), expected, "{width}");
            assert_eq!((value(1), value(2)), (json!({}), json!({"a": "]"})), "{width}");
        }
        let wrong = ["[1, 2]", "[true]", "[a b(c)]", "[]", "[\"f(a=1)\"]", "f(a=1)"];
        let marked = [
            "<|python_start|>[1, 2]<|python_end|>",
            "<|python_start|>print(1)<|python_end|>",
            "<|python_tag|>[f(a=1)]",
            " <|python_start|>[f(a=1)]",
        ];
        for text in wrong.into_iter().chain(marked) {
            for width in 1..=text.len() {
                let parts = parse(CallFormat::Pythonic, text, width);
                assert_eq!(parts, [Part::Text(text.into())], "{width}");
            }
        }
    }

    /// Llama 4's special tokens around calls are no part of them, nor of the text.
    #[test]
    fn calls_may_stand_between_marks() {
        let text = "<|python_start|>[f(a=\"<|python_end|>\"), g(b=[1])]<|python_end|>";
        for width in 1..=text.len() {
            let calls = calls_of(&parse(CallFormat::Pythonic, text, width));
            let expected = [("f", "{\"a\": \"<|python_end|>\"}"), ("g", "{\"b\": [1]}")];
            let expected = expected.map(|(name, json)| (name.to_owned(), json.to_owned()));
            assert_eq!(calls, expected, "{width}");
        }
        let mut cut = CallParser::new(CallFormat::Pythonic, Arc::default());
        assert_eq!(cut.push("<|python_start|>["), []);
        assert_eq!(cut.finish(), None);
        let mut cut = CallParser::new(CallFormat::Pythonic, Arc::default());
        cut.push("<|python_sta");
        assert_eq!(cut.finish(), Some(Part::Text("<|python_sta".into())));
    }

    /// Between Llama 4's special tokens, calls are lists or objects.
    #[test]
    fn objects_may_stand_between_marks() {
        let nasty = r#"{"a": "\"}; {\"name\": \"h\", <|python_end|>", "b": [{}]}"#;
        let calls = format!(
            "{{\"name\": \"f\", \"parameters\": {nasty}}}; {{\"name\": \"g-1\", \"parameters\": {{}}}}"
        );
        let expected = [("f", nasty), ("g-1", "{}")];
        let expected = expected.map(|(name, json)| (name.to_owned(), json.to_owned()));
        for format in [CallFormat::Pythonic, CallFormat::Llama3Json] {
            let text = format!("<|python_start|>{calls}<|python_end|>");
            for width in 1..=text.len() {
                assert_eq!(calls_of(&parse(format, &text, width)), expected, "{format} {width}");
            }
            for text in [
                "<|python_start|>{\"name\": \"Bob\", \"age\": 3}<|python_end|>",
                "<|python_start|>{\"names\": []}",
                "<|python_start|>{\"name\": \"\", \"parameters\": {}}",
            ] {
                for width in 1..=text.len() {
                    assert_eq!(parse(format, text, width), [Part::Text(text.into())], "{width}");
                }
            }
        }
        // Alone, they are calls where the format says so.
        let alone = "{\"name\": \"f\", \"parameters\": {\"a\": 1}}";
        let calls = calls_of(&parse(CallFormat::Llama3Json, alone, 3));
        assert_eq!(calls, [("f".to_owned(), "{\"a\": 1}".to_owned())]);
        let text = parse(CallFormat::Pythonic, alone, 3);
        assert_eq!(text, [Part::Text(alone.into())]);
    }

    #[test]
    fn elements_become_the_json_that_their_schema_says() {
        let schema = json!({"$defs": {"Unit": {"enum": ["m", "km"]}}, "properties": {
            "text": {"type": "string"},
            "number": {"type": "integer"},
            "list": {"type": "array"},
            "unit": {"$ref": "#/$defs/Unit"},
            "perhaps": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "other": {"type": ["string", "null"]},
            "day": {"type": "string", "format": "date"},
            "wrong": {"type": "integer"},
        }});
        let signature = Signature::new("f".into(), schema.as_object().unwrap());
        let text = "<tool_call>\n<function=f>\n<parameter=text>\n \"1\"\n\\ </function>\n</paramete\n</parameter>\n\
            <parameter=number>\n17\n</parameter>\n<parameter=list>\n[1,\n\"</parameter>\"]\n</parameter>\n\
            <parameter=unit>\nkm\n</parameter>\n<parameter=perhaps>\nnull\n</parameter>\n\
            <parameter=other>\nnullus\n</parameter>\n<parameter=day>\n\"2024-02-29\"\n</parameter>\n\
            <parameter=wrong>\ntwo\n</parameter>\n<parameter=unknown>\n5\n</parameter>\n</function>\n</tool_call>\n\
            <tool_call>\n<function=g>\n</function>\n</tool_call>\n<tool_call>\n<function=f>\n\
            <parameter=text>\n\n</parameter>\n</function>\n</tool_call>";
        let expected = json!({"text": " \"1\"\n\\ </function>\n</paramete", "number": 17,
            "list": [1, "</parameter>"], "unit": "km", "perhaps": null, "other": "nullus",
            "day": "2024-02-29", "wrong": "two", "unknown": "5"});
        let functions: Signatures = [signature].into();
        for width in 1..=text.chars().count() {
            let parts = parse_of(&functions, CallFormat::Qwen3Coder, text, width);
            let calls = calls_of(&parts);
            let names: Vec<&str> = calls.iter().map(|(name, _)| &**name).collect();
            assert_eq!(names, ["f", "g", "f"], "{width}");
            let value = |at: usize| serde_json::from_str::<Value>(&calls[at].1).unwrap();
            assert_eq!(value(0), expected, "{width}");
            assert_eq!((value(1), value(2)), (json!({}), json!({"text": ""})), "{width}");
        }
    }
}
