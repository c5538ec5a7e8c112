//! Log-probabilities in the two shapes of the API.

use std::sync::Arc;

use tokenizers::Tokenizer;

use crate::engine::{PromptToken, TokenOut};
use crate::server::serving::Serving;
use crate::server::wire::{Logprobs, PromptLogprob, PromptLogprobs, TokenLogprob, TopLogprob};
use crate::text::{Continuations, Detokenizer};

/// Stands for the logarithm of 0, which JSON cannot say; OpenAI's value.
const IMPOSSIBLE: f32 = -9999.0;

/// What stands for a token.
pub(crate) struct Names<'a> {
    texts: &'a Continuations,
    by_id: bool,
}

impl<'a> Names<'a> {
    /// The tokens' texts, or with `by_id` their ids, as vLLM writes them.
    pub(crate) fn new(serving: &'a Serving, by_id: bool) -> Self {
        Self { texts: &serving.texts, by_id }
    }

    /// The name of a token whose text is `text`.
    fn name(&self, id: u32, text: impl FnOnce() -> String) -> String {
        if self.by_id { format!("token_id:{id}") } else { text() }
    }

    fn of(&self, id: u32) -> String {
        self.name(id, || self.texts.text(&[id]))
    }
}

/// Chat: one entry per token.
pub(crate) fn chat(serving: &Serving, names: &Names<'_>, tokens: &[TokenOut]) -> Logprobs {
    let entry = |id: u32, logprob: f32| {
        let text = names.texts.text(&[id]);
        let bytes = serving.token_bytes(id, &text);
        TopLogprob { logprob: logprob.max(IMPOSSIBLE), bytes, token: names.name(id, || text) }
    };
    let content = tokens.iter().map(|token| TokenLogprob {
        token: entry(token.id, token.logprob.unwrap_or(IMPOSSIBLE)),
        top_logprobs: token.top_logprobs.iter().map(|(id, p)| entry(*id, *p)).collect(),
    });
    Logprobs::Chat { content: content.collect(), refusal: None }
}

/// A prompt, as vLLM gives it: with the token at each place the `alternatives` likeliest.
pub(crate) fn prompt(
    serving: &Serving,
    tokens: &[PromptToken],
    alternatives: usize,
) -> Vec<PromptLogprobs> {
    let entry = |id: u32, logprob: f32, rank: usize| {
        let logprob = logprob.max(IMPOSSIBLE);
        (id, PromptLogprob { logprob, rank, decoded_token: serving.texts.text(&[id]) })
    };
    let place = |token: &PromptToken| {
        let own = entry(token.id, token.logprob?, token.rank?);
        let likeliest = token.top_logprobs.iter().take(alternatives).zip(1..);
        let likeliest = likeliest.map(|((id, logprob), rank)| entry(*id, *logprob, rank));
        Some([own].into_iter().chain(likeliest).collect())
    };
    tokens.iter().map(place).collect()
}

/// Plain completions: parallel lists, of prompt tokens and generated ones. `text` is what the prompt is echoed
/// as, with so many of the likeliest tokens beside each; `offsets` are the places in the text where generated tokens begin.
pub(crate) fn completion(
    tokenizer: &Arc<Tokenizer>,
    names: &Names<'_>,
    text: &str,
    echoed: Option<(&[PromptToken], usize)>,
    generated: &[TokenOut],
    offsets: &[usize],
) -> Logprobs {
    let (prompt, alternatives) = echoed.unwrap_or_default();
    let (mut tokens, mut text_offset) = (vec![], vec![]);
    let texts = prompt_texts(tokenizer, names.texts, text, prompt);
    for (token, (text, offset)) in prompt.iter().zip(texts) {
        tokens.push(names.name(token.id, || text));
        text_offset.push(offset);
    }
    tokens.extend(generated.iter().map(|token| names.of(token.id)));
    text_offset.extend(offsets);
    let prompt = prompt.iter().map(|token| {
        let top = &token.top_logprobs;
        (token.logprob, &top[..alternatives.min(top.len())])
    });
    let generated = generated.iter().map(|token| (token.logprob, &token.top_logprobs[..]));
    let (mut token_logprobs, mut top_logprobs) = (vec![], vec![]);
    for (piece, (logprob, top)) in tokens.iter().zip(prompt.chain(generated)) {
        // The token's own is there even where it is none of the most likely.
        top_logprobs.push(logprob.map(|own| {
            let top = top.iter().map(|(id, p)| (names.of(*id), p.max(IMPOSSIBLE)));
            [(piece.clone(), own.max(IMPOSSIBLE))].into_iter().chain(top).collect()
        }));
        token_logprobs.push(logprob.map(|p| p.max(IMPOSSIBLE)));
    }
    Logprobs::Text { tokens, token_logprobs, top_logprobs, text_offset }
}

/// Texts of a prompt's tokens, and where they begin in `text`. A token that the tokenizer put before the text is
/// no part of it, and the text's own first token begins without a space that only marks a word.
fn prompt_texts(
    tokenizer: &Arc<Tokenizer>,
    texts: &Continuations,
    text: &str,
    prompt: &[PromptToken],
) -> Vec<(String, usize)> {
    if prompt.is_empty() {
        return Vec::new();
    }
    let mut read = Detokenizer::at_start(Arc::clone(tokenizer));
    let special = tokenizer.get_added_tokens_decoder();
    let mut begun = false;
    let mut all = Vec::new();
    for (place, token) in prompt.iter().enumerate() {
        let own = texts.text(&[token.id]);
        let added = place == 0
            && special.get(&token.id).is_some_and(|token| token.special)
            && !text.starts_with(&own);
        let offset = read.position();
        let piece = if added { String::new() } else { read.push(token.id) };
        let first = !added && !begun && !piece.is_empty();
        begun |= !added;
        all.push((if first { piece } else { own }, offset));
    }
    all
}
