//! A distribution over the tokens that truncations left.

/// Probabilities of the tokens that can be drawn, in order of token id. Tokens left out have
/// probability 0; the others sum to 1 up to rounding.
#[derive(Debug, Clone, PartialEq)]
pub struct Listed {
    entries: Vec<(u32, f32)>,
}

impl Listed {
    /// All probability on one token.
    pub(super) fn one_hot(id: u32) -> Self {
        Self { entries: vec![(id, 1.0)] }
    }

    /// Normalises non-negative weights given in strictly rising order of id. `None` if nothing has
    /// weight.
    pub(super) fn from_weights(mut weights: Vec<(u32, f32)>) -> Option<Self> {
        debug_assert!(weights.is_sorted_by(|a, b| a.0 < b.0), "ids rise");
        weights.retain(|&(_, weight)| weight > 0.0);
        let sum: f64 = weights.iter().map(|&(_, weight)| f64::from(weight)).sum();
        if weights.is_empty() || !sum.is_finite() {
            return None;
        }
        for (_, weight) in &mut weights {
            *weight = (f64::from(*weight) / sum) as f32;
        }
        Some(Self { entries: weights })
    }

    /// The tokens with their probabilities, in order of id.
    pub(super) fn entries(&self) -> &[(u32, f32)] {
        &self.entries
    }

    pub(super) fn prob(&self, id: u32) -> f32 {
        match self.entries.binary_search_by_key(&id, |&(entry, _)| entry) {
            Ok(index) => self.entries[index].1,
            Err(_) => 0.0,
        }
    }

    pub(super) fn draw(&self, uniform: f64) -> u32 {
        let mut cumulative = 0.0;
        for &(id, prob) in &self.entries {
            cumulative += f64::from(prob);
            if uniform < cumulative {
                return id;
            }
        }
        // Rounding left the sum a little below `uniform`.
        let likely = self.entries.iter().rev().find(|&&(_, prob)| prob > 0.0);
        likely.expect("invariant: some token has probability").0
    }

    pub(super) fn race(&self, key: u64) -> u32 {
        if let [(only, _)] = self.entries[..] {
            return only;
        }
        let (ids, probs): (Vec<u32>, Vec<f32>) = self.entries.iter().copied().unzip();
        let winner = pleach_kernels::race(&probs, Some(&ids), key);
        ids[winner.expect("invariant: some token has probability")]
    }

    /// What is left of it without `taken` of each token.
    pub(super) fn residual(&self, taken: impl Fn(u32) -> f32) -> Option<Self> {
        let left = |&(id, prob): &(u32, f32)| (id, (prob - taken(id)).max(0.0));
        Self::from_weights(self.entries.iter().map(left).collect())
    }
}
