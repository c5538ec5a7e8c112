//! Answers that may reason: what asks for it, and their grammars.

use serde_json::{Map, Value, json};

use crate::grammar::GrammarSource;
use crate::server::request::lark::literal;
use crate::server::wire::ReasoningEffort;
use crate::text::{Mark, ThinkTags, Thinking};

/// What chat templates are told of how long the model is to reason.
pub(crate) fn of_effort(effort: ReasoningEffort) -> Map<String, Value> {
    variables(Some(effort != ReasoningEffort::None), Some(effort))
}

/// What chat templates are told of whether the model is to reason, and how long.
pub(crate) fn variables(
    thinks: Option<bool>,
    effort: Option<ReasoningEffort>,
) -> Map<String, Value> {
    let effort = effort.filter(|effort| *effort != ReasoningEffort::None);
    // Qwen3, SmolLM3 and GLM know `enable_thinking`, DeepSeek and Granite `thinking`.
    let variables = [
        ("enable_thinking", thinks.map(Value::from)),
        ("thinking", thinks.map(Value::from)),
        ("reasoning_effort", effort.map(|effort| json!(effort))),
    ];
    let set = variables.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    set.collect()
}

/// The grammar of an answer whose reasoning is free, and whose text behind it has a form. Of the tags, `marks` are special
/// tokens.
pub(crate) fn before(
    form: GrammarSource,
    (tags, thinking): (ThinkTags, Thinking),
    marks: &[Mark],
) -> GrammarSource {
    let close = literal(tags.close, marks);
    let special = marks.iter().any(|(_, mark)| *mark == tags.close);
    let thought = match special {
        true => format!("thought: TEXT {close} | {close}"),
        false => format!("thought[lazy]: TEXT {close}"),
    };
    let reasoned = "thought GAP? @form";
    let start = match thinking {
        Thinking::Begun => reasoned.to_owned(),
        Thinking::Possible => format!("@form | {} {reasoned}", literal(tags.open, marks)),
    };
    let rules = "TEXT: /(.|\\n)*/\nGAP: /[ \\t\\n]{1,8}/";
    let lark = format!("%llguidance {{}}\nstart: {start}\n{thought}\n{rules}\n");
    GrammarSource::Around { lark, form: Box::new(form) }
}
