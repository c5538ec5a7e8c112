//! The documents name commands, flags and metrics that exist.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use pleach::metrics::{ALL, Metric};
use serde_json::{Value, json};

use super::support::{self, Server};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn documents() -> Vec<(String, String)> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(root().join("docs"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|it| it == "md"))
        .collect();
    paths.extend(["README.md", "benches/README.md"].map(|name| root().join(name)));
    paths.sort();
    let read =
        |path: PathBuf| (path.display().to_string(), std::fs::read_to_string(&path).unwrap());
    paths.into_iter().map(read).collect()
}

/// The flags that `PROGRAM COMMAND --help` explains; `None` where there is no such command.
fn flags(program: &str, command: Option<&str>) -> Option<BTreeSet<String>> {
    let output =
        Command::new(support::program(program)).args(command).arg("--help").output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    output.status.success().then(|| found(&help))
}

/// Everything that looks like a long flag.
fn found(text: &str) -> BTreeSet<String> {
    let part = |c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_');
    let words = text.split(part).filter(|word| word.starts_with("--") && word.len() > 3);
    words.map(str::to_owned).collect()
}

/// The commands in the shell blocks of a document, a line each.
fn commands(text: &str) -> Vec<String> {
    let blocks = text.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
    let joined: String = blocks.collect::<String>().replace("\\\n", " ");
    joined
        .lines()
        .map(|line| line.split(" #").next().unwrap_or_default().trim().to_owned())
        .collect()
}

#[test]
fn the_documents_name_flags_that_exist() {
    let mut helps = BTreeMap::new();
    let mut checked = 0;
    let mut known: BTreeSet<String> = BTreeSet::new();
    let tools = [
        "build",
        "importance",
        "prune",
        "generate",
        "train",
        "merge",
        "pack",
        "evaluate",
        "report",
        "score",
        "search",
        "bench",
        "top",
    ];
    known.extend(flags("pleach", None).unwrap());
    known.extend(flags("pleach", Some("check")).unwrap());
    for command in tools {
        known.extend(flags("pleach-tools", Some(command)).unwrap());
    }
    for (path, text) in documents() {
        for line in commands(&text) {
            let mut words = line.split_whitespace().skip_while(|word| word.contains("=\""));
            let Some(program @ ("pleach" | "pleach-tools")) = words.next() else { continue };
            let command = words.next().filter(|word| !word.starts_with('-')).map(str::to_owned);
            assert!(command.is_some() || program == "pleach", "{path}: {line}");
            let key = (program.to_owned(), command.clone());
            let help = helps.entry(key).or_insert_with(|| flags(program, command.as_deref()));
            let Some(help) = help else { panic!("{path}: no such command: {line}") };
            for flag in found(&line) {
                assert!(help.contains(&flag), "{path}: {flag} is no flag of: {line}");
                checked += 1;
            }
        }
        // In running text: a flag of ours, alone or with its value.
        for code in text.split('`').skip(1).step_by(2).filter(|code| code.starts_with("--")) {
            let flag = code.split([' ', '=']).next().unwrap_or(code);
            let foreign = ["--target", "--release", "--bench", "--test", "--lib"].contains(&flag);
            assert!(foreign || known.contains(flag), "{path}: `{flag}` is no flag");
            checked += 1;
        }
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if !link.contains("://") && !link.starts_with('#') {
                let file = Path::new(&path).parent().unwrap().join(link.split('#').next().unwrap());
                assert!(file.exists(), "{path}: nothing at {link}");
            }
        }
    }
    assert!(checked > 20, "{checked}");
}

/// Every metric of a server is in its table, and the other way round.
#[test]
fn the_metrics_are_those_of_the_table() {
    let server = Server::start(&["--max-model-len", "256"]);
    let body = json!({"prompt": "1, 2, 3,", "max_tokens": 8, "temperature": 0});
    assert_eq!(server.post("/v1/completions", &body).status, 200);
    let page = server.get("/metrics");
    let served: BTreeSet<&str> =
        page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let text = std::fs::read_to_string(root().join("docs/metrics.md")).unwrap();
    let part = |c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `pleach_"));
    let documented: BTreeSet<String> = rows
        .flat_map(|row| {
            let cell = format!("pleach_{}", row.split(" | ").next().unwrap_or_default());
            let names = cell.split(part).filter(|word| word.starts_with("pleach_"));
            names.map(str::to_owned).collect::<Vec<_>>()
        })
        .collect();
    for name in &served {
        assert!(documented.contains(*name), "{name} is not in docs/metrics.md");
    }
    // Without keys and meters there are none of theirs; positions appear with the first draft accepted.
    let absent = [
        "pleach_key_tokens_total",
        "pleach_energy_joules_total",
        "pleach_spec_decode_accepted_tokens_per_position_total",
    ];
    for name in documented.iter().filter(|name| !absent.contains(&&***name)) {
        assert!(served.contains(&**name), "{name} is in docs/metrics.md, but not on the page");
    }
}

/// Every query of the dashboard asks for the replicas that are chosen, and for the models where a metric has series of
/// each.
#[test]
fn the_dashboard_asks_for_what_is_chosen() {
    let text = std::fs::read_to_string(root().join("deploy/grafana/dashboards/pleach.json"));
    let board: Value = serde_json::from_str(&text.unwrap()).unwrap();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let variables = list(&board["templating"]["list"]);
    let names: Vec<&str> = variables.iter().map(|it| it["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["instance", "model"]);
    let all = |it: &Value| {
        it["multi"] == true && it["includeAll"] == true && it["current"]["value"] == "$__all"
    };
    assert!(variables.iter().all(all), "{variables:?}");
    let mut checked = 0;
    for target in list(&board["panels"]).iter().flat_map(|panel| list(&panel["targets"])) {
        let query = target["expr"].as_str().unwrap();
        for (at, _) in query.match_indices("pleach_") {
            let (series, rest) = query[at..].split_once('{').unwrap();
            let parts = ["", "_bucket", "_sum", "_count"];
            let is = |metric: &&Metric| {
                parts.iter().any(|part| format!("{}{part}", metric.name) == series)
            };
            let Some(metric) = ALL.iter().find(is) else {
                panic!("{series} is no metric: {query}")
            };
            let chosen = rest.split('}').next().unwrap();
            assert!(chosen.contains("instance=~\"$instance\""), "{query}");
            assert_eq!(chosen.contains("model=~\"$model\""), metric.is_of_a_model(), "{query}");
            checked += 1;
        }
    }
    assert!(checked > 40, "{checked}");
}
