//! The OpenAPI document, and the reference in `docs/` that is made from it.

use std::fmt::Write as _;

use super::*;

async fn document() -> Value {
    serde_json::from_str(&send("GET", "/openapi.json", "").await.1).unwrap()
}

/// `docs/api.md` is what the code says. `PLEACH_UPDATE_DOCS=1` writes it anew.
#[tokio::test(flavor = "multi_thread")]
async fn the_reference_is_what_the_code_says() {
    let text = reference(&document().await);
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/api.md");
    if std::env::var_os("PLEACH_UPDATE_DOCS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    assert_eq!(std::fs::read_to_string(path).unwrap(), text, "run with PLEACH_UPDATE_DOCS=1");
}

/// Every reference within the document leads somewhere, and every documented field of the OpenAI
/// endpoints that is supported is listed.
#[tokio::test(flavor = "multi_thread")]
async fn the_document_is_whole() {
    fn references(value: &Value, found: &mut Vec<String>) {
        if let Some(fields) = value.as_object() {
            found.extend(fields.get("$ref").and_then(Value::as_str).map(str::to_owned));
            fields.values().for_each(|value| references(value, found));
        }
        value.as_array().into_iter().flatten().for_each(|value| references(value, found));
    }
    let document = document().await;
    let mut found = Vec::new();
    references(&document, &mut found);
    assert!(found.len() > 20);
    for reference in found {
        let place = reference.strip_prefix('#').unwrap();
        assert!(document.pointer(place).is_some(), "{reference}");
    }
    for (path, _, parameters) in super::parameters::documented() {
        let fields = &document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
            ["schema"]["properties"];
        for (name, _, supported) in parameters {
            assert!(!supported || fields.get(name).is_some(), "{path}: {name}");
        }
    }
}

fn reference(document: &Value) -> String {
    let mut text = String::from(
        "# API\n\nMade from `/openapi.json`, which is made from the code. Fields that are not listed are \
         refused with a 400 that\nnames them, and so are names that an object has twice; null is as good as absent. Errors \
         have OpenAI's shape:\nsee [Failure](#failure).\n\nA body has 8 MiB, 65,536 objects and lists, and 1,048,576 values at most; a grammar 256 KiB, 1,024 levels\n\
         (of JSON, references, rules and groups together), 8 KiB of regular expressions, no `&` or `~` between expressions,\n\
         1,999 choices, 65,536 names of objects (as often as `allOf`, `$ref`s beside other keywords and alternatives have them\n\
         merged), and 10 seconds to compile. A choice whose grammar cannot be followed any further has the `finish_reason`\n\
         `error` and an `error`; where no choice stands, that is the whole answer's.\n",
    );
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let summary = operation["summary"].as_str().unwrap();
            let _ = write!(text, "\n## {} {path}\n\n{summary}.", method.to_uppercase());
            let answers = operation["responses"]["200"]["content"].as_object().unwrap();
            for (kind, content) in answers {
                let schema = &content["schema"];
                let _ = match schema["$ref"].is_string() {
                    true => write!(text, " Answers {}.", kind_of(schema)),
                    false => write!(text, " Answers `{kind}`."),
                };
            }
            text.push('\n');
            let body = &operation["requestBody"]["content"]["application/json"]["schema"];
            fields(&mut text, body);
        }
    }
    text += "\n# Types\n";
    let types = document["components"]["schemas"].as_object().unwrap();
    let mut names: Vec<&String> = types.keys().collect();
    names.sort();
    for name in names {
        let schema = &types[name];
        let _ = write!(text, "\n## {name}\n\n{}\n", description(schema));
        fields(&mut text, schema);
        for option in ["oneOf", "anyOf"].iter().filter_map(|key| schema[key].as_array()).flatten() {
            let _ = write!(text, "\n- {}", kind_of(option));
            if option.get("description").is_some() {
                let _ = write!(text, ": {}", description(option));
            }
            if option.get("properties").is_some() {
                text.push('\n');
                fields(&mut text, option);
            }
        }
        if text.ends_with(['.', ')', '`']) {
            text.push('\n');
        }
    }
    text
}

fn description(schema: &Value) -> String {
    schema["description"].as_str().unwrap_or_default().replace('\n', " ")
}

fn fields(text: &mut String, schema: &Value) {
    let Some(properties) = schema["properties"].as_object() else { return };
    let required: Vec<&str> =
        schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    *text += "\n| Field | Type | |\n|---|---|---|\n";
    for (name, field) in properties {
        let must = if required.contains(&&**name) { " (required)" } else { "" };
        let kind = kind_of(field).replace('|', "\\|");
        let _ = writeln!(text, "| `{name}`{must} | {kind} | {} |", description(field));
    }
}

fn kind_of(schema: &Value) -> String {
    if let Some(name) = schema["$ref"].as_str() {
        let name = name.rsplit('/').next().unwrap();
        return format!("[{name}](#{})", name.to_lowercase());
    }
    if let Some(value) = schema.get("const") {
        return format!("`{value}`");
    }
    if let Some(values) = schema["enum"].as_array() {
        let values: Vec<String> = values.iter().map(|value| format!("`{value}`")).collect();
        return values.join(" or ");
    }
    let any = ["anyOf", "oneOf"].iter().find_map(|key| schema[key].as_array());
    if let Some(options) = any {
        let known = options.iter().filter(|option| option["type"] != "null");
        return known.map(kind_of).collect::<Vec<_>>().join(" or ");
    }
    let mut kinds: Vec<&str> = match &schema["type"] {
        Value::String(kind) => vec![kind],
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        _ if schema.get("not").is_some() => return "nothing".to_owned(),
        _ => return "any".to_owned(),
    };
    kinds.retain(|kind| *kind != "null" || kinds_len(schema) == 1);
    let kind = kinds.join(" or ");
    match schema.get("items") {
        Some(items) => format!("list of {}", kind_of(items)),
        None => kind,
    }
}

fn kinds_len(schema: &Value) -> usize {
    schema["type"].as_array().map_or(1, Vec::len)
}
