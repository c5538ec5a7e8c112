//! Log-probabilities of the raw logits, for clients that ask for them.

use pleach_kernels::{argmax, sum_exp};

/// Logarithm of the sum of exponentials; NaN where a logit is NaN or positive infinity. Shape `[vocab_size]`.
#[must_use]
pub fn log_sum_exp(logits: &[f32]) -> f32 {
    let max = argmax(logits).map_or(f32::NAN, |top| top.map_or(f32::NEG_INFINITY, |(_, max)| max));
    max + sum_exp(logits, max).ln()
}

/// The `count` most likely tokens with their log-softmax, most likely first, lower ids first among
/// equals. `normaliser` is [`log_sum_exp`] of the same logits.
#[must_use]
pub fn top_logprobs(logits: &[f32], normaliser: f32, count: usize) -> Vec<(u32, f32)> {
    // The worst kept so far stays at the end: one comparison per token rejects nearly all.
    let mut top: Vec<(u32, f32)> = Vec::with_capacity(count + 1);
    for (chunk, logits) in logits.chunks(64).enumerate() {
        let worst = top.last().filter(|_| top.len() == count).map_or(f32::NEG_INFINITY, |t| t.1);
        // A whole chunk at a time: the loop has no branches and takes a few registers.
        if top.len() == count && !logits.iter().fold(false, |any, logit| any | (*logit > worst)) {
            continue;
        }
        for (index, &logit) in logits.iter().enumerate() {
            if top.len() == count && top.last().is_none_or(|&(_, worst)| logit <= worst) {
                continue;
            }
            let place = top.partition_point(|&(_, kept)| kept >= logit);
            top.insert(place, ((chunk * 64 + index) as u32, logit));
            top.truncate(count);
        }
    }
    top.iter().map(|&(id, logit)| (id, logit - normaliser)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_softmax_of_the_largest() {
        let logits = [1.0, 3.0, 2.0, 3.0, f32::NEG_INFINITY];
        let normaliser = log_sum_exp(&logits);
        let sum: f32 = logits.iter().map(|&l| (l - normaliser).exp()).sum();
        assert!((sum - 1.0).abs() < 1e-6);
        let top = top_logprobs(&logits, normaliser, 3);
        assert_eq!(top.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 3, 2]);
        assert_eq!(top[0].1, 3.0 - normaliser);
        assert!(top_logprobs(&logits, normaliser, 0).is_empty());
        assert_eq!(top_logprobs(&logits, normaliser, 9).len(), 5);
        assert!(
            [f32::NAN, f32::INFINITY]
                .map(|bad| log_sum_exp(&[1.0, bad]))
                .iter()
                .all(|v| v.is_nan())
        );
        assert_eq!(log_sum_exp(&[]), f32::NEG_INFINITY);
    }
}
