//! How many draft tokens a sequence should ask for.

use super::StepCost;

/// Weight of a new observation in the acceptance estimate: a memory of about 20 draft tokens.
const NEW: f64 = 0.05;
/// Estimate before the first observation: high enough that drafting is tried.
const FIRST_ALPHA: f64 = 0.7;
/// Rounds without drafting after which one draft token is tried again.
const PROBE_EVERY: u32 = 64;

/// Follows α, the chance that a draft token is accepted given that all before it were, and picks
/// the draft length with the most tokens per second.
#[derive(Debug, Clone, PartialEq)]
pub struct DraftLength {
    alpha: f64,
    idle_rounds: u32,
}

impl Default for DraftLength {
    fn default() -> Self {
        Self { alpha: FIRST_ALPHA, idle_rounds: 0 }
    }
}

impl DraftLength {
    /// The current estimate of α.
    #[must_use]
    pub fn alpha(&self) -> f64 {
        self.alpha
    }

    /// Learns from a round: of `drafted` tokens the first `accepted` stood.
    pub fn observe(&mut self, drafted: usize, accepted: usize) {
        if drafted == 0 {
            self.idle_rounds += 1;
            return;
        }
        self.idle_rounds = 0;
        (0..accepted).for_each(|_| self.alpha += NEW * (1.0 - self.alpha));
        if accepted < drafted {
            self.alpha -= NEW * self.alpha;
        }
    }

    /// The draft length in `0..=bound` that yields the most tokens per second when `batch`
    /// sequences like this one run together. Without measured costs that is `bound`.
    #[must_use]
    pub fn choose(&self, bound: usize, batch: usize, target: &StepCost, draft: &StepCost) -> usize {
        let batch = batch.max(1);
        let (Some(draft_step), Some(_)) = (draft.seconds(batch), target.seconds(batch)) else {
            return bound;
        };
        let (mut best, mut best_rate) = (0, 0.0);
        let (mut tokens, mut chance) = (0.0, 1.0);
        for length in 0..=bound {
            tokens += chance; // (1 − α^(length + 1)) / (1 − α)
            chance *= self.alpha;
            let verify = target.seconds(batch * (length + 1)).unwrap_or(f64::INFINITY);
            let rate = tokens / (length as f64 * draft_step + verify);
            if rate > best_rate {
                (best, best_rate) = (length, rate);
            }
        }
        if best == 0 && self.idle_rounds >= PROBE_EVERY { bound.min(1) } else { best }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A target step of 1 second (with `verify` seconds for each further row) and a draft step of
    /// `draft_step` seconds.
    fn costs(verify: f64, draft_step: f64) -> (StepCost, StepCost) {
        let (mut target, mut draft) = (StepCost::default(), StepCost::default());
        for rows in (1..9).cycle().take(64) {
            target.observe(rows, 1.0 + verify * (rows - 1) as f64);
            draft.observe(rows, draft_step);
        }
        (target, draft)
    }

    fn with_alpha(alpha: f64) -> DraftLength {
        DraftLength { alpha, ..Default::default() }
    }

    #[test]
    fn length_follows_acceptance() {
        let (target, draft) = costs(0.02, 0.2);
        let at = |alpha| with_alpha(alpha).choose(8, 1, &target, &draft);
        let lengths: Vec<usize> = [0.05, 0.4, 0.7, 0.98].map(at).into();
        assert!(lengths.is_sorted(), "{lengths:?}");
        assert_eq!((lengths[0], lengths[3]), (0, 8));
        assert!((1..=4).contains(&lengths[2]), "{lengths:?}");
    }

    #[test]
    fn drafting_stops_where_it_does_not_pay() {
        // Every row costs a full step: speculation can only lose.
        let (target, draft) = costs(1.0, 0.1);
        assert_eq!(with_alpha(0.9).choose(8, 1, &target, &draft), 0);
        // A loaded machine: verification rows cost, so fewer of them.
        let (target, draft) = costs(0.1, 0.1);
        let one = with_alpha(0.8).choose(8, 1, &target, &draft);
        let many = with_alpha(0.8).choose(8, 32, &target, &draft);
        assert!(many < one, "{many} against {one}");
    }

    #[test]
    fn drafting_is_tried_again_now_and_then() {
        let (target, draft) = costs(0.02, 0.3);
        let mut length = with_alpha(0.01);
        assert_eq!(length.choose(4, 1, &target, &draft), 0);
        (0..PROBE_EVERY).for_each(|_| length.observe(0, 0));
        assert_eq!(length.choose(4, 1, &target, &draft), 1);
        assert_eq!(length.choose(0, 1, &target, &draft), 0, "never above the bound");
        (0..60).for_each(|_| length.observe(1, 1));
        assert!(length.alpha() > 0.9);
        assert!(length.choose(4, 1, &target, &draft) > 1);
    }

    #[test]
    fn only_what_was_tried_counts() {
        let mut length = with_alpha(0.5);
        length.observe(4, 0);
        assert!((length.alpha() - 0.475).abs() < 1e-12, "one rejection, not four");
        assert_eq!(length.choose(6, 1, &StepCost::default(), &StepCost::default()), 6);
    }
}
