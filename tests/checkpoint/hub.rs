//! Models of a hub, against a server that speaks the hub's protocol.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use tempfile::TempDir;

use super::support::{Server, gguf, program};
use super::{convert, golden, load, logits, parts};

/// Revisions and their commits.
const REVISIONS: [(&str, &str); 2] = [
    ("main", "0123456789abcdef0123456789abcdef01234567"),
    ("refs/pr/1", "fedcba9876543210fedcba9876543210fedcba98"),
];

/// A hub that has repositories in folders, `organisation/name/commit`, and remembers what it is asked.
struct Hub {
    endpoint: String,
    folder: TempDir,
    asked: Arc<Mutex<Vec<String>>>,
}

type Shared = (PathBuf, Arc<Mutex<Vec<String>>>);

/// Listings, and files by range.
async fn answer(State((folder, asked)): State<Shared>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    asked.lock().unwrap().push(path.clone());
    let missing = || StatusCode::NOT_FOUND.into_response();
    if let Some((repo, revision)) =
        path.strip_prefix("/api/models/").and_then(|path| path.split_once("/revision/"))
    {
        let revision = revision.replace("%2F", "/");
        let commit = REVISIONS.iter().find(|(name, _)| *name == revision);
        let Some((_, commit)) = commit else { return missing() };
        let folder = folder.join(repo).join(commit);
        if !folder.exists() {
            return missing();
        }
        let mut names = files(&folder);
        names.push("../../../outside".into());
        let siblings: Vec<_> = names.iter().map(|f| serde_json::json!({"rfilename": f})).collect();
        let body = serde_json::json!({"id": repo, "sha": commit, "siblings": siblings});
        return axum::Json(body).into_response();
    }
    let Some((repo, file)) = path.split_once("/resolve/") else { return missing() };
    let Some((commit, name)) = file.split_once('/') else { return missing() };
    let Ok(bytes) = std::fs::read(folder.join(&repo[1..]).join(file)) else { return missing() };
    let range = request.headers().get(header::RANGE).and_then(|range| {
        let (start, end) = range.to_str().ok()?.strip_prefix("bytes=")?.split_once('-')?;
        let end = end.parse::<usize>().map_or(bytes.len(), |end| bytes.len().min(end + 1));
        Some(start.parse::<usize>().ok()?..end)
    });
    let range = range.unwrap_or(0..bytes.len());
    let content = format!("bytes {}-{}/{}", range.start, range.end - 1, bytes.len());
    let headers = [
        ("etag", format!("\"{}-{commit}\"", name.replace('/', "-"))),
        ("x-repo-commit", commit.to_owned()),
        ("accept-ranges", "bytes".to_owned()),
        ("content-range", content),
    ];
    (StatusCode::PARTIAL_CONTENT, headers, bytes[range].to_vec()).into_response()
}

/// The names of all files, those in folders too.
fn files(folder: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        match entry.path().is_dir() {
            true => names.extend(files(&entry.path()).iter().map(|file| format!("{name}/{file}"))),
            false => names.push(name),
        }
    }
    names
}

impl Hub {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let (folder, asked) = (tempfile::tempdir().unwrap(), Arc::default());
        let state: Shared = (folder.path().join("repos"), Arc::clone(&asked));
        let router = Router::new().fallback(answer).with_state(state);
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { endpoint, folder, asked }
    }

    /// The folder of a repository's revision.
    fn repo(&self, name: &str, revision: &str) -> PathBuf {
        let (_, commit) = REVISIONS.iter().find(|(known, _)| *known == revision).unwrap();
        let folder = self.folder.path().join("repos").join(name).join(commit);
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    /// Puts files of a golden into a repository.
    fn put(&self, name: &str, revision: &str, model: &str) -> PathBuf {
        let folder = self.repo(name, revision);
        for file in files(&golden(model)) {
            std::fs::copy(golden(model).join(&file), folder.join(&file)).unwrap();
        }
        folder
    }

    fn cache(&self) -> PathBuf {
        self.folder.path().join("cache")
    }

    /// Cuts a block out of a model that comes from this hub.
    async fn prune(&self, source: &str, environment: &[(&str, &str)]) -> Output {
        let out = self.folder.path().join("pruned");
        let _ = std::fs::remove_dir_all(&out);
        let mut command = Command::new(program("pleach-tools"));
        command
            .args(["prune", "--list", "1", "--model", source, "--out"])
            .arg(out)
            .env("HF_ENDPOINT", &self.endpoint)
            .env("PLEACH_CACHE_DIR", self.cache())
            .env_remove("HF_HUB_OFFLINE")
            .envs(environment.iter().copied());
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }

    /// What is left of a model, computed.
    async fn computed(&self, source: &str, environment: &[(&str, &str)]) -> Vec<f32> {
        let output = self.prune(source, environment).await;
        assert!(output.status.success(), "{source}: {}", String::from_utf8_lossy(&output.stderr));
        let pruned = load(&self.folder.path().join("pruned")).unwrap();
        assert_eq!(pruned.config().num_hidden_layers, 1);
        logits(&pruned)
    }

    /// The error of a model that there is not.
    async fn error(&self, source: &str, environment: &[(&str, &str)]) -> String {
        let output = self.prune(source, environment).await;
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{source}");
        error
    }

    /// What has been asked since the last time.
    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

/// A folder of the hub is served under the repository's name, not the commit's.
#[tokio::test(flavor = "multi_thread")]
async fn models_have_the_names_of_their_repositories() {
    let hub = Hub::start().await;
    let folder = hub.put("pleach/tiny", "main", "llama-tied");
    std::fs::write(folder.join("tokenizer.json"), gguf::letters_json()).unwrap();
    let (cache, endpoint) = (hub.cache(), hub.endpoint.clone());
    let models = move || {
        let environment =
            [("HF_ENDPOINT", &*endpoint), ("PLEACH_CACHE_DIR", cache.to_str().unwrap())];
        Server::start_with(&["--model", "hf:pleach/tiny"], &environment).get("/v1/models")
    };
    let models = tokio::task::spawn_blocking(models).await.unwrap();
    let models: serde_json::Value = serde_json::from_str(&models).unwrap();
    assert_eq!(models["data"][0]["id"], "tiny", "{models}");
}

const OFFLINE: &[(&str, &str)] = &[("HF_HUB_OFFLINE", "1")];

#[tokio::test(flavor = "multi_thread")]
async fn models_come_from_a_hub() {
    let hub = Hub::start().await;
    let folder = hub.put("pleach/tiny", "main", "llama-tied");
    std::fs::write(folder.join("pytorch_model.bin"), "x").unwrap();
    std::fs::write(folder.join("adapter.safetensors"), "x").unwrap();
    let computed = hub.computed("hf:pleach/tiny", &[]).await;
    assert!(computed.iter().all(|v| v.is_finite()));
    let asked = hub.asked();
    assert!(asked.iter().any(|path| path.ends_with("/model.safetensors")), "{asked:?}");
    let others = ["pytorch_model.bin", "adapter.safetensors", "golden.safetensors", "outside"];
    let other = asked.iter().find(|path| others.iter().any(|other| path.ends_with(other)));
    assert_eq!(other, None, "only what serving needs is fetched");
    // What is cached is used, and nobody asked, whatever becomes of the repository.
    hub.put("pleach/tiny", "main", "llama-linear");
    for environment in [&[], OFFLINE] {
        assert!(hub.computed("hf:pleach/tiny", environment).await == computed);
        assert_eq!(hub.asked(), [""; 0]);
    }
    let error = hub.error("hf:pleach/huge", &[]).await;
    assert!(error.contains("pleach/huge"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn caches_answer_where_the_hub_may_not_be_asked() {
    let hub = Hub::start().await;
    hub.put("pleach/tiny", "main", "llama-tied");
    for yes in ["1", "TRUE"] {
        let error = hub.error("hf:pleach/tiny", &[("HF_HUB_OFFLINE", yes)]).await;
        assert!(error.contains("hf:pleach/tiny@main") && error.contains("HF_HUB_OFFLINE"));
        assert!(error.contains("cache"), "{error}");
    }
    assert_eq!(hub.asked(), [""; 0]);
    let computed = hub.computed("hf:pleach/tiny", &[("HF_HUB_OFFLINE", "0")]).await;
    // A cache that the hub's own client filled has no listing of what it lacks.
    let root = hub.cache().join("hub/models--pleach--tiny");
    std::fs::remove_dir_all(root.join("listings")).unwrap();
    assert!(hub.computed("hf:pleach/tiny", OFFLINE).await == computed);
    // A file is lost: it is fetched again, or said to be.
    let lost = root.join("snapshots").join(REVISIONS[0].1).join("model.safetensors");
    std::fs::remove_file(&lost).unwrap();
    hub.asked();
    let error = hub.error("hf:pleach/tiny", OFFLINE).await;
    assert!(error.contains("model.safetensors") && error.contains("HF_HUB_OFFLINE"), "{error}");
    assert_eq!(hub.asked(), [""; 0]);
    assert!(hub.computed("hf:pleach/tiny", &[]).await == computed);
    let fetched = hub.asked();
    assert!(fetched.iter().all(|path| !path.ends_with("config.json")), "{fetched:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn revisions_and_shards_are_those_that_are_named() {
    let hub = Hub::start().await;
    hub.put("pleach/tiny", "main", "llama-tied");
    let folder = hub.put("pleach/tiny", "refs/pr/1", "qwen2-sharded");
    std::fs::write(folder.join("consolidated.safetensors"), "x").unwrap();
    let main = hub.computed("hf:pleach/tiny", &[]).await;
    hub.asked();
    let pull = hub.computed("hf:pleach/tiny@refs/pr/1", &[]).await;
    assert!(pull != main);
    let asked = hub.asked();
    assert_eq!(asked[0], "/api/models/pleach/tiny/revision/refs%2Fpr%2F1");
    let name = |path: &String| path.rsplit('/').next().unwrap_or_default().to_owned();
    let weights = |name: &String| name.ends_with(".safetensors");
    let fetched: BTreeSet<String> = asked.iter().map(name).filter(weights).collect();
    let shards: Vec<String> =
        (1..=5).map(|n| format!("model-{n:05}-of-00005.safetensors")).collect();
    assert!(fetched.iter().eq(&shards), "{fetched:?}");
    assert!(hub.computed("hf:pleach/tiny", OFFLINE).await == main);
    assert!(hub.computed("hf:pleach/tiny@refs/pr/1", OFFLINE).await == pull);
    std::fs::remove_file(folder.join("model-00002-of-00005.safetensors")).unwrap();
    std::fs::remove_dir_all(hub.cache()).unwrap();
    let error = hub.error("hf:pleach/tiny@refs/pr/1", &[]).await;
    let named = "index.json names model-00002-of-00005.safetensors";
    assert!(error.contains(named) && error.contains("pleach/tiny@refs/pr/1"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn quantisations_are_chosen_by_name() {
    let hub = Hub::start().await;
    let folder = hub.repo("pleach/files", "main");
    convert(&golden("llama-tied"), &folder.join("tiny-Q4_K_M.gguf"));
    convert(&golden("llama-linear"), &folder.join("tiny-Q4_K_S.gguf"));
    convert(&golden("llama-yarn"), &folder.join("tiny-a-IQ4_XS.gguf"));
    convert(&golden("llama-yarn"), &folder.join("tiny-b-IQ4_XS.gguf"));
    std::fs::write(folder.join("mmproj-F16.gguf"), "x").unwrap();
    std::fs::create_dir(folder.join("Q8_0")).unwrap();
    parts::write_parts(&folder.join("Q8_0"));
    let computed = hub.computed("hf:pleach/files:q4_k_m", &[]).await;
    let fetched = hub.asked();
    assert!(fetched[1..].iter().all(|path| path.ends_with("/tiny-Q4_K_M.gguf")), "{fetched:?}");
    assert!(hub.computed("hf:pleach/files/tiny-Q4_K_M.gguf", OFFLINE).await == computed);
    assert!(hub.computed("hf:pleach/files:Q4_K_S", &[]).await != computed);
    hub.asked();
    // All parts, by the word or by any of them.
    let whole = hub.computed("hf:pleach/files:Q8_0", &[]).await;
    let fetched = hub.asked();
    for number in 1..=3 {
        let part = format!("/Q8_0/tiny-{number:05}-of-00003.gguf");
        assert!(fetched.iter().any(|path| path.ends_with(&part)), "{fetched:?}");
    }
    let second = "hf:pleach/files/Q8_0/tiny-00002-of-00003.gguf";
    assert!(hub.computed(second, OFFLINE).await == whole);
    let all = "tiny-Q4_K_M.gguf, tiny-Q4_K_S.gguf, tiny-a-IQ4_XS.gguf, tiny-b-IQ4_XS.gguf";
    for (source, expected) in [
        ("hf:pleach/files:Q4_K", "no GGUF file of Q4_K; it has Q8_0/tiny-00001-of-00003.gguf, "),
        ("hf:pleach/files:F16", all),
        ("hf:pleach/files/other.gguf", all),
        ("hf:pleach/files", all),
        ("hf:pleach/files", "`:Q4_K_M` behind the name"),
        ("hf:pleach/files:iq4_xs", "name one, behind a `/`: tiny-a-IQ4_XS.gguf"),
    ] {
        let error = hub.error(source, &[]).await;
        assert!(error.contains(expected) && error.contains("pleach/files@main"), "{error}");
        assert!(!error.contains("mmproj") && !error.contains("00002-of"), "{error}");
    }
    std::fs::remove_file(folder.join("Q8_0/tiny-00003-of-00003.gguf")).unwrap();
    std::fs::remove_dir_all(hub.cache()).unwrap();
    let error = hub.error("hf:pleach/files:Q8_0", &[]).await;
    assert!(error.contains("but no Q8_0/tiny-00003-of-00003.gguf"), "{error}");
}
