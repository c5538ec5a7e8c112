//! The table of the paper: what pruning costs and what training wins back.

use std::fmt::Write as _;

use serde::Serialize;

use crate::commands::score::Scores;

/// One kind of model, scored once for each seed.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Variant {
    name: String,
    flops_per_token: u64,
    pub(super) seeds: Vec<Scores>,
}

/// A line of the table.
#[derive(Debug, Clone, Serialize)]
struct Row {
    name: String,
    /// At 512 tokens of context.
    flops_per_token: u64,
    /// Mean of the average score over the seeds, and its standard deviation.
    average: [f64; 2],
    /// Average score over the original's, in percent: mean and standard deviation over the seeds.
    average_recovery: [f64; 2],
    /// Standard error of the average score that comes from the sample of records.
    standard_error: f64,
    /// Each task's headline metric, mean over the seeds; of perplexity, its word perplexity.
    tasks: Vec<(String, f64)>,
    averages: Vec<f64>,
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct Table {
    rows: Vec<Row>,
}

impl Variant {
    pub(super) fn new(name: &str, flops_per_token: u64) -> Self {
        Self { name: name.into(), flops_per_token, seeds: Vec::new() }
    }

    /// A line beside the average score of the original.
    fn row(&self, original: f64) -> Row {
        let averages: Vec<f64> = self.seeds.iter().map(|scores| scores.average.value).collect();
        // Of an original that knows nothing, nothing can be lost.
        let recovery =
            |average: &f64| if original > 0.0 { 100.0 * average / original } else { 100.0 };
        let recoveries: Vec<f64> = averages.iter().map(recovery).collect();
        let tasks = self.seeds.first().map_or(Vec::new(), |first| {
            let value = |scores: &Scores, task: &str| {
                let task = &scores.tasks[task];
                let metric = task.headline.as_deref().unwrap_or("word_perplexity");
                task.metrics.get(metric).map_or(f64::NAN, |mean| mean.value)
            };
            let mean = |task: &String| {
                let values: Vec<f64> = self.seeds.iter().map(|s| value(s, task)).collect();
                (task.clone(), mean_and_deviation(&values)[0])
            };
            first.tasks.keys().map(mean).collect()
        });
        Row {
            name: self.name.clone(),
            flops_per_token: self.flops_per_token,
            average: mean_and_deviation(&averages),
            average_recovery: mean_and_deviation(&recoveries),
            standard_error: self.seeds.first().map_or(0.0, |s| s.average.standard_error),
            tasks,
            averages,
        }
    }
}

impl Table {
    /// A table whose first variant is the original.
    pub(super) fn new(variants: Vec<Variant>) -> Self {
        let original = variants.first().and_then(|v| v.seeds.first()).map(|s| s.average.value);
        let original = original.unwrap_or(0.0);
        Self { rows: variants.iter().map(|variant| variant.row(original)).collect() }
    }

    pub(super) fn markdown(&self) -> String {
        let mut text = String::from(
            "| model | MFLOPs per token | average score | average recovery | seeds |\n|---|---|---|---|---|\n",
        );
        let spread = |[mean, deviation]: [f64; 2], seeds: usize, scale: f64| {
            let mean = format!("{:.2}", scale * mean);
            if seeds > 1 { format!("{mean} ± {:.2}", scale * deviation) } else { mean }
        };
        for row in &self.rows {
            let seeds = row.averages.len();
            let all: Vec<String> =
                row.averages.iter().map(|a| format!("{:.2}", 100.0 * a)).collect();
            let _ = writeln!(
                text,
                "| {} | {:.1} | {} % | {} % | {} |",
                row.name,
                row.flops_per_token as f64 / 1e6,
                spread(row.average, seeds, 100.0),
                spread(row.average_recovery, seeds, 1.0),
                all.join(", "),
            );
        }
        let Some(first) = self.rows.first() else { return text };
        let _ = writeln!(
            text,
            "\n± is the standard deviation over the seeds; the sample of records adds a standard error of {:.2} points to every average.\n",
            100.0 * first.standard_error
        );
        let names: Vec<&str> = first.tasks.iter().map(|(name, _)| name.as_str()).collect();
        let _ = writeln!(text, "| model | {} |", names.join(" | "));
        let _ = writeln!(text, "|---|{}", "---|".repeat(names.len()));
        for row in &self.rows {
            let cell = |(name, value): &(String, f64)| {
                let scale = if name == "perplexity" { 1.0 } else { 100.0 };
                format!("{:.1}", scale * value)
            };
            let cells: Vec<String> = row.tasks.iter().map(cell).collect();
            let _ = writeln!(text, "| {} | {} |", row.name, cells.join(" | "));
        }
        text
    }
}

/// Mean and standard deviation of a sample.
fn mean_and_deviation(values: &[f64]) -> [f64; 2] {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    [mean, if values.len() > 1 { (squares / (count - 1.0)).sqrt() } else { 0.0 }]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::commands::score::summary::{Mean, TaskScores};

    fn scores(value: f64) -> Scores {
        let mean = Mean { value, standard_error: 0.01 };
        let metrics = BTreeMap::from([("acc".to_owned(), mean)]);
        let task = TaskScores { records: 9, headline: Some("acc".into()), metrics };
        Scores { average: mean, tasks: BTreeMap::from([("mmlu".to_owned(), task)]) }
    }

    #[test]
    fn recovery_is_relative_to_the_original() {
        let variant = |name: &str, values: &[f64]| Variant {
            seeds: values.iter().copied().map(scores).collect(),
            ..Variant::new(name, 2_000_000)
        };
        let table = Table::new(vec![variant("original", &[0.5]), variant("cut", &[0.4, 0.3])]);
        let [mean, deviation] = table.rows[1].average_recovery;
        assert!((mean - 70.0).abs() < 1e-9 && (deviation - 200f64.sqrt()).abs() < 1e-9);
        let text = table.markdown();
        assert!(text.contains("| cut | 2.0 | 35.00 ± 7.07 % | 70.00 ± 14.14 % | 40.00, 30.00 |"));
        assert!(text.contains("| original | 50.0 |"), "{text}");
    }
}
