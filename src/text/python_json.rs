//! JSON as Python's `json.dumps` writes it, which is what models have read.

use std::io::{Result, Write};

use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

/// `", "` and `": "` between things, all on one line.
struct OneLine;

impl Formatter for OneLine {
    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> Result<()> {
        self.begin_array_value(writer, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> Result<()> {
        writer.write_all(b": ")
    }
}

/// The text of a value, on one line.
pub(super) fn python_json(value: &impl Serialize) -> String {
    write(value, OneLine)
}

/// The text of a value on many lines, each level `indent` spaces further in.
pub(super) fn indented_python_json(value: &impl Serialize, indent: usize) -> String {
    let indent = " ".repeat(indent.min(16));
    write(value, PrettyFormatter::with_indent(indent.as_bytes()))
}

fn write(value: &impl Serialize, formatter: impl Formatter) -> String {
    let mut text = Vec::new();
    let written = value.serialize(&mut Serializer::with_formatter(&mut text, formatter));
    // What has no JSON, such as a function of the template, is nothing.
    written.ok().and_then(|()| String::from_utf8(text).ok()).unwrap_or_else(|| "null".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn as_python_writes_it() {
        let value = json!({"b": [1, "ä<'\n"], "a": {}, "c": null});
        assert_eq!(python_json(&value), r#"{"b": [1, "ä<'\n"], "a": {}, "c": null}"#);
        assert_eq!(indented_python_json(&json!({"a": [1]}), 2), "{\n  \"a\": [\n    1\n  ]\n}");
    }
}
