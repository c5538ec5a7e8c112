//! Rounds from the engine's terms into the kernel's, and back.

use crate::model::{Verified, VerifyTask};
use crate::sampling::LogitsError;
use pleach_kernels::cuda::{Draw, VerifiedRow, VerifySequence};

pub(super) fn sequence<'a>(task: &'a VerifyTask<'_>) -> VerifySequence<'a> {
    let (params, draws) = (task.params, task.draws);
    // Where the target's own draw decides, it does not matter what a draft token was drawn from.
    let decides = params.temperature == 0.0 || draws.is_coupled();
    let draft = task.draft.iter().map(|&(id, probs)| {
        let certain = decides || probs.is_certain(id);
        (id, if certain { Vec::new() } else { probs.entries() })
    });
    let mut bias = params.logit_bias.to_vec();
    bias.sort_by_key(|&(id, _)| id);
    bias.dedup_by(|later, first| {
        let same = later.0 == first.0;
        first.1 += if same { later.1 } else { 0.0 };
        same
    });
    VerifySequence {
        first_row: task.first_logit,
        draft: draft.collect(),
        draw: Draw {
            temperature: params.temperature,
            top_p: params.top_p,
            min_p: params.min_p,
            penalties: [
                params.repetition_penalty,
                params.presence_penalty,
                params.frequency_penalty,
            ],
            top_k: params.top_k.map_or(0, u64::from),
            seed: draws.seed(),
            position: task.position as u64,
            coupled: draws.is_coupled(),
        },
        counts: params.uses_history().then(|| task.history.counts().collect()),
        bias,
        masks: task.masks.clone(),
    }
}

/// A round whose outcome does not matter, of the first logits.
pub(super) fn warm_up_round() -> VerifySequence<'static> {
    VerifySequence {
        first_row: 0,
        draft: Vec::new(),
        draw: Draw {
            temperature: 1.0,
            top_p: 1.0,
            min_p: 0.0,
            penalties: [1.0, 0.0, 0.0],
            top_k: 0,
            seed: 0,
            position: 0,
            coupled: false,
        },
        counts: Some(vec![(0, [1, 0])]),
        bias: Vec::new(),
        masks: Vec::new(),
    }
}

/// What a sequence's rows decided.
pub(super) fn outcome(rows: &[VerifiedRow]) -> Result<Verified, LogitsError> {
    let mut logprobs = Vec::new();
    for (accepted, row) in rows.iter().enumerate() {
        match row.status {
            VerifiedRow::OK => logprobs.push(row.log_prob),
            VerifiedRow::NOT_FINITE => return Err(LogitsError::NotFinite { id: row.token }),
            _ => return Err(LogitsError::NothingLeft),
        }
        if row.accepted == 0 {
            return Ok(Verified { accepted, last: row.token, logprobs });
        }
    }
    unreachable!("invariant: a sequence's last row accepts nothing")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_behind_a_rejection_does_not_matter() {
        let row = |status, accepted, token| VerifiedRow {
            status,
            accepted,
            token,
            log_prob: -(token as f32),
            log_sum_exp: 0.0,
        };
        let rows = [row(0, 1, 4), row(0, 0, 5), row(1, 0, 6)];
        let expected = Verified { accepted: 1, last: 5, logprobs: vec![-4.0, -5.0] };
        assert_eq!(outcome(&rows), Ok(expected));
        assert_eq!(outcome(&rows[2..]), Err(LogitsError::NotFinite { id: 6 }));
        assert_eq!(outcome(&[row(2, 0, 0)]), Err(LogitsError::NothingLeft));
    }
}
