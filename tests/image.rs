//! The container image builds from what its build context admits. No Docker is needed: the files that
//! `.dockerignore` admits are copied to an empty folder, and the Dockerfile's own commands run there.
//!
//! Cargo builds beside what this checkout has built, so it compiles the packages of the workspace alone, and without
//! optimisation: what is tested is that they compile. The commands run unchanged but for the place they install to.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A `.dockerignore`: its patterns in order, and whether each admits.
struct Ignore(Vec<(Vec<String>, bool)>);

impl Ignore {
    fn read(text: &str) -> Self {
        let lines =
            text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        Self(
            lines
                .map(|line| {
                    let (pattern, admits) =
                        line.strip_prefix('!').map_or((line, false), |line| (line, true));
                    (pattern.trim_matches('/').split('/').map(str::to_owned).collect(), admits)
                })
                .collect(),
        )
    }

    /// Whether a file is part of the context: the last pattern that matches it, or a folder it lies in, decides.
    fn admits(&self, path: &str) -> bool {
        let parts: Vec<&str> = path.split('/').collect();
        let matches =
            |pattern: &[String]| (1..=parts.len()).any(|end| matches(pattern, &parts[..end]));
        self.0.iter().rev().find(|(pattern, _)| matches(pattern)).is_none_or(|(_, admits)| *admits)
    }
}

/// Whether a path matches a pattern, part by part; `**` stands for any number of parts.
fn matches(pattern: &[String], path: &[&str]) -> bool {
    match (pattern, path) {
        ([], []) => true,
        ([first, rest @ ..], _) if first == "**" => {
            (0..=path.len()).any(|skipped| matches(rest, &path[skipped..]))
        }
        ([first, rest @ ..], [name, others @ ..]) => {
            part_matches(first, name) && matches(rest, others)
        }
        _ => false,
    }
}

/// Whether one part does: `*` stands for any text, `?` for one character.
fn part_matches(pattern: &str, name: &str) -> bool {
    let mut characters = pattern.chars();
    match characters.next() {
        None => name.is_empty(),
        Some('*') => {
            name.char_indices().any(|(at, _)| part_matches(characters.as_str(), &name[at..]))
                || part_matches(characters.as_str(), "")
        }
        Some(one) => name.chars().next().is_some_and(|first| {
            (one == '?' || one == first)
                && part_matches(characters.as_str(), &name[first.len_utf8()..])
        }),
    }
}

/// The files of a checkout, without what git and cargo keep.
fn files(folder: &Path, prefix: &str, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}/{name}") };
        if prefix.is_empty() && [".git", "target"].contains(&&*name) {
            continue;
        }
        if entry.file_type().unwrap().is_dir() {
            files(&entry.path(), &path, found);
        } else {
            found.push(path);
        }
    }
}

/// The commands of the Dockerfile that run cargo, by the name of their stage.
fn builds() -> Vec<(String, String)> {
    let text = fs::read_to_string(root().join("Dockerfile")).unwrap().replace("\\\n", " ");
    let mut stage = String::new();
    let mut builds = Vec::new();
    for line in text.lines() {
        if let Some((_, name)) = line.strip_prefix("FROM ").and_then(|line| line.split_once(" AS "))
        {
            name.clone_into(&mut stage);
        } else if let Some(command) =
            line.strip_prefix("RUN ").filter(|line| line.contains("cargo "))
        {
            let words = command.split_whitespace().skip_while(|word| word.starts_with("--mount="));
            builds.push((stage.clone(), words.collect::<Vec<_>>().join(" ")));
        }
    }
    builds
}

/// An empty folder with exactly the build context in it.
fn context() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("image");
    let _ = fs::remove_dir_all(&folder);
    let ignore = Ignore::read(&fs::read_to_string(root().join(".dockerignore")).unwrap());
    let mut paths = Vec::new();
    files(root(), "", &mut paths);
    for path in paths.iter().filter(|path| ignore.admits(path)) {
        let (from, to) = (root().join(path), folder.join(path));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(&from, &to).unwrap();
    }
    folder
}

#[test]
fn the_image_builds_from_its_context() {
    let folder = context();
    let profiles = ["pleach", "pleach-kernels", "pleach-tools"]
        .map(|package| format!("[profile.release.package.{package}]\nopt-level = 0\n"));
    fs::create_dir(folder.join(".cargo")).unwrap();
    fs::write(folder.join(".cargo/config.toml"), profiles.concat()).unwrap();
    let builds = builds();
    let [(_, build)] = &builds[..] else { panic!("one stage builds, not {builds:?}") };
    let out = folder.join("out");
    let command = build.replace(" /out/", &format!(" {}/", out.display()));
    // The programs themselves go elsewhere: other tests run this checkout's.
    let built = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let output = Command::new("sh")
        .args(["-ec", &command])
        .current_dir(&folder)
        .env("CARGO_BUILD_BUILD_DIR", built)
        .env("CARGO_TARGET_DIR", folder.join("target"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{command}:\n{}", String::from_utf8_lossy(&output.stderr));
    for program in ["pleach", "pleach-tools"] {
        let output = Command::new(out.join("usr/local/bin").join(program)).arg("--help").output();
        assert!(output.unwrap().status.success(), "{program}");
    }
    assert!(out.join("usr/share/pleach/drafts/smollm2-135m-instruct.gguf").is_file());
}

/// Whatever the manifest names is in the context, for features that no test builds with too.
#[test]
fn the_context_has_all_that_the_manifest_names() {
    let folder = root();
    let ignore = Ignore::read(&fs::read_to_string(folder.join(".dockerignore")).unwrap());
    let manifest: toml::Table =
        fs::read_to_string(folder.join("Cargo.toml")).unwrap().parse().unwrap();
    let mut named: Vec<String> = [
        "src/lib.rs",
        "kernels/Cargo.toml",
        "kernels/src/lib.rs",
        "tools/Cargo.toml",
        "tools/src/main.rs",
        "benches/against_candle.rs",
    ]
    .map(str::to_owned)
    .into();
    for bin in manifest["bin"].as_array().unwrap() {
        named.push(bin["path"].as_str().unwrap().to_owned());
    }
    for bench in manifest["bench"].as_array().unwrap() {
        named.push(format!("benches/{}.rs", bench["name"].as_str().unwrap()));
    }
    for test in manifest["test"].as_array().unwrap() {
        named.push(test["path"].as_str().unwrap().to_owned());
    }
    for path in named {
        assert!(folder.join(&path).is_file() && ignore.admits(&path), "{path}");
    }
}

#[test]
fn the_last_pattern_that_matches_decides() {
    let ignore = Ignore::read("# all\n*\n!src\n!drafts/*.gguf\n!a/**/b?.rs\nsrc/secret\n");
    for (path, admitted) in [
        ("README.md", false),
        ("src/main.rs", true),
        ("src/secret/key", false),
        ("drafts/one.gguf", true),
        ("drafts/one.json", false),
        ("a/b1.rs", true),
        ("a/x/y/b2.rs", true),
        ("a/x/b.rs", false),
    ] {
        assert_eq!(ignore.admits(path), admitted, "{path}");
    }
}
