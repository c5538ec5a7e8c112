//! How a comparison of drafts stands, and what decides it.

/// How one draft fares.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct DraftScore {
    /// Tokens that came and that the draft held likeliest.
    pub accepted_tokens: u64,
    /// Seconds of a draft step over those of a target pass of one row.
    pub step_cost: f64,
    /// Speed-up that this promises at its best draft length, of one token at least.
    pub speedup: f64,
}

/// How a comparison stands.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Comparison {
    /// The new draft's name.
    pub draft: String,
    /// Tokens that both drafts were held against.
    pub tokens: u64,
    /// Tokens that decide it.
    pub wanted: u64,
    /// The draft that serves, where there is one.
    pub current: Option<DraftScore>,
    /// The new draft.
    pub candidate: DraftScore,
    /// How it ended; `None` while it goes on.
    pub outcome: Option<Outcome>,
}

/// How a comparison ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The new draft promises more, and serves.
    Switched,
    /// The new draft promises no more than the old one, or than none.
    Refused,
    /// The new draft failed.
    Failed,
    /// A client asked for its end.
    Stopped,
}

impl Outcome {
    /// All outcomes, in the order of their numbers.
    pub const ALL: [Self; 4] = [Self::Switched, Self::Refused, Self::Failed, Self::Stopped];

    /// Its name in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        ["switched", "refused", "failed", "stopped"][self as usize]
    }
}

impl Comparison {
    /// Whether the new draft is to serve: it must promise more than the old one, or than no draft at all.
    pub(super) fn is_won(&self) -> bool {
        self.candidate.speedup > self.current.map_or(1.0, |current| current.speedup)
    }
}

/// Expected speed-up of rounds with `gamma` draft tokens, each accepted with chance `alpha` given those
/// before it, where a draft step costs `draft` and verification of `gamma + 1` rows `verify` target passes
/// of one row (Leviathan et al., arXiv 2211.17192, with the cost of verification).
#[must_use]
pub fn expected_speedup(alpha: f64, gamma: usize, draft: f64, verify: f64) -> f64 {
    let tokens: f64 = (0..=gamma).map(|place| alpha.powi(place as i32)).sum();
    tokens / (gamma as f64 * draft + verify)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_faster_draft_wins() {
        let score = |speedup| DraftScore { speedup, ..DraftScore::default() };
        let wins = |candidate, current: Option<f64>| {
            let (candidate, current) = (score(candidate), current.map(score));
            Comparison { candidate, current, ..Comparison::default() }.is_won()
        };
        assert!(wins(1.5, Some(1.4)) && wins(0.9, Some(0.8)) && wins(1.1, None));
        assert!(!wins(1.4, Some(1.5)) && !wins(1.4, Some(1.4)) && !wins(0.9, None));
        assert!(!wins(f64::NAN, None));
    }
}
