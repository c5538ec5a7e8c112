//! Text of a growing token sequence, piece by piece.

use std::sync::Arc;

use tokenizers::Tokenizer;

/// Tokens of a text that others go on with. A decoder strips the space that a text begins with, but none
/// behind these.
fn anchor(tokenizer: &Tokenizer) -> Vec<u32> {
    let usable = |ids: &[u32]| {
        let byte = |id: &u32| tokenizer.id_to_token(*id).is_none_or(|t| t.starts_with("<0x"));
        let text = tokenizer.decode(ids, true).unwrap_or_default();
        !text.is_empty() && !text.contains('\u{fffd}') && !ids.iter().any(byte)
    };
    let mut encoded = ["a", "0", "."].iter().filter_map(|text| tokenizer.encode(*text, false).ok());
    let found = encoded.find(|encoding| usable(encoding.get_ids()));
    found.map_or_else(Vec::new, |encoding| encoding.get_ids().to_vec())
}

/// Texts of tokens that go on with a text, special ones and all.
pub struct Continuations {
    tokenizer: Arc<Tokenizer>,
    anchor: Vec<u32>,
    known: String,
}

impl Continuations {
    /// Texts by this tokenizer.
    #[must_use]
    pub fn new(tokenizer: Arc<Tokenizer>) -> Self {
        let anchor = anchor(&tokenizer);
        let known = tokenizer.decode(&anchor, false).unwrap_or_default();
        Self { tokenizer, anchor, known }
    }

    /// The text of these tokens, with the spaces they begin with.
    #[must_use]
    pub fn text(&self, ids: &[u32]) -> String {
        let decode = |ids: &[u32]| self.tokenizer.decode(ids, false).unwrap_or_default();
        let all = decode(&[&self.anchor, ids].concat());
        all.strip_prefix(&self.known).map_or_else(|| decode(ids), str::to_owned)
    }
}

/// Turns tokens into text as they come; holds back bytes that do not make a character yet.
///
/// Each piece is the difference between two decodings of a short window, so that context-dependent
/// decoders (leading spaces, multi-byte characters) come out right at a cost linear in the text.
#[derive(Debug, Clone)]
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    window: Vec<u32>,
    /// Tokens at the window's front that stand for what comes before all text.
    anchor: usize,
    /// Tokens of the window whose text has been handed out.
    emitted: usize,
    /// Characters that have been handed out.
    position: usize,
    /// Special tokens that are text nevertheless.
    marks: Vec<Mark>,
    /// Whether special tokens other than `marks` are left out.
    skip_special: bool,
}

/// What a text adds to the one before it. Bytes that were let go as no character may have become one.
fn added<'a>(known: &str, all: &'a str) -> &'a str {
    let whole = known.trim_end_matches('\u{fffd}');
    all.strip_prefix(known).or_else(|| all.strip_prefix(whole)).unwrap_or_default()
}

/// A special token and its text.
pub type Mark = (u32, &'static str);

impl Detokenizer {
    /// A detokenizer of what goes on with a text, an answer with its prompt for instance.
    pub(super) fn new(tokenizer: Arc<Tokenizer>) -> Self {
        let window = anchor(&tokenizer);
        let anchor = window.len();
        let (emitted, position, marks) = (anchor, 0, Vec::new());
        Self { tokenizer, window, anchor, emitted, position, marks, skip_special: true }
    }

    /// A detokenizer at the start of a text, special tokens included.
    #[must_use]
    pub fn at_start(tokenizer: Arc<Tokenizer>) -> Self {
        let (window, marks) = (Vec::new(), Vec::new());
        let (anchor, emitted, position) = (0, 0, 0);
        Self { tokenizer, window, anchor, emitted, position, marks, skip_special: false }
    }

    /// Characters of the text so far, less what is held back.
    #[must_use]
    pub fn position(&self) -> usize {
        self.position
    }

    /// Shows special tokens as text, with these texts.
    pub(super) fn showing(self, marks: &[Mark]) -> Self {
        Self { marks: marks.to_vec(), ..self }
    }

    fn decode(&self, ids: &[u32]) -> String {
        self.tokenizer.decode(ids, self.skip_special).unwrap_or_default()
    }

    /// The text that `token` completes; empty while a character is incomplete.
    pub fn push(&mut self, token: u32) -> String {
        if let Some((_, text)) = self.marks.iter().find(|(id, _)| *id == token).copied() {
            let before = self.finish();
            self.window.truncate(self.anchor);
            self.emitted = self.anchor;
            self.position += text.chars().count();
            return before + text;
        }
        self.window.push(token);
        let all = self.decode(&self.window);
        if all.ends_with('\u{fffd}') && self.window.len() - self.emitted < 8 {
            return String::new();
        }
        let known = self.decode(&self.window[..self.emitted]);
        let piece = added(&known, &all).to_owned();
        self.window.drain(self.anchor..self.emitted);
        self.emitted = self.window.len();
        self.position += piece.chars().count();
        piece
    }

    /// What is left at the end of the text: bytes that never became a character.
    pub(super) fn finish(&mut self) -> String {
        let all = self.decode(&self.window);
        let known = self.decode(&self.window[..self.emitted]);
        self.emitted = self.window.len();
        let piece = added(&known, &all).to_owned();
        self.position += piece.chars().count();
        piece
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Bytes that begin a character and are let go as none, since no character has so many, are not the end of the text.
    #[test]
    fn a_character_is_read_behind_bytes_that_are_none() {
        let level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        let vocab = json!({"x": 0, "Ã": 1, "©": 2, "Ġy": 3});
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": level, "post_processor": null, "decoder": level,
            "model": {"type": "BPE", "vocab": vocab, "merges": []},
        });
        let tokenizer: Arc<Tokenizer> = Arc::new(tokenizer.to_string().parse().unwrap());
        let texts = [Detokenizer::new(Arc::clone(&tokenizer)), Detokenizer::at_start(tokenizer)];
        for mut text in texts {
            let mut read =
                |tokens: &[u32]| tokens.iter().map(|&id| text.push(id)).collect::<String>();
            assert_eq!(read(&[0, 1, 1, 2, 0]), "x\u{fffd}éx");
            let many = read(&[1; 9]);
            assert!(many.chars().count() >= 8 && many.chars().all(|c| c == '\u{fffd}'), "{many}");
            assert_eq!(read(&[2, 3, 0]), "é yx");
            read(&[1; 8]);
            assert_eq!(read(&[0, 3]), "x y");
        }
    }
}
