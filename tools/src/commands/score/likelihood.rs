//! How likely a model finds a text after another: many at a time in one ragged batch.

use anyhow::{Result, ensure};
use pleach::kv_cache::{BLOCK_SIZE, BlockPool, BlockTable, blocks_for};
use pleach::model::Rows;
use rayon::prelude::*;

use super::scored::Scored;
use crate::shared::chat::Chat;

/// A text to score, in tokens.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Text {
    pub(super) tokens: Vec<u32>,
    /// Tokens before those that are scored; at least one.
    pub(super) context: usize,
}

/// What the model makes of a text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Score {
    /// Natural logarithm of the probability.
    pub(crate) log_likelihood: f64,
    /// Whether every token is the likeliest one.
    pub(crate) greedy: bool,
}

impl Text {
    /// A continuation after its context. White space between the two belongs to the continuation, and the
    /// border is where the context's own tokens end. What is longer than `max_length` tokens loses its
    /// start.
    pub(crate) fn pair(
        chat: &Chat,
        context: &str,
        continuation: &str,
        max_length: usize,
    ) -> Result<Self> {
        let before = chat.encode_text(context.trim_end(), true)?;
        let mut tokens = chat.encode_text(&format!("{context}{continuation}"), true)?;
        let border = before.len().min(tokens.len());
        tokens[..border].copy_from_slice(&before[..border]);
        ensure!(border > 0, "the context has no token");
        ensure!(border < tokens.len(), "the continuation has no token of its own");
        // The last token is only predicted, never seen.
        let cut = tokens.len().saturating_sub(max_length + 1);
        ensure!(cut < border, "the continuation has more than {max_length} tokens");
        Ok(Self { tokens: tokens.split_off(cut), context: border - cut })
    }

    /// A whole text in pieces of at most `max_length` tokens, each of which is scored once; `first` stands
    /// before the first. The last piece sees as much of the text before it as fits.
    pub(crate) fn pieces(
        chat: &Chat,
        text: &str,
        first: u32,
        max_length: usize,
    ) -> Result<Vec<Self>> {
        let mut tokens = vec![first];
        tokens.extend(chat.encode_text(text, false)?);
        let starts = (1..tokens.len()).step_by(max_length);
        Ok(starts
            .map(|start| {
                let end = (start + max_length).min(tokens.len());
                let from = if start == 1 { 0 } else { end - max_length - 1 };
                Self { tokens: tokens[from..end].to_vec(), context: start - from }
            })
            .collect())
    }

    /// Tokens the model sees.
    fn inputs(&self) -> &[u32] {
        &self.tokens[..self.tokens.len() - 1]
    }

    fn scored(&self) -> &[u32] {
        &self.tokens[self.context..]
    }
}

/// Whole blocks of tokens at the start that all texts have in common, besides the tokens whose logits are
/// wanted.
fn shared_blocks(texts: &[Text]) -> usize {
    let Some((first, others)) = texts.split_first().filter(|(_, others)| !others.is_empty()) else {
        return 0;
    };
    let common =
        |other: &Text| first.tokens.iter().zip(&other.tokens).take_while(|(a, b)| a == b).count();
    let contexts = texts.iter().map(|text| text.context - 1);
    let shared = others.iter().map(common).chain(contexts).min().unwrap_or(0);
    shared / BLOCK_SIZE
}

/// Rows that a group of texts takes.
pub(crate) fn num_rows(texts: &[Text]) -> usize {
    let shared = shared_blocks(texts) * BLOCK_SIZE;
    shared + texts.iter().map(|text| text.inputs().len() - shared).sum::<usize>()
}

/// Scores groups of texts in one pass; what the texts of a group have in common at their start is computed
/// once.
pub(super) fn score(model: &mut Scored, groups: &[Vec<Text>]) -> Result<Vec<Vec<Score>>> {
    let blocks = |group: &Vec<Text>| -> usize {
        let shared = shared_blocks(group);
        shared + group.iter().map(|text| blocks_for(text.inputs().len()) - shared).sum::<usize>()
    };
    let total = groups.iter().map(blocks).sum();
    let mut pool = BlockPool::new(total);
    let mut room = |len: usize| {
        let mut table = BlockTable::new();
        assert!(table.reserve(len, &mut pool), "invariant: counted above");
        table
    };
    let mut rows = Rows::default();
    for group in groups {
        let shared = shared_blocks(group) * BLOCK_SIZE;
        let start = room(shared);
        if shared > 0 {
            rows.push(&start, 0, group[0].tokens[..shared].iter().copied(), 0);
        }
        for text in group {
            let own = &text.inputs()[shared..];
            let table = start.followed_by(&room(own.len()));
            rows.push(&table, shared, own.iter().copied(), text.scored().len());
        }
    }
    let width = model.head_rows();
    let logits = model.forward(&rows, total)?;
    let tokens: Vec<u32> = groups.iter().flatten().flat_map(Text::scored).copied().collect();
    let scores: Vec<Score> = logits.par_chunks(width).zip(&tokens).map(score_token).collect();
    let mut scores = scores.into_iter();
    let mut sum = |text: &Text| {
        let nothing = Score { log_likelihood: 0.0, greedy: true };
        scores.by_ref().take(text.scored().len()).fold(nothing, |sum, token| Score {
            log_likelihood: sum.log_likelihood + token.log_likelihood,
            greedy: sum.greedy && token.greedy,
        })
    };
    Ok(groups.iter().map(|group| group.iter().map(&mut sum).collect()).collect())
}

fn score_token((logits, token): (&[f32], &u32)) -> Score {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from((logit - highest).exp())).sum();
    let own = logits[*token as usize];
    Score { log_likelihood: f64::from(own - highest) - sum.ln(), greedy: own >= highest }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use pleach::checkpoint::Checkpoint;
    use pleach::model::Decoder;
    use pleach_kernels::ThreadPool;

    use super::*;

    fn text(tokens: std::ops::Range<u32>, context: usize) -> Text {
        Text { tokens: tokens.collect(), context }
    }

    #[test]
    fn blocks_are_shared_up_to_the_first_wanted_logits() {
        assert_eq!(shared_blocks(&[text(0..40, 33)]), 0, "one alone shares nothing");
        assert_eq!(shared_blocks(&[text(0..40, 33), text(0..50, 34)]), 2);
        assert_eq!(shared_blocks(&[text(0..40, 32), text(0..50, 34)]), 1);
        assert_eq!(shared_blocks(&[text(0..40, 33), text(1..41, 33)]), 0);
        assert_eq!(num_rows(&[text(0..40, 33), text(0..50, 34)]), 32 + 7 + 17);
    }

    /// Texts are as likely together as alone, to the bit, and the likelihoods of all next tokens sum to 1.
    #[test]
    fn sharing_changes_nothing() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/goldens/llama-tied");
        let mut checkpoint = Checkpoint::open(Path::new(folder)).unwrap();
        let decoder = Decoder::load(&mut checkpoint, &Arc::new(ThreadPool::new(2))).unwrap();
        let mut random = fastrand::Rng::new();
        let vocab = decoder.head_rows() as u32;
        let mut model = Scored::on_cpu(decoder);
        let mut tokens = |n: usize| (0..n).map(|_| random.u32(..vocab)).collect::<Vec<u32>>();
        let prefix = tokens(37);
        let text = |rest: Vec<u32>| Text { tokens: [prefix.clone(), rest].concat(), context: 37 };
        let mut groups: Vec<Vec<Text>> = vec![
            [1, 5, 19].into_iter().map(|n| text(tokens(n))).collect(),
            vec![Text { tokens: tokens(20), context: 1 }],
            (0..vocab).map(|token| text(vec![token])).collect(),
        ];
        groups[0][1].context = 36;
        assert_eq!(shared_blocks(&groups[0]), 2);
        let together = score(&mut model, &groups).unwrap();
        for (group, scores) in groups.iter().zip(&together) {
            for (text, expected) in group.iter().zip(scores) {
                let alone = score(&mut model, &[vec![text.clone()]]).unwrap();
                assert_eq!(alone[0], [*expected]);
            }
        }
        let sum: f64 = together[2].iter().map(|score| score.log_likelihood.exp()).sum();
        assert!((sum - 1.0).abs() < 1e-4, "{sum}");
        assert_eq!(together[2].iter().filter(|score| score.greedy).count(), 1);
    }

    #[test]
    fn logits_become_log_probabilities() {
        let logits = [1.0f32.ln() - 3.0, 2.0f32.ln() - 3.0, 5.0f32.ln() - 3.0];
        let score = score_token((&logits, &1));
        assert!((score.log_likelihood - 0.25f64.ln()).abs() < 1e-6 && !score.greedy);
        assert!(score_token((&logits, &2)).greedy);
    }
}
