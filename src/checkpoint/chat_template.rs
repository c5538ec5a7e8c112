//! The chat template of a checkpoint, compiled.

use super::Checkpoint;
use crate::text::{ChatTemplate, TemplateError};

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
