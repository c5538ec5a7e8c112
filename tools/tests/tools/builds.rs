//! `build`, interrupted and not, on a model of two blocks.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::{Completion, Failed};
use pleach::checkpoint::Checkpoint;
use pleach::observe::traffic::Recorded;
use serde_json::Value;

use super::{json, kill_when, run, tools};

/// Two blocks of the default model as a model of its own.
fn two_blocks(folder: &Path) {
    run(folder, "prune --list 1-28 --out two");
}

/// What a folder holds, without what tells of time.
fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    fn visit(root: &Path, folder: &Path, all: &mut BTreeMap<String, Vec<u8>>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                visit(root, &path, all);
                continue;
            }
            let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
            let bytes = std::fs::read(&path).unwrap();
            let text = || String::from_utf8_lossy(&bytes).into_owned();
            let timeless = |text: &str| without_times(serde_json::from_str(text).unwrap());
            let bytes = match path.file_name().unwrap().to_str().unwrap() {
                "loss.svg" | "report.html" => Vec::new(),
                "losses.csv" => {
                    let columns = |line: &str| {
                        line.split(',')
                            .enumerate()
                            .filter(|(at, _)| *at != 1)
                            .map(|(_, c)| c.to_owned() + ",")
                            .collect::<String>()
                    };
                    text().lines().map(columns).collect::<String>().into_bytes()
                }
                "history.jsonl" => text().lines().map(timeless).collect::<String>().into_bytes(),
                name if name.ends_with(".json") => timeless(&text()).into_bytes(),
                _ => bytes,
            };
            all.insert(name, bytes);
        }
    }
    let mut all = BTreeMap::new();
    visit(folder, folder, &mut all);
    all
}

fn without_times(mut value: Value) -> String {
    fn clean(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                fields.retain(|name, _| name != "seconds" && name != "draft_step_cost");
                fields.values_mut().for_each(clean);
            }
            Value::Array(values) => values.iter_mut().for_each(clean),
            _ => {}
        }
    }
    clean(&mut value);
    value.to_string()
}

/// A file system in memory; gone when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None` where mounting is not allowed.
    fn mount(at: PathBuf) -> Option<Self> {
        std::fs::create_dir(&at).unwrap();
        let disk = Self(at);
        disk.mounted("size=1m").then_some(disk)
    }

    fn resize(&self, megabytes: u32) {
        assert!(self.mounted(&format!("remount,size={megabytes}m")));
    }

    fn mounted(&self, options: &str) -> bool {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&self.0);
        mount.output().is_ok_and(|output| output.status.success())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).output();
    }
}

/// An attached drafter is built, killed on the way or not, and built upon.
pub(crate) fn attached_drafters_are_built() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    two_blocks(folder);
    let prompt = |i: usize| format!(r#"{{"id": "p{i}", "turns": ["Name {i} colours."]}}"#);
    let prompts: Vec<String> = (2..8).map(prompt).collect();
    std::fs::write(folder.join("prompts.jsonl"), prompts.join("\n")).unwrap();
    let options = "--model two --prompts prompts.jsonl --eval-prompts prompts.jsonl --answers 6 --max-tokens 24 --steps 6 --draft-vocab 512 --checkpoint-seconds 0 --seed 3";
    let build = |out: &str| format!("build --keep-blocks 1 {options} --out {out}");
    run(folder, &build("whole"));
    let line = build("killed");
    kill_when(folder, &line, "killed/train/history.jsonl", 3);
    run(folder, &line);
    let bytes = |path: &str| std::fs::read(folder.join(path)).unwrap();
    assert!(bytes("whole/draft.gguf") == bytes("killed/draft.gguf"));
    assert!(!folder.join("whole/train/target.states").exists());
    let evaluation = json(&folder.join("whole/evaluation.json"));
    assert!(evaluation["draft_step_cost"].as_f64().unwrap() > 0.0);
    let neurons =
        |draft: &str| Checkpoint::open(&folder.join(draft)).unwrap().config.intermediate_size;
    assert_eq!(neurons("whole/draft.gguf"), 640);
    let narrower = "--intermediate-size 320";
    run(folder, &format!("build --from whole/draft.gguf {narrower} {options} --out more"));
    assert_eq!(neurons("more/draft.gguf"), 320);
}

/// A target whose hidden states leave the range of f16, as Gemma's do, has a drafter that can be trained.
pub(crate) fn states_of_any_size_are_learnt_from() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    two_blocks(folder);
    enlarge(&folder.join("two/model.safetensors"), "model.layers.0.mlp.down_proj.weight");
    std::fs::write(folder.join("prompts.jsonl"), r#"{"id": "p", "turns": ["Say it."]}"#).unwrap();
    run(folder, "generate --model two --prompts prompts.jsonl --max-tokens 24 --out answers.jsonl");
    run(folder, "prune --model two --draft-kind attached --blocks 1 --out pruned");
    let train = "train --model pruned --target two --data answers.jsonl --draft-vocab 512";
    run(folder, &format!("{train} --loss ce --steps 2 --validation 0 --out train"));
    let history = std::fs::read_to_string(folder.join("train/history.jsonl")).unwrap();
    assert_eq!(history.lines().count(), 2, "{history}");
}

/// Multiplies the values of an f32 tensor by 2^16.
fn enlarge(path: &Path, name: &str) {
    let mut bytes = std::fs::read(path).unwrap();
    let length = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..][..length]).unwrap();
    assert_eq!(header[name]["dtype"], "F32");
    let at = |end: usize| 8 + length + header[name]["data_offsets"][end].as_u64().unwrap() as usize;
    for value in bytes[at(0)..at(1)].as_chunks_mut().0 {
        *value = (f32::from_le_bytes(*value) * (1 << 16) as f32).to_le_bytes();
    }
    std::fs::write(path, bytes).unwrap();
}

/// What a build of eight short answers needs in a folder, and its command line, for a folder in it.
fn small_build(folder: &Path) -> String {
    two_blocks(folder);
    let prompt = |i: usize| {
        let turns = if i == 2 { r#"["Name a colour.", "And another."]"# } else { r#"["Say it."]"# };
        format!(r#"{{"id": "p{i}", "category": "c{}", "turns": {turns}}}"#, i % 2)
    };
    let prompts: Vec<String> = (0..8).map(prompt).collect();
    std::fs::write(folder.join("prompts.jsonl"), prompts.join("\n")).unwrap();
    std::fs::write(folder.join("eval.jsonl"), prompts[1..3].join("\n")).unwrap();
    "build --model ../two --draft-kind standalone --keep-blocks 1 --prompts ../prompts.jsonl --eval-prompts ../eval.jsonl --answers 8 --max-tokens 24 --steps 8 --draft-vocab 512 --checkpoint-seconds 0 --seed 3 --out draft".to_owned()
}

/// A build whose disk was full while it wrote the pruned model, a checkpoint, and the trained model ends as an
/// undisturbed one does.
pub(crate) fn a_build_whose_disk_was_full_ends_the_same() -> Result<Completion, Failed> {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let Some(disk) = SmallDisk::mount(folder.join("full")) else {
        return Ok(Completion::ignored_with("needs the right to mount a small disk"));
    };
    let build = small_build(folder);
    std::fs::create_dir(folder.join("whole")).unwrap();
    run(&folder.join("whole"), &build);
    for megabytes in [60, 190, 250] {
        disk.resize(megabytes);
        let output = tools(&disk.0, &build.split(' ').collect::<Vec<_>>());
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && error.contains("No space left"), "{error}");
    }
    disk.resize(2000);
    run(&disk.0, &build);
    let [whole, full] = [&folder.join("whole"), &disk.0].map(|folder| contents(folder));
    assert!(whole.keys().eq(full.keys()));
    for (name, bytes) in &whole {
        assert!(*bytes == full[name], "{name} differs after a full disk");
    }
    Ok(Completion::Completed)
}

/// A build that is killed at random moments ends with the files of an undisturbed one, bit for bit.
pub(crate) fn a_killed_build_ends_the_same() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let build = small_build(folder);
    for name in ["whole", "killed"] {
        std::fs::create_dir(folder.join(name)).unwrap();
    }
    let started = Instant::now();
    run(&folder.join("whole"), &build);
    let seconds = started.elapsed().as_secs_f64();
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    for _ in 0..6 {
        let mut child = Command::new(env!("CARGO_BIN_EXE_pleach-tools"))
            .args(build.split(' '))
            .current_dir(folder.join("killed"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_secs_f64(random.f64() * 0.5 * seconds));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    run(&folder.join("killed"), &build);
    let [whole, killed] = ["whole", "killed"].map(|name| contents(&folder.join(name)));
    let names = |all: &BTreeMap<String, Vec<u8>>| all.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&whole), names(&killed), "seed {seed}");
    for (name, bytes) in &whole {
        assert!(*bytes == killed[name], "{name} differs, seed {seed}");
    }
    assert!(whole["draft/train/model/model.safetensors"].len() > 1_000_000);

    // Going on from an earlier build.
    let from = build
        .replace("--keep-blocks 1", "--from draft/train/model")
        .replace("--out draft", "--out more");
    run(&folder.join("whole"), &from);
    let first = std::fs::read(folder.join("whole/draft/draft.gguf")).unwrap();
    let more = std::fs::read(folder.join("whole/more/draft.gguf")).unwrap();
    assert!(first != more, "it was trained on");
    assert_eq!(json(&folder.join("whole/more/build.json"))["results"]["keep_blocks"], 1);
    // And on what a server recorded, from the packed draft.
    let answers = std::fs::read_to_string(folder.join("whole/draft/answers.jsonl")).unwrap();
    let example = |line: &str| serde_json::from_str::<Value>(line).unwrap();
    let one = example(answers.lines().next().unwrap());
    let tokens = |name: &str| serde_json::from_value::<Vec<u32>>(one[name].clone()).unwrap();
    let tokenizer = tokenizers::Tokenizer::from_file(folder.join("two/tokenizer.json")).unwrap();
    let recorded = Recorded {
        prompt: tokenizer.decode(&tokens("prompt_tokens"), false).unwrap(),
        response: String::new(),
        prompt_tokens: tokens("prompt_tokens"),
        response_tokens: tokens("response_tokens"),
        finish_reason: "length".into(),
        temperature: 0.0,
    };
    let traffic = folder.join("traffic");
    std::fs::create_dir(&traffic).unwrap();
    let line = serde_json::to_string(&recorded).unwrap() + "\n";
    std::fs::write(traffic.join("traffic-2-1.jsonl"), line.repeat(5)).unwrap();
    let refresh = build
        .replace("--keep-blocks 1", "--from draft/draft.gguf")
        .replace("--prompts ../prompts.jsonl", "--from-traffic ../traffic")
        .replace("--out draft", "--out fresh");
    run(&folder.join("whole"), &refresh);
    let read = std::fs::read_to_string(folder.join("whole/fresh/answers.jsonl")).unwrap();
    assert_eq!(read.lines().count(), 5);
    assert_eq!(example(read.lines().next().unwrap())["response_tokens"], one["response_tokens"]);
    // What the model reads is what it wrote by, to the bit.
    let distributions = |name: &str| {
        let bytes = std::fs::read(folder.join(name).join("answers.jsonl.topk")).unwrap();
        bytes[..12 + tokens("response_tokens").len() * 16 * 8].to_vec()
    };
    assert!(distributions("whole/draft") == distributions("whole/fresh"));
    let fresh = std::fs::read(folder.join("whole/fresh/draft.gguf")).unwrap();
    assert!(first != fresh, "it was trained on");
    let wrong = Recorded { prompt: "Say it.".into(), ..recorded };
    let line = serde_json::to_string(&wrong).unwrap();
    std::fs::write(traffic.join("traffic-1-1.jsonl"), line + "\n").unwrap();
    let other = refresh.replace("--out fresh", "--out other");
    let output = tools(&folder.join("whole"), &other.split(' ').collect::<Vec<_>>());
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.contains("another tokenizer"), "{error}");

    let page = std::fs::read_to_string(folder.join("whole/draft/report.html")).unwrap();
    assert!(page.matches("<svg").count() == 2 && page.contains("class=\"drafted\""));
    assert!(!page.contains("src=") && !page.contains("href="), "it needs nothing else");
}

pub(crate) fn the_recipe_of_the_paper() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    two_blocks(folder);
    let prompt = |i: usize| {
        let reference = if i.is_multiple_of(2) {
            format!("{i} + 1 = {0}\\n#### {0}", i + 1)
        } else {
            "Well, that is all there is to it.".into()
        };
        format!(
            r#"{{"id": "p{i}", "category": "c{}", "turns": ["What is {i} + 1?"], "reference": "{reference}"}}"#,
            i % 2
        )
    };
    let prompts: Vec<String> = (0..18).map(prompt).collect();
    std::fs::write(folder.join("prompts.jsonl"), prompts.join("\n")).unwrap();
    std::fs::write(folder.join("few.jsonl"), prompts[..2].join("\n")).unwrap();
    std::fs::create_dir(folder.join("data")).unwrap();
    // The same question with either choice right: every model scores a half.
    let task = r#"{"query": "Which animal barks?", "choices": ["a dog", "a glass"], "gold": 0}"#;
    let tasks = format!("{task}\n{}", task.replace(": 0", ": 1"));
    std::fs::write(folder.join("data/arc_easy.jsonl"), tasks).unwrap();
    std::fs::write(folder.join("data/perplexity.jsonl"), r#"{"text": "The sun is a star."}"#)
        .unwrap();
    let build = "build --recipe paper --model two --keep-blocks 1 --prompts prompts.jsonl --data data --answers 18 --max-tokens 16 --steps 2 --seeds 2 --eval-prompts few.jsonl --out out";
    let said = run(folder, build);
    assert!(said.contains("pruned + self-data + SLERP"), "{said}");
    let table = json(&folder.join("out/paper.json"));
    let rows = table["rows"].as_array().unwrap();
    let names: Vec<&str> = rows.iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(
        names,
        ["original", "pruned", "pruned + SFT", "pruned + self-data", "pruned + self-data + SLERP"]
    );
    for row in rows {
        let average = &row["averages"][0];
        assert_eq!((&average["score"][0], &average["recovery"][0]), (&0.5.into(), &1.0.into()));
        assert_eq!(
            row["seeds"],
            if row["name"] == "original" || row["name"] == "pruned" { 1 } else { 2 }
        );
        assert_eq!(row["alpha"].is_null(), row["name"] == "original");
        if row["name"] != "original" {
            let drafting = &row["mean_acceptance_length"];
            let value = |value: &Value| value.as_f64().unwrap();
            let [low, high] = [0, 1].map(|end| value(&drafting["interval"][end]));
            assert!((low..=high).contains(&value(&drafting["value"])), "{row}");
        }
    }
    let drafters = table["drafters"].as_array().unwrap();
    assert_eq!(drafters.len(), 2, "self-data and SLERP beside SFT");
    assert_eq!(drafters[0]["variant"], "pruned + self-data");
    assert!(drafters[0]["mean_acceptance_length"]["interval"][0].is_number());
    let trainings = table["trainings"].as_array().unwrap();
    assert_eq!(trainings.len(), 8, "four of each seed");
    for training in trainings {
        assert_eq!(training["epochs"], trainings[0]["epochs"], "equal data: {training}");
    }
    assert_eq!(table["comparisons"][0]["value"], 0.0);
    assert_eq!(table["comparisons"].as_array().unwrap().len(), 2);
    assert!(rows[0]["flops_per_token"].as_u64() > rows[1]["flops_per_token"].as_u64());
    let lines = |name: &str| {
        let text = std::fs::read_to_string(folder.join("out").join(name)).unwrap();
        text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).collect::<Vec<_>>()
    };
    let (own, references) = (lines("self-data.jsonl"), lines("references.jsonl"));
    assert_eq!((own.len(), references.len()), (18, 18));
    for (own, reference) in own.iter().zip(&references) {
        assert_eq!(own["prompt_tokens"], reference["prompt_tokens"]);
    }
    assert!(
        references.iter().any(|answer| answer["response"] == "Well, that is all there is to it.")
    );
    assert_eq!((lines("checkable.jsonl").len(), lines("open.jsonl").len()), (9, 9));
    assert!(std::fs::read_to_string(folder.join("out/report.html")).unwrap().contains("Recovery"));
    assert!(run(folder, build).contains("done already"));
}
