//! Tokens that may not come, whatever their logits.

use std::sync::Arc;

/// Which tokens may not come next. What would leave no token is not applied: where a grammar can only end, it ends.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Restrictions {
    /// The tokens that may come; `None` for all.
    pub allowed: Option<Arc<[u32]>>,
    /// Generated tokens before which none of `ends` comes.
    pub min_tokens: usize,
    /// The tokens that end the sequence, which the engine knows.
    pub ends: Arc<[u32]>,
    /// Sequences of which the last token does not come behind the others, all of them generated.
    pub bad_words: Arc<[Vec<u32>]>,
}

impl Restrictions {
    /// Whether there are any.
    #[must_use]
    pub fn any(&self) -> bool {
        self.allowed.is_some() || self.uses_history()
    }

    /// Whether any looks at the tokens so far.
    pub(super) fn uses_history(&self) -> bool {
        self.min_tokens > 0 || !self.bad_words.is_empty()
    }

    /// Takes the tokens that may not follow the `generated` ones out of logits, whose rows `row_of` knows.
    pub(super) fn apply(
        &self,
        logits: &mut [f32],
        row_of: impl Fn(u32) -> Option<usize>,
        generated: &[u32],
    ) {
        let rows = |ids: &[u32]| ids.iter().filter_map(|&id| row_of(id)).collect::<Vec<_>>();
        if let Some(allowed) = &self.allowed {
            let kept: Vec<(usize, f32)> =
                rows(allowed).into_iter().map(|row| (row, logits[row])).collect();
            if kept.iter().any(|(_, logit)| *logit > f32::NEG_INFINITY) {
                logits.fill(f32::NEG_INFINITY);
                kept.into_iter().for_each(|(row, logit)| logits[row] = logit);
            }
        }
        if generated.len() < self.min_tokens {
            bar(logits, &rows(&self.ends));
        }
        let completed = self.bad_words.iter().filter_map(|word| {
            let (last, before) = word.split_last()?;
            generated.ends_with(before).then_some(*last)
        });
        bar(logits, &rows(&completed.collect::<Vec<_>>()));
    }
}

/// Takes rows out, unless none were left.
fn bar(logits: &mut [f32], rows: &[usize]) {
    let before: Vec<f32> = rows.iter().map(|&row| logits[row]).collect();
    rows.iter().for_each(|&row| logits[row] = f32::NEG_INFINITY);
    if !rows.is_empty() && !logits.iter().any(|logit| *logit > f32::NEG_INFINITY) {
        rows.iter().zip(before).for_each(|(&row, logit)| logits[row] = logit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUT: f32 = f32::NEG_INFINITY;

    fn applied(restrictions: &Restrictions, generated: &[u32], logits: [f32; 5]) -> [f32; 5] {
        let mut logits = logits;
        restrictions.apply(&mut logits, |id| Some(id as usize).filter(|&row| row < 5), generated);
        logits
    }

    #[test]
    fn ends_wait_for_the_least_number_of_tokens() {
        let restrictions =
            Restrictions { min_tokens: 2, ends: [0, 3].into(), ..Default::default() };
        let logits = [1.0, 2.0, 3.0, 4.0, 5.0];
        assert_eq!(applied(&restrictions, &[], logits), [OUT, 2.0, 3.0, OUT, 5.0]);
        assert_eq!(applied(&restrictions, &[4], logits), [OUT, 2.0, 3.0, OUT, 5.0]);
        assert_eq!(applied(&restrictions, &[4, 4], logits), logits);
        // A grammar that can only end ends.
        let ending = [1.0, OUT, OUT, OUT, OUT];
        assert_eq!(applied(&restrictions, &[], ending), ending);
    }

    #[test]
    fn no_other_tokens_than_those_allowed_come() {
        let restrictions = Restrictions { allowed: Some([1, 3].into()), ..Default::default() };
        assert_eq!(applied(&restrictions, &[], [1.0; 5]), [OUT, 1.0, OUT, 1.0, OUT]);
        let elsewhere = [1.0, OUT, 1.0, OUT, OUT];
        assert_eq!(applied(&restrictions, &[], elsewhere), elsewhere);
    }

    #[test]
    fn the_last_token_of_a_bad_word_does_not_come() {
        let bad_words = [vec![1], vec![2, 3], vec![2, 2, 4]].into();
        let restrictions = Restrictions { bad_words, ..Default::default() };
        assert_eq!(applied(&restrictions, &[], [1.0; 5]), [1.0, OUT, 1.0, 1.0, 1.0]);
        assert_eq!(applied(&restrictions, &[2], [1.0; 5]), [1.0, OUT, 1.0, OUT, 1.0]);
        assert_eq!(applied(&restrictions, &[0, 2, 2], [1.0; 5]), [1.0, OUT, 1.0, OUT, OUT]);
        assert_eq!(applied(&restrictions, &[2, 0], [1.0; 5]), [1.0, OUT, 1.0, 1.0, 1.0]);
        // Twice the same, and nothing left.
        let twice = Restrictions { bad_words: [vec![1], vec![1]].into(), ..Default::default() };
        let alone = [OUT, 7.0, OUT, OUT, OUT];
        assert_eq!(applied(&twice, &[], alone), alone);
    }
}
