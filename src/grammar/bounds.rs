//! What is too deep or too large to be compiled, told before anything is compiled.
//!
//! The compiler goes down schemas, references and rules by recursion, and its time and memory grow with the square of
//! the text of regular expressions. So depth and text are measured here, without recursion that a client could drive.

use std::collections::HashSet;

use serde_json::Value;

use super::reference_graph::{Graph, referred};
use super::schema_work::schema_work;
use super::source::lark;
use super::{GrammarError, GrammarSource};

/// Longest text of a grammar, in bytes.
pub(super) const MAX_SOURCE_BYTES: usize = 256 << 10;
/// Text of all regular expressions of a grammar, in bytes. 30 kB take half a second to compile, 252 kB 38 seconds
/// and 7 GB.
const MAX_REGEX_BYTES: usize = 8 << 10;
/// Deepest way through a grammar: levels of JSON, groups, references and rules, all counted together. The compiler
/// takes about 2.5 kB of stack a level.
const MAX_DEPTH: usize = 1024;
/// Texts to choose from: a place of a grammar may go on in 2,000 ways, and 30,000 take seconds to compile before that is
/// told.
const MAX_CHOICES: usize = 1999;
/// Names of all objects, as merged. The compiler has room for as many parts of a grammar, takes seconds and hundreds of
/// megabytes to find that they do not fit, and goes on for minutes and gigabytes where objects multiply.
const MAX_NAMES: usize = 1 << 16;

/// Checks a grammar's depth and the text of its regular expressions.
pub(super) fn check(source: &GrammarSource) -> Result<(), GrammarError> {
    let mut measure = Measure::default();
    match source {
        GrammarSource::Regex(regex) => measure.regex(regex),
        GrammarSource::Lark(lark) => measure.lark(lark),
        GrammarSource::JsonSchema(schema) | GrammarSource::LenientSchema(schema) => {
            measure.schema(schema);
        }
        GrammarSource::Composed(parts) => {
            measure.lark(&lark(parts, |part| part.schema.clone()));
        }
        GrammarSource::Choice(choices) if choices.len() > MAX_CHOICES => {
            let message = format!("has {} choices; {MAX_CHOICES} are the most", choices.len());
            return Err(GrammarError(message));
        }
        GrammarSource::Choice(_) => {}
        GrammarSource::Around { lark, form } => {
            check(form)?;
            measure.lark(lark);
        }
    }
    if measure.depth > MAX_DEPTH {
        return Err(GrammarError(format!(
            "is nested too deeply: levels, references and rules together may be {MAX_DEPTH} deep"
        )));
    }
    if measure.regex_bytes > MAX_REGEX_BYTES {
        return Err(GrammarError(format!(
            "has {} bytes of regular expressions (`pattern`s included); {MAX_REGEX_BYTES} are the most",
            measure.regex_bytes
        )));
    }
    if measure.combines {
        return Err(GrammarError(
            "combines expressions by `&` or `~`, whose cost is not bounded: write one expression"
                .into(),
        ));
    }
    if measure.names > MAX_NAMES {
        return Err(GrammarError(format!(
            "is too large: where `allOf`, `$ref`s beside other keywords and alternatives are merged, its objects may \
             have {MAX_NAMES} names in all"
        )));
    }
    Ok(())
}

#[derive(Default)]
struct Measure {
    regex_bytes: usize,
    depth: usize,
    names: usize,
    /// Whether a grammar combines expressions by `&` or `~`.
    combines: bool,
}

impl Measure {
    fn regex(&mut self, regex: &str) {
        self.regex_bytes += regex.len();
        self.deepen(nesting(regex));
    }

    fn deepen(&mut self, depth: usize) {
        self.depth = self.depth.max(depth);
    }

    fn schema(&mut self, schema: &Value) {
        // A part is known by its address: a reference to it may be spelled in many ways.
        let address = std::ptr::from_ref::<Value>;
        let mut graph = Graph::default();
        let mut pending = vec![schema];
        let mut seen = HashSet::from([address(schema)]);
        while let Some(part) = pending.pop() {
            let node = graph.node(address(part));
            let mut values = vec![(part, 1)];
            while let Some((value, level)) = values.pop() {
                graph.deepen(node, level);
                match value {
                    Value::Array(items) => values.extend(items.iter().map(|it| (it, level + 1))),
                    Value::Object(fields) => {
                        for (name, value) in fields {
                            // What is not found is the compiler's to complain about.
                            if let (true, Some(target)) = (name == "$ref", value.as_str())
                                && let Some(target) = referred(schema, target)
                            {
                                graph.edge(node, address(target), level + 1);
                                pending.extend(seen.insert(address(target)).then_some(target));
                            }
                            values.push((value, level + 1));
                        }
                    }
                    _ => {}
                }
            }
        }
        self.deepen(graph.depth(MAX_DEPTH));
        if self.depth <= MAX_DEPTH {
            self.names = self.names.saturating_add(schema_work(schema, MAX_NAMES));
        }
        self.patterns(schema);
    }

    /// Counts the regular expressions of a schema.
    fn patterns(&mut self, schema: &Value) {
        let mut values = vec![schema];
        while let Some(value) = values.pop() {
            match value {
                Value::Array(items) => values.extend(items),
                Value::Object(fields) => {
                    for (name, value) in fields {
                        match (&**name, value) {
                            (
                                "pattern" | "whitespace_pattern" | "item_separator"
                                | "key_separator",
                                Value::String(regex),
                            ) => self.regex(regex),
                            ("patternProperties", Value::Object(patterns)) => {
                                patterns.keys().for_each(|regex| self.regex(regex));
                            }
                            _ => {}
                        }
                        values.push(value);
                    }
                }
                _ => {}
            }
        }
    }

    /// Reads a grammar as far as it takes to tell rules, their references, groups, texts and expressions apart.
    fn lark(&mut self, text: &str) {
        let mut graph = Graph::default();
        let mut rule = graph.node("");
        let mut groups = 0;
        let mut line_start = true;
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            let begins_line = std::mem::replace(&mut line_start, false);
            let taken = match first {
                '\n' => {
                    line_start = true;
                    1
                }
                '"' => quoted(rest),
                '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
                '/' => {
                    let length = expression(rest);
                    self.regex(rest[1..length].trim_end_matches('/'));
                    length
                }
                '(' | '[' | '{' => {
                    groups += 1;
                    graph.deepen(rule, groups);
                    1
                }
                ')' | ']' | '}' => {
                    groups = groups.saturating_sub(1);
                    1
                }
                '%' => self.directive(rest),
                '&' | '~' => {
                    // What a number follows is repeated. What `&` and `~` combine, the compiler explores without
                    // counting what that costs: three short expressions keep it for minutes, and take gigabytes.
                    let repeats = rest[1..].trim_start().starts_with(|c: char| c.is_ascii_digit());
                    self.combines |= first == '&' || !repeats;
                    1
                }
                c if c.is_alphabetic() || c == '_' => {
                    let length = word(rest);
                    let name = &rest[..length];
                    if begins_line && defines(&rest[length..]) {
                        rule = graph.node(name);
                    } else {
                        graph.edge(rule, name, groups + 1);
                    }
                    length
                }
                c => {
                    // A rule may be marked before its name, and indented.
                    line_start = begins_line && (c.is_whitespace() || "?!".contains(c));
                    c.len_utf8()
                }
            };
            rest = &rest[taken..];
        }
        self.deepen(graph.depth(MAX_DEPTH));
    }

    /// A `%json` with the schema behind it, or another directive's name; gives its length.
    fn directive(&mut self, text: &str) -> usize {
        let length = 1 + word(&text[1..]);
        if &text[..length] != "%json" {
            return length;
        }
        let mut values = serde_json::Deserializer::from_str(&text[length..]).into_iter::<Value>();
        match values.next() {
            Some(Ok(schema)) => {
                self.schema(&schema);
                length + values.byte_offset()
            }
            _ => length,
        }
    }
}

/// Length of a quoted text, its quotes included, up to the end of its line.
fn quoted(text: &str) -> usize {
    let line = text.find('\n').unwrap_or(text.len());
    closed(&text[..line], b'"')
}

/// Length of an expression, its slashes included; it may go over lines.
fn expression(text: &str) -> usize {
    closed(text, b'/')
}

/// Length of a text up to the next `quote` that is not escaped, or all of it.
fn closed(text: &str, quote: u8) -> usize {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            byte if byte == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Length of the name that a text begins with.
fn word(text: &str) -> usize {
    text.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '-')).unwrap_or(text.len())
}

/// Whether what stands behind a name makes it the definition of a rule: attributes, a priority, and a colon.
fn defines(text: &str) -> bool {
    let text = match text.strip_prefix('[') {
        Some(attributes) => attributes.split_once(']').map_or("", |(_, rest)| rest),
        None => text,
    };
    let text = text.strip_prefix("::").unwrap_or(text);
    let text = text.trim_start_matches(|c: char| c == '.' || c.is_ascii_digit());
    text.trim_start_matches([' ', '\t']).starts_with(':')
}

/// Deepest nesting of an expression's groups.
fn nesting(regex: &str) -> usize {
    let (mut depth, mut deepest, mut escaped) = (0_usize, 0, false);
    for byte in regex.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn lark(text: &str) -> (usize, usize) {
        let mut measure = Measure::default();
        measure.lark(text);
        (measure.depth, measure.regex_bytes)
    }

    fn schema(schema: &Value) -> (usize, usize) {
        let mut measure = Measure::default();
        measure.schema(schema);
        (measure.depth, measure.regex_bytes)
    }

    #[test]
    fn references_count_with_the_levels_they_stand_at() {
        assert_eq!(schema(&json!({"type": "object"})), (2, 0));
        let chain = json!({"$defs": {"a": {"items": {"$ref": "#/$defs/b"}}, "b": {"pattern": "xy"}},
                           "$ref": "#/$defs/a"});
        // #, its $ref, a, items, its $ref, b and its pattern.
        assert_eq!(schema(&chain).1, 2);
        assert!((5..9).contains(&schema(&chain).0), "{:?}", schema(&chain));
        let circle =
            json!({"properties": {"next": {"$ref": "#"}, "p": {"patternProperties": {"abc": {}}}}});
        assert!(schema(&circle).0 < 10 && schema(&circle).1 == 3);
        // However many ways there are to spell a reference to one part, it is walked through once.
        let spelled = (1..500).map(|zeros| json!({"$ref": format!("#/x/{}", "0".repeat(zeros))}));
        assert!(schema(&json!({"x": [spelled.collect::<Vec<_>>()]})).0 < 10);
    }

    #[test]
    fn rules_are_told_from_texts_and_expressions() {
        assert_eq!(lark("start: \"r0 / ( r1\" // r2: ((((\n").0, 0);
        let chain = "start: r0\n?r0: (r1 | \"x\")\n!r1[lazy]: R2\nR2.3: /a(b)\\/c/\n";
        let (depth, regex) = lark(chain);
        assert!((4..8).contains(&depth), "{depth}");
        assert_eq!(regex, "a(b)\\/c".len());
        let embedded =
            "start: %json {\"type\": \"string\", \"pattern\": \"abc\"} rest\nrest: \"y\"\n";
        assert_eq!(lark(embedded).1, 3);
    }

    #[test]
    fn what_is_deep_or_long_is_refused_whatever_it_is() {
        let refs = |count: usize| {
            let next =
                |i: usize| json!({"properties": {"x": {"$ref": format!("#/$defs/{}", i + 1)}}});
            let mut defs: serde_json::Map<String, Value> =
                (0..count).map(|i| (i.to_string(), next(i))).collect();
            defs.insert(count.to_string(), json!({}));
            GrammarSource::JsonSchema(json!({"$defs": defs, "$ref": "#/$defs/0"}))
        };
        let rules = |count: usize| {
            let rules: String = (0..count).map(|i| format!("r{i}: \"a\" r{}\n", i + 1)).collect();
            GrammarSource::Lark(format!("start: r0\n{rules}r{count}: \"b\"\n"))
        };
        let texts = |count: usize| (0..count).map(|i| i.to_string()).collect::<Vec<String>>();
        for fine in [
            refs(100),
            rules(400),
            GrammarSource::Regex("(a|b)?".repeat(1000)),
            GrammarSource::Choice(texts(MAX_CHOICES)),
            GrammarSource::Lark("start: word (\" & ~\" word)~2\nword: \"a\" ~ 1..3\n".into()),
            GrammarSource::JsonSchema(json!({"required": texts(2000)})),
        ] {
            assert_eq!(check(&fine), Ok(()));
        }
        let separated =
            |name: &str| json!({"type": "array", "x-guidance": {name: "(a|b)?".repeat(2000)}});
        for wrong in [
            refs(1000),
            refs(20_000),
            rules(1100),
            rules(20_000),
            GrammarSource::Regex("(a|b)?".repeat(2000)),
            GrammarSource::Regex(format!("{}a{}", "(".repeat(2000), ")".repeat(2000))),
            GrammarSource::Lark(format!("start: {}\"a\"{}", "(".repeat(2000), ")".repeat(2000))),
            GrammarSource::Lark("start: A\n".to_owned() + &"A: /(a|b)?(c|d)?/\n".repeat(1000)),
            GrammarSource::JsonSchema(json!({"anyOf": vec![json!({"pattern": "[ab]{2}"}); 2000]})),
            GrammarSource::JsonSchema(json!({"required": texts(10_000)})),
            GrammarSource::Lark("start: A\nA: /.*a.{20}/ & /.*b.{19}/\n".into()),
            GrammarSource::Lark("start: A\nA: ~/.*a.{200}/\n".into()),
            GrammarSource::Lark(format!("start: /\n{}\n/", "(a|b)?".repeat(2000))),
            GrammarSource::Lark("start: A\nA: /.*a\n?.{20}/ & /.*b.{19}/\n".into()),
            GrammarSource::JsonSchema(separated("item_separator")),
            GrammarSource::JsonSchema(separated("key_separator")),
            GrammarSource::Choice(texts(MAX_CHOICES + 1)),
        ] {
            assert!(check(&wrong).is_err(), "{}", &format!("{wrong:?}")[..200]);
        }
    }
}
