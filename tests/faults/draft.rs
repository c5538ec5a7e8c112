//! A draft that cannot be used is named and left out; the model serves all the same.

use std::path::{Path, PathBuf};

use pleach::checkpoint::Checkpoint;
use serde_json::json;

use super::support::Server;

const FAILURES: &str = "pleach_spec_decode_draft_failures_total";

fn text(server: &Server) -> String {
    let body = json!({"prompt": "The capital of France is", "max_tokens": 12, "temperature": 0});
    let answer = server.post("/v1/completions", &body);
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["choices"][0]["text"].as_str().unwrap().to_owned()
}

/// A copy of the default draft, changed.
fn copy(name: &str, change: impl FnOnce(&mut Vec<u8>, &Path)) -> Option<PathBuf> {
    let draft = pleach::cli::default_draft()?;
    let mut bytes = std::fs::read(&draft).unwrap();
    change(&mut bytes, &draft);
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, bytes).unwrap();
    Some(path)
}

#[test]
fn a_draft_that_cannot_be_used_is_left_out() {
    let plain = text(&Server::start(&["--no-speculation"]));
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/llama-tied");
    let cut = copy("cut.gguf", |bytes, _| bytes.truncate(bytes.len() / 2));
    for (draft, reason) in [
        (Some("nowhere.gguf".into()), "nowhere.gguf"),
        (Some(golden), "does not fit the target"),
        (cut, "cut.gguf"),
    ] {
        let Some(draft) = draft else { continue };
        let server = Server::start(&["--draft", draft.to_str().unwrap()]);
        assert_eq!(text(&server), plain);
        assert_eq!(server.metric(FAILURES), 1.0);
        let log = server.log();
        assert!(log.contains("serving without the draft") && log.contains(reason), "{log}");
    }
}

#[test]
fn a_draft_of_nans_is_left_out() {
    let nan = copy("nan.gguf", |bytes, draft| {
        // The last norm decides every logit.
        let norm = Checkpoint::open(draft).unwrap().tensor("model.norm.weight").unwrap().data;
        let start = bytes.windows(norm.len()).position(|window| window == norm).unwrap();
        for value in bytes[start..start + norm.len()].chunks_exact_mut(4) {
            value.copy_from_slice(&f32::NAN.to_le_bytes());
        }
    });
    let Some(nan) = nan else { return };
    let server = Server::start(&["--draft", nan.to_str().unwrap(), "--fixed-drafts"]);
    let plain = text(&Server::start(&["--no-speculation"]));
    assert_eq!(text(&server), plain);
    assert!(server.metric(FAILURES) >= 1.0);
    assert!(server.log().contains("the draft model failed"), "{}", server.log());
    assert_eq!(server.metric("pleach_spec_decode_accepted_tokens_total"), 0.0);
}
