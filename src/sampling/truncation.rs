//! Which tokens are left to draw from: truncations of weighed candidates, each a row and its weight.

use super::SamplingParams;

/// Applies the truncations that `params` ask for. The weights are exp((logit − max) / temperature) of `logits`, the
/// largest of them `max`; `exclude` is [`SamplingParams::excludes_top`] at the token's position.
pub(super) fn truncate(
    candidates: &mut Vec<(u32, f32)>,
    logits: &[f32],
    max: f32,
    params: &SamplingParams,
    exclude: bool,
) {
    if params.top_n_sigma > 0.0 {
        let least = f64::from(max) - f64::from(params.top_n_sigma) * deviation(logits);
        candidates.retain(|&(row, _)| f64::from(logits[row as usize]) >= least);
    }
    if let Some(k) = params.top_k.map(|k| k as usize).filter(|&k| k < candidates.len()) {
        let likelier = |a: &(u32, f32), b: &(u32, f32)| {
            logits[b.0 as usize].total_cmp(&logits[a.0 as usize]).then(a.0.cmp(&b.0))
        };
        candidates.select_nth_unstable_by(k - 1, likelier);
        candidates.truncate(k);
    }
    if params.typical_p < 1.0 {
        keep_typical(candidates, f64::from(params.typical_p));
    }
    if params.top_p < 1.0 {
        keep_top_p(candidates, f64::from(params.top_p));
    }
    if params.min_p > 0.0 {
        let most = candidates.iter().map(|&(_, weight)| weight).fold(0.0, f32::max);
        candidates.retain(|&(_, weight)| weight >= params.min_p * most);
    }
    if exclude {
        exclude_top(candidates, f64::from(params.xtc_threshold));
    }
}

/// Standard deviation of the logits of tokens that may come.
fn deviation(logits: &[f32]) -> f64 {
    let finite = || logits.iter().filter(|logit| logit.is_finite()).map(|&logit| f64::from(logit));
    let count = finite().count() as f64;
    let mean = finite().sum::<f64>() / count;
    (finite().map(|logit| (logit - mean).powi(2)).sum::<f64>() / count).sqrt()
}

/// Larger values first, lower rows first among equals; no value is NaN.
fn likelier(a: &(u32, f32), b: &(u32, f32)) -> std::cmp::Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

fn total(candidates: &[(u32, f32)]) -> f64 {
    candidates.iter().map(|&(_, weight)| f64::from(weight)).sum()
}

/// Keeps the shortest prefix, in order of weight, that holds the share `top_p` of all weight.
fn keep_top_p(candidates: &mut Vec<(u32, f32)>, top_p: f64) {
    let total = total(candidates);
    let (mut sorted, mut cumulative) = (0, 0.0);
    while sorted < candidates.len() {
        // Sorting a growing head beats sorting the vocabulary: the set is small as a rule.
        let end = (sorted * 8).clamp(64, candidates.len().max(64)).min(candidates.len());
        if end < candidates.len() {
            candidates[sorted..].select_nth_unstable_by(end - sorted - 1, likelier);
        }
        candidates[sorted..end].sort_unstable_by(likelier);
        for index in sorted..end {
            cumulative += f64::from(candidates[index].1);
            if cumulative >= top_p * total {
                candidates.truncate(index + 1);
                return;
            }
        }
        sorted = end;
    }
}

/// Keeps the shortest prefix that holds the share `typical_p` of all weight, of the tokens in order of how far their
/// information, −ln p, is from the distribution's entropy (Meister et al., arXiv 2202.00666).
fn keep_typical(candidates: &mut Vec<(u32, f32)>, typical_p: f64) {
    let total = total(candidates);
    let information = |weight: f32| -(f64::from(weight) / total).ln();
    let terms = candidates.iter().map(|&(_, weight)| f64::from(weight) * information(weight));
    let entropy = terms.sum::<f64>() / total;
    let distance = |&(_, weight): &(u32, f32)| (information(weight) - entropy).abs();
    let mut sorted: Vec<_> = candidates.drain(..).map(|it| (distance(&it), it)).collect();
    sorted.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then_with(|| likelier(&a.1, &b.1)));
    let mut cumulative = 0.0;
    for (_, candidate) in sorted {
        candidates.push(candidate);
        cumulative += f64::from(candidate.1);
        if cumulative >= typical_p * total {
            break;
        }
    }
}

/// Takes out all tokens with at least the probability `threshold` but the least likely of them.
fn exclude_top(candidates: &mut Vec<(u32, f32)>, threshold: f64) {
    let least = threshold * total(candidates);
    let is_top = |&(_, weight): &(u32, f32)| f64::from(weight) >= least;
    let kept = candidates.iter().copied().filter(is_top).max_by(likelier);
    candidates.retain(|candidate| !is_top(candidate) || Some(*candidate) == kept);
}

#[cfg(test)]
mod tests;
