//! The schemas of values, out of the schema of the arguments.

use serde_json::{Map, Value};

use crate::grammar::{Adherence, Part, PartSchema};

/// A schema of arguments, in which those of values stand.
pub(super) struct Schemas<'a> {
    pub(super) subject: &'a str,
    pub(super) whole: &'a Map<String, Value>,
    pub(super) adherence: Adherence,
}

impl Schemas<'_> {
    /// JSON that a value's schema admits, with the definitions it refers to.
    pub(super) fn json(&self, schema: &Value) -> Part {
        let mut schema = schema.clone();
        let refers = schema.to_string().contains("\"$ref\"");
        if let Some(fields) = schema.as_object_mut().filter(|_| refers) {
            for key in DEFINITIONS {
                if let Some(definitions) = self.whole.get(key) {
                    fields.entry(key).or_insert(definitions.clone());
                }
            }
            self.keep_root(fields);
        }
        let (subject, adherence) = (self.subject.to_owned(), self.adherence);
        Part::Schema(PartSchema { subject, schema, adherence })
    }

    /// Has references to the root of the arguments' schema, and to what stands there, lead to a definition of it: the root
    /// of a value's schema is another one.
    fn keep_root(&self, schema: &mut Map<String, Value>) {
        let definitions = schema.get("$defs").and_then(Value::as_object);
        let taken = |name: &String| definitions.is_some_and(|known| known.contains_key(name));
        let mut names = (0..).map(|number| format!("arguments{number}"));
        let Some(name) = names.find(|name| !taken(name)) else { return };
        let root = format!("#/$defs/{name}");
        if lead_to(&root, schema) {
            let mut whole = self.whole.clone();
            lead_to(&root, &mut whole);
            let definitions = schema.entry("$defs").or_insert_with(|| Map::new().into());
            // Definitions that are none are the compiler's to complain about.
            let definitions = definitions.as_object_mut();
            definitions.map(|known| known.insert(name, whole.into()));
        }
    }
}

/// Where schemas keep what others refer to.
const DEFINITIONS: [&str; 2] = ["$defs", "definitions"];

/// Has references to the root or to what stands there, but for definitions, lead to `root`; says whether there are any.
fn lead_to(root: &str, schema: &mut Map<String, Value>) -> bool {
    let (mut found, mut objects) = (false, vec![schema]);
    while let Some(fields) = objects.pop() {
        if let Some(Value::String(target)) = fields.get_mut("$ref")
            && let Some(path) = target.strip_prefix('#')
            && !DEFINITIONS.iter().any(|key| path.starts_with(&format!("/{key}/")))
        {
            *target = format!("{root}{}", path.trim_end_matches('/'));
            found = true;
        }
        let mut values: Vec<&mut Value> = fields.values_mut().collect();
        while let Some(value) = values.pop() {
            match value {
                Value::Array(items) => values.extend(items),
                Value::Object(fields) => objects.push(fields),
                _ => {}
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_root_is_that_of_the_arguments() {
        let whole = json!({
            "$defs": {"arguments0": {"type": "integer"}},
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "children": {"type": "array", "items": {"$ref": "#"}},
                "first": {"$ref": "#/properties/children"},
                "count": {"anyOf": [{"$ref": "#/$defs/arguments0"}, {"type": "null"}]},
            },
        });
        let whole = whole.as_object().unwrap();
        let (subject, adherence) = ("f", Adherence::Strict);
        let schemas = Schemas { subject, whole, adherence };
        let of = |name: &str| {
            let Part::Schema(part) = schemas.json(&whole["properties"][name]) else { panic!() };
            part.schema
        };
        let root = "#/$defs/arguments1";
        let children = of("children");
        assert_eq!(children["items"]["$ref"], root);
        let kept = &children["$defs"]["arguments1"];
        assert_eq!(kept["properties"]["name"], json!({"type": "string"}));
        assert_eq!(kept["properties"]["children"]["items"]["$ref"], root);
        assert_eq!(of("first")["$ref"], format!("{root}/properties/children"));
        assert_eq!(of("count")["anyOf"][0]["$ref"], "#/$defs/arguments0");
        assert!(of("count")["$defs"].get("arguments1").is_none());
        assert_eq!(of("name"), json!({"type": "string"}));
    }
}
