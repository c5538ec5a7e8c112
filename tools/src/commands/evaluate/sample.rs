//! Answers that show which of their tokens were drafted.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::shared::chat::Chat;
use pleach::prompts::Prompt;

/// An answer, cut where accepted draft tokens begin and end.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Sample {
    pub(crate) category: String,
    pub(crate) prompt: String,
    /// Pieces in order.
    pub(crate) answer: Vec<Piece>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Piece {
    pub(crate) text: String,
    /// Whether the draft proposed it, or the target wrote it.
    pub(crate) drafted: bool,
}

impl Sample {
    pub(super) fn new(
        chat: &Chat,
        prompt: &Prompt,
        tokens: &[u32],
        drafted: &[bool],
    ) -> Result<Self> {
        let (mut answer, mut end, mut shown) = (Vec::new(), 0, 0);
        for run in drafted.chunk_by(|a, b| a == b) {
            end += run.len();
            let text = chat.decode(&tokens[..end])?;
            // A character that is not complete yet belongs to the next piece.
            let text = text.trim_end_matches('\u{FFFD}');
            let piece = text.get(shown..).unwrap_or_default();
            answer.push(Piece { text: piece.to_owned(), drafted: run[0] });
            shown = shown.max(text.len());
        }
        let (category, prompt) = (prompt.category.clone(), prompt.turns[0].clone());
        Ok(Self { category, prompt, answer })
    }
}
