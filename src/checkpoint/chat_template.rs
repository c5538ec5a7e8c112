//! The chat template of a checkpoint, compiled.

use tokenizers::Tokenizer;

use super::Checkpoint;
use super::architecture::{Family, ModelConfig};
use crate::text::{ChatTemplate, TemplateError};

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
pub(super) fn usual(config: &ModelConfig, tokenizer: Option<&Tokenizer>) -> Option<&'static str> {
    let tokens = ["<start_of_turn>", "<end_of_turn>"];
    let has = |tokenizer: &Tokenizer| tokens.iter().all(|t| tokenizer.token_to_id(t).is_some());
    let gemma = matches!(config.family, Family::Gemma2 | Family::Gemma3);
    (gemma && tokenizer.is_some_and(has)).then_some(GEMMA)
}

impl Checkpoint {
    /// The model's chat template, with its special tokens; `None` where it has none.
    ///
    /// # Errors
    /// [`TemplateError`] with the place of the fault.
    pub fn compile_template(&self) -> Result<Option<ChatTemplate>, TemplateError> {
        let compile = |source| {
            let template = ChatTemplate::new(source, "", "")?;
            Ok(template.with_special_tokens(self.special_tokens.clone()))
        };
        self.chat_template.as_deref().map(compile).transpose()
    }

    /// Lets generation end where `template` ends an assistant's message, too.
    pub fn end_at_turns(&mut self, template: Option<&ChatTemplate>) {
        if let (Some(template), Some(tokenizer)) = (template, &self.tokenizer) {
            self.config.end_at(template.end_of_turn(tokenizer));
        }
    }
}
