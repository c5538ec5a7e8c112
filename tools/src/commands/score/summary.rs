//! Grades of questions, and their means by task.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::tasks::{Metrics, TASKS};

/// A mean over questions.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Mean {
    pub(crate) value: f64,
    /// Standard error of the mean; 0 for perplexities, which have none here.
    pub(crate) standard_error: f64,
}

/// The result of one task, by metric.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct TaskScores {
    pub(crate) records: usize,
    /// The metric that counts in the average.
    pub(crate) headline: Option<String>,
    /// What blind guessing would reach; 0 where there is nothing to choose from.
    #[serde(default)]
    pub(crate) chance: f64,
    #[serde(flatten)]
    pub(crate) metrics: BTreeMap<String, Mean>,
}

/// The whole result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Scores {
    /// Mean of the tasks' headline metrics, as in leaderboards.
    pub(crate) average: Mean,
    /// The CUDA device that computed; absent for the processor, and for another server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) device: Option<String>,
    pub(crate) tasks: BTreeMap<String, TaskScores>,
}

/// A graded question, as the journal and the file of records keep it.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Done {
    pub(crate) task: String,
    /// Number of the record in its file, from 0.
    pub(crate) question: usize,
    pub(crate) metrics: Metrics,
}

/// Means with the standard error of the sample mean.
pub(super) fn summary(done: &[Done]) -> Scores {
    let mut tasks = BTreeMap::new();
    for task in TASKS {
        let own: Vec<&Metrics> =
            done.iter().filter(|done| done.task == task.name).map(|done| &done.metrics).collect();
        if own.is_empty() {
            continue;
        }
        let all = |name: &str| own.iter().filter_map(|m| m.get(name)).copied().collect::<Vec<_>>();
        let mut metrics = BTreeMap::new();
        for name in ["acc", "acc_norm", "exact_match"] {
            let values = all(name);
            if !values.is_empty() && (name != "acc_norm" || task.normed()) {
                metrics.insert(name.to_owned(), mean(&values));
            }
        }
        let sum = |name: &str| all(name).iter().sum::<f64>();
        for (name, unit) in [("word_perplexity", "words"), ("byte_perplexity", "bytes")] {
            if sum(unit) > 0.0 {
                let value = (-sum("log_likelihood") / sum(unit)).exp();
                metrics.insert(name.to_owned(), Mean { value, standard_error: 0.0 });
            }
        }
        let headline = task.headline.map(str::to_owned);
        let chance = all("chance");
        let chance = if chance.is_empty() { 0.0 } else { mean(&chance).value };
        let scores = TaskScores { records: own.len(), headline, chance, metrics };
        tasks.insert(task.name.to_owned(), scores);
    }
    let headlines: Vec<Mean> =
        tasks.values().filter_map(|task| Some(task.metrics[task.headline.as_ref()?])).collect();
    let count = headlines.len().max(1) as f64;
    let average = Mean {
        value: headlines.iter().map(|mean| mean.value).sum::<f64>() / count,
        standard_error: headlines.iter().map(|m| m.standard_error.powi(2)).sum::<f64>().sqrt()
            / count,
    };
    Scores { average, device: None, tasks }
}

fn mean(values: &[f64]) -> Mean {
    let count = values.len() as f64;
    let value = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|v| (v - value).powi(2)).sum();
    let standard_error =
        if values.len() > 1 { (squares / (count - 1.0) / count).sqrt() } else { 0.0 };
    Mean { value, standard_error }
}

pub(super) fn print(scores: &Scores) {
    println!("task            records  metric            value  standard error");
    for (name, task) in &scores.tasks {
        for (metric, mean) in &task.metrics {
            let mark = if task.headline.as_ref() == Some(metric) { '*' } else { ' ' };
            println!(
                "{name:<15} {:>7}  {metric:<15}{mark} {:>7.4}  {:.4}",
                task.records, mean.value, mean.standard_error
            );
        }
    }
    let Mean { value, standard_error } = scores.average;
    println!("average of *                             {value:>7.4}  {standard_error:.4}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_have_the_error_of_a_sample() {
        let of = mean(&[1.0, 0.0, 0.0, 1.0]);
        assert!((of.value - 0.5).abs() < 1e-12);
        assert!((of.standard_error - (1.0f64 / 3.0 / 4.0).sqrt()).abs() < 1e-12);
        assert_eq!(mean(&[1.0]).standard_error, 0.0);
    }

    #[test]
    fn the_average_takes_headlines_alone() {
        let done = |task: &str, metrics: &[(&str, f64)]| Done {
            task: task.into(),
            question: 0,
            metrics: metrics.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect(),
        };
        let scores = summary(&[
            done("arc_easy", &[("acc", 0.0), ("acc_norm", 1.0)]),
            done("lambada", &[("acc", 0.5), ("log_likelihood", -2.0), ("words", 1.0)]),
            done("mmlu", &[("acc", 0.0), ("acc_norm", 1.0)]),
            done("perplexity", &[("log_likelihood", -4.0), ("words", 2.0), ("bytes", 8.0)]),
        ]);
        assert!((scores.average.value - 0.5).abs() < 1e-12);
        let perplexity = |task: &str, metric: &str| scores.tasks[task].metrics[metric].value;
        assert!((perplexity("lambada", "word_perplexity") - 2f64.exp()).abs() < 1e-9);
        assert!((perplexity("perplexity", "byte_perplexity") - 0.5f64.exp()).abs() < 1e-9);
        assert!(!scores.tasks["mmlu"].metrics.contains_key("acc_norm"));
    }
}
