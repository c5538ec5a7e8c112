//! `top`: the live figures of a running server, in a terminal.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use console::{Term, truncate_str};
use pleach::engine::NoDraft;
use pleach::metrics as names;
use pleach::speculation::Proposer;

/// Shows what a running server does: speed, acceptance, latency and load, from its metrics.
///
/// Every figure is of all models together, and of the time between two looks; a dash stands for nothing seen. Ctrl-C ends it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where the server listens.
    #[arg(long, env = "PLEACH_URL", default_value = "http://127.0.0.1:8080")]
    url: String,
    /// Seconds between two looks.
    #[arg(long, env = "PLEACH_TOP_INTERVAL", default_value_t = 1.0, value_name = "SECONDS")]
    interval: f64,
    /// Print one look and end.
    #[arg(long)]
    once: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let interval = Duration::try_from_secs_f64(args.interval).ok().filter(|it| !it.is_zero());
    let interval = interval.context("--interval must be a positive number of seconds")?;
    let url = format!("{}/metrics", args.url.trim_end_matches('/'));
    let client = ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(5))).build();
    let client = ureq::Agent::from(client);
    let fetch = || -> Result<Page> {
        let text =
            client.get(&url).call().and_then(|mut answer| answer.body_mut().read_to_string());
        let page = Page::parse(&text.with_context(|| url.clone())?);
        ensure!(page.values.contains_key(names::GENERATED_TOKENS), "{url}: no metrics of pleach");
        Ok(page)
    };
    let terminal = Term::stdout();
    let mut before = fetch()?;
    let mut speeds = VecDeque::new();
    if !args.once {
        terminal.clear_screen()?;
    }
    loop {
        std::thread::sleep(interval);
        // A server that restarts is waited for, once it was there.
        let (text, after) = match fetch() {
            Ok(after) => {
                let look = Look { before: &before, after: &after };
                speeds.push_back(look.rate(names::GENERATED_TOKENS));
                if speeds.len() > 40 {
                    speeds.pop_front();
                }
                (look.text(&args.url, speeds.make_contiguous()), after)
            }
            Err(error) if args.once => return Err(error),
            Err(error) => (format!("{error:#}\n"), before),
        };
        before = after;
        if args.once {
            terminal.write_str(&text)?;
            return Ok(());
        }
        show(&terminal, &text)?;
    }
}

/// Writes over what was shown before, line by line, so that nothing flickers.
fn show(terminal: &Term, text: &str) -> std::io::Result<()> {
    let width = terminal.size().1.into();
    terminal.move_cursor_to(0, 0)?;
    for line in text.lines() {
        terminal.clear_line()?;
        terminal.write_line(&truncate_str(line, width, "…"))?;
    }
    terminal.clear_to_end_of_screen()
}

/// One scrape: series, as they are written on the page but for their models, to the sums of all models.
struct Page {
    at: Instant,
    values: BTreeMap<String, f64>,
}

impl Page {
    fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let mut values = BTreeMap::new();
        for (series, value) in lines.filter_map(|line| line.rsplit_once(' ')) {
            if let Ok(value) = value.parse::<f64>() {
                *values.entry(without_model(series)).or_default() += value;
            }
        }
        Self { at: Instant::now(), values }
    }

    fn value(&self, series: &str) -> f64 {
        self.values.get(series).copied().unwrap_or(0.0)
    }

    /// The series of a metric with one label: value of the label → value.
    fn by_label(&self, name: &str, label: &str) -> Vec<(&str, f64)> {
        let start = format!("{name}{{");
        let label = format!("{label}=\"");
        let series = self.values.iter().filter(|(series, _)| series.starts_with(&start));
        series
            .filter_map(|(series, value)| {
                let at = series.find(&label)? + label.len();
                Some((series[at..].split('"').next()?, *value))
            })
            .collect()
    }
}

/// A series of one model as it would be without the label that says which.
fn without_model(series: &str) -> String {
    match series.split_once("{model=\"") {
        None => series.to_owned(),
        Some((name, rest)) => match rest.split_once("\",") {
            None => name.to_owned(),
            Some((_, labels)) => format!("{name}{{{labels}"),
        },
    }
}

/// What happened between two scrapes.
struct Look<'a> {
    before: &'a Page,
    after: &'a Page,
}

impl Look<'_> {
    /// How much a counter grew; one that fell was started anew.
    fn grown(&self, series: &str) -> f64 {
        let (before, after) = (self.before.value(series), self.after.value(series));
        if after < before { after } else { after - before }
    }

    fn rate(&self, series: &str) -> f64 {
        self.grown(series) / (self.after.at - self.before.at).as_secs_f64()
    }

    /// The quantile of a histogram's new observations, in milliseconds: the bound of its bucket.
    fn quantile(&self, name: &str, quantile: f64) -> String {
        let count = self.grown(&format!("{name}_count"));
        let mut buckets: Vec<(f64, f64)> = self
            .after
            .by_label(&format!("{name}_bucket"), "le")
            .into_iter()
            .filter_map(|(le, _)| {
                let grown = self.grown(&format!("{name}_bucket{{le=\"{le}\"}}"));
                Some((le.parse().ok()?, grown))
            })
            .collect();
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        match buckets.iter().find(|(_, below)| *below >= quantile * count) {
            _ if count == 0.0 => "–".into(),
            Some((bound, _)) if bound.is_finite() => format!("≤ {} ms", 1000.0 * bound),
            _ => "over a minute".into(),
        }
    }

    fn text(&self, url: &str, speeds: &[f64]) -> String {
        let of = |part: f64, whole: f64| match whole {
            0.0 => "–".into(),
            whole => format!("{:.0} %", 100.0 * part / whole),
        };
        let over = |part: f64, whole: f64| match whole {
            0.0 => "–".into(),
            whole => format!("{:.2}", part / whole),
        };
        let generated = self.grown(names::GENERATED_TOKENS);
        let accepted = self.grown(names::ACCEPTED_TOKENS);
        let drafts = self.grown(names::DRAFTS);
        let [took, would] = [names::DECODE_STEP, names::DECODE_STEP_WITHOUT]
            .map(|name| self.grown(&format!("{name}_sum")));
        let target = format!("{}{{role=\"target\"}}", names::FORWARD_PASSES);
        let draft = format!("{}{{role=\"draft\"}}", names::FORWARD_PASSES);
        let now = |name| self.after.value(name);
        let (used, blocks) = (now(names::KV_CACHE_USED_BLOCKS), now(names::KV_CACHE_BLOCKS));
        let places: Vec<String> = self
            .after
            .by_label(names::ACCEPTED_PER_POSITION, "position")
            .into_iter()
            .map(|(place, _)| {
                let series = format!("{}{{position=\"{place}\"}}", names::ACCEPTED_PER_POSITION);
                of(self.grown(&series), drafts)
            })
            .collect();
        let by_proposer: Vec<String> = Proposer::ALL
            .map(|proposer| {
                let series = |name| format!("{name}{{proposer=\"{}\"}}", proposer.name());
                let accepted = self.grown(&series(names::PROPOSER_ACCEPTED_TOKENS));
                let drafted = self.grown(&series(names::PROPOSER_DRAFT_TOKENS));
                let [saved, spent] = [names::PROPOSER_SAVED, names::PROPOSER_SPENT].map(|name| {
                    self.grown(&format!("{name}_sum{{proposer=\"{}\"}}", proposer.name()))
                });
                format!(
                    "{} {accepted} of {drafted} ({}), {} s saved a second spent",
                    proposer.name(),
                    of(accepted, drafted),
                    over(saved, spent)
                )
            })
            .into();
        let without: Vec<(&str, f64)> = NoDraft::ALL
            .map(|reason| {
                let name = names::ROUNDS_WITHOUT_DRAFTS;
                (reason.name(), self.grown(&format!("{name}{{reason=\"{}\"}}", reason.name())))
            })
            .into();
        let rounds = drafts + without.iter().map(|(_, count)| count).sum::<f64>();
        let reasons: Vec<String> = without
            .iter()
            .filter(|(_, count)| *count > 0.0)
            .map(|(reason, count)| format!(", {reason} {}", of(*count, rounds)))
            .collect();
        let mut text = String::new();
        let mut line = |name: &str, rest: String| {
            // Writing into a string does not fail.
            let _ = writeln!(text, "{name:<10} {rest}");
        };
        line("pleach", format!("{url}, {:.1} s", (self.after.at - self.before.at).as_secs_f64()));
        line(
            "tokens",
            format!("{:.1} per second  {}", self.rate(names::GENERATED_TOKENS), sparkline(speeds)),
        );
        line(
            "speed-up",
            format!("{} times the speed without speculation, by estimate", over(would, took)),
        );
        line(
            "from",
            format!(
                "accepted {}, recovered {}, bonus {}",
                of(accepted, generated),
                of(self.grown(names::RECOVERED_TOKENS), generated),
                of(self.grown(names::BONUS_TOKENS), generated),
            ),
        );
        line(
            "draft",
            format!(
                "{} accepted, mean acceptance length {}, by position {}",
                of(accepted, self.grown(names::DRAFT_TOKENS)),
                over(drafts + accepted, drafts),
                if places.is_empty() { "–".into() } else { places.join(" ") },
            ),
        );
        line("proposers", by_proposer.join("; "));
        line("rounds", format!("with drafts {}{}", of(drafts, rounds), reasons.concat()));
        line(
            "passes",
            format!(
                "target {:.1}, draft {:.1} per second, {} tokens per target pass",
                self.rate(&target),
                self.rate(&draft),
                over(generated, self.grown(&target)),
            ),
        );
        for (name, metric) in [
            ("first", names::TIME_TO_FIRST_TOKEN),
            ("between", names::INTER_TOKEN_LATENCY),
            ("queue", names::QUEUE_TIME),
        ] {
            let [half, most] = [0.5, 0.95].map(|quantile| self.quantile(metric, quantile));
            line(name, format!("median {half}, 95 of 100 {most}"));
        }
        line(
            "load",
            format!(
                "{} running, {} waiting, K/V cache {used} of {blocks} blocks ({}), {} preemptions",
                now(names::RUNNING_SEQUENCES),
                now(names::WAITING_SEQUENCES),
                of(used, blocks),
                self.grown(names::PREEMPTIONS),
            ),
        );
        text
    }
}

/// Bars up to the largest of the values.
fn sparkline(values: &[f64]) -> String {
    let most = values.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
    let bar = |value: &f64| char::from_u32(0x2581 + (7.0 * value / most).round() as u32);
    values.iter().filter_map(bar).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_at_what_happened_between_two_pages() {
        let page = |text: &str, at: Instant| Page { at, ..Page::parse(text) };
        let now = Instant::now();
        let before = page(
            "# TYPE a counter\npleach_generated_tokens_total{model=\"a\"} 100\n\
             pleach_queue_time_seconds_bucket{model=\"a\",le=\"0.1\"} 5\n\
             pleach_queue_time_seconds_bucket{model=\"a\",le=\"0.5\"} 5\n\
             pleach_queue_time_seconds_bucket{model=\"a\",le=\"+Inf\"} 5\npleach_queue_time_seconds_count{model=\"a\"} 5\n",
            now,
        );
        let after = page(
            "pleach_generated_tokens_total{model=\"a\"} 120\npleach_generated_tokens_total{model=\"b\"} 40\npleach_spec_decode_accepted_tokens_total{model=\"a\"} 20\n\
             pleach_spec_decode_drafts_total{model=\"a\"} 10\npleach_spec_decode_draft_tokens_total{model=\"a\"} 40\n\
             pleach_spec_decode_accepted_tokens_per_position_total{model=\"a\",position=\"0\"} 8\n\
             pleach_spec_decode_accepted_tokens_per_position_total{model=\"a\",position=\"1\"} 4\n\
             pleach_forward_passes_total{model=\"a\",role=\"target\"} 30\n\
             pleach_queue_time_seconds_bucket{model=\"a\",le=\"0.1\"} 7\n\
             pleach_queue_time_seconds_bucket{model=\"a\",le=\"0.5\"} 9\n\
             pleach_queue_time_seconds_bucket{model=\"a\",le=\"+Inf\"} 10\npleach_queue_time_seconds_count{model=\"a\"} 10\n\
             pleach_decode_step_seconds_sum{model=\"a\"} 0.5\n\
             pleach_decode_step_without_speculation_seconds_sum{model=\"a\"} 0.75\n\
             pleach_spec_decode_proposer_draft_tokens_total{model=\"a\",proposer=\"ngram\"} 40\n\
             pleach_spec_decode_proposer_accepted_tokens_total{model=\"a\",proposer=\"ngram\"} 20\n\
             pleach_spec_decode_proposer_saved_seconds_sum{model=\"a\",proposer=\"ngram\"} 0.3\n\
             pleach_spec_decode_proposer_spent_seconds_sum{model=\"a\",proposer=\"ngram\"} 0.1\n\
             pleach_spec_decode_rounds_without_drafts_total{model=\"a\",reason=\"no_match\"} 30\n\
             pleach_kv_cache_used_blocks{model=\"a\"} 1\npleach_kv_cache_used_blocks{model=\"b\"} 2\npleach_kv_cache_blocks{model=\"a\"} 12\n",
            now + Duration::from_secs(2),
        );
        let look = Look { before: &before, after: &after };
        assert_eq!(look.rate(names::GENERATED_TOKENS), 30.0);
        assert_eq!(look.quantile(names::QUEUE_TIME, 0.4), "≤ 100 ms");
        assert_eq!(look.quantile(names::QUEUE_TIME, 0.8), "≤ 500 ms");
        assert_eq!(look.quantile(names::QUEUE_TIME, 0.95), "over a minute");
        let text = look.text("x", &[0.0, 15.0, 30.0]);
        for part in [
            "30.0 per second  ▁▅█",
            "accepted 33 %",
            "50 % accepted, mean acceptance length 3.00, by position 80 % 40 %",
            "2.00 tokens per target pass",
            "1.50 times the speed without",
            "ngram 20 of 40 (50 %), 3.00 s saved a second spent",
            "with drafts 25 %, no_match 75 %",
            "3 of 12 blocks (25 %)",
            "first      median –",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        // A restarted server counts from 0.
        let restarted = Look { before: &after, after: &before };
        assert_eq!(restarted.grown(names::GENERATED_TOKENS), 100.0);
    }
}
