//! Which draft tokens stand: standard rejection sampling (Leviathan et al., arXiv 2211.17192), or,
//! with coupled draws, comparison with the target's own draw. The tokens it yields are distributed
//! exactly as if each had been drawn from the target.

use super::DraftToken;
use crate::sampling::{Distribution, Draws, Purpose};

/// The token that ends a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinalToken {
    /// Drawn from norm(max(0, target_probs − draft_probs)) in place of a rejected draft token; with
    /// coupled draws, the target's own draw, which the draft token was not.
    Recovered(u32),
    /// Drawn from the target's distribution after the last draft token, all of them accepted.
    Bonus(u32),
}

/// The outcome of a round: the first `accepted` draft tokens, then one more token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Verdict {
    /// **Accepted tokens**: the length of the prefix of draft tokens that stands.
    pub accepted: usize,
    /// The **recovered token** after a rejection, or the **bonus token** after none.
    pub last: FinalToken,
    /// The target's probability of a bonus token, where it is known.
    pub bonus_prob: Option<f32>,
}

impl Verdict {
    fn recovered(accepted: usize, id: u32) -> Self {
        Self { accepted, last: FinalToken::Recovered(id), bonus_prob: None }
    }
}

/// Decides a round. The draft tokens stand at `position` and after; `target_probs(i)` is the
/// target's distribution at `position + i`, given the draft tokens before it. It is asked in order
/// and only as far as needed. Greedy decoding is the special case of one-hot distributions.
///
/// # Errors
/// Whatever `target_probs` fails with.
pub fn rejection_sample<E>(
    draft: &[DraftToken],
    draws: &Draws,
    position: usize,
    mut target_probs: impl FnMut(usize) -> Result<Distribution, E>,
) -> Result<Verdict, E> {
    for (accepted, token) in draft.iter().enumerate() {
        let target = target_probs(accepted)?;
        let position = position + accepted;
        if draws.is_coupled() {
            let id = draws.sample(&target, position);
            if id == token.id {
                continue;
            }
            return Ok(Verdict::recovered(accepted, id));
        }
        let target_prob = f64::from(target.prob(token.id));
        let draft_prob = f64::from(token.draft_probs.prob(token.id));
        // Accept with probability min(1, target_prob / draft_prob).
        if draws.uniform(position, Purpose::Accept) * draft_prob < target_prob {
            continue;
        }
        // Where rounding leaves nothing, the two are the same.
        let left = target.residual(&token.draft_probs);
        let id = draws.sample(left.as_ref().unwrap_or(&token.draft_probs), position);
        return Ok(Verdict::recovered(accepted, id));
    }
    let accepted = draft.len();
    let target = target_probs(accepted)?;
    let id = draws.sample(&target, position + accepted);
    Ok(Verdict { accepted, last: FinalToken::Bonus(id), bonus_prob: Some(target.prob(id)) })
}

#[cfg(test)]
mod tests;
