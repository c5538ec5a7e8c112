//! Calls of functions, as models write them: what stands around names and arguments, and the parser of an
//! answer that makes calls.

use std::str::FromStr;

use super::stop_strings::overlap;

/// How a model writes calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallFormat {
    /// `<tool_call>` around an object: Hermes, Qwen, and any model whose prompt describes this format.
    Hermes,
    /// An object with `parameters`, alone: Llama 3.
    Llama3Json,
    /// `[TOOL_CALLS]` and a list of objects: Mistral.
    Mistral,
    /// `[TOOL_CALLS]`, a name, `[ARGS]` and its arguments, for each call: later Mistral models.
    MistralArgs,
}

/// The texts of a format. An answer that calls is `trigger head call (between call)* tail`, and a call is
/// `opening` name `arguments` JSON `closing`.
#[derive(Debug)]
pub struct Texts {
    /// What comes before the first call, often a special token; a format without any has calls in place of
    /// all text.
    pub trigger: &'static str,
    /// What follows the trigger.
    pub head: &'static str,
    /// What comes before a function's name.
    pub opening: &'static str,
    /// What stands between name and arguments.
    pub arguments: &'static str,
    /// What comes after the arguments.
    pub closing: &'static str,
    /// What stands between calls.
    pub between: &'static str,
    /// What comes after the last call.
    pub tail: &'static str,
}

impl CallFormat {
    /// All formats.
    pub const ALL: [Self; 4] = [Self::Hermes, Self::Llama3Json, Self::MistralArgs, Self::Mistral];

    /// Its name, which is vLLM's but for `mistral_args`: vLLM tells both of Mistral's apart by the tokenizer.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hermes => "hermes",
            Self::Llama3Json => "llama3_json",
            Self::Mistral => "mistral",
            Self::MistralArgs => "mistral_args",
        }
    }

    /// The format that a chat template describes functions in, if it is known.
    #[must_use]
    pub(super) fn of_template(source: &str) -> Option<Self> {
        let marks = |format: Self| match format {
            Self::Hermes => ["<tool_call>", "\"arguments\""],
            Self::Llama3Json => ["{\"name\": \"", "\"parameters\": "],
            Self::Mistral => ["[TOOL_CALLS]", "[AVAILABLE_TOOLS]"],
            Self::MistralArgs => ["[TOOL_CALLS]", "[ARGS]"],
        };
        // Some Mistral models write an id between name and arguments.
        let known = source.contains("tools") && !source.contains("[CALL_ID]");
        let fits = |format: &Self| marks(*format).iter().all(|mark| source.contains(mark));
        Self::ALL.into_iter().find(fits).filter(|_| known)
    }

    /// The texts around names and arguments.
    #[must_use]
    pub const fn texts(self) -> &'static Texts {
        match self {
            Self::Hermes => &Texts {
                trigger: "<tool_call>",
                head: "",
                opening: "\n{\"name\": \"",
                arguments: "\", \"arguments\": ",
                closing: "}\n</tool_call>",
                between: "\n<tool_call>",
                tail: "",
            },
            Self::Llama3Json => &Texts {
                trigger: "",
                head: "",
                opening: "{\"name\": \"",
                arguments: "\", \"parameters\": ",
                closing: "}",
                between: "; ",
                tail: "",
            },
            Self::Mistral => &Texts {
                trigger: "[TOOL_CALLS]",
                head: "[",
                opening: "{\"name\": \"",
                arguments: "\", \"arguments\": ",
                closing: "}",
                between: ", ",
                tail: "]",
            },
            Self::MistralArgs => &Texts {
                trigger: "[TOOL_CALLS]",
                head: "",
                opening: "",
                arguments: "[ARGS]",
                closing: "",
                between: "[TOOL_CALLS]",
                tail: "",
            },
        }
    }

    /// Parts of those texts that tokenizers may have as special tokens.
    #[must_use]
    pub const fn marks(self) -> &'static [&'static str] {
        match self {
            Self::Hermes => &["<tool_call>", "</tool_call>"],
            Self::Llama3Json => &[],
            Self::Mistral => &["[TOOL_CALLS]"],
            Self::MistralArgs => &["[TOOL_CALLS]", "[ARGS]"],
        }
    }
}

impl FromStr for CallFormat {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|format| format.name() == name)
            .ok_or_else(|| format!("must be one of {}", Self::ALL.map(Self::name).join(", ")))
    }
}

impl std::fmt::Display for CallFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

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
    /// Text that is not known yet to be one thing or the other.
    held: String,
    arguments: Object,
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
    /// A parser at the start of an answer.
    #[must_use]
    pub fn new(format: CallFormat) -> Self {
        let (texts, place) = (format.texts(), Place::Text);
        Self { texts, place, held: String::new(), arguments: Object::default() }
    }

    /// The parts that a piece of text completes.
    pub fn push(&mut self, piece: &str) -> Vec<Part> {
        self.held.push_str(piece);
        let mut parts = Vec::new();
        while self.step(&mut parts) {}
        parts
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
        let Texts { trigger, head, opening, arguments, between, .. } = self.texts;
        match self.place {
            Place::TextAlone => {
                parts.extend(some_text(std::mem::take(&mut self.held)));
                false
            }
            Place::Text if trigger.is_empty() => {
                if let Some(rest) = self.held.strip_prefix(opening) {
                    (self.held, self.place) = (rest.to_owned(), Place::Name);
                    return true;
                }
                let open = opening.starts_with(&self.held);
                self.place = if open { Place::Text } else { Place::TextAlone };
                !open
            }
            Place::Text => {
                let (text, found) = self.until(&format!("{trigger}{head}{opening}"));
                parts.extend(some_text(text));
                self.place = if found { Place::Name } else { Place::Text };
                found
            }
            Place::Name => {
                if let Some(at) = self.held.find(arguments) {
                    let rest = self.held.split_off(at + arguments.len());
                    self.held.truncate(at);
                    parts.push(Part::Call(std::mem::replace(&mut self.held, rest)));
                    (self.place, self.arguments) = (Place::Arguments, Object::default());
                    return true;
                }
                // A name ends where its quotation does: then this is something else.
                let quote = self.held.find('"').map_or("", |at| &self.held[at..]);
                if arguments.starts_with(quote) {
                    return false;
                }
                self.held.insert_str(0, opening);
                self.place = Place::TextAlone;
                true
            }
            Place::Arguments => {
                let end = self.arguments.end(&self.held);
                let rest = self.held.split_off(end.unwrap_or(self.held.len()));
                let text = std::mem::replace(&mut self.held, rest);
                parts.extend((!text.is_empty()).then_some(Part::Arguments(text)));
                self.place = if end.is_some() { Place::Between } else { Place::Arguments };
                end.is_some()
            }
            Place::Between => {
                let (_, found) = self.until(&format!("{between}{opening}"));
                self.place = if found { Place::Name } else { Place::Between };
                found
            }
        }
    }

    /// Takes the text up to `end` and that as well, or up to where it may begin.
    fn until(&mut self, end: &str) -> (String, bool) {
        let (at, length) = match self.held.find(end) {
            Some(at) => (at, end.len()),
            None => (self.held.len() - overlap(&self.held, end), 0),
        };
        let rest = self.held.split_off(at + length);
        let mut text = std::mem::replace(&mut self.held, rest);
        text.truncate(at);
        (text, length > 0)
    }
}

fn some_text(text: String) -> Option<Part> {
    Some(text).filter(|text| !text.is_empty()).map(Part::Text)
}

/// Where a JSON object that arrives in pieces ends.
#[derive(Debug, Default)]
struct Object {
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Object {
    /// The length of the piece that belongs to it, if it ends there.
    fn end(&mut self, piece: &str) -> Option<usize> {
        for (place, byte) in piece.bytes().enumerate() {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = self.in_string,
                b'"' => self.in_string = !self.in_string,
                b'{' | b'[' if !self.in_string => self.depth += 1,
                b'}' | b']' if !self.in_string => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        return Some(place + 1);
                    }
                }
                _ => {}
            }
        }
        None
    }
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

    fn parse(format: CallFormat, text: &str, width: usize) -> Vec<Part> {
        let mut parser = CallParser::new(format);
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
        for format in CallFormat::ALL {
            let Texts { trigger, head, opening, arguments, closing, between, tail } =
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
        let mut parser = CallParser::new(CallFormat::Hermes);
        assert_eq!(parser.push("a <tool_"), [Part::Text("a ".into())]);
        assert_eq!(parser.push("box> <tool_call>\n{"), [Part::Text("<tool_box> ".into())]);
        assert_eq!(parser.finish(), Some(Part::Text("<tool_call>\n{".into())));
        let mut cut = CallParser::new(CallFormat::Hermes);
        cut.push("<tool_call>\n{\"name\": \"f");
        assert_eq!(cut.finish(), None);
        let mut cut = CallParser::new(CallFormat::Hermes);
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

    #[test]
    fn formats_are_known_by_their_templates() {
        let qwen = "{% if tools %}<tool_call>{\"name\": <name>, \"arguments\": <arguments>}";
        let llama = "{% if tools %}{{- '{\"name\": \"' + tool_call.name + '\", ' }}{{- '\"parameters\": ' }}";
        let mistral = "{% if tools %}[AVAILABLE_TOOLS]{% endif %}[TOOL_CALLS]";
        for (source, format) in [
            (qwen, Some(CallFormat::Hermes)),
            (llama, Some(CallFormat::Llama3Json)),
            (mistral, Some(CallFormat::Mistral)),
            (&format!("{mistral}[ARGS]"), Some(CallFormat::MistralArgs)),
            (&format!("{mistral}[CALL_ID][ARGS]"), None),
            ("{% for m in messages %}", None),
        ] {
            assert_eq!(CallFormat::of_template(source), format, "{source}");
        }
        assert_eq!("mistral".parse(), Ok(CallFormat::Mistral));
        assert_eq!("mistral_args".parse(), Ok(CallFormat::MistralArgs));
        assert!("xml".parse::<CallFormat>().unwrap_err().contains("llama3_json"));
    }
}
