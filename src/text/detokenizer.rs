//! Text of a growing token sequence, piece by piece.

use std::sync::Arc;

use tokenizers::Tokenizer;

/// Turns tokens into text as they come; holds back bytes that do not make a character yet.
///
/// Each piece is the difference between two decodings of a short window, so that context-dependent
/// decoders (leading spaces, multi-byte characters) come out right at a cost linear in the text.
#[derive(Debug, Clone)]
pub(super) struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    window: Vec<u32>,
    /// Tokens of the window whose text has been handed out.
    emitted: usize,
    /// Special tokens that are text nevertheless.
    marks: Vec<Mark>,
}

/// A special token and its text.
pub type Mark = (u32, &'static str);

impl Detokenizer {
    /// A detokenizer at the start of a text.
    pub(super) fn new(tokenizer: Arc<Tokenizer>) -> Self {
        Self { tokenizer, window: Vec::new(), emitted: 0, marks: Vec::new() }
    }

    /// The same with special tokens that are text nevertheless.
    pub(super) fn showing(self, marks: &[Mark]) -> Self {
        Self { marks: marks.to_vec(), ..self }
    }

    fn decode(&self, ids: &[u32]) -> String {
        self.tokenizer.decode(ids, true).unwrap_or_default()
    }

    /// The text that `token` completes; empty while a character is incomplete.
    pub(super) fn push(&mut self, token: u32) -> String {
        if let Some((_, text)) = self.marks.iter().find(|(id, _)| *id == token).copied() {
            let before = self.finish();
            self.window.clear();
            self.emitted = 0;
            return before + text;
        }
        self.window.push(token);
        let all = self.decode(&self.window);
        if all.ends_with('\u{fffd}') && self.window.len() - self.emitted < 8 {
            return String::new();
        }
        let known = self.decode(&self.window[..self.emitted]);
        let piece = all.strip_prefix(&known).unwrap_or_default().to_owned();
        if self.emitted > 0 {
            self.window.drain(..self.emitted);
        }
        self.emitted = self.window.len();
        piece
    }

    /// What is left at the end of the text: bytes that never became a character.
    pub(super) fn finish(&mut self) -> String {
        let all = self.decode(&self.window);
        let known = self.decode(&self.window[..self.emitted]);
        self.emitted = self.window.len();
        all.strip_prefix(&known).unwrap_or_default().to_owned()
    }
}
