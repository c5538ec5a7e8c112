//! Which tokens are left to draw from: truncations of weighed candidates, each a row and its weight.

use super::SamplingParams;

/// Weights looked at together.
pub(super) const BLOCK: usize = 64;

/// The largest of some weights.
pub(super) fn largest(weights: &[f32]) -> f32 {
    let mut tops = [0f32; 16];
    let (chunks, rest) = weights.as_chunks::<16>();
    for chunk in chunks {
        for (top, weight) in tops.iter_mut().zip(chunk) {
            *top = if *weight > *top { *weight } else { *top };
        }
    }
    tops.iter().chain(rest).fold(0.0, |top, weight| top.max(*weight))
}

/// A weight below which nothing outlives the truncations, so that what weighs less need not be listed: 0 where none is
/// known. `all` is the sum of the weights.
pub(super) fn least_kept(weights: &[f32], all: f64, params: &SamplingParams) -> f32 {
    if let Some(k) = params.top_k.map(|k| k as usize) {
        // Each of k blocks has a weight of at least the k-th largest of their largest.
        let mut tops: Vec<f32> = weights.chunks(BLOCK).map(largest).collect();
        if !(1..=tops.len()).contains(&k) {
            return 0.0;
        }
        return *tops.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1;
    }
    if precede_top_p(params) {
        return 0.0;
    }
    // All that weighs less is together less than what top-p leaves out.
    let cut = (1.0 - f64::from(params.top_p)) * all / weights.len() as f64;
    // The most likely token weighs 1.
    (cut as f32 * 0.99).max(params.min_p)
}

/// Whether other truncations come before that to `top_p`.
fn precede_top_p(params: &SamplingParams) -> bool {
    params.top_n_sigma > 0.0 || params.top_k.is_some() || params.typical_p < 1.0
}

/// Applies the truncations that `params` ask for. The weights are exp((logit − max) / temperature) of `logits`, the
/// largest of them `max`, and their sum `all`, though not all need be candidates, as [`least_kept`] says; `exclude` is
/// [`SamplingParams::excludes_top`] at the token's position.
pub(super) fn truncate(
    candidates: &mut Vec<(u32, f32)>,
    logits: &[f32],
    max: f32,
    all: f64,
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
        let total = if precede_top_p(params) { total(candidates) } else { all };
        keep_top_p(candidates, f64::from(params.top_p) * total);
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

/// Keeps the shortest prefix, in order of weight, that weighs `least`.
fn keep_top_p(candidates: &mut Vec<(u32, f32)>, least: f64) {
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
            if cumulative >= least {
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
