//! The table of the paper: what pruning costs and what training wins back.

use std::fmt::Write as _;

use serde::Serialize;

use super::bootstrap::{Estimate, mean_and_deviation, paired};
use super::drafting::{Acceptance, Beside, ByPrompt, OfSeeds, acceptance, difference};
use crate::commands::score::{Done, Scores};

/// Tasks in which a model of 135 million weights is far enough above chance to lose something.
const WITH_ROOM: [&str; 7] =
    ["arc_challenge", "arc_easy", "gsm8k", "hellaswag", "lambada", "openbookqa", "piqa"];
/// Of them, the one whose training part the prompts have: what is lost in the others is forgotten.
const TRAINED: &str = "gsm8k";
/// The tasks of the paper.
const OF_THE_PAPER: [&str; 6] =
    ["arc_challenge", "gsm8k", "hellaswag", "mmlu", "truthfulqa_mc2", "winogrande"];

/// Tasks that are scored where none are named.
pub(super) fn default_tasks() -> impl Iterator<Item = &'static str> {
    WITH_ROOM.into_iter().chain(["mmlu", "truthfulqa_mc2", "winogrande", "perplexity"])
}

/// One kind of model, measured once for each seed.
pub(super) struct Variant {
    pub(super) name: &'static str,
    pub(super) flops_per_token: u64,
    pub(super) seeds: Vec<Measured>,
}

/// What was measured of one model.
pub(super) struct Measured {
    pub(super) scores: Scores,
    pub(super) records: Vec<Done>,
    /// As a drafter of the unpruned model; none of that itself.
    pub(super) acceptance: Option<ByPrompt>,
}

/// How one model was trained.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Training {
    pub(super) seed: u64,
    pub(super) name: String,
    /// Answers, those kept for validation included, and their tokens.
    pub(super) answers: usize,
    pub(super) answer_tokens: u64,
    pub(super) epochs: f64,
    pub(super) steps: u64,
    pub(super) seconds: f64,
}

/// Mean and standard deviation over the seeds.
type Spread = [f64; 2];

/// A line of the table.
#[derive(Debug, Clone, Serialize)]
struct Row {
    name: &'static str,
    /// At 512 tokens of context.
    flops_per_token: u64,
    /// Share of the original's FLOPs that is saved.
    flops_saved: f64,
    seeds: usize,
    /// As a drafter of the unpruned model.
    #[serde(flatten)]
    acceptance: Option<Acceptance<OfSeeds>>,
    /// One for each group of tasks.
    averages: Vec<Average>,
    /// Each task's headline metric, mean over the seeds; of perplexity, its word perplexity.
    tasks: Vec<(String, f64)>,
}

/// An average score over a group of tasks.
#[derive(Debug, Clone, Serialize)]
struct Average {
    score: Spread,
    /// Over the original's.
    recovery: Spread,
    /// What is above chance, over what the original has above chance.
    recovery_above_chance: Spread,
}

/// Tasks whose scores are averaged.
#[derive(Debug, Clone, Serialize)]
struct Group {
    name: &'static str,
    tasks: Vec<String>,
}

/// A variant beside another, on the same records.
#[derive(Debug, Clone, Serialize)]
struct Comparison {
    variant: &'static str,
    beside: &'static str,
    group: &'static str,
    #[serde(flatten)]
    difference: Estimate,
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct Table {
    groups: Vec<Group>,
    rows: Vec<Row>,
    comparisons: Vec<Comparison>,
    /// As drafters of the unpruned model.
    drafters: Vec<Beside>,
    trainings: Vec<Training>,
}

impl Table {
    /// A table whose first variant is the original. Variants from the third on are compared with the third.
    pub(super) fn new(variants: &[Variant], trainings: Vec<Training>) -> Self {
        let scored = &variants[0].seeds[0].scores.tasks;
        let group = |name, tasks: &[&str]| {
            let tasks = tasks.iter().filter(|task| scored.contains_key(**task));
            Group { name, tasks: tasks.map(|task| (*task).to_owned()).collect() }
        };
        let mut groups =
            vec![group("tasks with room", &WITH_ROOM), group("the paper's six", &OF_THE_PAPER)];
        if scored.contains_key(TRAINED) {
            let others: Vec<&str> = WITH_ROOM.into_iter().filter(|task| *task != TRAINED).collect();
            groups.insert(1, group("those but gsm8k", &others));
        }
        groups.retain(|group| !group.tasks.is_empty());
        let rows = variants.iter().map(|variant| row(variant, &variants[0], &groups)).collect();
        let (mut comparisons, mut drafters) = (Vec::new(), Vec::new());
        for variant in variants.iter().skip(3) {
            let beside = &variants[2];
            for group in &groups {
                let difference = paired(&variant.records(), &beside.records(), &group.tasks);
                comparisons.extend(difference.map(|difference| Comparison {
                    variant: variant.name,
                    beside: beside.name,
                    group: group.name,
                    difference,
                }));
            }
            if let (Some(ours), Some(theirs)) = (variant.drafts(), beside.drafts()) {
                let (variant, beside) = (variant.name, beside.name);
                let difference = difference(&ours, &theirs);
                drafters.extend(difference.map(|difference| Beside {
                    variant,
                    beside,
                    difference,
                }));
            }
        }
        Self { groups, rows, comparisons, drafters, trainings }
    }

    pub(super) fn markdown(&self) -> String {
        let mut text = String::new();
        for (at, group) in self.groups.iter().enumerate() {
            let _ = writeln!(text, "Average over {} ({}):\n", group.name, group.tasks.join(", "));
            text +=
                "| model | MFLOPs per token | average score | recovery | recovery above chance |\n";
            text += "|---|---|---|---|---|\n";
            for row in &self.rows {
                let average = &row.averages[at];
                let _ = writeln!(
                    text,
                    "| {} | {:.1} (-{:.1} %) | {} % | {} % | {} % |",
                    row.name,
                    row.flops_per_token as f64 / 1e6,
                    100.0 * row.flops_saved,
                    percent(average.score, row.seeds),
                    percent(average.recovery, row.seeds),
                    percent(average.recovery_above_chance, row.seeds),
                );
            }
            text.push('\n');
        }
        text += &self.drafting();
        text += "\n± is the standard deviation over the seeds.\n\n";
        if !self.comparisons.is_empty() {
            text += "On the same records, in points of the average, with the interval of a paired bootstrap (95 %):\n\n";
            text += "| | over | difference |\n|---|---|---|\n";
        }
        for Comparison { variant, beside, group, difference } in &self.comparisons {
            let [value, low, high] =
                [difference.value, difference.interval[0], difference.interval[1]]
                    .map(|v| 100.0 * v);
            let _ = writeln!(
                text,
                "| {variant} - {beside} | {group} | {value:+.2} ({low:+.2} to {high:+.2}) |"
            );
        }
        let Some(first) = self.rows.first() else { return text };
        let names: Vec<&str> = first.tasks.iter().map(|(name, _)| name.as_str()).collect();
        let _ = writeln!(text, "\n| model | {} |", names.join(" | "));
        let _ = writeln!(text, "|---|{}", "---|".repeat(names.len()));
        for row in &self.rows {
            let cell = |(name, value): &(String, f64)| {
                let scale = if name == "perplexity" { 1.0 } else { 100.0 };
                format!("{:.1}", scale * value)
            };
            let cells: Vec<String> = row.tasks.iter().map(cell).collect();
            let _ = writeln!(text, "| {} | {} |", row.name, cells.join(" | "));
        }
        text += "\n| training | answers | tokens | epochs | steps | minutes |\n|---|---|---|---|---|---|\n";
        for Training { seed, name, answers, answer_tokens, epochs, steps, seconds } in
            &self.trainings
        {
            let minutes = seconds / 60.0;
            let _ = writeln!(
                text,
                "| seed {seed}, {name} | {answers} | {answer_tokens} | {epochs:.2} | {steps} | {minutes:.1} |"
            );
        }
        text
    }

    /// The part about drafting.
    fn drafting(&self) -> String {
        let mut text = "As a drafter of the unpruned model, with the interval of a bootstrap over prompts (95 %), and \
                        the differences of a paired one:\n\n\
                        | model | mean acceptance length | alpha |\n|---|---|---|\n"
            .to_owned();
        for row in &self.rows {
            let Some(Acceptance { mean_acceptance_length, alpha }) = row.acceptance else {
                continue;
            };
            let cells = [mean_acceptance_length, alpha].map(|OfSeeds { mean, deviation }| {
                let [low, high] = mean.interval;
                format!("{} ({low:.3} to {high:.3})", spread([mean.value, deviation], row.seeds, 3))
            });
            let _ = writeln!(text, "| {} | {} |", row.name, cells.join(" | "));
        }
        for Beside { variant, beside, difference } in &self.drafters {
            let Acceptance { mean_acceptance_length, alpha } = difference;
            let cells = [mean_acceptance_length, alpha].map(|Estimate { value, interval }| {
                format!("{value:+.3} ({:+.3} to {:+.3})", interval[0], interval[1])
            });
            let _ = writeln!(text, "| {variant} - {beside} | {} |", cells.join(" | "));
        }
        text
    }
}

impl Variant {
    /// What became of the drafted tokens, for each seed.
    fn drafts(&self) -> Option<Vec<&ByPrompt>> {
        self.seeds.iter().map(|seed| seed.acceptance.as_ref()).collect()
    }

    fn records(&self) -> Vec<&[Done]> {
        self.seeds.iter().map(|seed| seed.records.as_slice()).collect()
    }
}

fn row(variant: &Variant, original: &Variant, groups: &[Group]) -> Row {
    let seeds = &variant.seeds;
    let over_seeds = |value: &dyn Fn(&Measured) -> f64| {
        mean_and_deviation(&seeds.iter().map(value).collect::<Vec<_>>())
    };
    let average = |group: &Group| {
        let [score, chance] = averages(&original.seeds[0].scores, &group.tasks);
        // Of an original that knows nothing, nothing can be lost.
        let recovery = |value: f64, whole: f64| if whole > 0.0 { value / whole } else { 1.0 };
        let of = |seed: &Measured| averages(&seed.scores, &group.tasks)[0];
        Average {
            score: over_seeds(&of),
            recovery: over_seeds(&|seed| recovery(of(seed), score)),
            recovery_above_chance: over_seeds(&|seed| recovery(of(seed) - chance, score - chance)),
        }
    };
    let value = |seed: &Measured, task: &str| {
        let task = &seed.scores.tasks[task];
        let metric = task.headline.as_deref().unwrap_or("word_perplexity");
        task.metrics.get(metric).map_or(f64::NAN, |mean| mean.value)
    };
    let tasks = original.seeds[0].scores.tasks.keys();
    Row {
        name: variant.name,
        flops_per_token: variant.flops_per_token,
        flops_saved: 1.0 - variant.flops_per_token as f64 / original.flops_per_token as f64,
        seeds: seeds.len(),
        acceptance: variant.drafts().and_then(|seeds| acceptance(&seeds)),
        averages: groups.iter().map(average).collect(),
        tasks: tasks.map(|task| (task.clone(), over_seeds(&|seed| value(seed, task))[0])).collect(),
    }
}

/// The mean of the tasks' headline metrics, and of what chance gives.
fn averages(scores: &Scores, tasks: &[String]) -> [f64; 2] {
    let mean = |value: &dyn Fn(&str) -> f64| {
        tasks.iter().map(|task| value(task)).sum::<f64>() / tasks.len() as f64
    };
    let score = |task: &str| {
        let task = &scores.tasks[task];
        task.headline.as_ref().map_or(f64::NAN, |metric| task.metrics[metric].value)
    };
    [mean(&score), mean(&|task| scores.tasks[task].chance)]
}

fn percent([mean, deviation]: Spread, seeds: usize) -> String {
    spread([100.0 * mean, 100.0 * deviation], seeds, 2)
}

fn spread([mean, deviation]: Spread, seeds: usize, digits: usize) -> String {
    let mean = format!("{mean:.digits$}");
    if seeds > 1 { format!("{mean} ± {deviation:.digits$}") } else { mean }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::commands::evaluate::Accepted;
    use crate::commands::score::summary::{Mean, TaskScores};

    fn measured(value: f64) -> Measured {
        let mean = Mean { value, standard_error: 0.01 };
        let metrics = BTreeMap::from([("acc".to_owned(), mean)]);
        let task = TaskScores { records: 10, headline: Some("acc".into()), chance: 0.25, metrics };
        let scores = Scores {
            average: mean,
            device: None,
            tasks: BTreeMap::from([("mmlu".to_owned(), task)]),
        };
        let right = |question: usize| f64::from((question as f64) < value * 10.0);
        let record = |question: usize| Done {
            task: "mmlu".into(),
            question,
            metrics: BTreeMap::from([("acc".to_owned(), right(question))]),
        };
        let accepted_tokens = (100.0 * value) as u64;
        let drafted = Accepted { drafts: 50, accepted_tokens, recovered_tokens: 100 };
        let acceptance = Some(ByPrompt::from([("p".to_owned(), drafted)]));
        Measured { scores, records: (0..10).map(record).collect(), acceptance }
    }

    fn variant(name: &'static str, flops_per_token: u64, values: &[f64]) -> Variant {
        Variant { name, flops_per_token, seeds: values.iter().copied().map(measured).collect() }
    }

    #[test]
    fn recovery_is_relative_to_the_original_and_to_chance() {
        let original =
            Variant { seeds: vec![measured(0.5)], ..variant("original", 2_000_000, &[]) };
        let variants = [
            original,
            variant("cut", 1_500_000, &[0.4, 0.3]),
            variant("tuned", 1_500_000, &[0.3]),
            variant("distilled", 1_500_000, &[0.5]),
        ];
        let table = Table::new(&variants, vec![]);
        let Average { recovery: [mean, deviation], recovery_above_chance, .. } =
            table.rows[1].averages[0];
        assert!((mean - 0.7).abs() < 1e-9 && (deviation - 0.02f64.sqrt()).abs() < 1e-9);
        assert!((recovery_above_chance[0] - 0.4).abs() < 1e-9, "(0.35 - 0.25) / (0.5 - 0.25)");
        let text = table.markdown();
        for line in [
            "| cut | 1.5 (-25.0 %) | 35.00 ± 7.07 % | 70.00 ± 14.14 % | 40.00 ± 28.28 % |",
            "| cut | 1.700 ± 0.141 (1.700 to 1.700) |",
            "| tuned | 1.600 (1.600 to 1.600) | 0.231 (",
            "| distilled - tuned | +0.400 (+0.400 to +0.400) | +0.103 (",
            "| original | 50.0 |",
            "| distilled - tuned | the paper's six | +20.00 (",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }
}
