//! Log-probabilities in the two shapes of the API.

use tokenizers::Tokenizer;

use super::state::Serving;
use super::wire::{Logprobs, TokenLogprob, TopLogprob};
use crate::engine::{PromptToken, TokenOut};

/// Stands for the logarithm of 0, which JSON cannot say; OpenAI's value.
const IMPOSSIBLE: f32 = -9999.0;

fn text(tokenizer: &Tokenizer, id: u32) -> String {
    tokenizer.decode(&[id], false).unwrap_or_default()
}

/// Chat: one entry per token.
pub(super) fn chat(serving: &Serving, tokens: &[TokenOut]) -> Logprobs {
    let entry = |id: u32, logprob: f32| {
        let token = text(&serving.tokenizer, id);
        let bytes = serving.token_bytes(id, &token);
        TopLogprob { logprob: logprob.max(IMPOSSIBLE), bytes, token }
    };
    let content = tokens.iter().map(|token| TokenLogprob {
        token: entry(token.id, token.logprob.unwrap_or(IMPOSSIBLE)),
        top_logprobs: token.top_logprobs.iter().map(|(id, p)| entry(*id, *p)).collect(),
    });
    Logprobs::Chat { content: content.collect(), refusal: None }
}

/// Plain completions: parallel lists, of prompt tokens and generated ones; `offset` is the length of the
/// text before them.
pub(super) fn completion(
    tokenizer: &Tokenizer,
    prompt: &[PromptToken],
    generated: &[TokenOut],
    mut offset: usize,
) -> Logprobs {
    let prompt = prompt.iter().map(|token| (token.id, token.logprob, &token.top_logprobs));
    let generated = generated.iter().map(|token| (token.id, token.logprob, &token.top_logprobs));
    let (mut tokens, mut token_logprobs, mut top_logprobs, mut text_offset) =
        (vec![], vec![], vec![], vec![]);
    for (id, logprob, top) in prompt.chain(generated) {
        let piece = text(tokenizer, id);
        text_offset.push(offset);
        offset += piece.chars().count();
        // The token's own is there even where it is none of the most likely.
        top_logprobs.push(logprob.map(|own| {
            let top = top.iter().map(|(id, p)| (text(tokenizer, *id), p.max(IMPOSSIBLE)));
            [(piece.clone(), own.max(IMPOSSIBLE))].into_iter().chain(top).collect()
        }));
        tokens.push(piece);
        token_logprobs.push(logprob.map(|p| p.max(IMPOSSIBLE)));
    }
    Logprobs::Text { tokens, token_logprobs, top_logprobs, text_offset }
}
