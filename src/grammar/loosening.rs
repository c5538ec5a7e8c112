//! Schemas without what is not supported of them.

use std::panic::{AssertUnwindSafe, catch_unwind};

use llguidance::derivre::RegexBuilder;
use llguidance::regex_to_lark;
use serde_json::{Map, Value, json};

/// Keywords that the compiler does not know.
const UNSUPPORTED: [&str; 12] = [
    "not",
    "if",
    "contains",
    "uniqueItems",
    "propertyNames",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "unevaluatedItems",
    "unevaluatedProperties",
    "$dynamicRef",
    "$recursiveRef",
];
/// Keywords that it does not know either, and that say nothing without one of those.
const BESIDE: [&str; 6] =
    ["then", "else", "minContains", "maxContains", "$dynamicAnchor", "$recursiveAnchor"];
/// Keywords that are followed in some schemas only, with what the compiler says where one is not, and where it is.
const AT_TIMES: [(&str, &str, &str); 3] = [
    ("oneOf", "oneOf ", OVERLAP),
    ("minProperties", "min/maxProperties ", OPTIONAL),
    ("maxProperties", "min/maxProperties ", OPTIONAL),
];
const OVERLAP: &str = "is supported only where no two of the schemas admit one value";
const OPTIONAL: &str = "is supported only where all `properties` are `required`";
/// The formats of texts that it knows.
const FORMATS: [&str; 11] = [
    "date-time",
    "time",
    "date",
    "duration",
    "email",
    "hostname",
    "ipv4",
    "ipv6",
    "uuid",
    "uri",
    "unknown",
];
/// Keywords whose value is a schema, or a list of some.
const SCHEMAS: [&str; 7] =
    ["items", "prefixItems", "additionalItems", "additionalProperties", "allOf", "anyOf", "oneOf"];
/// Keywords whose value has schemas by name.
const NAMED: [&str; 4] = ["properties", "patternProperties", "$defs", "definitions"];

/// What was taken out of a schema.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Findings {
    /// Keywords, each with the place where it was first found.
    taken: Vec<(&'static str, String)>,
    /// Keywords that may not be followed.
    doubtful: Vec<&'static str>,
}

impl Findings {
    /// Which keyword the compiler refuses a schema for, in its words `reason`; `None` for other faults.
    pub(super) fn fault(&self, reason: &str) -> Option<String> {
        let doubtful = |(keyword, _, rule)| format!("`{keyword}` {rule}");
        match self.taken.first() {
            Some((_, place)) => Some(format!("`{place}` is not supported")),
            None => self.doubtful(reason).next().map(doubtful),
        }
    }

    /// The keywords that are not followed, as the compiler's warnings tell.
    pub(super) fn keywords(&self, warnings: &[String]) -> Vec<&'static str> {
        let taken = self.taken.iter().map(|(keyword, _)| *keyword);
        let doubtful = warnings.iter().flat_map(|warning| self.doubtful(warning));
        taken.chain(doubtful.map(|(keyword, ..)| keyword)).collect()
    }

    /// Keywords that the compiler speaks of.
    fn doubtful(
        &self,
        words: &str,
    ) -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
        let there = |(keyword, begin, _): &(&'static str, &str, _)| {
            words.starts_with(begin) && self.doubtful.contains(keyword)
        };
        AT_TIMES.into_iter().filter(there)
    }

    fn take(&mut self, keyword: &'static str, place: &str) {
        if self.taken.iter().all(|(known, _)| *known != keyword) {
            self.taken.push((keyword, format!("{place}{keyword}")));
        }
    }
}

/// Takes out of a schema what is not supported. Its regular expressions must have been measured.
pub(super) fn loosen(schema: &mut Value) -> Findings {
    let mut findings = Findings::default();
    walk(schema, "", &mut findings);
    findings
}

fn walk(schema: &mut Value, place: &str, findings: &mut Findings) {
    let Some(fields) = schema.as_object_mut() else { return };
    for keyword in UNSUPPORTED {
        if let Some(value) = fields.remove(keyword)
            && !says_nothing(keyword, &value)
        {
            findings.take(keyword, place);
        }
    }
    BESIDE.iter().for_each(|keyword| drop(fields.remove(*keyword)));
    loosen_values(fields, place, findings);
    loosen_names(fields, place, findings);
    for (keyword, ..) in AT_TIMES {
        if fields.contains_key(keyword) && !findings.doubtful.contains(&keyword) {
            findings.doubtful.push(keyword);
        }
    }
    for keyword in SCHEMAS {
        match fields.get_mut(keyword) {
            Some(Value::Array(schemas)) => {
                for (at, schema) in schemas.iter_mut().enumerate() {
                    walk(schema, &format!("{place}{keyword}[{at}]."), findings);
                }
            }
            Some(schema) => walk(schema, &format!("{place}{keyword}."), findings),
            None => {}
        }
    }
    for keyword in NAMED {
        for (name, schema) in
            fields.get_mut(keyword).and_then(Value::as_object_mut).into_iter().flatten()
        {
            walk(schema, &format!("{place}{keyword}.{name}."), findings);
        }
    }
}

/// Whether a keyword admits everything with this value.
fn says_nothing(keyword: &str, value: &Value) -> bool {
    match keyword {
        "uniqueItems" => *value == json!(false),
        "unevaluatedItems" | "unevaluatedProperties" => *value == json!(true),
        _ => false,
    }
}

/// Loosens what is said of a value as a whole.
fn loosen_values(fields: &mut Map<String, Value>, place: &str, findings: &mut Findings) {
    let mut unless = |keyword: &'static str, known: &dyn Fn(&Value) -> bool| {
        if fields.get(keyword).is_some_and(|value| !known(value)) {
            fields.remove(keyword);
            findings.take(keyword, place);
        }
    };
    unless("format", &|format| format.as_str().is_some_and(|name| FORMATS.contains(&name)));
    unless("pattern", &|pattern| pattern.as_str().is_some_and(is_expression));
    unless("$ref", &|target| target.as_str().is_some_and(|to| to == "#" || to.starts_with("#/")));
}

/// Loosens what is said of an object's names.
fn loosen_names(fields: &mut Map<String, Value>, place: &str, findings: &mut Findings) {
    if let Some(Value::Object(patterns)) = fields.get_mut("patternProperties") {
        let before = patterns.len();
        patterns.retain(|pattern, _| is_expression(pattern));
        if patterns.len() < before {
            // What is no longer said of these names must not be said of them as of others.
            fields.remove("additionalProperties");
            findings.take("patternProperties", place);
        }
    }
    let closed = fields.get("additionalProperties") == Some(&json!(false));
    if closed && !fields.contains_key("patternProperties") {
        let Some(Value::Array(mut required)) = fields.remove("required") else { return };
        let listed = fields.get("properties").and_then(Value::as_object);
        let listed = |name: &str| listed.is_some_and(|properties| properties.contains_key(name));
        let before = required.len();
        required.retain(|name| name.as_str().is_some_and(listed));
        if required.len() < before {
            findings.take("required", place);
        }
        fields.insert("required".into(), required.into());
    }
}

/// Whether the compiler reads a regular expression.
fn is_expression(pattern: &str) -> bool {
    let lark = regex_to_lark(pattern, "dw");
    let read = || RegexBuilder::new().mk_regex_for_serach(&lark).is_ok();
    catch_unwind(AssertUnwindSafe(read)).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::super::tests::compiler;
    use super::super::{GrammarError, GrammarSource};
    use super::*;

    fn strict(schema: &Value) -> Result<(), GrammarError> {
        compiler().compile(&GrammarSource::JsonSchema(schema.clone())).map(drop)
    }

    fn lenient(schema: &Value) -> Vec<&'static str> {
        let grammar = compiler().compile(&GrammarSource::LenientSchema(schema.clone())).unwrap();
        let [loosened] = grammar.loosened() else { return Vec::new() };
        loosened.keywords.clone()
    }

    #[test]
    fn what_is_taken_out_is_what_the_compiler_refuses() {
        for keyword in UNSUPPORTED {
            let schema = json!({"type": "object", "properties": {"a": {keyword: {"x": ["y"]}}}});
            assert!(strict(&schema).is_err() || keyword == "$recursiveRef", "{keyword}");
            assert_eq!(lenient(&schema), [keyword]);
        }
        for format in FORMATS {
            let schema = json!({"type": "string", "format": format});
            assert_eq!(strict(&schema), Ok(()), "{format}");
            assert_eq!(lenient(&schema), [""; 0]);
        }
        for (schema, keyword) in [
            (json!({"format": "binary"}), "format"),
            (json!({"pattern": "^(?=a)."}), "pattern"),
            (json!({"pattern": "^(a"}), "pattern"),
            (json!({"$ref": "https://example.com/schema"}), "$ref"),
            (json!({"patternProperties": {"^(?!x)": {}}}), "patternProperties"),
            (
                json!({"type": "object", "required": ["b"], "additionalProperties": false}),
                "required",
            ),
            (json!({"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 3}]}), "oneOf"),
            (
                json!({"type": "object", "minProperties": 2, "properties": {"a": {}}}),
                "minProperties",
            ),
            (
                json!({"type": "object", "maxProperties": 1, "properties": {"a": {}}}),
                "maxProperties",
            ),
        ] {
            assert!(strict(&schema).is_err(), "{schema}");
            assert_eq!(lenient(&schema), [keyword], "{schema}");
            let deep = json!({"anyOf": [{"items": {"$defs": {"x": schema}, "$ref": "#/anyOf/0/items/$defs/x"}}]});
            assert_eq!(lenient(&deep), [keyword], "{deep}");
        }
    }

    #[test]
    fn what_is_supported_stays_as_it_is() {
        for schema in [
            json!({"properties": {"not": {"type": "string"}, "format": {"const": "binary"}}}),
            json!({"enum": [{"not": 1}, "uniqueItems"], "default": {"if": {}}}),
            json!({"type": ["object", "null"], "required": ["a"], "properties": {"a": {}}}),
            json!({"type": "object", "required": ["b"]}),
            json!({"oneOf": [{"type": "string"}, {"type": "integer"}]}),
            json!({"items": {"pattern": "^[a-z]+$"}, "x-unit": "metre", "nullable": true}),
        ] {
            let (mut loosened, mut nothing) = (schema.clone(), schema.clone());
            assert_eq!(loosen(&mut loosened).keywords(&[]), [""; 0]);
            assert_eq!(loosened, schema);
            assert_eq!(lenient(&schema), [""; 0], "{schema}");
            nothing["uniqueItems"] = json!(false);
            nothing["unevaluatedProperties"] = json!(true);
            nothing["then"] = json!({});
            assert_eq!(loosen(&mut nothing).keywords(&[]), [""; 0]);
            assert_eq!(nothing, schema);
        }
    }

    #[test]
    fn faults_name_the_keyword_and_its_place() {
        let fault = |mut schema: Value| {
            let error = strict(&schema).unwrap_err().to_string();
            loosen(&mut schema).fault(&error)
        };
        let schema = json!({"properties": {"tags": {"items": [{"uniqueItems": true}]}}});
        let place = "`properties.tags.items[0].uniqueItems` is not supported";
        assert_eq!(fault(schema).as_deref(), Some(place));
        let schema = json!({"oneOf": [{"type": "object"}, {"type": "object"}]});
        assert_eq!(fault(schema), Some(format!("`oneOf` {OVERLAP}")));
        assert_eq!(fault(json!({"type": "string", "minLength": 2, "maxLength": 1})), None);
    }
}
