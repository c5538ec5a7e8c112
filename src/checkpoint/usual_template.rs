//! Chat templates of families, for files that have none.

use tokenizers::Tokenizer;

use super::architecture::{Family, ModelConfig};

/// The turns that Gemma 2 and 3 are trained on, for files that have their tokens and no template. Instructions of the
/// system stand before the first turn of the user.
const GEMMA: &str = "{{ bos_token }}{% set ns = namespace(system='') %}\
    {% for message in messages %}\
    {% if message.role in ['system', 'developer'] %}\
    {% set ns.system = ns.system ~ message.content ~ '\n\n' %}\
    {% else %}\
    {{ '<start_of_turn>' ~ ('model' if message.role == 'assistant' else 'user') ~ '\n' }}\
    {{ ns.system ~ (message.content | trim) ~ '<end_of_turn>\n' }}{% set ns.system = '' %}\
    {% endif %}{% endfor %}\
    {% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}";

/// The template of a family, where a file has none but has the tokens that it needs.
pub(super) fn of(config: &ModelConfig, tokenizer: Option<&Tokenizer>) -> Option<&'static str> {
    let tokens = ["<start_of_turn>", "<end_of_turn>"];
    let has = |tokenizer: &Tokenizer| tokens.iter().all(|t| tokenizer.token_to_id(t).is_some());
    let gemma = matches!(config.family, Family::Gemma2 | Family::Gemma3);
    (gemma && tokenizer.is_some_and(has)).then_some(GEMMA)
}
