//! Grammars with schemas in them: a schema that cannot be followed as it is holds up no other.

use serde_json::{Value, json};

use super::loosening::{Findings, loosen};
use super::source::{Adherence, Part, PartSchema, any_like, lark, with_whitespace};
use super::{Grammar, GrammarError, GrammarSource, Loosened, bounds};

/// Compiles a grammar of parts: with all its schemas as far as each adheres, or, where that fails, with any JSON in
/// place of those that are at fault and may be. `compile` compiles what has no parts.
///
/// # Errors
/// What is wrong with the grammar, or with one of its schemas, by its subject.
pub(super) fn compile(
    parts: &[Part],
    compile: impl Fn(&GrammarSource) -> Result<Grammar, GrammarError>,
) -> Result<Grammar, GrammarError> {
    let schemas = parts.iter().filter_map(|part| match part {
        Part::Schema(schema) => Some(Followed::new(schema)),
        Part::Lark(_) | Part::Loosened(_) => None,
    });
    let known = parts.iter().filter_map(|part| match part {
        Part::Loosened(loosened) => Some(loosened.clone()),
        Part::Lark(_) | Part::Schema(_) => None,
    });
    let mut schemas = schemas.collect::<Result<Vec<_>, _>>()?;
    let all = |schemas: &[Followed<'_>]| {
        let mut each = schemas.iter();
        let text = lark(parts, |_| each.next().map_or(Value::Null, Followed::schema));
        let grammar = compile(&GrammarSource::Lark(text))?;
        let warnings = grammar.warnings();
        let found = schemas.iter().filter_map(|schema| schema.loosened(&warnings));
        Ok(grammar.with_loosened(merged(known.clone().chain(found))))
    };
    let first = all(&schemas);
    let Err(error) = first else { return first };
    for schema in &mut schemas {
        if let Err(reason) = compile(&GrammarSource::JsonSchema(schema.schema())) {
            schema.give_up(&reason)?;
        }
    }
    if schemas.iter().any(|schema| schema.given_up) {
        let second = all(&schemas);
        if second.is_ok() {
            return second;
        }
    }
    // Each can be compiled, but not all of them together.
    for schema in &mut schemas {
        schema.given_up |= schema.part.adherence == Adherence::BestEffort;
    }
    all(&schemas).map_err(|_| without_text(&error))
}

/// What is not followed, told once of each subject.
fn merged(all: impl Iterator<Item = Loosened>) -> Vec<Loosened> {
    let mut merged: Vec<Loosened> = Vec::new();
    for Loosened { subject, keywords } in all {
        match merged.iter_mut().find(|other| other.subject == subject) {
            // Where it may be anything, no keyword is followed.
            Some(known) if known.keywords.is_empty() || keywords.is_empty() => {
                known.keywords.clear()
            }
            Some(known) => {
                for keyword in keywords {
                    if !known.keywords.contains(&keyword) {
                        known.keywords.push(keyword);
                    }
                }
            }
            None => merged.push(Loosened { subject, keywords }),
        }
    }
    merged
}

/// A fault without the text of the grammar, which nobody but this server has written.
fn without_text(error: &GrammarError) -> GrammarError {
    let line = error.0.lines().next().unwrap_or_default();
    let reason = line.strip_prefix("at ").and_then(|rest| rest.split_once("): "));
    GrammarError(reason.map_or(line, |(_, reason)| reason).to_owned())
}

/// A schema as it is followed.
struct Followed<'a> {
    part: &'a PartSchema,
    schema: Value,
    findings: Findings,
    /// Whether any JSON of its type stands for it.
    given_up: bool,
}

impl<'a> Followed<'a> {
    fn new(part: &'a PartSchema) -> Result<Self, GrammarError> {
        let (schema, findings) = (with_whitespace(&part.schema), Findings::default());
        let mut followed = Self { part, schema, findings, given_up: false };
        match bounds::check(&GrammarSource::JsonSchema(followed.schema.clone())) {
            Err(reason) => followed.give_up(&reason)?,
            Ok(()) if part.adherence != Adherence::Strict => {
                followed.findings = loosen(&mut followed.schema);
                if let Some(options) =
                    followed.schema.get_mut("x-guidance").and_then(Value::as_object_mut)
                {
                    options.extend([
                        ("lenient".into(), json!(true)),
                        ("coerce_one_of".into(), json!(true)),
                    ]);
                }
            }
            Ok(()) => {}
        }
        Ok(followed)
    }

    fn schema(&self) -> Value {
        if self.given_up {
            with_whitespace(&any_like(&self.part.schema))
        } else {
            self.schema.clone()
        }
    }

    /// Lets any JSON of its type stand for a schema that cannot be followed.
    fn give_up(&mut self, reason: &GrammarError) -> Result<(), GrammarError> {
        let PartSchema { subject, schema, adherence } = self.part;
        if *adherence == Adherence::BestEffort {
            self.given_up = true;
            return Ok(());
        }
        let fault = loosen(&mut schema.clone()).fault(&reason.0);
        let reason = fault.unwrap_or_else(|| reason.to_string());
        let subject = if subject.is_empty() { String::new() } else { format!("{subject}: ") };
        Err(GrammarError(format!("{subject}{reason}")))
    }

    fn loosened(&self, warnings: &[String]) -> Option<Loosened> {
        let keywords = if self.given_up { Vec::new() } else { self.findings.keywords(warnings) };
        let subject = self.part.subject.clone();
        (self.given_up || !keywords.is_empty()).then_some(Loosened { subject, keywords })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::compiler;
    use super::*;

    fn part(name: &str, schema: Value, adherence: Adherence) -> [Part; 2] {
        let subject = format!("tool {name}");
        [
            Part::Lark(format!("{name}: \"{name}\" ")),
            Part::Schema(PartSchema { subject, schema, adherence }),
        ]
    }

    fn compiled(parts: Vec<[Part; 2]>) -> Result<Grammar, String> {
        let names: Vec<String> = (0..parts.len()).map(|i| format!("f{i}")).collect();
        let start = Part::Lark(format!("start: {}\n", names.join(" | ")));
        let parts =
            parts.into_iter().flat_map(|[name, schema]| [name, schema, Part::Lark("\n".into())]);
        let source = GrammarSource::Composed([start].into_iter().chain(parts).collect());
        compiler().compile(&source).map_err(|error| error.to_string())
    }

    /// Whether a grammar admits a text from its beginning.
    fn admits(grammar: &Grammar, text: &str) -> bool {
        let tokenizer = super::super::tests::tokenizer();
        let mut state = grammar.start();
        let ids = tokenizer.encode(text, false).unwrap();
        ids.get_ids().iter().all(|&id| state.draft(id))
    }

    use Adherence::{BestEffort, Strict};

    #[test]
    fn a_schema_that_cannot_be_followed_leaves_others_as_they_are() {
        let number = || json!({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]});
        let wrong = json!({"type": "object", "properties": {"a": {"$ref": "#/nothing"}}});
        let large: Vec<String> = (0..20_000).map(|i| format!("n{i}")).collect();
        for broken in [wrong, json!({"type": "object", "required": large})] {
            let parts = vec![
                part("f0", number(), Strict),
                part("f1", broken.clone(), BestEffort),
                part("f2", number(), BestEffort),
            ];
            let grammar = compiled(parts).unwrap();
            let expected = Loosened { subject: "tool f1".into(), keywords: Vec::new() };
            assert_eq!(grammar.loosened(), [expected]);
            assert!(admits(&grammar, "f0{\"a\": 1") && !admits(&grammar, "f0{\"a\": true"));
            assert!(admits(&grammar, "f2{\"a\": 1") && !admits(&grammar, "f2{\"a\": true"));
            assert!(admits(&grammar, "f1{\"a\": true}") && !admits(&grammar, "f1true"));
            let error =
                compiled(vec![part("f0", number(), BestEffort), part("f1", broken, Strict)]);
            let error = error.unwrap_err();
            assert!(error.starts_with("tool f1: ") && !error.contains("f0"), "{error}");
        }
    }

    #[test]
    fn schemas_that_are_too_much_together_become_any_object() {
        let pattern = "[a-z]{2}".repeat(250);
        let each = || json!({"properties": {"a": {"type": "string", "pattern": pattern}}});
        let parts = |adherence| {
            (0..6).map(|i| part(&format!("f{i}"), each(), adherence)).collect::<Vec<_>>()
        };
        let grammar = compiled(parts(BestEffort)).unwrap();
        assert!(grammar.loosened().len() == 6 && admits(&grammar, "f0{\"a\": 1}"));
        let error = compiled(parts(Strict)).unwrap_err();
        assert!(
            error.contains("bytes of regular expressions") && !error.contains("%json"),
            "{error}"
        );
    }

    #[test]
    fn what_is_not_followed_is_told_once_of_each_subject() {
        let loosened = |subject: &str, keywords: &[&'static str]| Loosened {
            subject: subject.into(),
            keywords: keywords.to_vec(),
        };
        let all = [
            ("a", &["not"][..]),
            ("b", &["if"]),
            ("a", &["if", "not"]),
            ("b", &[]),
            ("b", &["not"]),
        ];
        let all = all.map(|(subject, keywords)| loosened(subject, keywords));
        assert_eq!(merged(all.into_iter()), [loosened("a", &["not", "if"]), loosened("b", &[])]);
    }

    #[test]
    fn faults_do_not_quote_the_grammar() {
        let parts = |adherence| vec![part("f0", json!({"items": {"not": {}}}), adherence)];
        assert_eq!(compiled(parts(Strict)).unwrap_err(), "tool f0: `items.not` is not supported");
        assert_eq!(compiled(parts(BestEffort)).unwrap().loosened()[0].keywords, ["not"]);
        let text = GrammarError("at 7(9): failed: x\n   7 | start: %json".into());
        assert_eq!(without_text(&text).0, "failed: x");
    }
}
