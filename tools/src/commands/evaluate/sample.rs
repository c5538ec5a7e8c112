//! Answers that show which of their tokens were drafted.

use anyhow::Result;
use pleach::engine::TokenOut;
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
    pub(super) fn new(chat: &Chat, prompt: &Prompt, tokens: &[TokenOut]) -> Result<Self> {
        let drafted = |token: &TokenOut| token.source.proposer().is_some();
        let ids: Vec<u32> = tokens.iter().map(|token| token.id).collect();
        let (mut answer, mut end, mut shown) = (Vec::new(), 0, 0);
        for run in tokens.chunk_by(|a, b| drafted(a) == drafted(b)) {
            end += run.len();
            let text = chat.decode(&ids[..end])?;
            // A character that is not complete yet belongs to the next piece.
            let text = text.trim_end_matches('\u{FFFD}');
            let piece = text.get(shown..).unwrap_or_default();
            answer.push(Piece { text: piece.to_owned(), drafted: drafted(&run[0]) });
            shown = shown.max(text.len());
        }
        let (category, prompt) = (prompt.category.clone(), prompt.turns[0].clone());
        Ok(Self { category, prompt, answer })
    }
}
