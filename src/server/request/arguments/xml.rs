//! The grammar of elements `<parameter=NAME>`.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::schemas::Schemas;
use crate::grammar::Part;
use crate::text::tool_calls::{Kind, Parameter, text_schema};

/// The rule `rule` for parameters, and those that it refers to.
pub(super) fn rules(rule: &str, parameters: &[Parameter], schemas: &Schemas<'_>) -> Vec<Part> {
    let mut all = format!("{rule}:{}", if parameters.is_empty() { " \"\"" } else { "" });
    let mut parts = Vec::new();
    for (place, Parameter { name, schema, required }) in parameters.iter().enumerate() {
        let _ = write!(all, " {rule}_{place}{}", if *required { "" } else { "?" });
        let opening = json!(format!("<parameter={name}>\n"));
        parts.push(Part::Lark(format!("{rule}_{place}: {opening} {rule}_{place}_v\n")));
        let rule = format!("{rule}_{place}_v");
        match text_schema(schema, schemas.whole) {
            Some((text, kind)) => parts.push(Part::Lark(bare(&rule, &text, kind))),
            None => {
                parts.push(Part::Lark(format!("{rule}: ")));
                parts.push(schemas.json(schema));
                parts.push(Part::Lark("\"\\n</parameter>\\n\"\n".into()));
            }
        }
    }
    parts.push(Part::Lark(all + "\n"));
    parts
}

/// The rule for a text without quotes, up to what ends it.
fn bare(rule: &str, schema: &Value, kind: Kind) -> String {
    let constant = schema.get("const").map(std::slice::from_ref);
    if let Some(choices) = schema["enum"].as_array().map(|all| &all[..]).or(constant) {
        let choices = choices.iter().filter_map(Value::as_str);
        let choices: Vec<_> =
            choices.map(|text| json!(format!("{text}\n</parameter>\n")).to_string()).collect();
        return format!("{rule}: {}\n", choices.join(" | "));
    }
    // What ends the text cannot stand where the text must go on, if no line ends there.
    let least = schema["minLength"].as_u64().unwrap_or(0);
    let most = schema["maxLength"].as_u64();
    let more = most.map_or("*".to_owned(), |most| format!("{{0,{}}}", most - least));
    let begin = if least > 0 { format!("[^\\n]{{{least}}}") } else { String::new() };
    let text = format!("{begin}(.|\\n){more}");
    let text = if kind == Kind::OptionalText { format!("(null|{text})") } else { text };
    format!("{rule}: {rule}_t \"\\n\"\n{rule}_t[lazy]: /{text}\\n<\\/parameter>/\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text ends where the parser of the answer has it end, whatever follows.
    #[test]
    fn a_bare_text_ends_with_its_element() {
        let rule =
            bare("r", &json!({"type": "string", "minLength": 1, "maxLength": 3}), Kind::Text);
        let expected = "r: r_t \"\\n\"\nr_t[lazy]: /[^\\n]{1}(.|\\n){0,2}\\n<\\/parameter>/\n";
        assert_eq!(rule, expected);
    }
}
