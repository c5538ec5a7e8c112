//! The chat template of a checkpoint, compiled.

use super::{ChatTemplates, Checkpoint};
use crate::text::{ChatTemplate, TemplateError};

impl Checkpoint {
    /// The model's chat template, with its special tokens; `None` where it has none. One for conversations with
    /// functions that does not compile is left out.
    ///
    /// # Errors
    /// [`TemplateError`] with the place of the fault.
    pub fn compile_template(&self) -> Result<Option<ChatTemplate>, TemplateError> {
        let compile = |source: &String| {
            let template = ChatTemplate::new(source, "", "")?;
            Ok::<_, TemplateError>(template.with_special_tokens(&self.special_tokens))
        };
        let ChatTemplates { default, tool_use } = &self.chat_templates;
        let Some(template) = default.as_ref().map(compile).transpose()? else { return Ok(None) };
        Ok(Some(match tool_use.as_ref().map(compile) {
            Some(Ok(tool_use)) => template.with_tool_use(tool_use),
            Some(Err(error)) => {
                tracing::warn!(%error, "the model's chat template for tools is of no use; the other one is used");
                template
            }
            None => template,
        }))
    }

    /// Lets generation end where `template` ends an assistant's message, too.
    pub fn end_at_turns(&mut self, template: Option<&ChatTemplate>) {
        if let (Some(template), Some(tokenizer)) = (template, &self.tokenizer) {
            self.config.end_at(template.end_of_turn(tokenizer));
        }
    }
}
