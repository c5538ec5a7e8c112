//! What the objects of a schema cost to compile, told before anything is compiled.
//!
//! The compiler writes each object out as the sequence of its names. It merges what stands beside each other or in
//! `allOf`, what references lead to included, and every alternative of the one with every alternative of the other. So a
//! short schema may stand for a large grammar, and its size is measured as merged.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::reference_graph::referred;

/// Keywords that say something of a value themselves.
const OWN: [&str; 21] = [
    "type",
    "properties",
    "patternProperties",
    "additionalProperties",
    "required",
    "minProperties",
    "maxProperties",
    "items",
    "prefixItems",
    "additionalItems",
    "minItems",
    "maxItems",
    "enum",
    "const",
    "pattern",
    "format",
    "minLength",
    "maxLength",
    "minimum",
    "maximum",
    "multipleOf",
];

/// Names of one object from which on each counts more: the compiler's time grows with their square.
const CROWD: usize = 512;
/// Schemas looked at before a schema counts as too large: so many need a second.
const MAX_STEPS: usize = 1 << 22;
/// Merges within merges before a schema counts as too large. The compiler itself goes 128 deep.
const MAX_MERGES: usize = 512;

/// Names of all objects of a schema, as merged; counting ends beyond `most`.
pub(super) fn schema_work(schema: &Value, most: usize) -> usize {
    let known = HashMap::new();
    let mut work = Work { root: schema, known, most, done: 0, steps: 0, depth: 0 };
    let mut values = vec![schema];
    while let Some(value) = values.pop() {
        match value {
            Value::Array(items) => values.extend(items),
            Value::Object(fields) => {
                work.of(value);
                values.extend(fields.values());
            }
            _ => {}
        }
        if work.is_over() {
            break;
        }
    }
    work.done
}

struct Work<'a> {
    root: &'a Value,
    /// What came of each schema; nothing of one that is being looked at.
    known: HashMap<*const Value, Size>,
    most: usize,
    done: usize,
    steps: usize,
    depth: usize,
}

/// How large a schema is, as merged.
#[derive(Clone, Copy, Default)]
struct Size {
    /// Names of an object, with those of the alternative that has the most.
    names: usize,
    /// Combinations of alternatives.
    combinations: usize,
}

/// What several schemas say together.
#[derive(Default)]
struct Merged<'a> {
    /// Each name, with what is said of it.
    names: HashMap<&'a str, Vec<&'a Value>>,
    required: HashSet<&'a str>,
    /// Whether the number of names is bounded: then each optional one is written out with all others.
    counted: bool,
}

impl<'a> Work<'a> {
    fn is_over(&self) -> bool {
        self.done > self.most
    }

    fn of(&mut self, schema: &'a Value) -> Size {
        if let Some(size) = self.known.get(&std::ptr::from_ref(schema)) {
            return *size;
        }
        self.known.insert(schema, Size::default());
        let size = self.merge(&[schema]);
        self.known.insert(schema, size);
        size
    }

    /// Counts what comes of merging schemas.
    fn merge(&mut self, schemas: &[&'a Value]) -> Size {
        let mut merged = Merged::default();
        let mut size = Size { names: 0, combinations: 1 };
        if self.depth == MAX_MERGES {
            self.done = usize::MAX;
        }
        self.depth += 1;
        let (mut pending, mut followed) = (schemas.to_vec(), HashSet::new());
        while let Some(schema) = pending.pop().filter(|_| !self.is_over()) {
            self.steps += 1;
            let Some(fields) = schema.as_object() else { continue };
            let target = fields.get("$ref").and_then(Value::as_str);
            let target = target.and_then(|target| referred(self.root, target));
            pending.extend(target.filter(|target| followed.insert(std::ptr::from_ref(*target))));
            pending.extend(list(fields, "allOf"));
            for group in ["anyOf", "oneOf"].map(|name| list(fields, name)) {
                let alternatives = self.alternatives(group);
                size.names += alternatives.names;
                size.combinations =
                    size.combinations.saturating_mul(alternatives.combinations.max(1));
            }
            self.steps += merged.add(fields);
        }
        size.names += merged.names.len();
        let alone = matches!(schemas, [schema] if stands_for_another(schema));
        if !alone && !self.is_over() {
            let optional = size.names.saturating_sub(merged.required.len());
            let rows = size.names.div_ceil(CROWD).max(if merged.counted { optional } else { 1 });
            let each = size.names.max(1).saturating_mul(rows);
            self.done = self.done.saturating_add(each.saturating_mul(size.combinations));
            for values in merged.names.values().filter(|values| values.len() > 1) {
                self.merge(values);
            }
        }
        if self.steps > MAX_STEPS {
            self.done = usize::MAX;
        }
        self.depth -= 1;
        size
    }

    /// The size of a group of alternatives, of which one is taken.
    fn alternatives(&mut self, group: &'a [Value]) -> Size {
        group.iter().fold(Size::default(), |all, alternative| {
            let one = self.of(alternative);
            Size {
                names: all.names.max(one.names),
                combinations: all.combinations.saturating_add(one.combinations),
            }
        })
    }
}

impl<'a> Merged<'a> {
    /// Takes in what one schema says; gives the number of names that it says it of.
    fn add(&mut self, fields: &'a Map<String, Value>) -> usize {
        self.counted |=
            ["minProperties", "maxProperties"].iter().any(|key| fields.contains_key(*key));
        let mut said = 0;
        for (name, schema) in
            fields.get("properties").and_then(Value::as_object).into_iter().flatten()
        {
            self.names.entry(name).or_default().push(schema);
            said += 1;
        }
        for name in list(fields, "required").iter().filter_map(Value::as_str) {
            self.names.entry(name).or_default();
            self.required.insert(name);
            said += 1;
        }
        said
    }
}

/// Whether a schema says nothing but what one other says, which is compiled once.
fn stands_for_another(schema: &Value) -> bool {
    let Some(fields) = schema.as_object() else { return true };
    let groups = ["anyOf", "oneOf"].iter().filter(|name| !list(fields, name).is_empty()).count();
    let others = usize::from(fields.contains_key("$ref")) + list(fields, "allOf").len() + groups;
    others == 1 && !OWN.iter().any(|name| fields.contains_key(*name))
}

fn list<'a>(fields: &'a Map<String, Value>, name: &str) -> &'a [Value] {
    fields.get(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn work(schema: &Value) -> usize {
        schema_work(schema, 1 << 16)
    }

    fn named(count: usize, prefix: &str) -> Value {
        let names = (0..count).map(|i| (format!("{prefix}{i}"), json!({})));
        json!({"type": "object", "properties": names.collect::<Map<_, _>>()})
    }

    #[test]
    fn what_is_shared_counts_once_and_what_is_merged_each_time() {
        let plain = work(&named(100, "a"));
        assert!((100..400).contains(&plain), "{plain}");
        let required: Vec<String> = (0..100).map(|i| format!("a{i}")).collect();
        assert!((100..400).contains(&work(&json!({"type": "object", "required": required}))));
        let uses = |schema: Value| {
            let uses: Vec<Value> = vec![schema; 500];
            work(&json!({"$defs": {"o": named(100, "a")}, "prefixItems": uses}))
        };
        let reference = json!({"$ref": "#/$defs/o"});
        assert!(uses(reference.clone()) < 2000);
        assert!(uses(json!({"allOf": [reference], "description": "An object."})) < 3000);
        assert!(uses(json!({"anyOf": [reference, {"type": "null"}]})) < 3000);
        assert!(uses(json!({"$ref": "#/$defs/o", "properties": {"b": {}}})) > 50_000);
        assert!(uses(json!({"allOf": [reference, {"required": ["c"]}]})) > 50_000);
    }

    /// What is merged costs its names each time, also where it says nothing of its own.
    #[test]
    fn references_to_many_names_are_not_for_nothing() {
        let uses = vec![json!({"$ref": "#/b"}); 13_000];
        assert!(work(&json!({"b": named(4000, "a"), "$defs": uses})) > 1 << 16);
        let uses = vec![json!({"$ref": "#/b/00"}); 3000];
        let merged = json!({"b": [named(4000, "a")], "prefixItems": uses});
        assert!(work(&merged) > 1 << 16, "an index may be written with zeros");
        let escaped = json!({"$defs": {"%41": named(100, "a"), "A": {}}, "$ref": "#/$defs/%41"});
        assert!(work(&escaped) >= 100, "escapes are names as they stand");
    }

    #[test]
    fn alternatives_multiply_where_they_are_merged() {
        let any = |count: usize| json!({"anyOf": vec![json!({"type": "object"}); count]});
        assert!(work(&any(5000)) < 20_000);
        assert!(work(&json!({"prefixItems": vec![any(40); 40]})) < 20_000);
        let both = json!({"allOf": [any(500), any(500)]});
        assert!(work(&both) > 1 << 16);
        let beside = json!({"anyOf": vec![json!({}); 500], "oneOf": vec![json!({}); 500]});
        assert!(work(&beside) > 1 << 16);
        // The same name, in two objects that are merged.
        let inner = |any: Value| json!({"properties": {"x": any}});
        assert!(work(&json!({"allOf": [inner(any(500)), inner(any(500))]})) > 1 << 16);
        let union = json!({"properties": {"a": any(20)}, "required": ["a"], "anyOf": vec![named(20, "b"); 20]});
        assert!(work(&union) < 10_000);
    }

    #[test]
    fn names_that_are_counted_count_with_all_others() {
        for bound in [json!({"minProperties": 1}), json!({"maxProperties": 1})] {
            let counted =
                |count: usize| work(&json!({"allOf": [named(count, "a"), bound.clone()]}));
            assert!(counted(50) < 5000);
            assert!(counted(400) > 1 << 16);
        }
    }

    #[test]
    fn circles_end() {
        for schema in [
            json!({"$ref": "#"}),
            json!({"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}]}}}),
            json!({"properties": {"next": {"$ref": "#"}, "all": {"items": {"$ref": "#"}}}}),
            json!({"$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}, {"type": "object"}]}}}),
        ] {
            assert!(work(&schema) < 100, "{schema}");
        }
        // What is merged with itself for ever is refused.
        let next = json!({"allOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}]});
        let object = json!({"properties": {"n": next}});
        assert!(work(&json!({"$defs": {"a": object, "b": object}})) > 1 << 16);
    }
}
