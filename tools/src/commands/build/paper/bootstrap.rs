//! How sure a mean is, and how much better one model scores than another on the same records.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::commands::score::{Done, headline};

/// Samples that are drawn.
const RESAMPLES: usize = 10_000;

/// A value that another sample would have changed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Estimate {
    pub(super) value: f64,
    /// Where 95 % of the resampled values lie.
    pub(super) interval: [f64; 2],
}

/// Where 95 % of the values lie that `draw` computes of samples drawn anew (Efron and Tibshirani, 1993).
pub(super) fn interval(mut draw: impl FnMut(&mut fastrand::Rng) -> f64) -> [f64; 2] {
    let mut rng = fastrand::Rng::with_seed(0);
    let mut all: Vec<f64> = (0..RESAMPLES).map(|_| draw(&mut rng)).collect();
    all.sort_unstable_by(f64::total_cmp);
    [0.025, 0.975].map(|share| all[(share * (RESAMPLES - 1) as f64).round() as usize])
}

/// The difference of average scores, means over the tasks of the mean over their records, with the interval of a paired
/// bootstrap over records: those of each task are drawn anew, with replacement, and each stands for the difference of
/// both models' scores on it, which are means over the seeds. What other seeds would give is not in the interval. `None`
/// where no record of `tasks` is in both.
pub(super) fn paired(ours: &[&[Done]], theirs: &[&[Done]], tasks: &[String]) -> Option<Estimate> {
    let (ours, theirs) = (by_record(ours), by_record(theirs));
    let mut differences = BTreeMap::<&str, Vec<f64>>::new();
    for (record, value) in &ours {
        if let Some(other) = theirs.get(record)
            && tasks.contains(&record.0)
        {
            differences.entry(&record.0).or_default().push(value - other);
        }
    }
    let tasks: Vec<Vec<f64>> = differences.into_values().collect();
    if tasks.is_empty() {
        return None;
    }
    let average = |mean: &mut dyn FnMut(&[f64]) -> f64| {
        tasks.iter().map(|records| mean(records)).sum::<f64>() / tasks.len() as f64
    };
    let value = average(&mut |records| records.iter().sum::<f64>() / records.len() as f64);
    let interval = interval(|rng| {
        average(&mut |records| {
            let sum: f64 = records.iter().map(|_| records[rng.usize(..records.len())]).sum();
            sum / records.len() as f64
        })
    });
    Some(Estimate { value, interval })
}

/// Mean and standard deviation of a sample.
pub(super) fn mean_and_deviation(values: &[f64]) -> [f64; 2] {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    [mean, if values.len() > 1 { (squares / (count - 1.0)).sqrt() } else { 0.0 }]
}

/// The headline metric of every record, mean over the seeds.
fn by_record(seeds: &[&[Done]]) -> BTreeMap<(String, usize), f64> {
    let mut all = BTreeMap::<(String, usize), f64>::new();
    for done in seeds.iter().copied().flatten() {
        if let Some(value) = headline(&done.task).and_then(|metric| done.metrics.get(metric)) {
            *all.entry((done.task.clone(), done.question)).or_default() +=
                value / seeds.len() as f64;
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(task: &str, values: impl IntoIterator<Item = f64>) -> Vec<Done> {
        let metric = headline(task).unwrap().to_owned();
        let one = |(question, value)| Done {
            task: task.into(),
            question,
            metrics: BTreeMap::from([(metric.clone(), value)]),
        };
        values.into_iter().enumerate().map(one).collect()
    }

    #[test]
    fn what_is_better_everywhere_has_an_interval_above_zero() {
        let tasks = ["arc_easy".to_owned(), "piqa".to_owned()];
        let both = |easy: f64, piqa: f64| {
            let easy =
                records("arc_easy", (0..200).map(|i| f64::from(f64::from(i % 10) < easy * 10.0)));
            [easy, records("piqa", (0..100).map(|i| f64::from(f64::from(i % 10) < piqa * 10.0)))]
                .concat()
        };
        let (better, worse) = (both(0.7, 0.6), both(0.5, 0.5));
        let found = paired(&[&better], &[&worse], &tasks).unwrap();
        assert!((found.value - 0.15).abs() < 1e-9, "{found:?}");
        // 200 draws of a chance of 0.2 and 100 of 0.1 deviate by 0.028 and 0.03; of their mean by 0.0206.
        let width = found.interval[1] - found.interval[0];
        assert!((width - 2.0 * 1.96 * 0.0206).abs() < 0.006, "{found:?}");
        assert!(found.interval[0] > 0.0);
        let none = paired(&[&worse], &[&worse], &tasks).unwrap();
        assert_eq!(none, Estimate { value: 0.0, interval: [0.0; 2] });
    }

    #[test]
    fn seeds_count_as_their_mean_and_only_shared_records_count() {
        let tasks = ["arc_easy".to_owned()];
        let (first, second) =
            (records("arc_easy", [1.0, 1.0, 1.0]), records("arc_easy", [0.0, 1.0, 0.0]));
        let zero = records("arc_easy", [0.0, 0.0]);
        let found = paired(&[&first, &second], &[&zero], &tasks).unwrap();
        assert_eq!(found.value, 0.75);
        assert_eq!(paired(&[&first], &[&zero], &["piqa".to_owned()]), None);
    }
}
