//! `report`: a build on one page.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use pleach::checkpoint::write::atomically;
use serde::Serialize;
use serde_json::{Value, json};

/// Shows a build on one HTML page that needs nothing else: pictures, tables, samples with the drafted
/// tokens coloured, and what it takes to repeat it. `build` ends with it; its parts are whatever is there.
#[derive(Debug, Clone, clap::Args, Serialize)]
pub(crate) struct Args {
    /// Folder of a build; the page is written there, as report.html.
    #[arg(long, env = "PLEACH_OUT", value_name = "DIR", default_value = "draft")]
    pub(crate) out: PathBuf,
}

const PAGE: &str = include_str!("../../data/report.html");

pub(crate) fn run(args: &Args) -> Result<()> {
    write(&args.out)
}

/// Writes FOLDER/report.html.
pub(crate) fn write(folder: &Path) -> Result<()> {
    let build = read(folder, "build.json")?;
    let importance = folder.join("importance.svg");
    ensure!(
        build.is_some() || importance.exists(),
        "{}: has no build.json and no importance.svg of a build",
        folder.display()
    );
    let search = folder.join("search/search.svg");
    let mut losses = Vec::new();
    for path in loss_pictures(folder)? {
        let picture = picture(&path)?;
        let name = path.parent().and_then(|parent| parent.strip_prefix(folder).ok());
        let name = name.map_or_else(String::new, |name| name.display().to_string());
        losses.push(json!({"name": name, "picture": picture}));
    }
    let notes = ["answers.jsonl.manifest.json", "self-data.jsonl.manifest.json"];
    let notes = notes.map(|name| read(folder, name)).into_iter().collect::<Result<Vec<_>>>()?;
    let name = folder.canonicalize().ok();
    let name = name.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy());
    let context = json!({
        "name": name,
        "command": build.as_ref().map(|build| command(&build["options"])),
        "options": build.as_ref().map(|build| format!("{:#}", build["options"])),
        "build": build,
        "heat_map": if importance.exists() { Some(picture(&importance)?) } else { None },
        "search": if search.exists() { Some(picture(&search)?) } else { None },
        "losses": losses,
        "answers": notes.into_iter().flatten().next(),
        "evaluation": read(folder, "evaluation.json")?,
        "table": read(folder, "paper.json")?,
    });
    let mut environment = minijinja::Environment::new();
    environment.add_template("report.html", PAGE).context("the page's template")?;
    let page = environment
        .get_template("report.html")
        .and_then(|page| page.render(minijinja::value::Serde(context)));
    let page = page.context("the page's template")?;
    let path = folder.join("report.html");
    atomically(&path, |writer| std::io::Write::write_all(writer, page.as_bytes()))?;
    println!("{}", path.display());
    Ok(())
}

/// A JSON file, where there is one.
fn read(folder: &Path, name: &str) -> Result<Option<Value>> {
    let path = folder.join(name);
    if !path.exists() {
        return Ok(None);
    }
    let context = || path.display().to_string();
    let bytes = std::fs::read(&path).with_context(context)?;
    serde_json::from_slice(&bytes).map(Some).with_context(context)
}

/// An SVG file as part of a page.
fn picture(path: &Path) -> Result<String> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    Ok(text[text.find("<svg").unwrap_or(0)..].to_owned())
}

/// The loss curves of all trainings below a folder, in order of name.
fn loss_pictures(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![(folder.to_owned(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() && depth < 2 {
                folders.push((path, depth + 1));
            } else if path.file_name().is_some_and(|name| name == "loss.svg") {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// The command line that options came from.
fn command(options: &Value) -> String {
    let mut line = String::from("pleach-tools build");
    add_flags(&mut line, options);
    line
}

fn add_flags(line: &mut String, options: &Value) {
    for (name, value) in options.as_object().into_iter().flatten() {
        let text = match value {
            Value::Object(_) => {
                add_flags(line, value);
                continue;
            }
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            Value::Array(all) if !all.is_empty() => {
                let text = |value: &Value| value.as_str().map_or(value.to_string(), str::to_owned);
                all.iter().map(text).collect::<Vec<_>>().join(",")
            }
            _ => continue,
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,".contains(c);
        let text = match text.chars().all(plain) {
            true => text,
            false => format!("'{}'", text.replace('\'', r"'\''")),
        };
        *line += &format!(" --{} {text}", name.replace('_', "-").to_lowercase());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_become_a_command() {
        let options = json!({
            "model": {"model": "pypi:x", "threads": null},
            "keep_blocks": 8, "prompts": "it's here", "paper": {"tasks": ["a", "b"]},
        });
        let line = command(&options);
        for part in
            [" --model pypi:x", " --keep-blocks 8", r" --prompts 'it'\''s here'", " --tasks a,b"]
        {
            assert!(line.contains(part), "{line}");
        }
        assert!(!line.contains("threads"));
    }

    #[test]
    fn what_models_and_prompts_say_is_text() {
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        assert!(write(folder.path()).is_err());
        put("build.json", r#"{"options": {"seed": 1}, "inputs": [], "version": "0"}"#);
        let piece = json!({"text": "<script>", "drafted": true});
        let sample = json!({"category": "qa", "prompt": "<b>", "answer": [piece]});
        let report = json!({
            "mean_acceptance_length": 2.0, "alpha": 0.5, "draft_acceptance_rate": 0.4,
            "accepted_per_position": [0.5, 0.25], "answers": 1, "generated_tokens": 4,
        });
        let mut evaluation = report.clone();
        evaluation["draft_step_cost"] = json!(0.2);
        evaluation["draft_flop_share"] = json!(0.2);
        evaluation["categories"] = json!({"qa": report});
        evaluation["samples"] = json!([sample]);
        put("evaluation.json", &evaluation.to_string());
        write(folder.path()).unwrap();
        let page = std::fs::read_to_string(folder.path().join("report.html")).unwrap();
        assert!(page.contains("&lt;script&gt;") && page.contains("&lt;b&gt;"), "{page}");
        assert!(!page.contains("<script>") && !page.contains("src=") && !page.contains("href="));
        assert!(page.contains("pleach-tools build --seed 1"));
    }
}
