//! JSON as Python's `json.dumps` writes it, which is what models have read.

use std::io::{Result, Write};

use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

/// How `json.dumps` is asked to write.
#[derive(Debug, Default)]
pub(super) struct JsonStyle {
    /// Spaces of each level, on a line for each thing; `None` for one line.
    pub(super) indent: Option<usize>,
    /// What stands between things, and between a key and its value: `", "` and `": "` where nothing is said.
    pub(super) separators: Option<[String; 2]>,
    /// Whether keys are sorted.
    pub(super) sort_keys: bool,
    /// Whether other characters than those of ASCII are written by their numbers.
    pub(super) ascii: bool,
}

/// The text of a value, on one line.
pub(super) fn python_json(value: &impl Serialize) -> String {
    JsonStyle::default().write(value)
}

impl JsonStyle {
    /// The text of a value; `null` of what has no JSON, such as a function of a template.
    pub(super) fn write(&self, value: &impl Serialize) -> String {
        let text = match self.sort_keys {
            true => serde_json::to_value(value).ok().and_then(|mut value| {
                value.sort_all_objects();
                self.text(&value)
            }),
            false => self.text(value),
        };
        let text = text.unwrap_or_else(|| "null".to_owned());
        if self.ascii { ascii(&text) } else { text }
    }

    fn text(&self, value: &impl Serialize) -> Option<String> {
        let mut text = Vec::new();
        let written = match self.indent {
            Some(indent) => {
                let indent = " ".repeat(indent.min(16));
                let formatter = PrettyFormatter::with_indent(indent.as_bytes());
                value.serialize(&mut Serializer::with_formatter(&mut text, formatter))
            }
            None => {
                let [item, key] =
                    self.separators.as_ref().map_or([", ", ": "], |[item, key]| [item, key]);
                value.serialize(&mut Serializer::with_formatter(&mut text, OneLine { item, key }))
            }
        };
        written.ok().and_then(|()| String::from_utf8(text).ok())
    }
}

/// JSON with the numbers of UTF-16 in place of what is not ASCII, which stands in texts alone.
fn ascii(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    let mut units = [0; 2];
    for character in json.chars() {
        match character.is_ascii() {
            true => text.push(character),
            false => {
                let units = character.encode_utf16(&mut units).iter();
                text.extend(units.map(|unit| format!("\\u{unit:04x}")));
            }
        }
    }
    text
}

/// All on one line.
struct OneLine<'a> {
    /// Between things.
    item: &'a str,
    /// Between a key and its value.
    key: &'a str,
}

impl Formatter for OneLine<'_> {
    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> Result<()> {
        if first { Ok(()) } else { writer.write_all(self.item.as_bytes()) }
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> Result<()> {
        self.begin_array_value(writer, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> Result<()> {
        writer.write_all(self.key.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn as_python_writes_it() {
        let value = json!({"b": [1, "ä<'\n"], "a": {}, "c": null});
        assert_eq!(python_json(&value), r#"{"b": [1, "ä<'\n"], "a": {}, "c": null}"#);
        assert_eq!(
            JsonStyle { indent: Some(2), ..JsonStyle::default() }.write(&json!({"a": [1]})),
            "{\n  \"a\": [\n    1\n  ]\n}"
        );
    }
}
