//! DRY ("don't repeat yourself"): a token that goes on with a repetition loses the more, the longer it is.

use std::collections::HashMap;
use std::sync::Arc;

use super::ParamError;

/// How tokens that go on with a repetition are penalised. Where the last n tokens have come before, within the last
/// `penalty_last_n` ones and without a breaker among them, the token that followed them then loses
/// `multiplier * base^(n - allowed_length)`.
#[derive(Debug, Clone, PartialEq)]
pub struct Dry {
    /// 0 is off.
    pub multiplier: f32,
    /// What each further repeated token multiplies the penalty by.
    pub base: f32,
    /// The shortest repetition that is penalised.
    pub allowed_length: usize,
    /// The last tokens that are looked at, the prompt's among them; `None` for all.
    pub penalty_last_n: Option<usize>,
    /// Tokens, or sequences of them, that no repetition reaches across, in rising order. A single one is never
    /// penalised.
    pub breakers: Arc<[Vec<u32>]>,
}

impl Default for Dry {
    fn default() -> Self {
        let breakers = Arc::default();
        Self { multiplier: 0.0, base: 1.75, allowed_length: 2, penalty_last_n: Some(64), breakers }
    }
}

impl Dry {
    /// Whether it takes anything off.
    #[must_use]
    pub fn penalises(&self) -> bool {
        self.multiplier > 0.0 && self.penalty_last_n != Some(0)
    }

    /// Checks every number against its range.
    ///
    /// # Errors
    /// The first out of range, by name.
    pub fn validate(&self) -> Result<(), ParamError> {
        let fault = |field, reason: &str| Err(ParamError { field, reason: reason.to_owned() });
        // Written so that NaN fails every range.
        if !(0.0..=100.0).contains(&self.multiplier) {
            return fault("dry_multiplier", "must be in [0, 100]");
        }
        if !(1.0..=100.0).contains(&self.base) {
            return fault("dry_base", "must be in [1, 100]");
        }
        Ok(())
    }

    /// Penalised tokens, each with what is taken off its logit behind `tokens`.
    pub(super) fn penalties(&self, tokens: &[u32]) -> HashMap<u32, f32> {
        let window = self.penalty_last_n.unwrap_or(tokens.len()).min(tokens.len());
        let tokens = &tokens[tokens.len() - window..];
        let longest = self.unbroken(tokens);
        if longest < self.allowed_length {
            return HashMap::new();
        }
        let mut lengths: HashMap<u32, usize> = HashMap::new();
        for (back, length) in repetitions(tokens).into_iter().enumerate().skip(1) {
            let length = length.min(longest);
            if length >= self.allowed_length {
                let most = lengths.entry(tokens[tokens.len() - back]).or_default();
                *most = length.max(*most);
            }
        }
        lengths.retain(|&id, _| self.breakers.binary_search_by(|b| (**b).cmp(&[id])).is_err());
        let penalty = |length: usize| {
            let further = (length - self.allowed_length) as f64;
            let penalty = f64::from(self.multiplier) * f64::from(self.base).powf(further);
            // Finite, so that some token is left where all are penalised.
            penalty.min(f64::from(f32::MAX)) as f32
        };
        lengths.into_iter().map(|(id, length)| (id, penalty(length))).collect()
    }

    /// How many tokens follow the last breaker.
    fn unbroken(&self, tokens: &[u32]) -> usize {
        for begin in (0..tokens.len()).rev() {
            let rest = &tokens[begin..];
            let first = self.breakers.partition_point(|breaker| **breaker < rest[..1]);
            let same_head = self.breakers[first..].iter().take_while(|b| b[0] == rest[0]);
            let longest = same_head.filter(|b| rest.starts_with(b)).map(Vec::len).max();
            if let Some(length) = longest {
                return rest.len() - length;
            }
        }
        tokens.len()
    }
}

/// How many tokens before the last `back` ones equal those at the end, for each `back`: the Z-function (Gusfield) of the
/// tokens read backwards, in linear time.
fn repetitions(tokens: &[u32]) -> Vec<usize> {
    let count = tokens.len();
    let at = |back: usize| tokens[count - 1 - back];
    let mut lengths = vec![0; count];
    // The stretch of tokens read so far that is known to equal those at the end.
    let (mut begin, mut end) = (0, 0);
    for back in 1..count {
        let known = if back < end { lengths[back - begin].min(end - back) } else { 0 };
        let more = (known..count - back).take_while(|&i| at(i) == at(back + i)).count();
        lengths[back] = known + more;
        if back + lengths[back] > end {
            (begin, end) = (back, back + lengths[back]);
        }
    }
    lengths
}

#[cfg(test)]
mod tests;
