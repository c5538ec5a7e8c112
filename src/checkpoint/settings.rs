//! The files of a Hugging Face folder that say how its model is used.

/// The tokenizer's settings.
pub(super) const TOKENIZER: &str = "tokenizer_config.json";
/// The chat template.
pub(super) const TEMPLATE: &str = "chat_template.jinja";
/// The chat template of conversations with functions.
pub(super) const TOOL_TEMPLATE: &str = "additional_chat_templates/tool_use.jinja";

/// All of them. They are fetched with a model, and a copy of it keeps them as they are.
pub(super) const SETTINGS: [&str; 7] = [
    "generation_config.json",
    "tokenizer.json",
    TOKENIZER,
    "special_tokens_map.json",
    "added_tokens.json",
    TEMPLATE,
    TOOL_TEMPLATE,
];
