//! An answer in the making.

use anyhow::Result;
use pleach::engine::TokenOut;
use pleach::prompts::Prompt;
use pleach_train::{Example, Origin};

use super::args::Args;
use super::select;
use super::writer::Answered;
use crate::shared::chat::Chat;

/// An answer in the making.
pub(super) struct OpenConversation {
    /// Place of the prompt in its file.
    pub(super) index: usize,
    pub(super) prompt: Prompt,
    /// Answers to the turns before, as text and as they are written.
    pub(super) answers: Vec<String>,
    pub(super) finished: Vec<Answered>,
    pub(super) temperature: f32,
    pub(super) prompt_tokens: Vec<u32>,
    pub(super) tokens: Vec<u32>,
    pub(super) top: Vec<Vec<(u32, f32)>>,
    /// Whose text it is, where the prompt has a reference.
    pub(super) origin: Option<Origin>,
}

impl OpenConversation {
    pub(super) fn new(index: usize, prompt: Prompt, args: &Args) -> Self {
        Self {
            index,
            prompt,
            answers: Vec::new(),
            finished: Vec::new(),
            temperature: args.temperature[index % args.temperature.len()],
            prompt_tokens: Vec::new(),
            tokens: Vec::new(),
            top: Vec::new(),
            origin: None,
        }
    }

    /// Takes in what the model has generated.
    pub(super) fn said(&mut self, tokens: Vec<TokenOut>) {
        for token in tokens {
            self.tokens.push(token.id);
            self.top.push(token.top_logprobs);
        }
    }

    /// Begins the next answer. Returns the turns that the model is to see, the reference in view where
    /// there is one, and their tokens.
    pub(super) fn begin(&mut self, chat: &Chat) -> Result<(Vec<String>, Vec<u32>)> {
        let turns = &self.prompt.turns[..=self.answers.len()];
        self.prompt_tokens = chat.encode(turns, &self.answers)?;
        match &self.prompt.reference {
            None => Ok((turns.to_vec(), self.prompt_tokens.clone())),
            Some(reference) => {
                let turns = vec![select::with_reference(&turns[0], reference)];
                let tokens = chat.encode(&turns, &[])?;
                Ok((turns, tokens))
            }
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.answers.len() == self.prompt.turns.len()
    }

    /// Keeps an answer that checks out against the reference, or puts the reference in its place.
    /// Returns the text and why it ends.
    pub(super) fn select(
        &mut self,
        chat: &Chat,
        text: String,
        reason: &'static str,
    ) -> Result<(String, &'static str)> {
        let Some(reference) = &self.prompt.reference else { return Ok((text, reason)) };
        if select::checks_out(&text, reference, reason == "stop") {
            self.origin = Some(Origin::Model);
            return Ok((text, reason));
        }
        self.origin = Some(Origin::Reference);
        self.tokens = chat.encode_answer(reference)?;
        Ok((reference.clone(), "stop"))
    }

    /// The answer to a turn is complete.
    pub(super) fn finish(&mut self, text: String, reason: &str) {
        let example = Example {
            id: self.prompt.id.clone(),
            category: self.prompt.category.clone(),
            turns: self.prompt.turns[..=self.answers.len()].to_vec(),
            response: text.clone(),
            prompt_tokens: std::mem::take(&mut self.prompt_tokens),
            response_tokens: std::mem::take(&mut self.tokens),
            finish_reason: reason.to_owned(),
            temperature: self.temperature,
            origin: self.origin,
        };
        self.finished.push(Answered { example, top: std::mem::take(&mut self.top) });
        self.answers.push(text);
    }
}
