//! Questions as tokens.

use anyhow::Result;
use pleach::checkpoint::Checkpoint;

use super::likelihood::Text;
use super::tasks::Question;
use crate::shared::chat::Chat;

/// Questions as tokens.
pub(super) struct Reader<'a> {
    pub(super) chat: &'a Chat,
    /// What stands before a text.
    first: u32,
    /// Tokens the model sees at once, and those of an answer.
    pub(super) max_length: usize,
    pub(super) max_tokens: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(
        chat: &'a Chat,
        checkpoint: &Checkpoint,
        max_length: usize,
        max_tokens: usize,
    ) -> Self {
        let config = &checkpoint.config;
        Self {
            chat,
            first: config.bos_token_id.or(config.eos_token_ids.first().copied()).unwrap_or(0),
            max_length,
            max_tokens,
        }
    }

    /// The texts whose likelihoods grade a question.
    pub(super) fn texts(&self, question: &Question) -> Result<Vec<Text>> {
        let pair =
            |context: &str, rest: &str| Text::pair(self.chat, context, rest, self.max_length);
        match question {
            Question::Choices { pairs, .. } => {
                pairs.iter().map(|(context, rest)| pair(context, rest)).collect()
            }
            Question::LastWord { context, continuation } => Ok(vec![pair(context, continuation)?]),
            Question::Text(text) => Text::pieces(self.chat, text, self.first, self.max_length),
            Question::Number { .. } => unreachable!("invariant: answered, not scored"),
        }
    }

    /// A prompt, less as much of its start as an answer needs.
    pub(super) fn prompt(&self, prompt: &str) -> Result<Vec<u32>> {
        let mut tokens = self.chat.encode_text(prompt, true)?;
        let most = self.max_length.saturating_sub(self.max_tokens);
        tokens.drain(..tokens.len().saturating_sub(most));
        Ok(tokens)
    }
}
