//! Conversations, to tokens and back.

use std::sync::Arc;

use anyhow::{Result, bail};
use pleach::checkpoint::Checkpoint;
use pleach::text::{ChatTemplate, StoppingText};
use serde_json::{Value, json};
use tokenizers::Tokenizer;

/// Conversations to tokens and back.
pub(crate) struct Chat {
    pub(crate) tokenizer: Arc<Tokenizer>,
    template: Option<ChatTemplate>,
    /// Tokens that end an answer; the first is what the model itself ends its turns with.
    pub(crate) ends: Vec<u32>,
}

impl Chat {
    pub(crate) fn new(checkpoint: &Checkpoint) -> Result<Self> {
        let Some(tokenizer) = checkpoint.tokenizer.clone() else {
            bail!("{}: the model has no tokenizer", checkpoint.path().display());
        };
        let template = checkpoint.compile_template()?;
        let turn = template.as_ref().and_then(|template| template.end_of_turn(&tokenizer));
        let others = checkpoint.config.eos_token_ids.iter().copied();
        let ends = turn.into_iter().chain(others.filter(|id| turn != Some(*id))).collect();
        Ok(Self { tokenizer: Arc::new(tokenizer), template, ends })
    }

    /// The prompt of a conversation: user turns with the answers between them. Models without a chat
    /// template see the turns and answers as plain text.
    pub(crate) fn encode(&self, turns: &[String], answers: &[String]) -> Result<Vec<u32>> {
        let messages = messages(turns, answers);
        let text = match &self.template {
            Some(template) => template.render(&messages, &[])?,
            None => messages.iter().filter_map(|m| m["content"].as_str()).collect::<String>(),
        };
        self.encode_text(&text, self.template.is_none())
    }

    pub(crate) fn encode_text(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let encoding = self.tokenizer.encode(text, special);
        Ok(encoding.map_err(|e| anyhow::anyhow!("tokenizer: {e}"))?.get_ids().to_vec())
    }

    /// An answer that is text already, with the token that ends a turn.
    pub(crate) fn encode_answer(&self, text: &str) -> Result<Vec<u32>> {
        let mut tokens = self.encode_text(text, false)?;
        tokens.extend(self.ends.first());
        Ok(tokens)
    }

    /// An answer's text, up to one of `stops`.
    pub(crate) fn until(&self, stops: &[&str]) -> StoppingText {
        let stops = stops.iter().map(|stop| (*stop).to_owned()).collect();
        StoppingText::new(Arc::clone(&self.tokenizer), stops)
    }

    /// What tokens stand for, special ones and all.
    pub(crate) fn text_of(&self, tokens: &[u32]) -> Result<String> {
        self.tokenizer.decode(tokens, false).map_err(|e| anyhow::anyhow!("tokenizer: {e}"))
    }

    pub(crate) fn decode(&self, tokens: &[u32]) -> Result<String> {
        let text = match tokens {
            [text @ .., last] if self.ends.contains(last) => text,
            _ => tokens,
        };
        self.tokenizer.decode(text, true).map_err(|e| anyhow::anyhow!("tokenizer: {e}"))
    }
}

/// A conversation as the OpenAI API has it: user turns with the answers between them.
pub(crate) fn messages(turns: &[String], answers: &[String]) -> Vec<Value> {
    let mut messages = Vec::new();
    for (index, turn) in turns.iter().enumerate() {
        messages.push(json!({"role": "user", "content": turn}));
        messages.extend(answers.get(index).map(|a| json!({"role": "assistant", "content": a})));
    }
    messages
}
